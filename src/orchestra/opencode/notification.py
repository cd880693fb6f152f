"""Telling people who look elsewhere that a mission is over: a desktop notification and a bell."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from orchestra import run_command

__all__ = ("find_program", "notification_command", "notify", "ring")

_LIMIT = 5.0
_MAX_TEXT = 300
_SCRIPT = (
    "on run argv",
    "display notification (item 2 of argv) with title (item 1 of argv)",
    "end run",
)


def find_program(name: str, *, outside: Path, path: str | None = None) -> str | None:
    """Return a program from the search path, but none that a workspace may have brought along.

    Args:
        name: The program.
        outside: The workspace; entries of the search path within it, and relative ones, are left
            out, and so is a link into it.
        path: The search path; None: that of the environment.
    """
    place = outside.resolve()
    entries = (os.environ.get("PATH", "") if path is None else path).split(os.pathsep)
    trusted = [
        entry
        for entry in entries
        if os.path.isabs(entry) and not Path(entry).resolve().is_relative_to(place)  # noqa: PTH117
    ]
    found = shutil.which(name, path=os.pathsep.join(trusted)) if trusted else None
    if found is None or Path(found).resolve().is_relative_to(place):
        return None
    return found


def notification_command(
    title: str, text: str, *, directory: Path, platform: str = sys.platform, path: str | None = None
) -> Sequence[str] | None:
    """Return the command line that shows a notification; None when there is no program for it.

    Title and text are words of their own in it: no shell and no script reads them.

    Args:
        title: Its first line.
        text: What it says.
        directory: The workspace, from which no program is taken.
        platform: The system, as in ``sys.platform``.
        path: The search path; None: that of the environment.
    """
    title, text = _clean(title), _clean(text)
    if platform == "darwin":
        program = find_program("osascript", outside=directory, path=path)
        if program is None:
            return None
        script = [word for line in _SCRIPT for word in ("-e", line)]
        return (program, *script, title, text)
    program = find_program("notify-send", outside=directory, path=path)
    return None if program is None else (program, "--app-name=orchestra", "--", title, text)


async def notify(title: str, text: str, *, directory: Path) -> bool:
    """Show a desktop notification, if this machine can; whether it was. A checkpoint.

    Args:
        title: Its first line.
        text: What it says.
        directory: The workspace.
    """
    command = notification_command(title, text, directory=directory)
    if command is None:
        return False
    try:
        output = await run_command(command, directory=Path.home(), timeout=_LIMIT)
    except (OSError, ValueError, RuntimeError):
        return False
    return output.exit_code == 0


def ring(stream: TextIO) -> None:
    """Ring the terminal's bell, if there is a terminal.

    Args:
        stream: Where to.
    """
    with suppress(OSError, ValueError):
        if stream.isatty():
            stream.write("\a")
            stream.flush()


def _clean(text: str) -> str:
    """Return the text as one printable line of bounded length that is not empty."""
    line = " ".join(text[: _MAX_TEXT * 4].split())[:_MAX_TEXT]
    return "".join(char if char.isprintable() else "\ufffd" for char in line) or "-"
