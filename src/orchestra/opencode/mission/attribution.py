"""Whose a change of the workspace is: decided from who was there, without looking at files.

In this order: whoever has a lease on the file; else whose tool call wrote it; else the only one at
work. Work that names no files may change any file that nobody has a lease on.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from enum import Enum
from typing import final

from attrs import define, field, frozen

from orchestra.events import ToolCalled, ToolStatus
from orchestra.opencode.mission.evidence import FileState

__all__ = ("Fate", "Judgement", "Seat", "Seats", "edited_paths", "judge")


class Fate(Enum):
    """What is done about a changed file."""

    KEPT = "kept"
    """It is a task's work, or nobody's concern."""
    LATER = "later"
    """Somebody who may have done it is still at work: it is decided when that has ended."""
    PUT_BACK = "put back"
    """It is put aside, and the file is as before."""


@define(eq=False)
class Seat:
    """A task that works in the workspace itself.

    Attributes:
        task_id: The task.
        files: What it has a lease on; none: it may change any file that nobody has a lease on.
        fence: The fence of its present attempt.
        working: How many of its worker and its commands are at work.
        is_checking: Whether those at work, or who were last, are commands that check it.
        edited: Files that its present attempt's tool calls have written.
        own: Further files that are its own by now; for work that names no files.
        changed: Files that it has changed, and nobody else.
        before: Files that it has changed, alone or perhaps, and how they were before.
    """

    task_id: str
    files: tuple[str, ...]
    fence: int = 0
    working: int = 0
    is_checking: bool = False
    edited: set[str] = field(factory=set)
    own: set[str] = field(factory=set)
    changed: set[str] = field(factory=set)
    before: dict[str, FileState | None] = field(factory=dict)

    def renew(self) -> Seat:
        """Return the seat of the next attempt: the same work, but nobody at it."""
        return Seat(
            self.task_id, self.files, own=self.own, changed=self.changed, before=self.before
        )

    def covers(self, path: str) -> bool:
        """Whether it has a lease on a file, or on a folder that it is in.

        Args:
            path: The file.
        """
        return any(each in {".", path} or path.startswith(f"{each}/") for each in self.files)


@frozen(kw_only=True)
class Judgement:
    """What is to be done about a changed file, and on whose account.

    Attributes:
        fate: What is done.
        owners: The tasks that it is the work of.
        stray_of: The task that changed it without a lease; None: nobody knows.
        suspects: Who may have done it.
    """

    fate: Fate
    owners: tuple[Seat, ...] = ()
    stray_of: Seat | None = None
    suspects: tuple[Seat, ...] = ()


@final
class Seats:
    """Who works in the workspace itself, and what belongs to whom."""

    def __init__(self) -> None:
        self._seats: dict[str, Seat] = {}
        self._leases: dict[str, Seat] = {}
        self._own: dict[str, Seat] = {}

    def __iter__(self) -> Iterator[Seat]:
        return iter(list(self._seats.values()))

    def __len__(self) -> int:
        return len(self._seats)

    def get(self, task_id: str) -> Seat | None:
        """Return a task's seat, if it has one.

        Args:
            task_id: The task.
        """
        return self._seats.get(task_id)

    def enter(self, seat: Seat) -> None:
        """Give a task its files; of two with the same one, the later has it (parts do).

        Args:
            seat: The task's.
        """
        self._seats[seat.task_id] = seat
        for path in seat.files:
            self._leases[path] = seat
            self._own.pop(path, None)

    def leave(self, seat: Seat) -> None:
        """Take a task's files from it.

        Args:
            seat: The task's.
        """
        if self._seats.get(seat.task_id) is seat:
            del self._seats[seat.task_id]
        for book in (self._leases, self._own):
            for path in [*seat.files, *seat.own]:
                if book.get(path) is seat:
                    del book[path]

    def own(self, path: str, seat: Seat) -> None:
        """Let a file that nobody has a lease on be a task's own from now on.

        Args:
            path: The file.
            seat: The task's.
        """
        seat.own.add(path)
        self._own[path] = seat

    def holder(self, path: str) -> Seat | None:
        """Return who has a lease on a file, or on a folder that it is in.

        Args:
            path: The file.
        """
        place = path
        while place:
            if place in self._leases:
                return self._leases[place]
            place = place.rpartition("/")[0]
        return self._leases.get(".") or self._own.get(path)

    def __repr__(self) -> str:
        return f"<Seats {len(self._seats)} leases={len(self._leases)}>"


def judge(
    path: str,
    *,
    holder: Seat | None,
    present: Collection[Seat],
    author: Seat | None,
    is_guarded: bool,
) -> Judgement:
    """Decide about a file that is not as it was.

    Args:
        path: The file.
        holder: Who has a lease on it.
        present: Who has been at work since it was last seen unchanged.
        author: Who wrote it last by a tool call, as far as is known.
        is_guarded: Whether its contents were accepted in this mission.
    """
    if holder is not None:
        is_foreign = author not in {None, holder} and path not in holder.edited
        # What it left in its files was looked at as its work ended; in its folders it was not.
        is_there = holder.working or (holder in present and path not in holder.files)
        if is_there and not is_foreign:
            return Judgement(fate=Fate.KEPT, owners=(holder,))
        suspects = [seat for seat in present if seat is not holder]
        stray_of = author if author not in {None, holder} else _only(suspects)
        return Judgement(fate=Fate.PUT_BACK, stray_of=stray_of, suspects=tuple(suspects))
    suspects = [author] if author is not None else list(present)
    if suspects and not is_guarded and all(seat.is_checking for seat in suspects):
        return Judgement(fate=Fate.KEPT, suspects=tuple(suspects))
    free = tuple(seat for seat in suspects if not seat.files)
    if free:
        return Judgement(fate=Fate.KEPT, owners=free, suspects=tuple(suspects))
    if any(seat.working for seat in suspects):
        return Judgement(fate=Fate.LATER, suspects=tuple(suspects))
    if not suspects and not is_guarded:
        # A person at the keyboard, most likely: moving their file away would be worse.
        return Judgement(fate=Fate.KEPT)
    return Judgement(fate=Fate.PUT_BACK, stray_of=_only(suspects), suspects=tuple(suspects))


def _only(suspects: Sequence[Seat]) -> Seat | None:
    """Return whose work it must be: what a command does is not the work of who is checked by it."""
    return suspects[0] if len(suspects) == 1 and not suspects[0].is_checking else None


_WRITERS = frozenset({"apply_patch", "edit", "multiedit", "patch", "write"})
_PATH_KEYS = ("filePath", "file_path", "path")
_PATCHED = re.compile(r"^\*\*\* (?:Add|Update|Delete|Move to)(?: File)?: (.+)$", re.MULTILINE)


def edited_paths(event: ToolCalled) -> Sequence[str]:
    """Return the files that a tool call has written, as it named them.

    Args:
        event: The call.
    """
    if event.status is not ToolStatus.COMPLETED or event.tool not in _WRITERS:
        return ()
    return _named(event.input)


def _named(arguments: Mapping[str, object]) -> list[str]:
    named = [value for key in _PATH_KEYS if isinstance(value := arguments.get(key), str)]
    patch = arguments.get("patchText") or arguments.get("patch")
    if isinstance(patch, str):
        named += _PATCHED.findall(patch)
    return named
