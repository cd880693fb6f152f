"""A workplace that nobody else works in: what worktrees and copies have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import anyio

from orchestra.opencode.mission.attribution import Seat
from orchestra.opencode.mission.workplaces import Workplace

__all__ = ("AFTER_CHECK", "NO_LEASE", "Apart", "unlink_all")

NO_LEASE = "without a lease"
AFTER_CHECK = "after it was checked, with nobody of this mission at work"


class Apart(Workplace):
    """A task that works apart from the workspace.

    Args:
        seat: The task.

    Attributes:
        seat: The task.
        strays: What it has changed without a lease.
        checked: `Change.tree` of the last look; empty: this process has not looked yet.
    """

    def __init__(self, seat: Seat) -> None:
        self._idle = anyio.Event()
        self._idle.set()
        self.seat: Seat = seat
        self.strays: list[str] = []
        self.checked: str = ""

    def at_work(self) -> AbstractAsyncContextManager[None]:
        """See `Workplace.at_work`."""
        return self._work()

    def checking(self) -> AbstractAsyncContextManager[None]:
        """See `Workplace.checking`."""
        return self._check()

    @asynccontextmanager
    async def _check(self) -> AsyncIterator[None]:
        async with self._work():
            yield
            await self.clear()

    @abstractmethod
    async def clear(self) -> None:
        """Undo what commands have left since the last look besides the task's own. A checkpoint."""

    def is_own(self, path: str) -> bool:
        """Whether a file that a command has changed is the task's own.

        Args:
            path: The file.
        """
        return self.seat.covers(path) if self.seat.files else path in self.seat.changed

    @asynccontextmanager
    async def _work(self) -> AsyncIterator[None]:
        if not self.seat.working:
            self._idle = anyio.Event()
        self.seat.working += 1
        try:
            yield
        finally:
            self.seat.working -= 1
            if not self.seat.working:
                self._idle.set()

    def on_edit(self, path: str) -> None:
        """Nothing: whatever changes here, this task has done it."""

    async def discard(self) -> None:
        """See `Workplace.discard`."""
        while self.seat.working:
            await self._idle.wait()
        await self.remove()

    @abstractmethod
    async def remove(self) -> None:
        """Put it away, nobody being at work in it. A checkpoint."""


def unlink_all(directory: Path, paths: Sequence[str]) -> None:
    """Remove files. Blocks.

    Args:
        directory: Where they are.
        paths: The files, relative to it; those that are not there do not matter.

    Raises:
        OSError: One cannot be removed.
    """
    for path in paths:
        (directory / path).unlink(missing_ok=True)
