"""The plan as people see it: a section of TODO.md that is kept true while tasks change."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
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


def render_todo(goal: str, plan: Plan, states: Mapping[str, TaskState]) -> str:
    """Return the section's text, a Markdown task list.

    Args:
        goal: The mission's goal.
        plan: The plan.
        states: Each task's state.
    """
    title = " ".join(goal.split())[:200].replace("<!--", "").replace("-->", "")
    lines = [_BEGIN, f"# {title}", ""]
    for task in plan.tasks:
        state = states[task.id]
        line = f"- [{_MARKS[state]}] {task.id}: {task.title.replace('-->', '')}"
        if state not in _QUIET:
            line += f" ({state.value})"
        if task.depends:
            line += f" (after {', '.join(task.depends)})"
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
        OSError: It cannot be read or written.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
        mode = path.stat().st_mode & 0o777
    except FileNotFoundError:
        text, mode = "", 0o644
    begin, end = text.find(_BEGIN), text.find(_END)
    if 0 <= begin < end:
        after = text[end + len(_END) :]
        text = text[:begin] + section.rstrip("\n") + after
    else:
        text = section + ("\n" + text if text else "")
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)  # noqa: PTH101  (the name of an open temporary file)
        os.replace(temporary, path)  # noqa: PTH105  (the same)
    except BaseException:
        os.unlink(temporary)  # noqa: PTH108  (the same)
        raise
