"""`EngineStore`: the store over an engine. What engines have in common is here, once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from random import Random
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import anyio

from orchestra._core.chain import read_changes
from orchestra.errors import ConflictError
from orchestra.revisions import (
    AuditRecord,
    Commit,
    Contention,
    Difference,
    Entry,
    Footprint,
    KeyDigest,
    StoreLease,
    StoreStatistics,
    Verification,
)
from orchestra.storage import Codec, Merge, MVCCStore, Transaction
from orchestra.stores._leasing import hold_lease
from orchestra.stores._lines import Lines
from orchestra.stores._transacting import Transacting
from orchestra.stores._transaction import (
    FIRST_KEY,
    Codecs,
    Counters,
    EngineSnapshot,
    EngineTransaction,
    check_key,
)
from orchestra.stores._watching import EngineWatch
from orchestra.stores.engine import StoreEngine

__all__ = ("EngineStore",)

T = TypeVar("T")
P = ParamSpec("P")


class _Shared:
    """What all namespaces of one open store have in common."""

    def __init__(
        self,
        engine: StoreEngine,
        codecs: Mapping[str, Codec] | None,
        contention: Contention | None,
        random: Random | None,
    ) -> None:
        self.engine = engine
        self.codecs = Codecs(codecs or {})
        self.contention = contention or Contention()
        self.random = random or Random()  # noqa: S311  (jitter and ids, no secrets)
        self.is_open = False
        self.was_open = False
        self._prefix = f"{self.random.getrandbits(64):016x}"
        self._ids = 0
        self.spaces: dict[str, tuple[Counters, Lines]] = {}

    def new_id(self) -> str:
        self._ids += 1
        return f"{self._prefix}-{self._ids:x}"

    def space(self, name: str) -> tuple[Counters, Lines]:
        if name not in self.spaces:
            self.spaces[name] = (Counters(), Lines())
        return self.spaces[name]


class EngineStore(MVCCStore):
    """An `MVCCStore` over any `StoreEngine`.

    Args:
        engine: The engine; entering the store opens it, leaving closes it.
        codecs: For each prefix the codec of its keys' values; the longest prefix counts. Keys
            without one hold plain JSON values.
        contention: How `transact` behaves when it meets others.
        random: Makes ids and jitter; None: seeded by the operating system.
    """

    def __init__(
        self,
        engine: StoreEngine,
        *,
        codecs: Mapping[str, Codec] | None = None,
        contention: Contention | None = None,
        random: Random | None = None,
    ) -> None:
        self._bind(_Shared(engine, codecs, contention, random), "")

    def _bind(
        self,
        shared: _Shared,
        name: str,
        author: str = "",
        merge: Merge | None = None,
        snapshot_isolation: bool = False,  # noqa: FBT001, FBT002  (private)
    ) -> None:
        self._shared = shared
        self._engine = shared.engine
        self._name = name
        self._author = author
        self._merge = merge
        self._snapshot_isolation = snapshot_isolation
        self._counters, self._lines = shared.space(name)

    def _view(self, name: str, **options: Any) -> EngineStore:
        view = EngineStore.__new__(EngineStore)
        view._bind(self._shared, name, **options)  # noqa: SLF001  (another of our own)
        return view

    @property
    def name(self) -> str:
        return self._name

    @property
    def codecs(self) -> Codecs:
        """The codecs."""
        return self._shared.codecs

    def namespace(self, name: str) -> MVCCStore:
        name.encode()
        return self._view(name)

    def using(
        self,
        *,
        author: str = "",
        merge: Merge | None = None,
        snapshot_isolation: bool = False,
    ) -> MVCCStore:
        return self._view(
            self._name, author=author, merge=merge, snapshot_isolation=snapshot_isolation
        )

    async def namespaces(self) -> tuple[str, ...]:
        self._check_open()
        return tuple(await self._engine.namespaces())

    async def revision(self) -> int:
        async with self.snapshot() as snap:
            return snap.revision

    # --- transactions ---

    def transaction(
        self,
        *,
        author: str = "",
        snapshot_isolation: bool = False,
        transaction_id: str | None = None,
    ) -> EngineTransaction:
        """Return a transaction; see `MVCCStore.transaction`."""
        self._check_open()
        return EngineTransaction(
            self._engine,
            self._shared.codecs,
            self._counters,
            self._name,
            author=author or self._author,
            transaction_id=transaction_id or self._shared.new_id(),
            is_new=transaction_id is None,
            snapshot_isolation=snapshot_isolation or self._snapshot_isolation,
        )

    def snapshot(self, revision: int | None = None) -> EngineSnapshot:
        self._check_open()
        return EngineSnapshot(
            self._engine, self._shared.codecs, self._counters, self._name, revision
        )

    async def transact(
        self,
        fn: Callable[Concatenate[Transaction, P], Awaitable[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        self._check_open()

        def begin(queues: bool) -> EngineTransaction:  # noqa: FBT001  (a callback)
            return EngineTransaction(
                self._engine,
                self._shared.codecs,
                self._counters,
                self._name,
                author=self._author,
                transaction_id=self._shared.new_id(),
                is_new=True,
                snapshot_isolation=self._snapshot_isolation,
                lines=self._lines if queues else None,
            )

        attempts = Transacting(
            begin,
            counters=self._counters,
            lines=self._lines,
            contention=self._shared.contention,
            random=self._shared.random,
            merge=self._merge,
        )
        return await attempts.run(lambda tx: fn(tx, *args, **kwargs))

    async def get(self, key: str, default: Any = None) -> Any:
        async with self.transaction() as tx:
            return await tx.get(key, default)

    async def put(self, key: str, value: Any) -> int:
        self._check_open()
        shared = self._shared
        footprint = Footprint()
        footprint.writes[check_key(key)] = shared.codecs.encode(key, value)
        return await self._engine.commit(
            self._name,
            footprint,
            author=self._author,
            transaction_id=shared.new_id(),
            is_new=True,
            note=self._counters.count_commit,
        )

    async def put_if(self, key: str, value: Any, *, revision: int) -> int:
        async with self.transaction() as tx:
            stored = await tx.read(check_key(key))
            found = 0 if stored is None else stored.revision
            if found != revision:
                raise ConflictError((key,), revision, tx.read_revision or 0)
            tx.put(key, value)
        if tx.revision is None:
            raise AssertionError("unreachable")
        return tx.revision

    async def outcome(self, transaction_id: str) -> int | None:
        self._check_open()
        return await self._engine.outcome(self._name, transaction_id)

    # --- watching, leasing ---

    @asynccontextmanager
    async def watch(
        self, prefix: str = "", *, since: int | None = None, batch: int = 100
    ) -> AsyncIterator[AsyncIterator[Commit]]:
        if batch < 1:
            raise ValueError(f"batch is {batch}, it must be at least 1")
        current = await self.revision()
        if since is not None and since > current:
            raise ValueError(f"revision {since} does not exist yet, the current one is {current}")
        begin = current if since is None else since
        watch = EngineWatch(self._engine, self.codecs, self._name, prefix, begin, batch)
        self._counters.watches += 1
        try:
            yield watch
        finally:
            self._counters.watches -= 1
            watch.close()

    @asynccontextmanager
    async def lease(
        self, name: str, *, owner: str = "", lifetime: float = 30.0
    ) -> AsyncIterator[StoreLease]:
        async with hold_lease(self, name, owner or self._author, lifetime) as lease:
            yield lease

    # --- history ---

    async def compact(self, revision: int | None = None) -> int:
        self._check_open()
        return await self._engine.compact(self._name, revision)

    async def drop(self) -> bool:
        self._check_open()
        return await self._engine.drop(self._name)

    async def history(self, key: str) -> Sequence[Entry | None]:
        self._check_open()
        versions = await self._engine.versions(self._name, check_key(key))
        return [
            None if stored.body is None else self.codecs.entry(key, stored) for stored in versions
        ]

    async def journal(self, after: int = 0, *, limit: int = 1000) -> Sequence[AuditRecord]:
        self._check_open()
        links = await self._engine.links(self._name, after, limit)
        return [
            AuditRecord(
                revision=link.revision,
                time=link.time,
                author=link.author,
                transaction_id=link.id,
                changes=tuple(
                    KeyDigest(key=key, digest=digest, previous=previous)
                    for key, digest, previous in read_changes(link.changes)
                ),
                digest=link.digest.hex(),
            )
            for link in links
        ]

    async def diff(self, first: int, second: int) -> Sequence[Difference]:
        if second < first:
            raise ValueError(f"revision {second} is older than revision {first}: swap them")
        async with self.snapshot(first) as before, self.snapshot(second) as after:
            keys: set[str] = set()
            at = first
            while at < second:
                records = await self.journal(at, limit=min(1000, second - at))
                at = records[-1].revision
                keys.update(change.key for record in records for change in record.changes)
            found = []
            for key in sorted(key for key in keys if key >= FIRST_KEY):
                old, new = await before.entry(key), await after.entry(key)
                if (old and old.revision) != (new and new.revision):
                    found.append(Difference(key=key, before=old, after=new))
            return found

    async def verify(self, *, anchors: Mapping[int, str] | None = None) -> Verification:
        self._check_open()
        return await self._engine.verify(self._name, anchors or {})

    # --- the object itself ---

    def statistics(self) -> StoreStatistics:
        counters = {name: getattr(self._counters, name) for name in Counters.__slots__}
        return StoreStatistics(groups=self._engine.groups, **counters)

    def _check_open(self) -> None:
        if not self._shared.is_open:
            raise anyio.ClosedResourceError

    async def __aenter__(self) -> Self:
        if self._shared.was_open:
            raise RuntimeError("a store is entered once; make a new one")
        self._shared.was_open = True
        await self._engine.open()
        self._shared.is_open = True
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._shared.is_open = False
        with anyio.CancelScope(shield=True):
            await self._engine.aclose()

    def __repr__(self) -> str:
        state = "" if self._shared.is_open else " closed"
        return (
            f"<{type(self).__name__} {self._engine!r} namespace={self._name!r} "
            f"revision={self._counters.revision}{state}>"
        )
