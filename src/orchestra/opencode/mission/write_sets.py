"""Which task may write which file: tasks that write the same file never run together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

__all__ = ("WriteSets",)


@final
class WriteSets:
    """Files held by tasks, all of a task's files or none of them."""

    def __init__(self) -> None:
        self._holders: dict[str, str] = {}
        self._kept_waiting: dict[str, list[str]] = {}

    def hold(self, task_id: str, files: Iterable[str]) -> bool:
        """Take a task's files; otherwise keep it in mind for when the first taken one is free.

        Args:
            task_id: The task.
            files: What it writes.

        Returns:
            Whether it has them all now.
        """
        wanted = tuple(files)
        for file in wanted:
            if file in self._holders:
                self._kept_waiting.setdefault(file, []).append(task_id)
                return False
        self._holders.update(dict.fromkeys(wanted, task_id))
        return True

    def holder(self, files: Iterable[str]) -> str:
        """Return who holds the first taken one of some files; empty when all are free.

        Args:
            files: What somebody wants to write.
        """
        return next((self._holders[file] for file in files if file in self._holders), "")

    def release(self, task_id: str, files: Iterable[str]) -> list[str]:
        """Give a task's files back.

        Args:
            task_id: The task.
            files: What it wrote.

        Returns:
            The tasks that were kept waiting for one of them; they must ask again.
        """
        kept: list[str] = []
        for file in files:
            if self._holders.get(file) == task_id:
                del self._holders[file]
                kept += self._kept_waiting.pop(file, [])
        return kept

    def __repr__(self) -> str:
        waiting = sum(map(len, self._kept_waiting.values()))
        return f"<WriteSets held={len(self._holders)} tasks_waiting={waiting}>"
