"""Waiting in line for a contended key, in the place of working for nothing.

Optimistic transactions that fight for one key repeat their work again and again; when the work is
a model's, that is money. After some conflicts a transaction therefore joins the key's line, and as
long as the line exists every other one that begins by reading the key joins it too, so that one
after the other reads, works and commits once. Nobody waits in two lines, hence no deadlock.

A line is in this process. Between processes transactions meet in the engine, and back off.
"""

from __future__ import annotations

from typing import final

import anyio

__all__ = ("Lines", "Place")


@final
class Place:
    """A place in the line, at its head: the holder's turn has come."""

    __slots__ = ("_key", "_line", "_lines")

    def __init__(self, lines: Lines, key: str, line: _Line) -> None:
        self._lines = lines
        self._key = key
        self._line: _Line | None = line

    def leave(self) -> None:
        """Let the next one have its turn. Idempotent."""
        if self._line is not None:
            self._line.lock.release()
            self._lines.forget(self._key, self._line)
            self._line = None


class _Line:
    __slots__ = ("lock", "members")

    def __init__(self) -> None:
        self.lock: anyio.Lock = anyio.Lock(fast_acquire=True)
        self.members: int = 0


@final
class Lines:
    """The lines of one namespace; a line lasts as long as somebody is in it."""

    __slots__ = ("_lines",)

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}

    def __len__(self) -> int:
        return len(self._lines)

    def is_contended(self, key: str) -> bool:
        """Whether there is a line for the key."""
        return key in self._lines

    async def join(self, key: str) -> Place:
        """Wait for the head of the key's line; first come, first served.

        Args:
            key: What the line is for.
        """
        line = self._lines.setdefault(key, _Line())
        line.members += 1
        try:
            await line.lock.acquire()
        except BaseException:
            self.forget(key, line)
            raise
        return Place(self, key, line)

    def forget(self, key: str, line: _Line) -> None:
        """Count one out, and end a line that nobody is in."""
        line.members -= 1
        if not line.members:
            self._lines.pop(key, None)
