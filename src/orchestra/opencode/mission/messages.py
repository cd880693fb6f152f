"""What agents are told: each message carries its task only, the role is in the agent's prompt."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from orchestra.opencode.mission.plan import TaskSpec
from orchestra.opencode.mission.prompt_limits import MAX_REASONS
from orchestra.opencode.mission.report import TaskReport
from orchestra.opencode.mission.specialists import Specialist

__all__ = (
    "CHANGED_STRATEGY",
    "commander_message",
    "continuation_message",
    "planner_message",
    "read_task",
    "repeat_message",
    "reviewer_message",
    "stagnation_note",
    "worker_message",
)

_MAX_BRIEF = 20_000
_MAX_SUMMARY = 8_000
_MAX_LISTED = 100
_TASK = re.compile(r"<task>([^<]*)</task>")


def _json(value: object) -> str:
    """Dump JSON, as short as it gets, that cannot close the tag that it stands in."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


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
    room = MAX_REASONS
    kept = []
    for reason in reasons:
        if room <= 0:
            break
        kept.append(reason[:room])
        room -= len(reason)
    return f"<reasons>{_json(kept)}</reasons>"


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


def planner_message(
    goal: str,
    brief: str,
    done: Sequence[str] = (),
    specialists: Sequence[Specialist] = (),
) -> str:
    """Ask the planner for a plan.

    Args:
        goal: The mission's goal.
        brief: The commander's brief; may be empty.
        done: What is accepted already, and must not be planned again.
        specialists: Agents that a task may name.
    """
    message = f"<mission>\n{goal}\n</mission>"
    if brief:
        message += f"\n<brief>\n{brief[:_MAX_BRIEF]}\n</brief>"
    if specialists:
        about = {each.agent.name: each.description[:200] for each in specialists[:_MAX_LISTED]}
        message += (
            f"\n<agents>{_json(about)}</agents>\n"
            'A task may have the key "agent" with one of these names, where that fits better than '
            "a Worker."
        )
    if done:
        message += f"\n<done>{_json(list(done[:_MAX_LISTED]))}</done>\nPlan only what is left."
    return message


def continuation_message(
    goal: str, tasks: Sequence[TaskReport], reason: str, iteration: int, *, is_stagnant: bool
) -> str:
    """Tell the commander how far the mission is, and ask how to go on.

    Args:
        goal: The mission's goal.
        tasks: What became of each task of the plan.
        reason: Why the mission is not done.
        iteration: Which plan it is going to be.
        is_stagnant: Whether the last plans have moved nothing.
    """
    states: dict[str, str] = {}
    for task in tasks[:_MAX_LISTED]:
        states[task.id] = task.state.value
    problems = {
        task.id: task.reasons[-1][:300]
        for task in tasks
        if task.reasons and task.state.value == "failed"
    }
    evidence = {"reason": reason[:1_500], "failed": dict(list(problems.items())[:20])}
    message = (
        f"<mission>\n{goal}\n</mission>\n"
        f"<progress>{_json({'plan': iteration, 'tasks': states})}</progress>\n"
        f"<evidence>{_json(evidence)}</evidence>\n"
        "The mission is not done. Look at what is there now, find out why, and write a new brief "
        "for what is left; what is accepted stays."
    )
    if is_stagnant:
        message += " The last plan moved nothing: go another way, with other or smaller tasks."
    return message


def worker_message(
    task: TaskSpec, round_: int, reasons: Sequence[str], note: str = "", *, may_split: bool = False
) -> str:
    """Give a worker its task.

    Args:
        task: The task.
        round_: 1 for the first try.
        reasons: Why the last round was sent back.
        note: What is to be said about the way it goes.
        may_split: Whether the worker may split the task.
    """
    message = f"{_task_block(task)}\n<round>{round_}</round>"
    if reasons:
        message += f"\n{_reasons_block(reasons)}"
    if note:
        message += f"\n<note>{note}</note>"
    if may_split:
        message += f"\n<note>{_MAY_SPLIT}</note>"
    return message


_MAY_SPLIT = (
    "If this is too much for one sitting, change nothing and answer with one JSON object "
    '{"split": [task, ...]}: 2 to 8 tasks with the keys of the task above, '
    "each writing only files of this task, no file twice."
)
CHANGED_STRATEGY = (
    "Earlier workers did not move this task. Do not repeat what the reasons tell of: find out "
    "first, with the files and commands themselves, why it does not work."
)
"""Told to a worker who takes over a task that does not move."""


def stagnation_note(rounds: int) -> str:
    """Tell a worker the facts: its rounds move nothing.

    Args:
        rounds: How many in a row.
    """
    return (
        f"Your last {rounds} rounds changed neither the files nor the checks, or only back. Say in one "
        "sentence what keeps you from it, then change the files, or say that it cannot be done."
    )


def reviewer_message(task: TaskSpec, round_: int, summary: str, evidence: str = "") -> str:
    """Give a reviewer a finished task.

    Args:
        task: The task.
        round_: The round that was finished.
        summary: What the worker says it did.
        evidence: What it did change, as we saw it ourselves.
    """
    text = summary.strip()[:_MAX_SUMMARY] or "(the worker gave no summary)"
    message = f"{_task_block(task)}\n<round>{round_}</round>\n<summary>{_json(text)}</summary>"
    if evidence:
        message += f"\n<evidence>{_json(evidence[:_MAX_BRIEF])}</evidence>"
    return message


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
