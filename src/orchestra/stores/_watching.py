"""A watch: reads the log of commits from where it is, and waits at its end."""

from __future__ import annotations

from collections import deque
from typing import Self, final

import anyio
import anyio.lowlevel

from orchestra.revisions import Change, Commit, Logged
from orchestra.stores._transaction import FIRST_KEY, Codecs
from orchestra.stores.engine import StoreEngine

__all__ = ("EngineWatch",)


@final
class EngineWatch:
    """Iterates over the commits after a revision; see `MVCCStore.watch`."""

    def __init__(
        self,
        engine: StoreEngine,
        codecs: Codecs,
        namespace: str,
        prefix: str,
        since: int,
        batch: int,
    ) -> None:
        self._engine = engine
        self._codecs = codecs
        self._namespace = namespace
        self._prefix = prefix
        self._seen = since
        self._batch = batch
        self._ready: deque[Logged] = deque()
        self._is_closed = False

    def close(self) -> None:
        """End the iteration."""
        self._is_closed = True
        self._ready.clear()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Commit:
        await anyio.lowlevel.checkpoint()
        while True:
            if self._is_closed:
                raise anyio.ClosedResourceError
            while self._ready:
                commit = self._decode(self._ready.popleft())
                if commit is not None:
                    return commit
            logged = await self._engine.log(self._namespace, self._seen, self._batch)
            if logged:
                self._seen = logged[-1].revision
                self._ready.extend(logged)
            else:
                await self._engine.wait(self._namespace, self._seen)

    def _decode(self, logged: Logged) -> Commit | None:
        changes = tuple(
            Change(
                key=key,
                value=None if stored.body is None else self._codecs.decode(key, stored.body),
                is_deleted=stored.body is None,
                previous=stored.previous,
            )
            for key, stored in logged.changes.items()
            if key.startswith(self._prefix) and (key >= FIRST_KEY or self._prefix)
        )
        if not changes:
            return None
        return Commit(
            revision=logged.revision, time=logged.time, author=logged.author, changes=changes
        )

    def __repr__(self) -> str:
        return f"<watch {self._prefix!r} of {self._namespace!r} seen={self._seen}>"
