"""Letting somebody approve a plan before anything of it is started."""

from __future__ import annotations

import json
import shlex
from hashlib import sha256
from pathlib import Path

from orchestra.opencode.mission.plan import Plan
from orchestra.opencode.people.questions import PersonQuestion

__all__ = ("describe_plan", "how_to_answer", "plan_question", "unapproved")

_MAX_TASKS = 60
_MAX_LINE = 160


def plan_question(
    mission: str, plan: Plan, *, number: int, deadline: float | None
) -> PersonQuestion:
    """Return the question whether a plan may be carried out.

    Its id is made of the plan: an answer to another plan is no answer to this one.

    Args:
        mission: The mission's id.
        plan: The plan, without secrets.
        number: Which of the mission's proposals it is, from 1.
        deadline: Seconds that it waits; None: for ever.
    """
    what = json.dumps([_plain(plan), number], sort_keys=True)
    digest = sha256(what.encode("utf-8", errors="replace")).hexdigest()[:12]
    return PersonQuestion(
        id=f"plan-{number}-{digest}",
        mission=mission,
        text=describe_plan(plan),
        deadline=deadline,
        plan=plan,
    )


def describe_plan(plan: Plan) -> str:
    """Show a plan in lines for people: one for each task, and its commands below.

    Args:
        plan: The plan.
    """
    count = len(plan.tasks)
    lines = [f"a plan of {count} tasks" if count != 1 else "a plan of 1 task"]
    for task in plan.tasks[:_MAX_TASKS]:
        after = f" (after {', '.join(task.depends)})" if task.depends else ""
        lines.append(_line(f"  {task.id}: {task.title}{after}"))
        if task.files:
            lines.append(_line(f"      writes {', '.join(task.files)}"))
        lines += [_line(f"      runs {' '.join(argv)}") for argv in task.acceptance]
    if count > _MAX_TASKS:
        lines.append(f"  and {count - _MAX_TASKS} more tasks")
    return "\n".join(lines)


def unapproved(mission: str, deadline: float) -> str:
    """Say how a mission ended whose plan nobody has approved, and how to go on.

    Args:
        mission: The mission's id.
        deadline: Seconds that it has waited.
    """
    return (
        f"nobody has approved the plan within {deadline:g} s; approve it with "
        f"'orchestra approve {mission}' and go on with 'orchestra resume {mission}'"
    )


def how_to_answer(question: PersonQuestion, directory: Path) -> str:
    """Say how a question is answered from another terminal.

    Args:
        question: What is asked.
        directory: The workspace, resolved.
    """
    words = ["orchestra", "approve", question.mission]
    if question.plan is None:
        words += ["--question", question.id]
    if directory != Path.cwd():
        words += ["--dir", str(directory)]
    return f"answer with: {shlex.join(words)}  (or --reject)"


def _line(text: str) -> str:
    """Return the text as one line of bounded length that no terminal takes for a command."""
    indent = len(text) - len(text.lstrip())
    one = " ".join(text.split())
    one = "".join(char if char.isprintable() else "\ufffd" for char in one)
    return " " * indent + (one if len(one) <= _MAX_LINE else f"{one[: _MAX_LINE - 3]}...")


def _plain(plan: Plan) -> list[list[object]]:
    return [
        [
            task.id,
            task.title,
            task.instructions,
            list(task.files),
            list(task.depends),
            [list(argv) for argv in task.acceptance],
            task.mode.value,
            task.racers,
        ]
        for task in plan.tasks
    ]
