"""Which task may write which file: tasks that write the same file never run together."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator
from typing import final

__all__ = ("WriteSets", "normal_path")


def normal_path(path: str) -> str:
    """Return a declared path in the form in which a workspace's files are listed.

    Args:
        path: As somebody wrote it; relative to the workspace.
    """
    return posixpath.normpath(path.replace("\\", "/"))


def _folders(path: str) -> Iterator[str]:
    """Return the folders that a file, or folder, is in."""
    while path := posixpath.dirname(path):
        if path == "/":
            return
        yield path
    yield "."


@final
class WriteSets:
    """Files held by tasks, all of a task's files or none of them.

    A file is one file however it is spelt, and a folder stands for everything in it.
    """

    def __init__(self) -> None:
        self._holders: dict[str, str] = {}
        self._inside: dict[str, dict[str, None]] = {}
        self._kept_waiting: dict[str, list[str]] = {}

    def hold(self, task_id: str, files: Iterable[str]) -> bool:
        """Take a task's files; otherwise keep it in mind for when the first taken one is free.

        Args:
            task_id: The task.
            files: What it writes.

        Returns:
            Whether it has them all now.
        """
        wanted = dict.fromkeys(map(normal_path, files))
        for file in wanted:
            if (held := self._held(file)) is not None:
                self._kept_waiting.setdefault(held, []).append(task_id)
                return False
        for file in wanted:
            self._holders[file] = task_id
            for folder in _folders(file):
                self._inside.setdefault(folder, {})[file] = None
        return True

    def _held(self, file: str) -> str | None:
        """Return what is held already and is this file, is in it, or holds it."""
        if file in self._holders:
            return file
        inside = next(iter(self._inside.get(file, ())), None)
        around = (folder for folder in _folders(file) if folder in self._holders)
        return inside if inside is not None else next(around, None)

    def holder(self, files: Iterable[str]) -> str:
        """Return who holds the first taken one of some files; empty when all are free.

        Args:
            files: What somebody wants to write.
        """
        held = (self._held(file) for file in map(normal_path, files))
        return next((self._holders[file] for file in held if file is not None), "")

    def release(self, task_id: str, files: Iterable[str]) -> list[str]:
        """Give a task's files back.

        Args:
            task_id: The task.
            files: What it wrote.

        Returns:
            The tasks that were kept waiting for one of them; they must ask again.
        """
        kept: list[str] = []
        for file in dict.fromkeys(map(normal_path, files)):
            if self._holders.get(file) == task_id:
                del self._holders[file]
                for folder in _folders(file):
                    del self._inside[folder][file]
                    if not self._inside[folder]:
                        del self._inside[folder]
                kept += self._kept_waiting.pop(file, [])
        return kept

    def __repr__(self) -> str:
        waiting = sum(map(len, self._kept_waiting.values()))
        return f"<WriteSets held={len(self._holders)} tasks_waiting={waiting}>"
