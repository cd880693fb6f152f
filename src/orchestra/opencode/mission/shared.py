"""Workplaces in the workspace itself: many tasks, one directory, each with a lease on its files."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import final

import anyio.lowlevel

from orchestra.opencode.mission.attribution import Seat
from orchestra.opencode.mission.leases import Leases
from orchestra.opencode.mission.workplaces import Change, Taken, Workplace
from orchestra.opencode.mission.workspace import MAX_LISTED, Workspace, tree_digest

__all__ = ("SharedWorkplace",)


@final
class SharedWorkplace(Workplace):
    """A task that works in the workspace itself.

    Args:
        workspace: The workspace.
        seat: The task's seat in it.
        leases: Where its leases stand.
        fence: The fence of its attempt.
    """

    def __init__(self, workspace: Workspace, seat: Seat, leases: Leases, fence: int) -> None:
        self._workspace = workspace
        self._seat = seat
        self._leases = leases
        self._fence = fence
        self._is_left = False

    @property
    def directory(self) -> Path:
        """The workspace."""
        return self._workspace.directory

    @property
    def is_left(self) -> bool:
        """See `Workplace.is_left`."""
        return self._is_left

    def at_work(self) -> AbstractAsyncContextManager[None]:
        """See `Workplace.at_work`."""
        return self._work()

    def checking(self) -> AbstractAsyncContextManager[None]:
        """See `Workplace.checking`."""
        return self._work(is_checking=True)

    @asynccontextmanager
    async def _work(self, *, is_checking: bool = False) -> AsyncIterator[None]:
        if self._seat.fence != self._fence:
            yield  # a later attempt has begun: what this one leaves is not the task's
        else:
            async with self._workspace.at_work(self._seat, is_checking=is_checking):
                yield

    def on_edit(self, path: str) -> None:
        """See `Workplace.on_edit`."""
        if self._seat.fence == self._fence:
            self._workspace.on_edit(self._seat, path)

    async def look(self) -> Change:
        """See `Workplace.look`."""
        await self._workspace.refresh()
        seat, workspace = self._seat, self._workspace
        return Change(
            tree=self._tree(),
            directory=workspace.directory,
            changed=tuple(_changed(workspace, seat))[:MAX_LISTED],
            strays=tuple(dict.fromkeys(workspace.strays.get(seat.task_id, ())))[:MAX_LISTED],
            problems=tuple(
                f"{path} was changed by somebody else and cannot be put back ({why}): "
                "see that it holds what it should"
                for path in _paths(seat)
                if (why := workspace.lost.pop(path, ""))
            ),
            diff=await workspace.diff(seat.before),
        )

    def _tree(self) -> str:
        return tree_digest(
            {
                path: state.digest if (state := self._workspace.state(path)) else None
                for path in _paths(self._seat)
            }
        )

    async def before(self, path: str) -> bytes | None:
        """See `Workplace.before`."""
        return await self._workspace.contents(self._seat.before.get(path))

    async def integrate(self, tree: str) -> Taken:
        """See `Workplace.integrate`."""
        if self._is_left or self._seat.fence != self._fence:
            await anyio.lowlevel.checkpoint()
            return Taken(problem="this change comes from an earlier attempt at the task")
        paths = _paths(self._seat)
        await self._workspace.stamp(paths)
        if self._tree() != tree:
            return Taken(is_moved=True)
        seat = self._seat
        if problem := await self._leases.accept(seat.task_id, seat.files, self._fence, tree):
            return Taken(problem=problem)
        self._leave()
        self._workspace.accept(seat, paths)
        return Taken()

    async def discard(self) -> None:
        """See `Workplace.discard`; what the task has changed in the workspace stays there."""
        await anyio.lowlevel.checkpoint()
        if not self._is_left and self._seat.fence == self._fence:
            self._leave()
            await self._leases.release(self._seat.task_id, self._seat.files, self._fence)

    def _leave(self) -> None:
        self._is_left = True
        self._workspace.seats.leave(self._seat)
        self._workspace.strays.pop(self._seat.task_id, None)

    def __repr__(self) -> str:
        return f"<SharedWorkplace of {self._seat.task_id!r} fence={self._fence}>"


def _paths(seat: Seat) -> list[str]:
    return sorted({*seat.files, *seat.changed})


def _changed(workspace: Workspace, seat: Seat) -> list[str]:
    return [
        path
        for path, before in sorted(seat.before.items())
        if (before and before.digest) != ((now := workspace.state(path)) and now.digest)
    ]
