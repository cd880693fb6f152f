"""What a mission did to the files, seen from outside: digests, changes, secrets, broken files.

Agents say what they did; this looks. All of it is CPU work and disk, so it runs on a
`WorkStealingPool`, and a large tree does not stall the event loop. A file whose size and times
have not changed is not read again.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias, TypeVar, final

from attrs import frozen

from orchestra import Redactor, WorkStealingPool
from orchestra.opencode.mission.inspection import Inspection, secret_formats
from orchestra.opencode.mission.report import Evidence

__all__ = ("FileState", "TooLargeError", "Tree", "Witness", "WorkspaceWatch", "read_state")

T = TypeVar("T")
Keep: TypeAlias = Callable[[bytes, bytes], object]
"""``keep(digest, contents)`` is given what was read; called in threads."""

SKIPPED = frozenset(
    {
        ".git",
        ".hg",
        ".mypy_cache",
        ".nox",
        ".orchestra",
        ".pytest_cache",
        ".ruff_cache",
        ".svn",
        ".tox",
        ".venv",
        "__pycache__",
        "node_modules",
    }
)
"""Folders that are not anybody's work."""
_BATCH = 256
_MAX_READ = 64 << 20
"""Bytes of a file up to which its contents count; of a larger one size and time do."""
_MAX_FILES = 200_000
"""Files of a workspace up to which it is looked at."""
MAX_KEPT = 1 << 20
"""Bytes of a file up to which its contents are kept."""
_MAX_LISTED = 1_000
"""Paths and findings that are named; more are counted."""


_RACY = 100_000_000
"""Nanoseconds within which a file may change again without another time: as git, we look again."""

Stamp: TypeAlias = tuple[int, int, int, int, int]
"""Size, times of contents and of the file itself, its number, its mode."""


@frozen
class FileState:
    """A file at one moment.

    Attributes:
        stamp: What tells whether it may have changed.
        digest: SHA-256 of its contents; of a link, of where it points to.
        is_racy: Whether it was so young that the same stamp proves nothing.
    """

    stamp: Stamp
    digest: bytes
    is_racy: bool = False

    @property
    def mode(self) -> int:
        """Its type and permissions."""
        return self.stamp[4]


@frozen
class Tree:
    """A workspace's files at one moment.

    Attributes:
        files: Stamp and digest by path, relative and with ``/``.
        digest: SHA-256 over all paths and contents, in hexadecimal.
    """

    files: Mapping[str, FileState]
    digest: str


def _stamp(info: os.stat_result) -> Stamp:
    return (info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino, info.st_mode)


def _is_draft(folder: str, name: str, skipped: frozenset[str]) -> bool:
    """Whether a file is what will replace one that does not count, and is still being written."""
    return name.startswith(".") and f"{folder}{name[1:].rpartition('.')[0]}" in skipped


def _walk(root: str, skipped: frozenset[str]) -> list[tuple[str, Stamp]]:
    """List regular files and links with what tells whether they changed; no link is followed."""
    found: list[tuple[str, Stamp]] = []
    folders = [""]
    while folders and len(found) <= _MAX_FILES:
        folder = folders.pop()
        try:
            entries = list(os.scandir(os.path.join(root, folder)))  # noqa: PTH118
        except OSError:
            continue  # gone, or not ours to read: the agents could not read it either
        for entry in entries:
            path = f"{folder}{entry.name}"
            try:
                if entry.is_dir(follow_symlinks=False):
                    if entry.name not in SKIPPED and path not in skipped:
                        folders.append(f"{path}/")
                elif path not in skipped and not _is_draft(folder, entry.name, skipped):
                    info = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(info.st_mode) or stat.S_ISLNK(info.st_mode):
                        found.append((path, _stamp(info)))
            except OSError:
                continue
    found.sort()
    return found


def _digest(root: str, path: str, keep: Keep | None = None) -> bytes:
    full = os.path.join(root, path)  # noqa: PTH118  (20,000 times)
    try:
        if os.path.islink(full):  # noqa: PTH114
            target = b"link:" + os.fsencode(os.readlink(full))  # noqa: PTH115
            return _kept(target, keep)
        info = os.stat(full)  # noqa: PTH116
        if info.st_size > _MAX_READ:
            return hashlib.sha256(f"large:{info.st_size}:{info.st_mtime_ns}".encode()).digest()
        with open(full, "rb") as file:  # noqa: PTH123
            if keep is not None and info.st_size <= MAX_KEPT:
                return _kept(file.read(), keep)
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as exc:
        return hashlib.sha256(f"unreadable:{exc.errno}".encode()).digest()


def _kept(data: bytes, keep: Keep | None) -> bytes:
    digest = hashlib.sha256(data).digest()
    if keep is not None:
        keep(digest, data)
    return digest


def _digest_batch(root: str, keep: Keep | None, paths: Sequence[str]) -> list[bytes]:
    return [_digest(root, path, keep) for path in paths]


def read_state(root: str, path: str, keep: Keep | None = None) -> FileState | None:
    """Return a file as it is now; None when there is none. Blocks.

    Args:
        root: The workspace.
        path: The file, relative to it.
        keep: Given its contents.
    """
    try:
        info = os.lstat(os.path.join(root, path))  # noqa: PTH118
    except (OSError, ValueError):
        return None
    if not (stat.S_ISREG(info.st_mode) or stat.S_ISLNK(info.st_mode)):
        return None
    return FileState(_stamp(info), _digest(root, path, keep), is_racy=True)


def _summarize(files: Mapping[str, FileState]) -> str:
    total = hashlib.sha256()
    for path, file in files.items():
        total.update(os.fsencode(path) + b"\0" + file.digest)
    return total.hexdigest()


def _batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), _BATCH):
        yield items[start : start + _BATCH]


