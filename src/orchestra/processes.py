"""Run a command in its own process group, with bounds on time and output, leaving nothing."""

from __future__ import annotations

import codecs
import math
import signal
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import anyio
from anyio.abc import ByteReceiveStream, Process
from attrs import frozen

from orchestra._children import Tail, signal_group

__all__ = ("CommandOutput", "run_command")

_CHUNK = 65_536
_GRACE = 2.0
"""Seconds between asking a group to end and killing it, and for pipes to close after that."""


@frozen(kw_only=True)
class CommandOutput:
    """What a command left.

    Attributes:
        exit_code: The exit code; negative: ended by that signal.
        stdout: The end of its standard output, undecodable bytes replaced.
        stderr: The end of its standard error, likewise; empty when it was merged into stdout.
        is_truncated: Whether the start of an output was dropped for length.
        is_timed_out: Whether it was stopped because its time was over.
        elapsed: Seconds it ran.
    """

    exit_code: int
    stdout: str
    stderr: str
    is_truncated: bool
    is_timed_out: bool
    elapsed: float


async def _end_group(process: Process) -> None:
    """End the process and everything in its group, and reap the process. Shielded, bounded."""
    with anyio.CancelScope(shield=True):
        if process.returncode is None:
            signal_group(process.pid, signal.SIGTERM)
            with anyio.move_on_after(_GRACE):
                await process.wait()
        # The group outlives its leader when the command left children behind.
        signal_group(process.pid, signal.SIGKILL)
        await process.wait()


@contextmanager
def _input(text: str) -> Iterator[IO[bytes] | int]:
    """Yield what a command reads ``text`` from.

    A file has an end for whoever reads it. A pipe would have to be fed, and a child that left its
    group, kept it and does not read could stop that for ever.
    """
    if not text:
        yield subprocess.DEVNULL
        return
    with tempfile.TemporaryFile() as file:
        file.write(text.encode("utf-8", errors="replace"))
        file.seek(0)
        yield file


class _Reader:
    """Reads one output to its end; after `linger`, waits for more no longer than the grace."""

    def __init__(
        self,
        stream: ByteReceiveStream | None,
        tail: Tail,
        on_text: Callable[[str], Awaitable[object]] | None = None,
    ) -> None:
        self._stream = stream
        self._tail = tail
        self._on_text = on_text
        self._scope = anyio.CancelScope()
        self._patience = math.inf
        self._waiting_since = 0.0

    def linger(self) -> None:
        """The process is over: a child that left its group may hold the pipe open for ever.

        What the process left in the pipe is there to be read at once, so it is the time of
        waiting that counts, in sum: neither a slow listener nor a child that goes on printing
        changes it.
        """
        self._patience = _GRACE
        self._waiting_since = anyio.current_time()
        self._scope.deadline = self._waiting_since + _GRACE

    async def run(self) -> None:
        if self._stream is None:
            return
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        while chunk := await self._receive(self._stream):
            self._tail.add(chunk)
            if self._on_text is not None and (text := decoder.decode(chunk)):
                await self._on_text(text)
        if self._on_text is not None and (text := decoder.decode(b"", final=True)):
            await self._on_text(text)

    async def _receive(self, stream: ByteReceiveStream) -> bytes:
        self._waiting_since = anyio.current_time()
        self._scope = anyio.CancelScope(deadline=self._waiting_since + self._patience)
        with self._scope:
            try:
                return await stream.receive(_CHUNK)
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                return b""
            finally:
                self._patience -= anyio.current_time() - self._waiting_since
        return b""


async def run_command(
    argv: Sequence[str],
    *,
    directory: Path,
    stdin: str = "",
    environment: Mapping[str, str] | None = None,
    timeout: float | None = None,
    output_limit: int = 65_536,
    merge_output: bool = False,
    on_text: Callable[[str], Awaitable[object]] | None = None,
) -> CommandOutput:
    """Run a command without a shell and wait for it. Always a checkpoint.

    The command gets its own process group. However the call ends (exit, time-out, cancellation),
    the whole group is told to end, then killed: no child stays behind unless it made itself a
    group of its own. Its standard input is a file with ``stdin`` in it, so it cannot wait for a
    terminal.

    Args:
        argv: The program and its arguments.
        directory: Its working directory.
        stdin: What it reads before the end of its input.
        environment: Its whole environment; None: this process's.
        timeout: Seconds it may run, as part of the command's own terms; None: no limit. What it
            printed until then is kept, which a cancel scope around the call cannot do.
        output_limit: Bytes kept of the end of each output.
        merge_output: Whether standard error goes where standard output goes.
        on_text: Awaited with each piece of standard output as it comes.

    Raises:
        OSError: The program cannot be started.
        ValueError: ``argv`` is empty, or has what no program can be given (a null character).
        Exception: What ``on_text`` raised; the command is ended first.
    """
    if not argv:
        raise ValueError("the command line is empty: name a program")
    started = time.monotonic()
    with anyio.CancelScope(shield=True), _input(stdin) as source:
        # Half a start cannot be undone on asyncio: pipes and process would leak. It is short.
        process = await anyio.open_process(
            list(argv),
            cwd=directory,
            env=environment,
            stdin=source,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if merge_output else subprocess.PIPE,
            start_new_session=True,
        )
    out, err = Tail(output_limit), Tail(output_limit)
    readers = (_Reader(process.stdout, out, on_text), _Reader(process.stderr, err))
    async with process:
        try:
            async with anyio.create_task_group() as group:
                for reader in readers:
                    group.start_soon(reader.run)
                with anyio.move_on_after(timeout) as deadline:
                    await process.wait()
                await _end_group(process)
                for reader in readers:
                    reader.linger()
        except BaseException as exc:
            await _end_group(process)
            if isinstance(exc, ExceptionGroup) and len(exc.exceptions) == 1:
                raise exc.exceptions[0] from None  # the listener's, as it was raised
            raise
    return CommandOutput(
        exit_code=process.returncode if process.returncode is not None else -signal.SIGKILL,
        stdout=out.text(),
        stderr=err.text(),
        is_truncated=out.is_truncated or err.is_truncated,
        is_timed_out=deadline.cancelled_caught,
        elapsed=time.monotonic() - started,
    )
