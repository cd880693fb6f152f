"""A child process with three pipes, in a group of its own: started, fed, read, ended."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, final

import anyio
import anyio.lowlevel
from anyio.abc import Process

from orchestra._children import signal_group

__all__ = ("Child", "find_program")

_CHUNK = 65_536


def find_program(name: str, directory: Path, environment: Mapping[str, str]) -> str | None:
    """Find a program on ``PATH``, but never in the directory that it shall work on.

    A workspace may be anybody's: entries of ``PATH`` that mean the current directory (empty or
    relative ones) or lie in the workspace are passed over.

    Args:
        name: A name without a slash, or an absolute path, which is taken as it is.
        directory: The workspace.
        environment: Whose ``PATH`` counts.

    Returns:
        The absolute path; None when there is no such program.
    """
    if Path(name).is_absolute():
        return shutil.which(name)
    workspace = os.path.realpath(directory)
    for entry in environment.get("PATH", os.defpath).split(os.pathsep):
        real = os.path.realpath(entry)
        if not Path(entry).is_absolute() or os.path.commonpath([workspace, real]) == workspace:
            continue
        if found := shutil.which(name, path=entry):
            return found
    return None


@contextmanager
def _pipes() -> Iterator[tuple[list[int], list[int]]]:
    """Yield our ends and the child's ends of three pipes; the child's are closed at the end.

    Ours are closed too when the block raises.
    """
    # The pipes are ours and not the event loop's: asyncio tells of an exit only when the pipes it
    # made are closed, and a grandchild may hold one for ever.
    ours: list[int] = []
    theirs: list[int] = []
    try:
        for number in range(3):
            reading, writing = os.pipe()
            mine, other = (writing, reading) if number == 0 else (reading, writing)
            ours.append(mine)
            theirs.append(other)
            os.set_blocking(mine, False)
        yield ours, theirs
    except BaseException:
        for descriptor in ours:
            os.close(descriptor)
        raise
    finally:
        for descriptor in theirs:
            os.close(descriptor)


@final
class Child:
    """A running child; comes from `start`. Whoever has it must `end` it.

    One task at a time may write, one read the output and one the errors.

    Args:
        process: The process.
        pipes: Our ends: its input, output and errors.

    Attributes:
        pid: Its number, which is also its group's.
    """

    __slots__ = ("_is_gone", "_pipes", "_process", "pid")

    def __init__(self, process: Process, pipes: Sequence[int]) -> None:
        self._process: Final = process
        self._pipes: Final[list[int | None]] = list(pipes)
        self._is_gone = False
        self.pid: Final[int] = process.pid

    @staticmethod
    async def start(
        argv: Sequence[str], *, directory: Path, environment: Mapping[str, str]
    ) -> Child:
        """Start a process. A checkpoint, but not cancelled half way: that could not be undone.

        Args:
            argv: The program's path and its arguments.
            directory: Its working directory.
            environment: Its whole environment.

        Raises:
            OSError: It cannot be started.
            ValueError: What no program can be given, such as a null character.
        """
        await anyio.lowlevel.checkpoint_if_cancelled()
        with anyio.CancelScope(shield=True), _pipes() as (ours, theirs):
            process = await anyio.open_process(
                list(argv),
                cwd=directory,
                env=environment,
                stdin=theirs[0],
                stdout=theirs[1],
                stderr=theirs[2],
                start_new_session=True,
            )
        return Child(process, ours)

    @property
    def exit_code(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.returncode

    async def wait(self) -> int:
        """Wait until it has ended, whoever still holds its pipes; return the exit code."""
        return await self._process.wait()

    async def read(self) -> bytes:
        """Read some of its output; nothing at the end. Always a checkpoint."""
        return await self._read(self._pipes[1])

    async def read_errors(self) -> bytes:
        """Read some of its standard error; nothing at the end. Always a checkpoint."""
        return await self._read(self._pipes[2])

    async def _read(self, pipe: int | None) -> bytes:
        await anyio.lowlevel.checkpoint()  # a child that never pauses must not be all there is
        while pipe is not None:
            try:
                return os.read(pipe, _CHUNK)
            except BlockingIOError:
                await anyio.wait_readable(pipe)
        return b""

    async def write(self, data: bytes) -> None:
        """Write everything. Cancelled, it has written a part.

        Args:
            data: What to write.

        Raises:
            OSError: The child has closed its input, or has ended.
        """
        rest = memoryview(data)
        while rest and (pipe := self._pipes[0]) is not None:
            try:
                rest = rest[os.write(pipe, rest) :]
            except BlockingIOError:
                await anyio.wait_writable(pipe)

    def close_input(self) -> None:
        """Let the child read the end of its input; nobody may be writing."""
        self._close(0)

    def kill(self) -> None:
        """Kill everything in its group."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        # Once all of a group has been killed and its leader reaped, the number may be another's.
        if not self._is_gone:
            is_reaped = self.exit_code is not None
            signal_group(self.pid, number)
            self._is_gone = is_reaped and number is signal.SIGKILL

    async def end(self, grace: float) -> None:
        """End the child and everything in its group, and close the pipes.

        It may read the end of its input and leave by itself, then it is asked to, then killed.
        To be called in a shield, when nobody reads or writes any more.

        Args:
            grace: Seconds for each of the first two steps.
        """
        self.close_input()
        for signal_number in (signal.SIGTERM, signal.SIGKILL):
            with anyio.move_on_after(grace):
                await self.wait()
            # The group outlives its leader when that left children behind.
            self._signal(signal_number)
        await self._process.aclose()
        for number in range(3):
            self._close(number)

    def _close(self, number: int) -> None:
        pipe, self._pipes[number] = self._pipes[number], None
        if pipe is not None:
            os.close(pipe)
