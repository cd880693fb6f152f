"""What ``orchestra memory`` does: list what a workspace remembers, add to it, forget."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from attrs import frozen

from orchestra import Redactor, SQLiteStore
from orchestra.errors import ConfigurationError
from orchestra.opencode.mission.memory.project import ProjectMemory
from orchestra.opencode.mission.memory.rules import (
    BUDGETS,
    MAX_ENTRY,
    MemoryEntry,
    MemorySource,
    MemoryTier,
    new_entry,
)
from orchestra.opencode.mission.plain import clean
from orchestra.opencode.mission.report_files import REPORT_FOLDER, make_folder
from orchestra.opencode.records import RECORDS

__all__ = ("Remembered", "add_note", "forget_note", "list_memory")


@frozen(kw_only=True)
class Remembered:
    """An entry, as it stands now.

    Attributes:
        entry: The entry.
        score: What it is worth, from -1 to 1.
    """

    entry: MemoryEntry
    score: float

    def __str__(self) -> str:
        entry = self.entry
        # What agents wrote must not move the cursor of whoever reads it.
        text = "".join(letter if letter.isprintable() else "?" for letter in entry.text)
        return (
            f"{entry.id}  {entry.tier.value:<7}  {self.score:+.2f}  {entry.uses:>3} uses  "
            f"{entry.tokens:>3} tokens  {text}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        entry = self.entry
        return {
            "id": entry.id,
            "tier": entry.tier.value,
            "score": round(self.score, 3),
            "uses": entry.uses,
            "helped": entry.tally.helped,
            "hurt": entry.tally.hurt,
            "tokens": entry.tokens,
            "source": entry.source.value,
            "files": list(entry.files),
            "roles": list(entry.roles),
            "text": entry.text,
        }


@asynccontextmanager
async def _open(
    directory: Path, *, is_new: bool = False, read_only: bool = False
) -> AsyncIterator[ProjectMemory]:
    if not await anyio.Path(directory).is_dir():
        raise ConfigurationError(f"the workspace {str(directory)!r} is not a folder")
    path = directory / REPORT_FOLDER / RECORDS
    if is_new:
        await anyio.to_thread.run_sync(make_folder, directory)
    elif not await anyio.Path(path).is_file():
        raise ConfigurationError(
            f"nothing is remembered in {str(directory)!r}; run a mission there, add a note, or "
            "name another workspace with --dir"
        )
    async with SQLiteStore(path, read_only=read_only) as store:
        yield ProjectMemory(store, directory)


async def list_memory(directory: Path) -> list[Remembered]:
    """Return what a workspace remembers: by tier, the most worth first.

    Args:
        directory: The workspace.

    Raises:
        ConfigurationError: Nothing is remembered there.
        StoreError: It cannot be read.
    """
    async with _open(directory, read_only=True) as memory:
        now, entries = await memory.read()
    tiers = list(BUDGETS)
    found = [Remembered(entry=entry, score=entry.score(now)) for entry in entries.values()]
    found.sort(key=lambda each: (tiers.index(each.entry.tier), -each.score, each.entry.id))
    return found


async def add_note(
    directory: Path, text: str, *, files: Sequence[str] = (), roles: Sequence[str] = ()
) -> MemoryEntry:
    """Remember what a person says, and return it.

    Args:
        directory: The workspace.
        text: What to remember; secrets are taken out.
        files: The files that it is about; none: it is told for every task.
        roles: Whom it is for; none: every agent.

    Raises:
        ConfigurationError: There is no text, it is too long, or there is no room for it.
        StoreError: It cannot be written.
    """
    text = clean(Redactor().redact(" ".join(text.split())))
    if not text:
        raise ConfigurationError("the note is empty; say what is to be remembered")
    if len(text) > MAX_ENTRY:
        raise ConfigurationError(
            f"the note has {len(text):,} characters and {MAX_ENTRY} are the most; make it shorter"
        )
    entry = new_entry(MemoryTier.SYSTEM, MemorySource.PERSON, text, files=files, roles=roles)
    async with _open(directory, is_new=True) as memory:
        await memory.add(entry)
    return entry


async def forget_note(directory: Path, reference: str) -> MemoryEntry:
    """Forget an entry for good, and return what it was.

    Args:
        directory: The workspace.
        reference: Its id, or the beginning of one.

    Raises:
        ConfigurationError: There is no such entry, or more than one.
        StoreError: It cannot be written.
    """
    async with _open(directory) as memory:
        _, entries = await memory.read()
        found = [entry for name, entry in entries.items() if name.startswith(reference)]
        if len(found) != 1 or not reference:
            why = "more than one entry begins" if found and reference else "no entry begins"
            raise ConfigurationError(
                f"{why} with {reference!r}; 'orchestra memory' lists those of this workspace"
            )
        await memory.forget(found[0].id)
    return found[0]
