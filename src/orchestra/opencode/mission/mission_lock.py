"""Tells whether a mission's process lives: a lock that goes with the process, however it ends."""

from __future__ import annotations

import os
from pathlib import Path
from typing import final

try:
    import fcntl
except ImportError:  # pragma: no cover  (Windows: nobody's worktrees are put away there)
    fcntl = None  # type: ignore[assignment]

__all__ = ("MissionLock",)


@final
class MissionLock:
    """A lock on a file that nobody else in the system can hold.

    Args:
        path: The file; made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1

    @property
    def is_held(self) -> bool:
        """Whether this object holds it."""
        return self._fd >= 0

    def take(self) -> bool:
        """Take it, and return whether that was possible. Does not wait.

        Raises:
            OSError: The file cannot be opened.
        """
        if fcntl is None:  # pragma: no cover
            return False
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            return False
        self._fd = fd
        return True

    def release(self) -> None:
        """Give it back; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __repr__(self) -> str:
        return f"<MissionLock {self._path} {'held' if self.is_held else 'free'}>"
