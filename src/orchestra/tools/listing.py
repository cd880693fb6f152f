"""Which files there are below a folder, by ripgrep where it is, else by a walk; the same either way.

The rules:

* Files whose name begins with a dot, and folders of that kind, are left out unless asked for.
* What a ``.gitignore`` inside the root names is left out unless asked for. Other ignore files, those
  above the root, and what git is told elsewhere do not count. ``!.name`` in one shows a hidden file.
* ``.git`` is left out always, symbolic links are neither followed nor listed, and neither are names
  that cannot be shown.
"""

from __future__ import annotations

import os
import stat
from threading import Event
from typing import Final, final

import anyio
import anyio.to_thread
from attrs import field, frozen

from orchestra._core.checks import count, seconds
from orchestra._core.globs import Glob, IgnoreRules
from orchestra.processes import run_command
from orchestra.tools._child import find_program
from orchestra.tools.root import Root, is_presentable

__all__ = ("Listing", "Selection", "find_ripgrep", "list_files", "ripgrep_environment")

_MAX_FILES = 200_000
_MAX_RULES = 1 << 20
"""Bytes of a ``.gitignore`` that are read."""
_MAX_DEPTH = 256


@frozen(kw_only=True)
class Selection:
    """Which files are meant.

    Attributes:
        path: A folder or a file, relative to the root; empty: all of the root.
        glob: What their paths must match, seen from ``path``; None: everything.
        is_hidden_included: Whether names that begin with a dot count.
        is_ignored_included: Whether what ``.gitignore`` names counts.
        max_file_size: Bytes; larger files are left out.
        timeout: Seconds that looking may take; what was found until then is returned.
    """

    path: str = ""
    glob: Glob | None = None
    is_hidden_included: bool = False
    is_ignored_included: bool = False
    max_file_size: int = field(default=10 << 20, validator=count)
    timeout: float = field(default=30.0, validator=seconds)


@frozen(kw_only=True)
class Listing:
    """Files of a selection.

    Attributes:
        paths: Their paths relative to the root, sorted.
        cut: What is missing, as a sentence; empty when nothing is.
    """

    paths: tuple[str, ...]
    cut: str = ""


def find_ripgrep(root: Root) -> str | None:
    """Return ``rg`` as found on PATH, but never inside the root. Blocks.

    What lies in a workspace is an agent's to write, and is not run.

    Args:
        root: The folder that is searched.
    """
    return find_program("rg", root.path, os.environ)


def ripgrep_environment() -> dict[str, str]:
    """Return the environment without what would change what ripgrep prints."""
    return {key: value for key, value in os.environ.items() if key != "RIPGREP_CONFIG_PATH"}


async def list_files(root: Root, selection: Selection, *, ripgrep: str | None = None) -> Listing:
    """Return the files of a selection. Always a checkpoint.

    Args:
        root: The folder that cannot be left.
        selection: Which files.
        ripgrep: The program; None: walk.

    Raises:
        ValueError: The selection's path leads out of the root.
        FileNotFoundError: There is nothing of that name.
        OSError: ripgrep cannot be started.
    """
    start = await anyio.to_thread.run_sync(root.resolve, selection.path)
    found_there = await anyio.to_thread.run_sync(root.status, start)
    if not stat.S_ISDIR(found_there.st_mode):  # a file that is named is meant, whatever its name
        if found_there.st_size <= selection.max_file_size:
            return Listing(paths=(start,))
        return Listing(paths=(), cut=f"{start!r} is too large: {found_there.st_size:,} bytes")
    if ripgrep is None:
        found, cut = await _walk_in_thread(root, start, selection)
    else:
        found, cut = await _ask_ripgrep(root, start, selection, ripgrep)
    if selection.glob is not None:
        skipped = len(start) + 1 if start else 0
        found = [path for path in found if selection.glob.matches(path[skipped:])]
    return Listing(paths=tuple(sorted(found)), cut=cut)


async def _ask_ripgrep(
    root: Root, start: str, selection: Selection, ripgrep: str
) -> tuple[list[str], str]:
    argv = [
        *(ripgrep, "--files", "--null", "--no-config", "--no-messages", "--no-follow"),
        *("--no-require-git", "--no-ignore-global", "--no-ignore-parent", "--no-ignore-exclude"),
        *("--no-ignore-dot", "--glob", "!.git", "--max-filesize", str(selection.max_file_size)),
    ]
    if selection.is_hidden_included:
        argv.append("--hidden")
    if selection.is_ignored_included:
        argv.append("--no-ignore")
    inside = f"{start}/" if start else ""
    found: list[str] = []
    rest = ""

    async def take(text: str) -> None:
        nonlocal rest
        *names, rest = (rest + text).split("\0")
        found.extend(name for name in names if name.startswith(inside) and is_presentable(name))
        if len(found) > _MAX_FILES:
            raise _FullError

    # From the root also for a folder inside it: only so its parents' rules count.
    try:
        done = await run_command(
            argv,
            directory=root.path,
            environment=ripgrep_environment(),
            timeout=selection.timeout,
            output_limit=1_024,
            on_text=take,
        )
    except _FullError:
        return found[:_MAX_FILES], _too_many()
    return found, _too_slow(selection.timeout) if done.is_timed_out else ""


