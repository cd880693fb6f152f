"""What everything that starts child processes shares: their group, and the end of their output."""

from __future__ import annotations

import os
import signal
from collections import deque
from typing import final

__all__ = ("Tail", "signal_group")


@final
class Tail:
    """Keeps the last ``limit`` bytes of a stream, in whole chunks until the end.

    Args:
        limit: How many bytes.

    Attributes:
        is_truncated: Whether something was dropped.
    """

    __slots__ = ("_chunks", "_limit", "_size", "is_truncated")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self.is_truncated = False

    def add(self, chunk: bytes) -> None:
        """Take the next piece of the stream."""
        self._chunks.append(chunk)
        self._size += len(chunk)
        while self._size - len(self._chunks[0]) >= self._limit:
            self._size -= len(self._chunks.popleft())
            self.is_truncated = True

    def text(self) -> str:
        """Return the end of the stream, undecodable bytes replaced."""
        data = b"".join(self._chunks)
        if len(data) > self._limit:
            self.is_truncated = True
            data = data[-self._limit :]
        return data.decode("utf-8", errors="replace")


def signal_group(group: int, number: signal.Signals) -> bool:
    """Send a signal to a process group; False when nothing is left of it."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:  # macOS answers so for a group of zombies
        return False
    return True
