"""The workspace under a mission: what it held, what has changed in it, and whose that is.

One scan serves everybody who waits for one. A changed file is *settled* when it is known whose it
is; what belongs to nobody is put aside into ``.orchestra/quarantine``, and the file is as before.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import final

import anyio

from orchestra import WorkStealingPool
from orchestra.opencode.mission.attribution import Fate, Judgement, Seat, Seats, judge
from orchestra.opencode.mission.contents import Contents
from orchestra.opencode.mission.diffs import FileChange, make_diff
from orchestra.opencode.mission.evidence import (
    FileState,
    TooLargeError,
    Tree,
    WorkspaceWatch,
    read_state,
)
from orchestra.opencode.mission.ignored import Ignored
from orchestra.opencode.mission.nearby import run_near
from orchestra.opencode.mission.putting_back import (
    Restored,
    Restoring,
    move_aside,
    put_back,
    write_file,
)
from orchestra.opencode.mission.report_files import make_folder

__all__ = ("MAX_LISTED", "Workspace", "diff_states", "slug", "tree_digest")

MAX_LISTED = 1_000
_UNKNOWN = (0, 0, 0, 0, 0)
"""The stamp of a file that another process has seen."""
_SAFE = re.compile(r"[^A-Za-z0-9._-]+")


def slug(name: str) -> str:
    """Return a name that a file or a branch can have; different names stay different.

    Args:
        name: A task's id.
    """
    safe = _SAFE.sub("-", name).strip(".-")[:60]
    if safe == name and not name.endswith(".lock") and ".." not in name:
        return name
    return f"{safe.replace('..', '-') or 'task'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def tree_digest(files: Mapping[str, bytes | None]) -> str:
    """Return the digest of some files.

    Args:
        files: For each path the digest of its contents; None: there is no such file.
    """
    total = hashlib.sha256()
    for path in sorted(files):
        total.update(os.fsencode(path) + b"\0" + (files[path] or b"\0absent"))
    return total.hexdigest()


@final
class Workspace:
    """What is known of a workspace while a mission runs in it.

    Args:
        directory: The workspace.
        pool: Reads and compares.
        skipped: Paths, relative to it, that do not count.
        is_watched: Whether all of it is looked at; otherwise only declared files are.
        is_shared: Whether tasks work in it; otherwise whatever changes in it is the user's.
    """

    def __init__(
        self,
        directory: Path,
        pool: WorkStealingPool,
        *,
        skipped: Iterable[str] = (),
        is_watched: bool = True,
        is_shared: bool = True,
    ) -> None:
        self._is_shared = is_shared
        self.directory = directory
        self.seats: Seats = Seats()
        self.warnings: list[str] = []
        self.strays: dict[str, list[str]] = {}
        self.lost: dict[str, str] = {}
        self._accepted: dict[str, Mapping[str, FileState | None]] = {}
        self._root = str(directory)
        self._pool = pool
        self._is_watched = is_watched
        self._contents = Contents()
        self._watch = WorkspaceWatch(directory, pool, skipped=skipped, keep=self._contents.keep)
        self._ignored = Ignored(directory, skipped)
        self._base: Tree | None = None
        self._tree: Tree | None = None
        self._settled: dict[str, FileState] = {}
        self._guarded: set[str] = set()
        self._forgotten: set[str] = set()
        self._seen: set[str] = set()
        self._authors: dict[str, Seat] = {}
        self._later: dict[str, tuple[Seat, ...]] = {}
        self._present: dict[Seat, None] = {}
        self._lock = anyio.Lock()
        self._wanted = 0
        self._done = 0

    # --- looking ---

    async def begin(self) -> None:
        """Look for the first time. A checkpoint."""
        if not self._is_watched:
            return
        try:
            self._watch.skip(await self._ignored.begin())
            self._base = self._tree = await self._watch.take()
        except TooLargeError as exc:
            self._is_watched = False
            self.warnings.append(f"changes of the workspace are not looked at: {exc}")
            return
        self._settled = dict(self._tree.files)

    async def refresh(self) -> None:
        """See everything that has changed until now, and settle it. A checkpoint."""
        self._wanted += 1
        mine = self._wanted
        while self._done < mine:
            async with self._lock:
                if self._done < mine:
                    serves = self._wanted
                    await self._scan()
                    self._done = serves

    async def _scan(self) -> None:
        """Take the tree and settle what differs; with the lock."""
        before = self._tree
        if not self._is_watched or before is None:
            return
        present = list(self._present)
        try:
            tree = await self._watch.take(before)
        except TooLargeError as exc:
            self._is_watched = False
            self.warnings.append(f"changes of the workspace are not looked at any more: {exc}")
            return
        self._tree = tree
        suspects = await self._pool.run(_differing, self._settled, tree.files)
        found = {path: tree.files.get(path) for path in suspects}
        await self._settle_all(suspects, found, present)
        for seat in present:
            if not seat.working:
                self._present.pop(seat, None)

    async def stamp(self, paths: Sequence[str]) -> None:
        """Look at some files only, and settle them. A checkpoint.

        Args:
            paths: The files, relative to the workspace.
        """
        async with self._lock:
            await self._stamp(paths)

    async def _stamp(self, paths: Sequence[str]) -> None:
        found = await run_near(
            self._pool, self._root, paths, _read_states, self._root, paths, self._contents
        )
        await self._settle_all(paths, found, list(self._present))

    async def settle_strays(self, paths: Sequence[str]) -> None:
        """Put back what others are about to leave in files that somebody now has a lease on.

        Args:
            paths: The files.
        """
        if any(path in self._later for path in paths):
            await self.stamp(paths)

    # --- who is at work ---

    @asynccontextmanager
    async def at_work(self, seat: Seat, *, is_checking: bool = False) -> AsyncIterator[None]:
        """Somebody's worker or command is at work; at the end, what it left is looked at.

        Args:
            seat: Whose.
            is_checking: Whether it is a command of ours that checks a task.
        """
        seat.is_checking = is_checking
        seat.working += 1
        self._present[seat] = None
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):
                try:
                    async with self._lock:
                        await self._stamp([*seat.files, *sorted(seat.own | seat.edited)])
                finally:
                    seat.working -= 1

    async def recall(self, seat: Seat, before: Mapping[str, str]) -> None:
        """Take what a task changed under an earlier process for its change. A checkpoint if any.

        What a file held before is known again only if it is what was committed last.

        Args:
            seat: Whose.
            before: As for `Workplaces.recall`.
        """
        for path, digest in before.items():
            now = self._settled.get(path)
            old = FileState(_UNKNOWN, bytes.fromhex(digest)) if digest else None
            if _digest_of(old) != _digest_of(now):
                seat.before.setdefault(path, old)
                seat.changed.add(path)
                if old is not None and await self.contents(old) is None:
                    await self._ignored.find(path, old.digest, self._contents.keep)

    def gather(self, seat: Seat, parts: Sequence[str]) -> None:
        """Take what was accepted of the parts of a task for its change.

        Args:
            seat: The task's.
            parts: The parts.
        """
        for each in parts:
            for path, before in self._accepted.get(each, {}).items():
                seat.before.setdefault(path, before)
                seat.changed.add(path)

    def on_edit(self, seat: Seat, path: str) -> None:
        """A tool call has written a file.

        Args:
            seat: Whose.
            path: As the call named it.
        """
        inside = os.path.relpath(os.path.join(self._root, path), self._root)  # noqa: PTH118
        if not inside.startswith(".."):
            inside = inside.replace(os.sep, "/")
            seat.edited.add(inside)
            self._authors[inside] = seat

    # --- whose it is ---

    async def _settle_all(
        self,
        paths: Sequence[str],
        found: Mapping[str, FileState | None],
        present: Sequence[Seat],
    ) -> None:
        odd: dict[str, Judgement] = {}
        for path in paths:
            is_new = not self._is_shared or (not self._is_watched and path not in self._seen)
            self._seen.add(path)
            if is_new or _digest_of(found[path]) == _digest_of(self._settled.get(path)):
                self._settle(path, found[path])
                continue
            judgement = self._judge(path, present)
            if judgement.fate is Fate.KEPT and judgement.owners:
                self._keep(path, found[path], judgement)
            else:
                odd[path] = judgement
        if not odd:
            return
        ignored = await self._ignored.select(list(odd))
        self._watch.skip(ignored)
        back: dict[str, Judgement] = {}
        for path, judgement in odd.items():
            if path in ignored:
                self._settle(path, None)
                self._forgotten.add(path)
            elif judgement.fate is Fate.LATER:
                self._later[path] = judgement.suspects
            elif judgement.fate is Fate.PUT_BACK:
                back[path] = judgement
            else:
                self._let_be(path, found[path], judgement)
        if back:
            await self._put_back(back, found)

    def _judge(self, path: str, present: Sequence[Seat]) -> Judgement:
        there = list(dict.fromkeys([*present, *self._later.get(path, ())]))
        author = self._authors.get(path)
        return judge(
            path,
            holder=self.seats.holder(path),
            present=there,
            author=author,
            is_guarded=path in self._guarded,
        )

    def _keep(self, path: str, state: FileState | None, judgement: Judgement) -> None:
        before = self._settled.get(path)
        for seat in judgement.owners:
            seat.before.setdefault(path, before)
        if len(judgement.owners) == 1 and len(judgement.suspects) <= 1:
            owner = judgement.owners[0]
            owner.changed.add(path)
            if not owner.files:
                self.seats.own(path, owner)
        self._settle(path, state)

    def _let_be(self, path: str, state: FileState | None, judgement: Judgement) -> None:
        if not judgement.suspects:  # else a command has left it
            self.warnings.append(f"{path} changed while nobody of this mission was at work")
        self._settle(path, state)

    def _settle(self, path: str, state: FileState | None) -> None:
        if state is None:
            self._settled.pop(path, None)
        else:
            self._settled[path] = state
        self._later.pop(path, None)
        self._authors.pop(path, None)

    async def _put_back(
        self, back: Mapping[str, Judgement], found: Mapping[str, FileState | None]
    ) -> None:
        wanted = []
        folder = await self._pool.run(make_folder, self.directory)
        for path, judgement in back.items():
            stray_of = judgement.stray_of
            name = "unknown" if stray_of is None else slug(stray_of.task_id)
            aside = folder / "quarantine" / name
            wanted.append(Restoring(path=path, state=self._settled.get(path), aside=aside))
        done = await self._pool.run(put_back, self._root, self._contents, wanted)
        for each in done:
            if each.is_changed:
                self._tell(each, back[each.path])
            if each.problem:
                self._settle(each.path, found[each.path])
            else:
                self._settle(each.path, self._settled.get(each.path))

    def _tell(self, done: Restored, judgement: Judgement) -> None:
        stray_of = judgement.stray_of
        if stray_of is not None and self.seats.get(stray_of.task_id) not in {None, stray_of}:
            who = f"an earlier attempt at task {stray_of.task_id!r} changed {done.path}"
        elif stray_of is not None:
            self.strays.setdefault(stray_of.task_id, []).append(done.path)
            who = f"task {stray_of.task_id!r} changed {done.path} without a lease on it"
        else:
            names = ", ".join(repr(seat.task_id) for seat in judgement.suspects[:5])
            who = f"{done.path} was changed by nobody who has a lease on it"
            who += f" (at work: {names})" if names else ""
        if done.problem:
            self.lost[done.path] = done.problem
            self.warnings.append(f"{who}, and cannot be put back: {done.problem}")
            return
        where = ""
        if done.aside is not None:
            where = f"; its version is in {done.aside.relative_to(self.directory)}"
        self.warnings.append(f"{who}: it was put back{where}")

    # --- what is known ---

    def state(self, path: str) -> FileState | None:
        """Return a file as it was last settled.

        Args:
            path: The file, relative to the workspace.
        """
        return self._settled.get(path)

    def first(self, path: str) -> FileState | None:
        """Return a file as it was when the mission began.

        Args:
            path: The file, relative to the workspace.
        """
        return None if self._base is None else self._base.files.get(path)

    async def contents(self, state: FileState | None) -> bytes | None:
        """Return what a file held, if that was kept. A checkpoint.

        Args:
            state: The file at that moment.
        """
        return await self._pool.run(self._contents.get, b"" if state is None else state.digest)

    def paths(self) -> list[str]:
        """Return the files that there are."""
        return list(self._settled)

    def accept(self, seat: Seat, paths: Iterable[str]) -> None:
        """A change was accepted: from now on its files only change with a lease on them.

        Args:
            seat: Of the task whose change it is.
            paths: The files.
        """
        self._accepted[seat.task_id] = dict(seat.before)
        self._guarded.update(paths)

    async def diff(self, before: Mapping[str, FileState | None]) -> str:
        """Return how files differ from what they were. A checkpoint.

        Args:
            before: The files, and how they were.
        """
        pairs = [(path, old, self._settled.get(path)) for path, old in sorted(before.items())]
        paths = [path for path, *_ in pairs]
        return await run_near(self._pool, self._root, paths, diff_states, self._contents, pairs)

    async def whole(self) -> tuple[str, dict[str, FileState | None]]:
        """Return the digest of all files, and what has changed since the beginning. A checkpoint."""
        await self.refresh()
        if self._base is None:
            return "", {}
        before = {
            path: state for path, state in self._base.files.items() if path not in self._forgotten
        }
        return await self._pool.run(_compare, before, dict(self._settled))

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """Keep everybody from looking while files are written that are accepted already."""
        async with self._lock:
            yield

    async def written(self, paths: Sequence[str]) -> None:
        """Settle what was written in a `writing` block. A checkpoint.

        Args:
            paths: The files.
        """
        found = await run_near(
            self._pool, self._root, paths, _read_states, self._root, paths, self._contents
        )
        for path in paths:
            self._settle(path, found[path])
        self._guarded.update(paths)

    async def write(self, files: Mapping[str, FileState | None], contents: Contents) -> str:
        """Bring files into the workspace that are accepted. A checkpoint.

        Args:
            files: How they are to be; None: they are to be gone.
            contents: What they hold.

        Returns:
            Why it is not done, or not as a whole; empty: it is.
        """
        async with self.writing():
            problem = await self._pool.run(_write, self._root, files, contents)
            await self.written(list(files))
        return problem

    async def put_aside(
        self, task_id: str, directory: Path, paths: Sequence[str], why: str
    ) -> None:
        """Move what must not have changed in a task's copy into quarantine. A checkpoint.

        Args:
            task_id: The task.
            directory: Its copy of the workspace.
            paths: The files.
            why: Why they must not.
        """
        folder = await self._pool.run(make_folder, self.directory)
        aside = folder / "quarantine" / slug(task_id)
        await self._pool.run(_move_all, directory, aside, paths)
        names = ", ".join(paths[:5]) + (", ..." if len(paths) > 5 else "")
        where = aside.relative_to(self.directory)
        self.warnings.append(
            f"task {task_id!r} changed {names} {why}: put back; its version is in {where}"
        )

    def close(self) -> None:
        """Forget what files held."""
        self._contents.close()

    def __repr__(self) -> str:
        return f"<Workspace {self._root} files={len(self._settled)} {self.seats!r}>"


def _digest_of(state: FileState | None) -> bytes | None:
    return None if state is None else state.digest


def _differing(before: Mapping[str, FileState], after: Mapping[str, FileState]) -> list[str]:
    found = [path for path, state in after.items() if _digest_of(before.get(path)) != state.digest]
    found += [path for path in before if path not in after]
    return sorted(found)


def _read_states(
    root: str, paths: Sequence[str], contents: Contents
) -> dict[str, FileState | None]:
    return {path: read_state(root, path, contents.keep) for path in paths}


def diff_states(
    contents: Contents, pairs: Sequence[tuple[str, FileState | None, FileState | None]]
) -> str:
    """Return how files differ, as text of bounded length. Blocks.

    Args:
        contents: What they held.
        pairs: Each file, how it was, and how it is.
    """
    changes = []
    for path, old, new in pairs:
        if _digest_of(old) == _digest_of(new):
            continue
        before = None if old is None else contents.get(old.digest)
        after = None if new is None else contents.get(new.digest)
        is_known = (old is None or before is not None) and (new is None or after is not None)
        if not is_known:
            before, after = (old and b"") or None, (new and b"") or None
        changes.append(FileChange(path, before, after, is_known=is_known))
    return make_diff(changes)


def _compare(
    before: Mapping[str, FileState], after: Mapping[str, FileState]
) -> tuple[str, dict[str, FileState | None]]:
    digest = tree_digest({path: state.digest for path, state in after.items()})
    changed: dict[str, FileState | None] = {
        path: before.get(path)
        for path, state in after.items()
        if path not in before or before[path].digest != state.digest
    }
    changed.update({path: state for path, state in before.items() if path not in after})
    return digest, changed


def _write(root: str, files: Mapping[str, FileState | None], contents: Contents) -> str:
    for path, state in files.items():
        if state is not None and contents.get(state.digest) is None:
            return f"{path} is too large to be taken over from a copy"
    try:
        for path, state in files.items():
            if state is None:
                Path(root, path).unlink(missing_ok=True)
            else:
                write_file(root, path, contents.get(state.digest) or b"", state.mode)
    except OSError as exc:
        return f"{path} cannot be written: {exc}"
    return ""


def _move_all(directory: Path, aside: Path, paths: Sequence[str]) -> None:
    for path in paths:
        if os.path.lexists(directory / path):
            move_aside(directory / path, aside, path)
