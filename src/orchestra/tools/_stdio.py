"""This process's own pipes: read and written without blocking the event loop."""

from __future__ import annotations

import os
import select
from typing import Final, final

import anyio
import anyio.lowlevel

__all__ = ("Pipes",)

_CHUNK = 65_536


@final
class Pipes:
    """An input and an output; one task at a time may use each.

    The descriptors stay blocking, since other processes may share them: a write of at most
    ``PIPE_BUF`` bytes into a pipe that has been reported writable does not block.

    Args:
        reading: Descriptor of the input.
        writing: Descriptor of the output.
    """

    __slots__ = ("_reading", "_writing")

    def __init__(self, reading: int, writing: int) -> None:
        self._reading: Final = reading
        self._writing: Final = writing

    async def read(self) -> bytes:
        """Read some of the input; nothing at its end. Always a checkpoint."""
        try:
            await anyio.wait_readable(self._reading)
        except PermissionError:  # a plain file: it never blocks, and epoll does not take it
            await anyio.lowlevel.checkpoint()
        return os.read(self._reading, _CHUNK)

    async def write(self, data: bytes) -> None:
        """Write everything. Always a checkpoint; cancelled, it has written a part.

        Args:
            data: What to write.

        Raises:
            OSError: Nobody reads any more.
        """
        rest = memoryview(data)
        while rest:
            try:
                await anyio.wait_writable(self._writing)
            except PermissionError:
                await anyio.lowlevel.checkpoint()
            rest = rest[os.write(self._writing, rest[: select.PIPE_BUF]) :]
