"""Asking whoever sits at the terminal."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from getpass import getuser
from typing import TextIO, final

import anyio

from orchestra.opencode.people.questions import PersonAnswer, PersonQuestion

__all__ = ("TerminalPerson",)

if sys.platform != "win32":
    import termios

_YES = re.compile(r"\s*(y|yes)[\s.!]*", re.IGNORECASE)
_NO = re.compile(r"\s*(n|no)([\s:,.;!-]+(?P<note>.*?))?\s*", re.IGNORECASE | re.DOTALL)
_LOOK_AGAIN = 0.5
"""Seconds after which a command in the background looks whether it is in front again."""


@final
class TerminalPerson:
    """Puts questions to the terminal, one after the other, and reads the answers.

    To be cancelled at any time: nothing is read in a thread that would have to be waited for. What
    was typed before a question is there does not answer it.

    Args:
        source: Where answers come from; a terminal.
        write: Takes lines for people.
        paused: Stops the progress display for the length of a block.
        hint: Says how a question can be answered from elsewhere.
    """

    def __init__(
        self,
        source: TextIO,
        write: Callable[[str], None],
        paused: Callable[[], AbstractContextManager[None]],
        hint: Callable[[PersonQuestion], str],
    ) -> None:
        self._source = source
        self._write = write
        self._paused = paused
        self._hint = hint
        self._lock = anyio.Lock()

    def __repr__(self) -> str:
        return f"<TerminalPerson {self._source.name}>"

    async def __call__(self, question: PersonQuestion) -> PersonAnswer | None:
        """Ask, and wait for a yes or a no; None when the terminal is closed. A checkpoint.

        Args:
            question: What to ask.
        """
        async with self._lock:
            with self._paused():
                return await self._ask(question)

    async def _ask(self, question: PersonQuestion) -> PersonAnswer | None:
        self._write(question.text)
        what = "carry it out" if question.plan is not None else "allow it"
        if self._is_in_front():
            self._forget_input()
        self._write(f"{what}? [y/n, or n and why not]")
        while (line := await self._read_line()) is not None:
            if _YES.fullmatch(line):
                return PersonAnswer(is_approved=True, by=_who())
            if said := _NO.fullmatch(line):
                return PersonAnswer(is_approved=False, note=said["note"] or "", by=_who())
            self._write("please answer y alone, or n and why not")
        self._write(f"no answer from here; {self._hint(question)}")
        return None

    async def _read_line(self) -> str | None:
        """Return a line; None at the end. The terminal itself gives whole lines."""
        data = b""
        while not data.endswith(b"\n"):
            await anyio.wait_readable(self._source)
            if not self._is_in_front():
                await anyio.sleep(_LOOK_AGAIN)  # what is typed is for the command in front
                continue
            try:
                chunk = os.read(self._source.fileno(), 4096)
            except OSError:  # the terminal was closed
                return None
            if not chunk:
                return None
            data += chunk
        return data.decode("utf-8", errors="replace")

    def _is_in_front(self) -> bool:
        """Whether the terminal is ours: a command in the background that reads is stopped."""
        try:
            return os.tcgetpgrp(self._source.fileno()) == os.getpgrp()
        except (OSError, AttributeError):
            return True  # no terminal of ours, or none that has such a thing

    def _forget_input(self) -> None:
        """Drop what was typed so far: a late answer to the question before, or a slip."""
        if sys.platform != "win32":
            with suppress(termios.error, OSError):
                termios.tcflush(self._source.fileno(), termios.TCIFLUSH)


def _who() -> str:
    try:
        return getuser()
    except (OSError, KeyError, ImportError):  # no such user, as in many containers
        return "terminal"
