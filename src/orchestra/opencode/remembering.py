"""What ``orchestra memory`` does: list what a workspace remembers, add to it, forget."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

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
from orchestra.opencode.mission.plan import Role
from orchestra.opencode.mission.report_files import REPORT_FOLDER, make_folder, make_private
from orchestra.opencode.mission.report_json import SCHEMA
from orchestra.opencode.records import RECORDS

__all__ = ("Remembered", "add_memory_commands", "add_note", "forget_note", "list_memory")


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


class Console(Protocol):
    """Where a command writes."""

    is_json: bool

    def line(self, text: str) -> None:
        """Print a line for people."""

    def document(self, values: dict[str, Any]) -> None:
        """Print the one JSON object."""


def add_memory_commands(commands: Any, add_common: Callable[..., None]) -> None:
    """Add the subcommand.

    Args:
        commands: What `argparse.ArgumentParser.add_subparsers` has returned.
        add_common: Adds the options that all commands have, with a ``default``.
    """
    memory = commands.add_parser(
        "memory", help="list what this workspace remembers, add to it, forget", allow_abbrev=False
    )
    memory.add_argument("--dir", type=Path, metavar="DIR", help="the workspace; default: here")
    add_common(memory)
    memory.set_defaults(function=_list)
    actions = memory.add_subparsers(metavar="ACTION")
    add = actions.add_parser("add", help="remember a note", allow_abbrev=False)
    add.add_argument("text", metavar="TEXT", help="what agents are to be told")
    add.add_argument(
        "--file",
        action="append",
        default=[],
        metavar="FILE",
        help="tell it only where this file is written; may be repeated",
    )
    add.add_argument(
        "--role",
        action="append",
        default=[],
        choices=[role.value for role in Role],
        help="tell it only to this role; may be repeated",
    )
    add.set_defaults(function=_add)
    forget = actions.add_parser("forget", help="forget an entry for good", allow_abbrev=False)
    forget.add_argument("id", metavar="ID", help="its id, or the beginning of one")
    forget.set_defaults(function=_forget)
    for parser in (add, forget):
        # Given before the action's name they count too, so there is no default to hide them.
        parser.add_argument("--dir", type=Path, default=argparse.SUPPRESS, help="the workspace")
        add_common(parser, default=argparse.SUPPRESS)


def _list(options: argparse.Namespace, console: Console) -> int:
    found = anyio.run(list_memory, options.dir or Path())
    if console.is_json:
        console.document({"schema": SCHEMA, "entries": [each.to_json() for each in found]})
    for each in found:
        console.line(str(each))
    return 0


def _add(options: argparse.Namespace, console: Console) -> int:
    add = partial(add_note, files=options.file, roles=options.role)
    return _show("remembered", anyio.run(add, options.dir or Path(), options.text), console)


def _forget(options: argparse.Namespace, console: Console) -> int:
    entry = anyio.run(forget_note, options.dir or Path(), options.id)
    return _show("forgotten", entry, console)


def _show(what: str, entry: MemoryEntry, console: Console) -> int:
    if console.is_json:
        console.document({"schema": SCHEMA, "id": entry.id, "text": entry.text})
    console.line(f"{what}: {entry.id}  {entry.text}")
    return 0


# --- what they do ---


@asynccontextmanager
async def _open(
    directory: Path, *, is_new: bool = False, read_only: bool = False
) -> AsyncIterator[ProjectMemory]:
    if not await anyio.Path(directory).is_dir():
        raise ConfigurationError(f"the workspace {str(directory)!r} is not a folder")
    path = directory / REPORT_FOLDER / RECORDS
    if is_new:
        await anyio.to_thread.run_sync(make_folder, directory)
        await anyio.to_thread.run_sync(make_private, path)
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
