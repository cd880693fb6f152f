"""Who else has the file open: what each process reads, so that no other one compacts it away.

A process says once for each namespace which revision it may read from on (its row in ``pins``), and
moves that forward with its own commits, so taking a snapshot writes nothing. That it is alive is
shown by an operating-system lock on a file of its own, which ends with the process however it ends.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, final

try:
    import fcntl
except ImportError:  # pragma: no cover  (Windows)
    fcntl = None  # type: ignore[assignment]

__all__ = ("Presence", "is_present", "remove_traces")

_MARK: Final = "-reader-"


def _file(path: Path, owner: str) -> Path:
    return path.with_name(f"{path.name}{_MARK}{owner}")


@final
class Presence:
    """Shows that this owner has the file open, until `leave` or the end of the process."""

    def __init__(self, path: Path, owner: str) -> None:
        self._path = _file(path, owner)
        self._descriptor: int | None = os.open(
            self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644
        )
        if fcntl is not None:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def leave(self) -> None:
        """Take the sign away. Idempotent."""
        if self._descriptor is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None


def is_present(path: Path, owner: str) -> bool:
    """Whether the owner still has the file open.

    Args:
        path: The store's file.
        owner: Whom to look for.
    """
    if fcntl is None:  # pragma: no cover  (Windows: whoever has not left counts as present)
        return True
    try:
        descriptor = os.open(_file(path, owner), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


def remove_traces(path: Path, owner: str) -> None:
    """Remove the file of one who is gone.

    Args:
        path: The store's file.
        owner: Who is gone.
    """
    _file(path, owner).unlink(missing_ok=True)
