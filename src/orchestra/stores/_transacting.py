"""`transact`: run a function again until its transaction is committed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random
from typing import TypeVar, final

import anyio

from orchestra._core.mvcc import backoff
from orchestra.errors import AmbiguousCommitError, CompactedError, ConflictError
from orchestra.revisions import Contention
from orchestra.storage import Merge, Transaction
from orchestra.stores._lines import Lines, Place
from orchestra.stores._transaction import Counters, EngineTransaction

__all__ = ("Transacting",)

T = TypeVar("T")


@final
class Transacting:
    """One call of `MVCCStore.transact`.

    Args:
        begin: Makes a transaction; with True it queues up for the key that it reads first, when
            others do.
        counters: What is counted.
        lines: The namespace's lines.
        contention: The rules.
        random: Makes jitter.
        merge: The caller's merge function.
    """

    def __init__(
        self,
        begin: Callable[[bool], EngineTransaction],
        *,
        counters: Counters,
        lines: Lines,
        contention: Contention,
        random: Random,
        merge: Merge | None,
    ) -> None:
        self._begin = begin
        self._counters = counters
        self._lines = lines
        self._contention = contention
        self._random = random
        self._merge = merge
        self._conflicts = 0
        self._last: ConflictError | None = None

    async def run(self, fn: Callable[[Transaction], Awaitable[T]]) -> T:
        """Run the function, commit, and do that again while there are conflicts.

        Args:
            fn: The caller's function with its arguments.
        """
        place: Place | None = None
        try:
            while True:
                try:
                    result, is_committed = await self._attempt(fn, queues=place is None)
                except ConflictError as exc:
                    if exc is not self._last or self._conflicts >= self._contention.attempts:
                        raise
                    if place is None and self._conflicts >= self._contention.ticket_after:
                        self._counters.tickets += 1
                        place = await self._lines.join(exc.keys[0])
                        continue
                    # With a place at the head only other processes can still be in the way.
                    await anyio.sleep(self._delay())
                else:
                    if is_committed:
                        return result
        finally:
            if place is not None:
                place.leave()

    def _delay(self) -> float:
        return backoff(
            self._conflicts,
            delay=self._contention.delay,
            maximum=self._contention.maximum_delay,
            random=self._random.random(),
        )

    async def _attempt(
        self, fn: Callable[[Transaction], Awaitable[T]], *, queues: bool
    ) -> tuple[T, bool]:
        tx = self._begin(queues)
        tx.begin()
        try:
            result = await fn(tx)
            while True:
                try:
                    return result, await self._commit(tx)
                except ConflictError as exc:
                    self._conflicts += 1
                    self._last = exc
                    merged = await self._merged(tx, exc)
                    if merged is None:
                        raise
                    tx.end()
                    tx = merged
        finally:
            tx.end()

    async def _commit(self, tx: EngineTransaction) -> bool:
        """Commit; whether it was, which is found out when it is not known."""
        try:
            await tx.commit()
        except AmbiguousCommitError:
            return await tx.find_outcome()
        return True

    async def _merged(
        self, tx: EngineTransaction, conflict: ConflictError
    ) -> EngineTransaction | None:
        """Return a transaction with merged writes, or None when the function has to run again."""
        if (
            self._merge is None
            or not conflict.keys
            or self._conflicts >= self._contention.attempts
            or not tx.footprint.writes.keys() >= set(conflict.keys)
        ):
            return None
        merged = self._begin(False)
        merged.begin()
        try:
            await merged.take_over(tx, conflict, self._merge)
        except (CompactedError, ConflictError):
            merged.end()
            return None
        except BaseException:
            merged.end()
            raise
        self._counters.merges += 1
        return merged
