"""A bounded copy of the workspace for those who race, where there is no git."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import final

import anyio

from orchestra import MVCCStore, Transaction, WorkStealingPool
from orchestra.opencode.mission.apart import AFTER_CHECK, NO_LEASE, Apart, unlink_all
from orchestra.opencode.mission.attribution import Seat
from orchestra.opencode.mission.contents import Contents
from orchestra.opencode.mission.copy_book import CopyBook, read_base, write_base
from orchestra.opencode.mission.evidence import (
    FileState,
    TooLargeError,
    Tree,
    WorkspaceWatch,
    read_state,
)
from orchestra.opencode.mission.leases import Leases, allow
from orchestra.opencode.mission.putting_back import remove_drafts, write_file
from orchestra.opencode.mission.workplaces import Change, Taken, Workplace, WorkplaceError
from orchestra.opencode.mission.workspace import (
    MAX_LISTED,
    Workspace,
    diff_states,
    slug,
    tree_digest,
)

__all__ = ("Copies",)

_MAX_FILES = 20_000
_MAX_BYTES = 512 << 20


@final
class Copies:
    """The copies of one mission.

    Args:
        workspace: The workspace.
        leases: Where the leases stand.
        pool: Copies and compares.
        skipped: Paths, relative to the workspace, that do not count.
        store: The mission's namespace.
        check: Called with each transaction; raises when the mission has another owner.
    """

    def __init__(
        self,
        workspace: Workspace,
        leases: Leases,
        pool: WorkStealingPool,
        skipped: Sequence[str],
        store: MVCCStore,
        check: Callable[[Transaction], Awaitable[None]] = allow,
    ) -> None:
        self.workspace: Workspace = workspace
        self.leases: Leases = leases
        self.pool: WorkStealingPool = pool
        self._skipped = skipped
        self._book = CopyBook(store, check)
        self._open: dict[str, _Copy] = {}

    async def begin(self) -> None:
        """Find the copies that a process which was killed has left. A checkpoint.

        Raises:
            StoreError: The store cannot be read.
        """
        await self._book.begin()

    async def open(self, task_id: str, files: tuple[str, ...]) -> Workplace:
        """Give a task its copy, or the one that it has. A checkpoint.

        Args:
            task_id: The task.
            files: What it may write.

        Raises:
            WorkplaceError: The workspace is too large to be copied, or cannot be.
            StoreError: It cannot be written where the copy is.
        """
        fence = await self.leases.take(task_id, ())  # others race for the same files
        copy = self._open.get(task_id)
        if copy is None:
            copy = await self._adopt(task_id, files) or await self._make(task_id, files)
            self._open[task_id] = copy
        copy.seat.fence = fence
        return copy

    async def _adopt(self, task_id: str, files: tuple[str, ...]) -> _Copy | None:
        """Go on in the copy that the task had under an earlier process, if it was finished."""
        folder = self._book.left.get(task_id)
        base = None if folder is None else await self.pool.run(read_base, folder)
        if folder is None or base is None:
            return None
        top = folder / slug(task_id)
        seat, contents = Seat(task_id, files), Contents()
        watch = WorkspaceWatch(top, self.pool, skipped=self._skipped, keep=contents.keep)
        try:
            now = await watch.take()
            root = str(self.workspace.directory)
            newer = await self.pool.run(_keep_base, root, contents, base)
        except BaseException as exc:
            contents.close()
            if not isinstance(exc, OSError | TooLargeError):
                raise
            return None
        for path, state in newer.items():
            if not seat.files or seat.covers(path):
                continue  # that it is another one now is seen when the change is taken over
            if state is None:
                del base[path]
            else:
                base[path] = state
        del self._book.left[task_id]
        return _Copy(self, seat, top, watch, now, base, contents, is_found=True)

    async def _make(self, task_id: str, files: tuple[str, ...]) -> _Copy:
        root = self.workspace.directory
        await self._remove_left(task_id)
        contents = Contents()
        folder = await self._book.name(task_id)
        top = folder / slug(task_id)
        try:
            await self.pool.run(folder.mkdir, 0o700)
            listed = await WorkspaceWatch(root, self.pool, skipped=self._skipped).take()
            if len(listed.files) > _MAX_FILES or _size(listed) > _MAX_BYTES:
                raise TooLargeError(f"of more than {_MAX_FILES:,} files or {_MAX_BYTES >> 20} MiB")
            await self.pool.run(_copy, root, top, list(listed.files))
            watch = WorkspaceWatch(top, self.pool, skipped=self._skipped, keep=contents.keep)
            base = await watch.take()
            await self.pool.run(write_base, folder, base.files)
        except BaseException as exc:
            contents.close()
            with anyio.CancelScope(shield=True):
                await self.pool.run(shutil.rmtree, folder, True)
                await self._book.forget(task_id)
            if not isinstance(exc, OSError | TooLargeError):
                raise
            why = f"there is no copy of the workspace for task {task_id!r}: {exc}"
            raise WorkplaceError(why) from exc
        return _Copy(self, Seat(task_id, files), top, watch, base, dict(base.files), contents)

    async def _remove_left(self, task_id: str) -> None:
        folder = self._book.left.pop(task_id, None)
        if folder is not None:
            await self.pool.run(shutil.rmtree, folder, True)
            await self._book.forget(task_id)

    def find(self, task_id: str) -> Workplace | None:
        """Return the copy that a task has.

        Args:
            task_id: The task.
        """
        return self._open.get(task_id)

    async def remove(self, copy: _Copy) -> None:
        """Remove a copy. A checkpoint.

        Args:
            copy: The copy.
        """
        if self._open.get(copy.seat.task_id) is copy:
            del self._open[copy.seat.task_id]
        copy.contents.close()
        with anyio.CancelScope(shield=True):
            await self.pool.run(shutil.rmtree, copy.directory.parent, True)
            await self._book.forget(copy.seat.task_id)

    def abandon(self) -> None:
        """Leave everything where it is, for somebody else who has it now."""
        for copy in self._open.values():
            copy.contents.close()
        self._open.clear()
        self._book.left.clear()

    async def aclose(self) -> None:
        """Remove what is left, also of earlier processes. A checkpoint."""
        for copy in list(self._open.values()):
            await self.remove(copy)
        for task_id in list(self._book.left):
            await self._remove_left(task_id)

    def __repr__(self) -> str:
        return f"<Copies {len(self._open)}>"


def _size(tree: Tree) -> int:
    return sum(state.stamp[0] for state in tree.files.values())


def _copy(root: Path, top: Path, paths: Sequence[str]) -> None:
    top.mkdir()
    for path in paths:
        target = top / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / path, target, follow_symlinks=False)


@final
class _Copy(Apart):
    """A task that works in a copy."""

    def __init__(
        self,
        copies: Copies,
        seat: Seat,
        directory: Path,
        watch: WorkspaceWatch,
        now: Tree,
        base: dict[str, FileState],
        contents: Contents,
        *,
        is_found: bool = False,
    ) -> None:
        super().__init__(seat)
        self._is_found = is_found
        self.contents = contents
        self._copies = copies
        self._directory = directory
        self._watch = watch
        self._tree = now
        self._base = base
        self._seen: Mapping[str, FileState] = now.files

    @property
    def directory(self) -> Path:
        """The copy."""
        return self._directory

    @property
    def is_left(self) -> bool:
        """See `Workplace.is_left`."""
        return self._copies.find(self.seat.task_id) is not self

    async def look(self) -> Change:
        """See `Workplace.look`."""
        changed = await self._changed()
        if strays := [path for path in changed if not self._may_write(path)]:
            await self._put_back(strays, self._base, NO_LEASE)
            changed = await self._changed()
        self._seen = self._tree.files
        self.checked: str = self._digest(changed)
        self.seat.changed = set(changed)
        now = self._tree.files
        pairs = [(path, self._base.get(path), now.get(path)) for path in changed]
        return Change(
            tree=self.checked,
            directory=self._directory,
            changed=tuple(changed[:MAX_LISTED]),
            strays=tuple(dict.fromkeys(self.strays))[:MAX_LISTED],
            diff=await self._copies.pool.run(diff_states, self.contents, pairs),
        )

    async def _changed(self) -> list[str]:
        self._tree = await self._watch.take(self._tree)
        now = self._tree.files
        return sorted(
            path
            for path in {*now, *self._base}
            if _digest_in(now, path) != _digest_in(self._base, path)
        )

    def _may_write(self, path: str) -> bool:
        if self.seat.files:
            return self.seat.covers(path)
        return self._copies.workspace.seats.holder(path) is None

    def _digest(self, changed: Sequence[str]) -> str:
        paths = {*self.seat.files, *changed}
        return tree_digest({path: _digest_in(self._tree.files, path) for path in paths})

    async def before(self, path: str) -> bytes | None:
        """See `Workplace.before`."""
        state = self._base.get(path)
        return await self._copies.pool.run(
            self.contents.get, b"" if state is None else state.digest
        )

    async def _settle(self, tree: str) -> list[str]:
        """Put aside what has changed since the check, unless somebody was to be at work."""
        changed = await self._changed()
        if self._digest(changed) == tree or self.seat.working or tree != self.checked:
            return changed
        now, then = self._tree.files, self._seen
        late = [path for path in {*now, *then} if _digest_in(now, path) != _digest_in(then, path)]
        await self._put_back(sorted(late), then, AFTER_CHECK)
        return await self._changed()

    async def clear(self) -> None:
        """See `Apart.clear`."""
        await self._changed()
        now, then = self._tree.files, self._seen
        left = [
            path
            for path in {*now, *then}
            if _digest_in(now, path) != _digest_in(then, path) and not self.is_own(path)
        ]
        await self._copies.pool.run(unlink_all, self._directory, left)
        await self._restore(left, then)

    async def _put_back(
        self, paths: Sequence[str], states: Mapping[str, FileState], why: str
    ) -> None:
        self.strays.extend(paths)
        workspace = self._copies.workspace
        await workspace.put_aside(self.seat.task_id, self._directory, paths, why)
        await self._restore(paths, states)

    async def _restore(self, paths: Sequence[str], states: Mapping[str, FileState]) -> None:
        files = {path: states[path] for path in paths if path in states}
        await self._copies.pool.run(_write_all, str(self._directory), self.contents, files)

    async def integrate(self, tree: str) -> Taken:
        """See `Workplace.integrate`."""
        changed = await self._settle(tree)
        if self._digest(changed) != tree:
            return Taken(is_moved=True)
        seat, workspace, leases = self.seat, self._copies.workspace, self._copies.leases
        if problem := await leases.check(seat.task_id, (), seat.fence):
            return Taken(problem=problem)
        await workspace.refresh()
        if moved := [path for path in changed if self._is_moved(path)]:
            return Taken(problem=await self._hand_back(moved))
        if self._is_found:
            await self._copies.pool.run(remove_drafts, str(workspace.directory), changed)
        files = {path: self._tree.files.get(path) for path in changed}
        if problem := await workspace.write(files, self.contents):
            return Taken(problem=problem)
        problem = await leases.accept(seat.task_id, (), seat.fence, tree)
        await self._copies.remove(self)
        return Taken(problem=problem)

    def _is_moved(self, path: str) -> bool:
        workspace = self._copies.workspace
        states = workspace.state(path), self._base.get(path), self._tree.files.get(path)
        now, base, mine = (state and state.digest for state in states)
        # Like ours already: a process that was killed has written it.
        return now not in {base, mine} or workspace.seats.holder(path) is not None

    async def _hand_back(self, paths: Sequence[str]) -> str:
        workspace = self._copies.workspace
        text = await workspace.diff({path: self._base.get(path) for path in paths})
        for path in paths:
            if (state := workspace.state(path)) is None:
                self._base.pop(path, None)
            else:
                self._base[path] = state
        names = ", ".join(paths[:10])
        return (
            f"others have changed {names} meanwhile; put what they did into yours as well, "
            f"it will be replaced by yours otherwise.\n{text[:3_000]}"
        )

    async def remove(self) -> None:
        """See `Apart.remove`."""
        await self._copies.remove(self)

    def __repr__(self) -> str:
        return f"<Copy {self._directory} of {self.seat.task_id!r}>"


def _keep_base(
    root: str, contents: Contents, base: Mapping[str, FileState]
) -> dict[str, FileState | None]:
    """Keep what the files of a base held, from the workspace where the copy has changed them.

    Returns:
        The files of which that cannot be known any more, as they are in the workspace now.
    """
    newer = {}
    for path, state in base.items():
        if contents.get(state.digest) is None:
            now = read_state(root, path, contents.keep)
            if now is None or now.digest != state.digest:
                newer[path] = now
    return newer


def _digest_in(files: Mapping[str, FileState], path: str) -> bytes | None:
    return files[path].digest if path in files else None


def _write_all(root: str, contents: Contents, files: dict[str, FileState]) -> None:
    for path, state in files.items():
        if (data := contents.get(state.digest)) is not None:
            write_file(root, path, data, state.mode)