class _FullError(Exception):
    """Enough was found."""


def _too_many() -> str:
    return f"there are more than {_MAX_FILES:,} files, and only so many were looked at"


def _too_slow(timeout: float) -> str:
    return f"listing the files was stopped after {timeout:g} s"


async def _walk_in_thread(root: Root, start: str, selection: Selection) -> tuple[list[str], str]:
    walk = _Walk(root, start, selection)
    try:
        with anyio.move_on_after(selection.timeout) as scope:
            await anyio.to_thread.run_sync(walk.run, abandon_on_cancel=True)
    finally:
        walk.stop.set()
    if scope.cancelled_caught:
        return list(walk.found), _too_slow(selection.timeout)
    return walk.found, _too_many() if walk.is_full else ""


@final
class _Walk:
    """A walk through folders, depth first, that another thread may stop."""

    def __init__(self, root: Root, start: str, selection: Selection) -> None:
        self._root: Final = root
        self._start: Final = f"{start}/" if start else ""
        self._selection: Final = selection
        self.found: Final[list[str]] = []
        self.is_full = False
        self.stop: Final = Event()

    def run(self) -> None:
        with self._root.folder("") as descriptor:
            self._visit(descriptor, "", ())

    def _visit(self, folder: int, path: str, rules: tuple[tuple[IgnoreRules, int], ...]) -> None:
        """Look through an open folder; ``path`` ends with a slash, or is empty."""
        entries, own = self._entries(folder)
        if own is not None:
            rules = ((own, len(path)), *rules)
        for entry in entries:
            if self.stop.is_set() or self.is_full:
                return
            name = path + entry.name
            is_folder = entry.is_dir(follow_symlinks=False)
            if not self._is_on_the_way(name, is_folder=is_folder) or self._is_left_out(
                name, entry.name, rules, is_folder=is_folder
            ):
                continue
            if is_folder:
                self._descend(folder, entry.name, f"{name}/", rules)
            elif entry.is_file(follow_symlinks=False) and self._is_small(folder, entry.name):
                self.found.append(name)
                self.is_full = len(self.found) >= _MAX_FILES

    def _entries(self, folder: int) -> tuple[list[os.DirEntry[str]], IgnoreRules | None]:
        try:
            with os.scandir(folder) as scan:
                entries = list(scan)
        except OSError:
            return [], None  # gone, or not ours to read
        is_there = not self._selection.is_ignored_included and any(
            entry.name == ".gitignore" for entry in entries
        )
        return entries, _read_rules(folder) if is_there else None

    def _descend(
        self, parent: int, name: str, path: str, rules: tuple[tuple[IgnoreRules, int], ...]
    ) -> None:
        if path.count("/") > _MAX_DEPTH:
            return
        try:
            folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
        except OSError:
            return
        try:
            self._visit(folder, path, rules)
        finally:
            os.close(folder)

    def _is_on_the_way(self, path: str, *, is_folder: bool) -> bool:
        return path.startswith(self._start) or (is_folder and self._start.startswith(f"{path}/"))

    def _is_left_out(
        self, path: str, name: str, rules: tuple[tuple[IgnoreRules, int], ...], *, is_folder: bool
    ) -> bool:
        if name == ".git" or not is_presentable(name):
            return True
        asked = ((one, path[skipped:]) for one, skipped in rules)
        verdict = IgnoreRules.decide(asked, is_folder=is_folder)
        is_hidden = name.startswith(".") and not self._selection.is_hidden_included
        return is_hidden if verdict is None else verdict

    def _is_small(self, folder: int, name: str) -> bool:
        try:
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except OSError:
            return False
        return found.st_size <= self._selection.max_file_size


def _read_rules(folder: int) -> IgnoreRules | None:
    try:
        descriptor = os.open(
            ".gitignore", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder
        )
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        text = os.read(descriptor, _MAX_RULES).decode(errors="replace")
    finally:
        os.close(descriptor)
    return IgnoreRules(text)
