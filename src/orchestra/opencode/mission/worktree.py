"""One task's git worktree: what is looked at in it, and what is put aside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, final

import anyio
import anyio.to_thread

from orchestra.opencode.mission.apart import AFTER_CHECK, NO_LEASE, Apart, unlink_all
from orchestra.opencode.mission.attribution import Seat
from orchestra.opencode.mission.git import GitError, split
from orchestra.opencode.mission.workplaces import Change, Taken
from orchestra.opencode.mission.workspace import MAX_LISTED
from orchestra.opencode.mission.worktree_files import index_of

if TYPE_CHECKING:
    from orchestra.opencode.mission.worktrees import Worktrees

__all__ = ("Worktree",)


@final
class Worktree(Apart):
    """A task that works in a worktree of its own; from `Worktrees.open`.

    Attributes:
        top: The worktree.
        base: The commit that its change is merged from.
        position: The task's place in the plan.
        steps: Trees before and after what was accepted of the task's parts.
        merged: The commit that was taken over.
        leased: The files that its lease is on.
        is_closed: Whether it is removed, or about to be.
    """

    def __init__(
        self, worktrees: Worktrees, seat: Seat, top: Path, base: str, position: float
    ) -> None:
        super().__init__(seat)
        self._worktrees = worktrees
        self._seen_from = ("", "")
        self.top: Path = top
        self.base: str = base
        self.position: float = position
        self.steps: Sequence[tuple[str, str]] = ()
        self.merged: str = ""
        self.is_closed: bool = False
        self.leased: tuple[str, ...] = ()

    @property
    def directory(self) -> Path:
        """The workspace's counterpart in the worktree."""
        return self.top / self._worktrees.repository.prefix

    @property
    def is_left(self) -> bool:
        """See `Workplace.is_left`."""
        return self._worktrees.find(self.seat.task_id) is not self

    async def tree(self) -> str:
        """Return the tree of what it holds. A checkpoint.

        Raises:
            GitError: It cannot be written.
        """
        worktrees = self._worktrees
        return await worktrees.repository.tree(self.top, index_of(self.top), forced=self.seat.files)

    async def look(self) -> Change:
        """See `Workplace.look`."""
        repository = self._worktrees.repository
        try:
            tree, before = await self.tree(), await self._before()
            changed = await repository.changed(before, tree)
            if strays := [path for path in changed if not self._may_write(path)]:
                await self._put_back(strays, self.base, NO_LEASE)
                tree = await self.tree()
                changed = await repository.changed(before, tree)
            diff = await repository.diff(before, tree)
            self.checked: str = tree
            self.seat.changed = set(changed)
        except GitError as exc:
            return Change(tree="", directory=self.directory, problems=(str(exc),))
        return Change(
            tree=tree,
            directory=self.directory,
            changed=tuple(changed[:MAX_LISTED]),
            strays=tuple(dict.fromkeys(self.strays))[:MAX_LISTED],
            diff=diff,
        )

    async def _before(self) -> str:
        """Return the tree that its change is seen against: without what its parts have done."""
        if not self.steps:
            return self.base
        base, before = self._seen_from
        if base != self.base:
            index = self.top.with_name(f"{self.top.name}.before")
            before = await self._worktrees.repository.undo(self.base, self.steps, index)
            self._seen_from = (self.base, before)
        return before

    async def before(self, path: str) -> bytes | None:
        """See `Workplace.before`."""
        try:
            return await self._worktrees.repository.contents(await self._before(), path)
        except GitError:
            return None

    def _may_write(self, path: str) -> bool:
        if self.seat.files:
            return self.seat.covers(path)
        holders = (self._worktrees.seats, self._worktrees.workspace.seats)
        return all(seats.holder(path) in {None, self.seat} for seats in holders)

    async def settle(self, tree: str) -> bool:
        """Put aside what has changed since a check, since then nobody was to be at work.

        A checkpoint.

        Args:
            tree: What was checked.

        Returns:
            Whether it holds what was checked.

        Raises:
            GitError: It cannot be put aside.
        """
        now = await self.tree()
        if now == tree:
            return True
        if self.seat.working or not tree or tree != (self.checked or tree):
            return False
        late = await self._worktrees.repository.changed(tree, now)
        await self._put_back(late, tree, AFTER_CHECK)
        return await self.tree() == tree

    async def clear(self) -> None:
        """See `Apart.clear`."""
        try:
            found = await self._worktrees.repository.changed(self.checked, await self.tree())
            left = [path for path in found if not self.is_own(path)]
            await anyio.to_thread.run_sync(unlink_all, self.directory, left)
            await self._restore(left, self.checked)
        except (GitError, OSError):
            return  # the look that follows tells of it

    async def _put_back(self, strays: Sequence[str], source: str, why: str) -> None:
        self.strays.extend(strays)
        await self._worktrees.workspace.put_aside(self.seat.task_id, self.directory, strays, why)
        await self._restore(strays, source)

    async def _restore(self, strays: Sequence[str], source: str) -> None:
        git = self._worktrees.repository.git.at(self.directory)
        listed = split(await git.run("ls-tree", "-r", "-z", "--name-only", source))
        if there := sorted({*strays} & {*listed}):
            await git.run(
                "restore",
                f"--source={source}",
                "--worktree",
                "--pathspec-from-file=-",
                "--pathspec-file-nul",
                stdin="\0".join(f":(literal){path}" for path in there),
            )

    async def integrate(self, tree: str) -> Taken:
        """See `Workplace.integrate`."""
        return await self._worktrees.integrate(self, tree)

    async def remove(self) -> None:
        """See `Apart.remove`; its work is kept in a branch."""
        await self._worktrees.close(self)

    def __repr__(self) -> str:
        return f"<Worktree {self.top} of {self.seat.task_id!r}>"
