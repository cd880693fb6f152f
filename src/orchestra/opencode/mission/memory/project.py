"""What a project remembers, in the store: one namespace for each workspace."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from orchestra import MVCCStore, Reader, Transaction
from orchestra.errors import ConfigurationError
from orchestra.opencode.mission.memory.rules import (
    BUDGETS,
    Contribution,
    MemoryEntry,
    MemoryTier,
    drop_least,
    entry_from_plain,
    entry_to_plain,
    settle,
)

__all__ = ("ProjectMemory",)

_ENTRY = "entry/"
_FORGOTTEN = "forgotten/"
_CLOCK = "clock"
_NO_CLOCK: Mapping[str, Any] = {"last": 0, "open": {}}
_MAX_OPEN = 100
"""Missions that are waited for; one that was killed and never resumed does not stay for ever."""


@final
class ProjectMemory:
    """The entries of one workspace.

    Missions at the same time do not get in each other's way: each change is a transaction that is
    run again when another one came first, and what a mission leaves is a sum.

    Args:
        store: The store, open; not a namespace of it.
        directory: The workspace. Its resolved path is what tells projects apart.
    """

    def __init__(self, store: MVCCStore, directory: Path) -> None:
        self._name = f"memory:{directory.resolve()}"
        self._store = store.namespace(self._name).using(author="memory")

    async def read(self) -> tuple[int, dict[str, MemoryEntry]]:
        """Return the number of the latest mission, and the entries by id. A checkpoint."""
        async with self._store.snapshot() as snap:
            clock = await snap.get(_CLOCK, _NO_CLOCK)
            return clock["last"], await _entries(snap)

    async def begin(self, mission_id: str) -> tuple[int, dict[str, MemoryEntry]]:
        """Give a mission its number, the same one each time. A checkpoint.

        Args:
            mission_id: The mission.

        Returns:
            The number, and the project's entries by id.
        """

        async def take(tx: Transaction) -> tuple[int, dict[str, MemoryEntry]]:
            clock = await tx.get(_CLOCK, _NO_CLOCK)
            number = clock["open"].get(mission_id)
            if number is None:
                number = clock["last"] + 1
                newest = list(clock["open"].items())[1 - _MAX_OPEN :]
                tx.put(_CLOCK, {"last": number, "open": {**dict(newest), mission_id: number}})
            return number, await _entries(tx)

        return await self._store.transact(take)

    async def settle(self, mission_id: str, contribution: Contribution) -> bool:
        """Add what a mission leaves, once, and drop what is over the budgets. A checkpoint.

        Args:
            mission_id: The mission.
            contribution: What it leaves.

        Returns:
            Whether it was added; False: that has been done before.
        """

        async def write(tx: Transaction) -> bool:
            clock = await tx.get(_CLOCK, _NO_CLOCK)
            if mission_id not in clock["open"]:
                return False
            still = {name: number for name, number in clock["open"].items() if name != mission_id}
            tx.put(_CLOCK, {"last": clock["last"], "open": still})
            before = await _entries(tx)
            forgotten = {key.removeprefix(_FORGOTTEN) for key in await tx.range(_FORGOTTEN)}
            after = settle(before, contribution, forgotten=forgotten)
            _write(tx, before, after, clock["last"])
            return True

        is_added = await self._store.transact(write)
        if is_added:
            await self._store.compact()
        return is_added

    async def add(self, entry: MemoryEntry) -> None:
        """Remember what a person has said. A checkpoint.

        Args:
            entry: Of the system tier.

        Raises:
            ConfigurationError: The tier is full; nothing that a person said is dropped unasked.
        """

        async def write(tx: Transaction) -> None:
            entries = {**await _entries(tx), entry.id: entry}
            said = [each for each in entries.values() if each.tier is MemoryTier.SYSTEM]
            tokens = sum(each.tokens for each in said)
            if tokens > BUDGETS[MemoryTier.SYSTEM]:
                raise ConfigurationError(
                    f"what people have said would take {tokens:,} tokens of "
                    f"{BUDGETS[MemoryTier.SYSTEM]:,}; forget something first"
                )
            tx.delete(_FORGOTTEN + entry.id)
            tx.put(_ENTRY + entry.id, entry_to_plain(entry))

        await self._store.transact(write)

    async def forget(self, entry_id: str) -> None:
        """Forget an entry for good: no mission learns it again. A checkpoint.

        Args:
            entry_id: Its id.
        """

        async def write(tx: Transaction) -> None:
            tx.delete(_ENTRY + entry_id)
            tx.put(_FORGOTTEN + entry_id, True)

        await self._store.transact(write)

    def __repr__(self) -> str:
        return f"<ProjectMemory {self._name!r}>"


async def _entries(reader: Reader) -> dict[str, MemoryEntry]:
    found = [entry_from_plain(plain) for plain in (await reader.range(_ENTRY)).values()]
    return {entry.id: entry for entry in found}


def _write(
    tx: Transaction,
    before: Mapping[str, MemoryEntry],
    after: Mapping[str, MemoryEntry],
    now: int,
) -> None:
    """Write what has changed, within the budgets."""
    kept, dropped = drop_least(after.values(), now)
    for entry in kept:
        if before.get(entry.id) != entry:
            tx.put(_ENTRY + entry.id, entry_to_plain(entry))
    for entry in dropped:
        if entry.id in before:
            tx.delete(_ENTRY + entry.id)
