"""The plan as people see it: a section of TODO.md that is kept true while tasks change."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from orchestra.opencode.mission.plan import Plan
from orchestra.opencode.mission.report import TaskState

__all__ = ("render_todo", "write_todo")

_BEGIN = "<!-- orchestra:begin (written by orchestra; changes in this section are overwritten) -->"
_END = "<!-- orchestra:end -->"
_MARKS = {
    TaskState.WAITING: " ",
    TaskState.READY: " ",
    TaskState.WORKING: "/",
    TaskState.REVIEWING: "/",
    TaskState.CHECKING: "/",
    TaskState.ACCEPTED: "x",
    TaskState.FAILED: "-",
    TaskState.SKIPPED: "-",
}
_QUIET = {TaskState.WAITING, TaskState.READY, TaskState.ACCEPTED}


def _line(text: str) -> str:
    """Return the text as one line that cannot end the section."""
    return " ".join(text.split()).replace("-->", "-- >")


def render_todo(goal: str, plan: Plan, states: Mapping[str, TaskState]) -> str:
    """Return the section's text, a Markdown task list.

    Args:
        goal: The mission's goal.
        plan: The plan.
        states: Each task's state.
    """
    lines = [_BEGIN, f"# {_line(goal)[:200]}", ""]
    for task in plan.tasks:
        state = states[task.id]
        line = f"- [{_MARKS[state]}] {_line(f'{task.id}: {task.title}')}"
        if state not in _QUIET:
            line += f" ({state.value})"
        if task.depends:
            line += f" (after {_line(', '.join(task.depends))})"
        lines.append(line)
    lines += [_END, ""]
    return "\n".join(lines)


def write_todo(path: Path, section: str) -> None:
    """Put the section into the file, atomically; what others wrote around it stays.

    Blocks on the disk: call it in a worker thread.

    Args:
        path: The file; made when it does not exist.
        section: What `render_todo` returned.

    Raises:
        OSError: It cannot be read or written, or is no regular file; a symbolic link could lead
            out of the workspace.
    """
    text, mode = b"", None
    with suppress(FileNotFoundError):
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        text, mode = path.read_bytes(), stat.S_IMODE(status.st_mode)
    begin, end = text.find(_BEGIN.encode()), text.find(_END.encode())
    new = section.encode("utf-8", errors="replace")
    if 0 <= begin < end:
        text = text[:begin] + new.rstrip(b"\n") + text[end + len(_END) :]
    else:
        text = new + (b"\n" + text if text else b"")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if mode is not None:
            temporary.chmod(mode)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
