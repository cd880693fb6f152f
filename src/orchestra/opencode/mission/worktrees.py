"""A git worktree for a worker: made from the workspace as it is, merged into it in plan order."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import final

import anyio
import anyio.to_thread

from orchestra.opencode.mission.attribution import Seat, Seats
from orchestra.opencode.mission.git import GitError
from orchestra.opencode.mission.leases import Leases
from orchestra.opencode.mission.mission_lock import MissionLock
from orchestra.opencode.mission.repository import Repository
from orchestra.opencode.mission.workplaces import Taken, WorkplaceError
from orchestra.opencode.mission.workspace import Workspace, slug
from orchestra.opencode.mission.worktree import Worktree
from orchestra.opencode.mission.worktree_files import (
    find_base,
    folders_in,
    index_of,
    unlock_indexes,
    write_base,
)

__all__ = ("Worktrees", "default_home")

_SALVAGE = "orchestra/salvage"
_MAX_TRIES = 5
_MAX_CONFLICT = 3_000


def default_home() -> Path:
    """Return the folder for worktrees: of this user, and outside of every workspace."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "orchestra" / "worktrees"


@final
class Worktrees:
    """The worktrees of one mission.

    Args:
        repository: The repository that the workspace is in.
        workspace: The workspace.
        leases: Where the leases stand.
        mission_id: The mission.
        home: The folder that holds the worktrees of all workspaces.
        patience: Seconds that a change waits for those that come before it in the plan.
        warn: Takes what should be known.
        told: Called with a task whose change waits for those of earlier ones, and with these.
    """

    def __init__(
        self,
        repository: Repository,
        workspace: Workspace,
        leases: Leases,
        *,
        mission_id: str,
        home: Path,
        patience: float,
        warn: Callable[[str], None],
        told: Callable[[str, Sequence[str]], object],
    ) -> None:
        self.repository: Repository = repository
        self.workspace: Workspace = workspace
        self.leases: Leases = leases
        self.seats: Seats = Seats()
        self._mission_id = mission_id
        name = hashlib.sha256(os.fsencode(workspace.directory)).hexdigest()[:16]
        self._home = home / name
        self._folder = self._home / mission_id
        self._patience = patience
        self._warn = warn
        self._told = told
        self._lock = anyio.Lock()
        self._mission_lock = MissionLock(self._folder / "lock")
        self._tip = ""
        self._open: dict[str, Worktree] = {}
        self._split: dict[str, float] = {}
        self._parents: set[str] = set()
        self._is_moved = anyio.Event()
        self._is_abandoned = False

    async def begin(self) -> None:
        """Get ready, and put away what dead missions have left. A checkpoint.

        Raises:
            WorkplaceError: Worktrees cannot be made.
        """
        try:
            await anyio.to_thread.run_sync(self._make_folder)
            self._mission_lock.take()
            await anyio.to_thread.run_sync(unlock_indexes, self._folder)
            await self._sweep()
            self._tip = await self._find_tip()
            await self._catch_up()
            await self.snapshot()
        except BaseException as exc:
            with anyio.CancelScope(shield=True):
                await self.aclose()
            if not isinstance(exc, GitError | OSError):
                raise
            raise WorkplaceError(f"worktrees cannot be made: {exc}") from exc

    def _make_folder(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._home.chmod(0o700)

    @property
    def _tip_ref(self) -> str:
        return f"refs/orchestra/{self._mission_id}"

    async def _find_tip(self) -> str:
        git = self.repository.git
        _, out, _ = await git.ask("rev-parse", "--verify", "--quiet", self._tip_ref)
        return out.strip() or await self.repository.head()

    @property
    def _next_ref(self) -> str:
        """Names the commit that the tip is about to be, while the workspace is written."""
        return f"refs/orchestra-next/{self._mission_id}"

    async def _catch_up(self) -> None:
        """Finish what an earlier process was taking over when it was killed.

        Otherwise a snapshot would hold it, and nobody could say later what the task has done.
        """
        repository, git = self.repository, self.repository.git
        _, out, _ = await git.ask("rev-parse", "--verify", "--quiet", self._next_ref)
        coming = out.strip()
        _, out, _ = await git.ask("rev-parse", "--verify", "--quiet", f"{coming}^1")
        if not coming or out.strip() != self._tip:
            return
        index = self._folder / "index"
        now = await repository.tree(git.directory, index)
        touched = set(await repository.changed(self._tip, coming))
        written = touched & set(await repository.changed(self._tip, now))
        if not written or written & set(await repository.changed(coming, now)):
            return  # not begun, or somebody else has been there
        whole = await repository.undo(now, [(coming, self._tip)], self._folder / "whole")
        if await repository.write(git.directory, index, now, whole):
            await self._move_tip(coming)

    async def snapshot(self) -> str:
        """Return a commit that holds the workspace as it is, uncommitted work too. A checkpoint.

        Raises:
            GitError: It cannot be made.
        """
        repository = self.repository
        tree = await repository.tree(repository.git.directory, self._folder / "index")
        if not self._tip or tree != await repository.tree_of(self._tip):
            await self._move_tip(
                await repository.commit(tree, "The workspace", *filter(None, [self._tip]))
            )
        return self._tip

    async def _move_tip(self, commit: str) -> None:
        self._tip = commit
        await self.repository.git.run("update-ref", self._tip_ref, commit)

    # --- one task's ---

    async def open(
        self,
        task_id: str,
        files: tuple[str, ...],
        position: float,
        *,
        is_racing: bool,
        parts: Sequence[str] = (),
        is_resumed: bool = False,
    ) -> Worktree:
        """Give a task its worktree, or the one that it has. A checkpoint.

        Args:
            task_id: The task.
            files: What it may write.
            position: Its place in the plan.
            is_racing: Whether others race with it for the same files: then its lease is on its
                own attempts only.
            parts: The tasks that it was split into.
            is_resumed: Whether what was saved of its work is to be there.

        Raises:
            WorkplaceError: It cannot be made.
        """
        leased = () if is_racing else files
        fence = await self.leases.take(task_id, leased)
        place = self._open.get(task_id)
        if place is None:
            async with self._lock:
                place = await self._make(task_id, files, position, parts, is_resumed=is_resumed)
            self._open[task_id] = place
        if not is_racing:
            self.seats.enter(place.seat)
        place.leased = leased
        place.seat.fence = fence
        return place

    async def _make(
        self,
        task_id: str,
        files: tuple[str, ...],
        position: float,
        parts: Sequence[str],
        *,
        is_resumed: bool,
    ) -> Worktree:
        saved = ""
        top = self._folder / slug(task_id)
        try:
            base = await find_base(top)  # after a restart
            if not base:
                await self._clear(top)
                if is_resumed:
                    saved = await self.repository.newest(
                        f"{_SALVAGE}/{self._mission_id}/{top.name}"
                    )
                base = await self.repository.base_of(saved) if saved else ""
                base = base or await self.snapshot()
                branch = await self.repository.free_branch(
                    f"orchestra/{self._mission_id}/{top.name}"
                )
                # Forced: git may remember a worktree at this path that was never finished.
                await self.repository.git.run(
                    "worktree", "add", "--force", "--force", "--quiet", "-b", branch, str(top), base
                )
                await write_base(top, base)
            place = Worktree(self, Seat(task_id, files), top, base, position)
            if parts:
                names = {_message(part) for part in parts}
                place.steps = await self.repository.steps(self._tip, names)
            if saved:
                await self._bring_back(place, saved)
        except (GitError, OSError) as exc:
            raise WorkplaceError(f"there is no worktree for task {task_id!r}: {exc}") from exc
        return place

    async def _bring_back(self, place: Worktree, branch: str) -> None:
        """Let a worktree hold what was saved of it when the mission was interrupted."""
        repository, index = self.repository, index_of(place.top)
        saved = await repository.tree_of(f"refs/heads/{branch}")
        if await repository.write(place.top, index, await place.tree(), saved):
            # The interrupted mission's snapshots belong to the history of what is merged with.
            tip = await self.snapshot()
            tree = await repository.tree_of(tip)
            await self._move_tip(await repository.commit(tree, "The workspace", tip, place.base))
            await repository.git.run("update-ref", "-d", f"refs/heads/{branch}")

    def find(self, task_id: str) -> Worktree | None:
        """Return the worktree that a task has.

        Args:
            task_id: The task.
        """
        return self._open.get(task_id)

    def split(self, task_id: str, position: float | None) -> None:
        """A task goes on in parts, which those that come after it in the plan wait for.

        Args:
            task_id: The task.
            position: Its place in the plan; None: it has ended.
        """
        if position is None:
            self._split.pop(task_id, None)
        else:
            self._split[task_id] = position
            self._parents.add(task_id)
        self._tell_moved()

    async def _clear(self, top: Path) -> None:
        """Remove what a process that was killed has left of a worktree that nobody worked in yet."""
        if await anyio.Path(top).exists():
            await self.repository.git.ask("worktree", "remove", "--force", "--force", str(top))
            await anyio.to_thread.run_sync(lambda: shutil.rmtree(top, ignore_errors=True))
        await anyio.Path(index_of(top)).unlink(missing_ok=True)

    async def rebase(self, place: Worktree, base: str) -> None:
        """Write down that a worktree's change is to be seen against another commit.

        Args:
            place: The worktree.
            base: The commit.
        """
        place.base = base
        await write_base(place.top, base)

    # --- taking over ---

    async def finish(self, task_id: str, files: tuple[str, ...], tree: str) -> None:
        """Leave the worktree of a task whose change an earlier process has taken over.

        A checkpoint.

        Args:
            task_id: The task.
            files: What it may write.
            tree: What was taken over.
        """
        top = self._folder / slug(task_id)
        if base := await find_base(top):
            place = Worktree(self, Seat(task_id, files), top, base, 0)
            with suppress(GitError):  # then its work is saved once more
                place.merged = await self.repository.commit(tree, "Taken over", base)
            await self.close(place)

    async def integrate(self, place: Worktree, tree: str) -> Taken:
        """Merge a worktree's change into the workspace, when it is its turn. A checkpoint.

        Args:
            place: The worktree.
            tree: What was checked.
        """
        with anyio.move_on_after(self._patience):
            while earlier := self._before(place):
                self._told(place.seat.task_id, earlier)
                await self._is_moved.wait()
        self._told(place.seat.task_id, ())
        async with self._lock:
            try:
                taken = await self._integrate(place, tree)
            except GitError as exc:
                taken = Taken(problem=str(exc))
        if not taken.problem and not taken.is_moved:
            self.split(place.seat.task_id, None)
            self._parents.discard(place.seat.task_id)
            await self.close(place)
        return taken

    def _before(self, place: Worktree) -> list[str]:
        """Return the tasks whose changes are to be taken over before."""
        positions = {other.seat.task_id: other.position for other in self._open.values()}
        whole = math.floor(place.position)  # of a part it is that of the task that was split
        split = {name: at for name, at in self._split.items() if at != whole}
        return [name for name, at in (positions | split).items() if at < place.position]

    async def _integrate(self, place: Worktree, tree: str) -> Taken:
        repository, seat = self.repository, place.seat
        if not await place.settle(tree):
            return Taken(is_moved=True)
        message = _message(seat.task_id)
        change = await repository.commit(tree, message, place.base)
        if problem := await self.leases.check(seat.task_id, place.leased, seat.fence):
            return Taken(problem=problem)
        for _ in range(_MAX_TRIES):
            tip = await self.snapshot()
            merge = await repository.merge(tip, change)
            if merge.conflicts:
                return Taken(
                    problem=await self._hand_back(place, tree, tip, merge.tree, merge.conflicts)
                )
            touched = await repository.changed(tip, merge.tree)
            if held := [path for path in touched if self.workspace.seats.holder(path)]:
                return Taken(problem=f"another task has a lease on {held[0]}: leave it alone")
            merged = await repository.commit(merge.tree, message, tip, change)
            async with self.workspace.writing():
                top, index = repository.git.directory, self._folder / "index"
                await repository.git.run("update-ref", self._next_ref, merged)
                with anyio.CancelScope(shield=True):
                    if not await repository.write(top, index, tip, merge.tree):
                        continue  # a person has changed one of the files just now: merge with that
                    await self.workspace.written(touched)
                    await self._move_tip(merged)
            place.merged = change
            problem = await self.leases.accept(seat.task_id, place.leased, seat.fence, tree)
            return Taken(problem=problem)
        return Taken(problem="the workspace changes all the time in files of this change")

    async def _hand_back(
        self, place: Worktree, tree: str, tip: str, merged: str, conflicts: Sequence[str]
    ) -> str:
        """Put a conflict before its worker: the files of the merge, with markers."""
        repository = self.repository
        if not await repository.write(place.top, index_of(place.top), tree, merged):
            return "the change conflicts with what was accepted meanwhile: do it again"
        await self.rebase(place, tip)
        text = await repository.diff(tip, merged, _MAX_CONFLICT)
        names = ", ".join(conflicts[:10])
        return (
            f"the change conflicts with what was accepted meanwhile in {names}; both are in your "
            f"files now, between conflict markers: bring them together.\n{text}"
        )

    # --- the end ---

    async def close(self, place: Worktree) -> None:
        """Save what is not taken over, and remove a worktree. A checkpoint.

        Args:
            place: The worktree.
        """
        if self._open.get(place.seat.task_id) is place:
            del self._open[place.seat.task_id]
            self.seats.leave(place.seat)
            self._tell_moved()
        if place.is_closed:
            return
        place.is_closed = True
        known = [commit for commit in (place.merged, place.base, self._tip) if commit]
        with anyio.CancelScope(shield=True):
            async with self._lock:
                await self._remove(self._mission_id, place.top, known)

    def _tell_moved(self) -> None:
        self._is_moved.set()
        self._is_moved = anyio.Event()

    async def _remove(self, mission_id: str, top: Path, known: Sequence[str]) -> None:
        repository = self.repository
        index = index_of(top)
        try:
            branch = await repository.salvage(
                top,
                index,
                f"{_SALVAGE}/{mission_id}/{top.name}",
                known,
                base=await find_base(top),
            )
            await repository.git.run("worktree", "remove", "--force", "--force", str(top))
        except GitError as exc:
            self._warn(f"the worktree {top} is left where it is: {exc}")
            return
        if branch:
            self._warn(f"work that was not taken over is kept in the branch {branch}")
        for suffix in ("index", "base", "before"):
            await anyio.Path(top.with_name(f"{top.name}.{suffix}")).unlink(missing_ok=True)
        holders = [f"refs/heads/{branch}"] if branch else []
        await self._drop_branch(f"refs/heads/orchestra/{mission_id}/{top.name}", holders)

    async def _drop_branch(self, ref: str, holders: Sequence[str]) -> None:
        """Remove a branch that a worktree was on, if what it holds is held elsewhere too."""
        for holder in (*holders, self._tip):
            if holder and await self.repository.is_ancestor(ref, holder):
                await self.repository.git.ask("update-ref", "-d", ref)
                return

    async def _drop_branches(self, mission_id: str) -> None:
        """Remove the branches of worktrees that went without them, since a process was killed."""
        holders = [f"refs/orchestra/{mission_id}"]
        holders += await self.repository.refs(f"refs/heads/orchestra/salvage/{mission_id}/")
        for ref in await self.repository.refs(f"refs/heads/orchestra/{mission_id}/"):
            await self._drop_branch(ref, holders)

    async def _sweep(self) -> None:
        """Put away the worktrees of missions whose process is gone."""
        for folder in sorted(await anyio.to_thread.run_sync(folders_in, self._home)):
            if folder == self._folder:
                continue
            lock = MissionLock(folder / "lock")
            if not lock.take():
                continue
            try:
                await self._put_away(folder)
            finally:
                lock.release()

    async def _put_away(self, folder: Path) -> None:
        for top in sorted(await anyio.to_thread.run_sync(folders_in, folder)):
            base = await find_base(top)
            known = [base] if base else []
            await anyio.Path(index_of(top)).unlink(missing_ok=True)
            await self._remove(folder.name, top, known)
        if not await anyio.to_thread.run_sync(folders_in, folder):
            await self.repository.git.run("worktree", "prune")
            await self._drop_branches(folder.name)
            if self._parents and folder == self._folder:
                return  # whoever goes on with the mission finds there what parts have done
            for space in ("orchestra", "orchestra-next"):
                await self.repository.git.ask("update-ref", "-d", f"refs/{space}/{folder.name}")
            await anyio.to_thread.run_sync(lambda: shutil.rmtree(folder, ignore_errors=True))

    def abandon(self) -> None:
        """Leave everything where it is, for somebody else who has it now."""
        self._open.clear()
        self._mission_lock.release()
        self._is_abandoned = True

    async def aclose(self) -> None:
        """Save and remove what is left. A checkpoint."""
        if self._is_abandoned:
            return
        for place in list(self._open.values()):
            await self.close(place)
        try:
            if self._mission_lock.is_held or self._mission_lock.take():
                await self._put_away(self._folder)
        except (GitError, OSError) as exc:
            self._warn(f"worktrees in {self._folder} are left where they are: {exc}")
        finally:
            self._mission_lock.release()

    def __repr__(self) -> str:
        return f"<Worktrees {len(self._open)} in {self._folder}>"


def _message(task_id: str) -> str:
    """Return the message of the commit in which a task's change is taken over."""
    return f"Task {task_id}"
