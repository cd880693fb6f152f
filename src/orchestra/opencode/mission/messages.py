"""What agents are told: each message carries its task only, the role is in the agent's prompt."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from orchestra.opencode.mission.plan import TaskSpec

__all__ = (
    "commander_message",
    "planner_message",
    "read_task",
    "repeat_message",
    "reviewer_message",
    "worker_message",
)

_MAX_BRIEF = 20_000
_MAX_SUMMARY = 8_000
_TASK = re.compile(r"<task>([^<]*)</task>")


def _json(value: object) -> str:
    """Dump JSON that cannot close the tag that it stands in."""
    return json.dumps(value, ensure_ascii=False, indent=1).replace("<", "\\u003c")


def _task_block(task: TaskSpec) -> str:
    fields: dict[str, object] = {"id": task.id, "title": task.title}
    if task.instructions:
        fields["instructions"] = task.instructions
    if task.files:
        fields["files"] = task.files
    if task.depends:
        fields["depends"] = task.depends
    if task.acceptance:
        fields["acceptance"] = task.acceptance
    return f"<task>{_json(fields)}</task>"


def _reasons_block(reasons: Sequence[str]) -> str:
    return f"<reasons>{_json(list(reasons))}</reasons>"


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a text was expected, not a {type(value).__name__}")
    return value


def _texts(values: object) -> tuple[str, ...]:
    if not isinstance(values, list):
        raise TypeError(f"a list was expected, not a {type(values).__name__}")
    return tuple(_text(value) for value in values)


def read_task(message: str) -> TaskSpec:
    """Read the task out of a worker's or reviewer's message; for agents that are programs.

    Args:
        message: The message, i.e. ``turn.prompt``.

    Raises:
        ValueError: The message carries no task.
    """
    match = _TASK.search(message)
    if match is None:
        raise ValueError("the message carries no <task>")
    try:
        fields = json.loads(match.group(1))
        return TaskSpec(
            id=_text(fields["id"]),
            title=_text(fields["title"]),
            instructions=_text(fields.get("instructions", "")),
            files=_texts(fields.get("files", [])),
            depends=_texts(fields.get("depends", [])),
            acceptance=tuple(_texts(argv) for argv in fields.get("acceptance", [])),
        )
    except KeyError as exc:
        raise ValueError(f"the message's <task> has no {exc}") from exc
    except (ValueError, TypeError, AttributeError, RecursionError) as exc:
        raise ValueError(f"the message's <task> cannot be read: {exc}") from exc


def commander_message(goal: str) -> str:
    """Ask the commander for a brief.

    Args:
        goal: The mission's goal.
    """
    return f"<mission>\n{goal}\n</mission>"


def planner_message(goal: str, brief: str) -> str:
    """Ask the planner for a plan.

    Args:
        goal: The mission's goal.
        brief: The commander's brief; may be empty.
    """
    message = f"<mission>\n{goal}\n</mission>"
    if brief:
        message += f"\n<brief>\n{brief[:_MAX_BRIEF]}\n</brief>"
    return message


def worker_message(task: TaskSpec, round_: int, reasons: Sequence[str]) -> str:
    """Give a worker its task.

    Args:
        task: The task.
        round_: 1 for the first try.
        reasons: Why the last round was sent back.
    """
    message = f"{_task_block(task)}\n<round>{round_}</round>"
    if reasons:
        message += f"\n{_reasons_block(reasons)}"
    return message


def reviewer_message(task: TaskSpec, round_: int, summary: str) -> str:
    """Give a reviewer a finished task.

    Args:
        task: The task.
        round_: The round that was finished.
        summary: What the worker says it did.
    """
    text = summary.strip()[:_MAX_SUMMARY] or "(the worker gave no summary)"
    return f"{_task_block(task)}\n<round>{round_}</round>\n<summary>{_json(text)}</summary>"


def repeat_message(problem: str) -> str:
    """Ask again for an answer in the right form.

    Args:
        problem: What was wrong with the last one.
    """
    return (
        f"<problem>{problem}</problem>\n"
        "Your last answer cannot be used. Give the whole answer again, in the form that your "
        "instructions ask for."
    )
