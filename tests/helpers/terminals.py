"""A program in a terminal of its own, with somebody who types."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ("Terminal",)

_TAKE_OVER = (
    "import fcntl, os, signal, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "signal.signal(signal.SIGHUP, signal.SIG_DFL); "  # ignored by what nohup starts
    "os.execv(sys.argv[1], sys.argv[1:])"
)
_STEERING = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Terminal:
    """Starts a program as the session leader of a new pseudo-terminal; ends it when left.

    Args:
        arguments: The program's path and its arguments.
        environment: Added to this process's environment.
        limit: Seconds that anything is waited for.
    """

    def __init__(
        self,
        *arguments: str | Path,
        environment: Mapping[str, str] | None = None,
        limit: float = 60.0,
    ) -> None:
        self._master, slave = os.openpty()
        self._limit = limit
        self._mark = 0
        self._raw = ""
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _TAKE_OVER, *map(str, arguments)],
                stdin=slave,
                stdout=slave,
                stderr=slave,
                env={**os.environ, "TERM": "xterm", **(environment or {})},
            )
        finally:
            os.close(slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(self._limit)
        self.close()

    @property
    def text(self) -> str:
        """What was shown so far, without what steers the terminal."""
        return _STEERING.sub("", self._raw).replace("\r", "")

    def type(self, keys: str) -> None:
        """Press keys, control characters among them."""
        os.write(self._master, keys.encode())

    def close(self) -> None:
        """Close the terminal's window. Idempotent."""
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

    def shows(self, text: str) -> None:
        """Wait until a text is shown, after the one that was waited for before."""
        deadline = time.monotonic() + self._limit
        while (found := self._raw.find(text, self._mark)) < 0:
            assert self._read(deadline), f"no {text!r} in:\n{self.text}"
        self._mark = found + len(text)

    def ends(self) -> int:
        """Wait until the program has ended, and return its exit code."""
        deadline = time.monotonic() + self._limit
        while self._read(deadline):
            pass
        return self.process.wait(max(deadline - time.monotonic(), 1.0))

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], max(deadline - time.monotonic(), 0))
        if not ready:
            return False
        try:
            data = os.read(self._master, 65_536)
        except OSError:  # nobody has the other end any more
            return False
        self._raw += data.decode("utf-8", errors="replace")
        return bool(data)
