"""Server-sent events out of bytes, as the WHATWG HTML standard (9.2.6) reads them; no I/O."""

from __future__ import annotations

from typing import final

__all__ = ("EventReader", "EventTooLargeError")

_BOM = b"\xef\xbb\xbf"


class EventTooLargeError(ValueError):
    """An event has no end within the bound."""


@final
class EventReader:
    """Takes the ``data`` of events out of a stream. Their type and id are not looked at.

    Args:
        limit: Bytes of the largest event.
    """

    __slots__ = ("_data", "_is_after_cr", "_is_first", "_limit", "_line", "_size")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._line: list[bytes] = []  # the line that has begun, in pieces
        self._data: list[bytes] = []  # the data lines of the event that has begun
        self._size = 0  # of both
        self._is_after_cr = False
        self._is_first = True

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take in bytes, and return the data of the events that end in them.

        Args:
            chunk: What has arrived; not empty.

        Raises:
            EventTooLargeError: An event goes on beyond the limit.
        """
        if self._is_after_cr:
            chunk = chunk.removeprefix(b"\n")
        if b"\r" in chunk:
            self._is_after_cr = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        elif chunk:
            self._is_after_cr = False
        self._size += len(chunk)
        *lines, rest = chunk.split(b"\n")
        events: list[bytes] = []
        for piece in lines:
            line = piece
            if self._line:
                line = b"".join((*self._line, piece))
                self._line.clear()
            if self._is_first:
                self._is_first = False
                line = line.removeprefix(_BOM)
            self._take(line, events)
        if rest:
            self._line.append(rest)
        if lines and not self._data:
            self._size = len(rest)
        if self._size > self._limit:
            raise EventTooLargeError(f"an event of more than {self._limit:,} bytes")
        return events

    def _take(self, line: bytes, events: list[bytes]) -> None:
        if not line:
            if self._data:
                events.append(b"\n".join(self._data))
                self._data.clear()
            return
        field, _, value = line.partition(b":")
        if field == b"data":
            self._data.append(value.removeprefix(b" "))

    def __repr__(self) -> str:
        return f"<EventReader {self._size} bytes wait for their end>"
