"""Files that are nobody's work: what git ignores, and what the mission itself keeps."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import final

import anyio.to_thread

from orchestra.opencode.mission.git import Git, GitError, find_git, split

__all__ = ("Ignored",)


@final
class Ignored:
    """Knows which files of a workspace do not count; outside of a git repository none more.

    Args:
        directory: The workspace.
        skipped: Paths, relative to it, that do not count in any case.
    """

    def __init__(self, directory: Path, skipped: Iterable[str]) -> None:
        self._directory = directory
        self._skipped = frozenset(skipped)
        self._git: Git | None = None

    async def begin(self) -> list[str]:
        """Return what is ignored now, files and whole folders. A checkpoint."""
        executable = await anyio.to_thread.run_sync(find_git, self._directory)
        if executable is None:
            return []
        git = Git(executable, self._directory)
        try:
            listed = await git.run(
                "ls-files", "-z", "--others", "--ignored", "--exclude-standard", "--directory"
            )
        except GitError:
            return []  # no repository, or none that git can read: then nothing is ignored
        self._git = git
        return [path.rstrip("/") for path in split(listed)]

    async def select(self, paths: Collection[str]) -> set[str]:
        """Return those of some files that do not count. A checkpoint.

        Args:
            paths: Files, relative to the workspace.
        """
        found = {path for path in paths if path in self._skipped}
        if self._git is not None:
            try:
                _, listed, _ = await self._git.ask(
                    "check-ignore", "-z", "--stdin", stdin="\0".join(paths)
                )
            except GitError:
                return found
            found.update(split(listed))
        return found

    async def find(self, path: str, digest: bytes, keep: Callable[[bytes, bytes], object]) -> None:
        """Have what a file held kept, if that is what was committed last. A checkpoint.

        Args:
            path: The file, relative to the workspace.
            digest: The SHA-256 of what it held.
            keep: Called with that and the contents.
        """
        if self._git is None:
            return
        try:
            _, text, _ = await self._git.ask("cat-file", "blob", f"HEAD:./{path}")
        except GitError:
            return
        if hashlib.sha256(data := text.encode()).digest() == digest:
            keep(digest, data)

    def __repr__(self) -> str:
        return f"<Ignored of {self._directory} {'git' if self._git else 'no git'}>"
