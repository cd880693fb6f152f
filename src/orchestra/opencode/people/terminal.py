"""Asking whoever sits at the terminal."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from getpass import getuser
from typing import TextIO, final

import anyio

from orchestra.opencode.people.questions import PersonAnswer, PersonQuestion

__all__ = ("TerminalPerson",)

_YES = {"y", "yes"}
_NO = {"n", "no"}


@final
class TerminalPerson:
    """Puts questions to the terminal, one after the other, and reads the answers.

    To be cancelled at any time: nothing is read in a thread that would have to be waited for.

    Args:
        source: Where answers come from; a terminal.
        write: Takes lines for people.
        paused: Stops the progress display for the length of a block.
    """

    def __init__(
        self,
        source: TextIO,
        write: Callable[[str], None],
        paused: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._source = source
        self._write = write
        self._paused = paused
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
        self._write(f"{what}? [y/n, or n and why not]")
        while (line := await self._read_line()) is not None:
            word, _, note = line.strip().partition(" ")
            if word.lower() in _YES:
                return PersonAnswer(is_approved=True, note=note.strip(), by=_who())
            if word.lower() in _NO:
                return PersonAnswer(is_approved=False, note=note.strip(" :,"), by=_who())
            self._write("please answer y or n")
        return None

    async def _read_line(self) -> str | None:
        """Return a line; None at the end. The terminal itself gives whole lines."""
        data = b""
        while not data.endswith(b"\n"):
            await anyio.wait_readable(self._source)
            chunk = os.read(self._source.fileno(), 4096)
            if not chunk:
                return None
            data += chunk
        return data.decode("utf-8", errors="replace")


def _who() -> str:
    try:
        return getuser()
    except (OSError, KeyError, ImportError):  # no such user, as in many containers
        return "terminal"
