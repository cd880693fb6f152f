"""What files held, by digest: so that a change can be shown, and undone."""

from __future__ import annotations

import tempfile
import threading
from typing import IO, final

__all__ = ("Contents",)

_LIMIT = 128 << 20


@final
class Contents:
    """Keeps contents in a file without a name: nobody else can read it, and it ends with us.

    Safe to use from several threads.

    Args:
        limit: Bytes that are kept; what does not fit is not.
    """

    def __init__(self, limit: int = _LIMIT) -> None:
        self._left = limit
        self._places: dict[bytes, tuple[int, int]] = {}
        self._end = 0
        self._file: IO[bytes] | None = None
        self._is_closed = False
        self._lock = threading.Lock()

    def keep(self, digest: bytes, data: bytes) -> None:
        """Keep contents, if there is room, and nothing once closed. Blocks.

        Args:
            digest: Names them.
            data: The contents.

        Raises:
            OSError: They cannot be written.
        """
        with self._lock:
            if self._is_closed or digest in self._places or len(data) > self._left:
                return
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="orchestra-")  # noqa: SIM115
            self._file.seek(self._end)
            self._file.write(data)
            self._places[digest] = (self._end, len(data))
            self._end += len(data)
            self._left -= len(data)

    def get(self, digest: bytes) -> bytes | None:
        """Return contents, or None if they were not kept. Blocks.

        Args:
            digest: Names them.
        """
        with self._lock:
            if digest not in self._places or self._file is None:
                return None
            start, length = self._places[digest]
            self._file.seek(start)
            return self._file.read(length)

    def close(self) -> None:
        """Forget everything; a thread that still reads for us finds it closed."""
        with self._lock:
            self._is_closed = True
            self._places.clear()
            if self._file is not None:
                self._file.close()
                self._file = None

    def __repr__(self) -> str:
        return f"<Contents files={len(self._places)} bytes={self._end}>"
