"""The plain forms in which a mission's state stands in the store, and the way back.

What comes back was written by us, but perhaps by another version: a field that is missing has its
default, and one that nobody knows is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import asdict

from orchestra import Priority
from orchestra.events import Usage
from orchestra.opencode.mission.plan import TaskMode, TaskSpec
from orchestra.opencode.mission.recovery import ErrorClass, Troubles
from orchestra.opencode.mission.report import CommandResult, Finding, Receipt, TaskState
from orchestra.opencode.mission.stagnation import Stagnation
from orchestra.opencode.mission.tracking import TrackedTask

__all__ = (
    "clean",
    "fill_task",
    "receipt_from_plain",
    "receipt_to_plain",
    "spec_from_plain",
    "spec_to_plain",
    "task_to_plain",
)

_COUNTERS = ("sessions", "turns", "reviews", "merges")
_KEPT_REASONS = 5
_OUTPUT_LIMIT = 2_000


def clean(value: Any) -> Any:
    """Return plain data that UTF-8 can hold: halves of surrogate pairs come from broken answers.

    Args:
        value: Texts, numbers, lists and dicts.
    """
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", errors="replace").decode()
    if isinstance(value, list):
        return [clean(item) for item in value]
    if isinstance(value, dict):
        return {key: clean(item) for key, item in value.items()}
    return value


def spec_to_plain(spec: TaskSpec) -> dict[str, Any]:
    """Return a task's plain form.

    Args:
        spec: The task.
    """
    return {
        "id": spec.id,
        "title": spec.title,
        "instructions": spec.instructions,
        "files": list(spec.files),
        "depends": list(spec.depends),
        "acceptance": [list(argv) for argv in spec.acceptance],
        "priority": spec.priority.name.lower(),
        "mode": spec.mode.value,
        "racers": spec.racers,
        "agent": spec.agent,
    }


def spec_from_plain(plain: Mapping[str, Any]) -> TaskSpec:
    """Return the task of a plain form.

    Args:
        plain: What `spec_to_plain` returned.
    """
    return TaskSpec(
        id=plain["id"],
        title=plain["title"],
        instructions=plain.get("instructions", ""),
        files=tuple(plain.get("files", ())),
        depends=tuple(plain.get("depends", ())),
        acceptance=tuple(tuple(argv) for argv in plain.get("acceptance", ())),
        priority=Priority[plain.get("priority", "normal").upper()],
        mode=TaskMode(plain.get("mode", "normal")),
        racers=plain.get("racers", 2),
        agent=plain.get("agent", ""),
    )


def _command_to_plain(result: CommandResult) -> dict[str, Any]:
    return {
        "argv": list(result.argv),
        "exit_code": result.exit_code,
        "output": result.output[-_OUTPUT_LIMIT:] if result.is_failed else "",
        "elapsed": result.elapsed,
        "refusal": result.refusal,
        "error": result.error,
    }


def _command_from_plain(plain: Mapping[str, Any]) -> CommandResult:
    return CommandResult(
        argv=tuple(plain["argv"]),
        exit_code=plain.get("exit_code"),
        output=plain.get("output", ""),
        elapsed=plain.get("elapsed", 0.0),
        refusal=plain.get("refusal", ""),
        error=plain.get("error", ""),
    )


def receipt_to_plain(receipt: Receipt | None) -> dict[str, Any] | None:
    """Return a receipt's plain form; of what commands printed, only what failed.

    Args:
        receipt: The receipt.
    """
    if receipt is None:
        return None
    return {
        "stage": receipt.stage,
        "tree": receipt.tree,
        "problems": list(receipt.problems),
        "commands": [_command_to_plain(result) for result in receipt.commands],
        "findings": [asdict(finding) for finding in receipt.findings],
        "changed": list(receipt.changed),
        "strays": list(receipt.strays),
    }


def receipt_from_plain(plain: Mapping[str, Any] | None) -> Receipt | None:
    """Return the receipt of a plain form.

    Args:
        plain: What `receipt_to_plain` returned.
    """
    if plain is None:
        return None
    return Receipt(
        stage=plain["stage"],
        tree=plain["tree"],
        problems=tuple(plain.get("problems", ())),
        commands=tuple(map(_command_from_plain, plain.get("commands", ()))),
        findings=tuple(Finding(**finding) for finding in plain.get("findings", ())),
        changed=tuple(plain.get("changed", ())),
        strays=tuple(plain.get("strays", ())),
    )


def _troubles_to_plain(troubles: Troubles) -> dict[str, Any]:
    return {
        "counts": {error.value: count for error, count in troubles.counts.items()},
        "model": troubles.model,
        "total": troubles.total,
    }


def _troubles_from_plain(plain: Mapping[str, Any]) -> Troubles:
    counts = {ErrorClass(name): count for name, count in plain.get("counts", {}).items()}
    return Troubles(counts, plain.get("model", 0), plain.get("total", 0))


def task_to_plain(task: TrackedTask) -> dict[str, Any]:
    """Return all that is known of a task under way, but for its specification and evidence.

    Of the reasons why it was sent back only the last ones are there: each step writes the whole of
    it, and the earlier ones stand in earlier steps.

    Args:
        task: The task.
    """
    return {
        "state": task.state.value,
        "round": task.round,
        "position": task.position,
        "reasons": task.reasons[-_KEPT_REASONS:],
        "sent_back": list(task.sent_back),
        "note": task.note,
        "summary": task.summary,
        "calls": task.calls,
        "usage": asdict(task.usage),
        "receipt": receipt_to_plain(task.receipt),
        "is_session_fresh": task.is_session_fresh,
        "may_split": task.may_split,
        "troubles": _troubles_to_plain(task.troubles),
        "stagnation": task.stagnation.plain(),
        **{name: getattr(task, name) for name in _COUNTERS},
    }


def fill_task(task: TrackedTask, plain: Mapping[str, Any], rounds: int) -> None:
    """Bring a task to where its plain form says that it was.

    Args:
        task: The task as its specification makes it; of a part, after its parent.
        plain: What `task_to_plain` returned.
        rounds: Equal rounds in a row before the first step against stagnation.
    """
    task.state = TaskState(plain["state"])
    task.round = plain["round"]
    task.position = plain.get("position", task.position)
    if task.parent is not None:  # which may have another place in the plan by now
        task.position = task.parent.position + task.position % 1
    task.reasons = _texts(plain.get("reasons", ()))
    task.sent_back = tuple(_texts(plain.get("sent_back", ())))
    task.note = plain.get("note", "")
    task.summary = plain.get("summary", "")
    task.calls = plain.get("calls", "")
    task.usage = Usage(**plain.get("usage", {}))
    task.evidence = plain.get("evidence", "")
    task.receipt = receipt_from_plain(plain.get("receipt"))
    task.commands = task.receipt.commands if task.receipt is not None else ()
    task.is_session_fresh = plain.get("is_session_fresh", True)
    task.may_split = plain.get("may_split", False)
    task.troubles = _troubles_from_plain(plain.get("troubles", {}))
    task.stagnation = Stagnation.restore(rounds, plain.get("stagnation", {}))
    for name in _COUNTERS:
        setattr(task, name, plain.get(name, 0))


def _texts(values: Sequence[object]) -> list[str]:
    return [str(value) for value in values]