class TooLargeError(Exception):
    """The workspace has more files than are looked at."""


@final
class WorkspaceWatch:
    """Takes a workspace's digest at the start, and tells at the end what has changed.

    Args:
        directory: The workspace.
        pool: Does the work.
        skipped: Paths, relative to the workspace, that do not count.
        keep: Given the contents of every file that is read and not too large.
        redactor: Knows what secrets look like; None: the formats that are known by default.
    """

    def __init__(
        self,
        directory: Path,
        pool: WorkStealingPool,
        *,
        skipped: Iterable[str] = (),
        keep: Keep | None = None,
        redactor: Redactor | None = None,
    ) -> None:
        # In files there is much that looks drawn at random and is not secret.
        self._inspection = Inspection(redactor=secret_formats(redactor))
        self._root = str(directory)
        self._pool = pool
        self._skipped = frozenset(skipped)
        self._keep = keep

    def skip(self, paths: Iterable[str]) -> None:
        """Leave out more files and folders from now on.

        Args:
            paths: Relative to the workspace.
        """
        self._skipped |= frozenset(paths)

    async def take(self, earlier: Tree | None = None) -> Tree:
        """Read the tree. A checkpoint.

        Args:
            earlier: What an earlier call returned: files that look unchanged are not read again.

        Raises:
            TooLargeError: There are more than 200,000 files.
        """
        started = time.time_ns()
        listed = await self._pool.run(_walk, self._root, self._skipped)
        if len(listed) > _MAX_FILES:
            raise TooLargeError(f"it has more than {_MAX_FILES:,} files")
        known = earlier.files if earlier is not None else {}
        unknown = [
            path
            for path, stamp in listed
            if path not in known or known[path].is_racy or known[path].stamp != stamp
        ]
        read = await self._pool.run_many(
            partial(_digest_batch, self._root, self._keep), _batches(unknown)
        )
        digests = dict(zip(unknown, (digest for batch in read for digest in batch), strict=True))
        return await self._pool.run(_assemble, listed, digests, known, started - _RACY)

    async def compare(self, before: Tree, after: Tree) -> Evidence:
        """Tell what has changed, and look into what is new. A checkpoint.

        Args:
            before: The tree at the start.
            after: The tree at the end.
        """
        added, changed, removed = await self._pool.run(_changes, before, after)
        looked = await self._pool.run_many(
            partial(self._inspection.look, self._root), [*added, *changed][: 10 * _MAX_LISTED]
        )
        findings = [sighting.finding for seen in looked for sighting in seen]
        listed = (added[:_MAX_LISTED], changed[:_MAX_LISTED], removed[:_MAX_LISTED])
        return Evidence(
            before=before.digest,
            after=after.digest,
            files=len(after.files),
            added=tuple(listed[0]),
            changed=tuple(listed[1]),
            removed=tuple(listed[2]),
            unlisted=len(added) + len(changed) + len(removed) - sum(map(len, listed)),
            findings=tuple(findings[:_MAX_LISTED]),
        )

    def __repr__(self) -> str:
        return f"<WorkspaceWatch {self._root}>"


def _assemble(
    listed: Sequence[tuple[str, Stamp]],
    digests: Mapping[str, bytes],
    known: Mapping[str, FileState],
    settled_at: int,
) -> Tree:
    files = {
        path: FileState(stamp, digests[path], is_racy=stamp[2] >= settled_at)
        if path in digests
        else known[path]
        for path, stamp in listed
    }
    return Tree(files, _summarize(files))


def _changes(before: Tree, after: Tree) -> tuple[list[str], list[str], list[str]]:
    added = [path for path in after.files if path not in before.files]
    removed = [path for path in before.files if path not in after.files]
    changed = [
        path
        for path, file in after.files.items()
        if path in before.files and before.files[path].digest != file.digest
    ]
    return added, changed, removed


@final
class Witness:
    """Looks at the workspace when a mission starts and when it ends.

    Args:
        directory: The workspace.
        skipped: Paths, relative to the workspace, that do not count.
        redactor: Knows what secrets look like; None: the formats that are known by default.
    """

    def __init__(
        self,
        directory: Path,
        *,
        skipped: Iterable[str] = (),
        redactor: Redactor | None = None,
    ) -> None:
        self._directory = directory
        self._redactor = redactor
        self._skipped = frozenset(skipped)
        self._before: Tree | None = None
        self.warnings: list[str] = []

    def _watch(self, pool: WorkStealingPool) -> WorkspaceWatch:
        return WorkspaceWatch(self._directory, pool, skipped=self._skipped, redactor=self._redactor)

    async def begin(self) -> None:
        """Look before anybody has changed anything. A checkpoint."""
        async with WorkStealingPool() as pool:
            watch = self._watch(pool)
            try:
                self._before = await watch.take()
            except TooLargeError as exc:
                self.warnings.append(f"changes of the workspace are not looked at: {exc}")

    async def end(self) -> Evidence | None:
        """Look again, and tell what has changed; None without a first look. A checkpoint."""
        if self._before is None:
            return None
        async with WorkStealingPool() as pool:
            watch = self._watch(pool)
            try:
                after = await watch.take(self._before)
            except TooLargeError as exc:
                self.warnings.append(f"changes of the workspace are not looked at: {exc}")
                return None
            evidence = await watch.compare(self._before, after)
        for finding in evidence.findings[:20]:
            where = f"{finding.path}:{finding.line}" if finding.line else finding.path
            self.warnings.append(f"{where}: {finding.message}")
        if len(evidence.findings) > 20:
            self.warnings.append(f"{len(evidence.findings) - 20} more findings, see the evidence")
        return evidence

    def __repr__(self) -> str:
        state = "has begun" if self._before is not None else "has not begun"
        return f"<Witness {self._directory} {state}>"
