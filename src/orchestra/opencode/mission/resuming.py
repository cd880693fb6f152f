"""What of an interrupted mission still counts when it is gone on with; pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from graphlib import TopologicalSorter
from typing import Any

from attrs import evolve, field, frozen

from orchestra.opencode.mission.content import Result
from orchestra.opencode.mission.machine import MissionRecord, Phase
from orchestra.opencode.mission.plan import Plan, TaskSpec
from orchestra.opencode.mission.report import TaskState
from orchestra.opencode.mission.saved import SavedMission

__all__ = ("Continuation", "Present", "continue_from", "find_stale")

_KEPT = ("position", "sessions", "reviews", "usage", "reasons")
"""What is kept of a task that runs once more: so its sessions get names that are new."""
_AT_WORK = {Phase.TASKS.value, Phase.INTEGRATION.value, Phase.SEAL.value}


@frozen(kw_only=True)
class Present:
    """How things are now that a result depends on.

    Attributes:
        prompt: The version of the worker's prompt.
        model: The worker's model.
        files: The digest of each file that a result is about.
        is_apart: Whether tasks work in worktrees, so that what was taken over cannot be looked at
            as a task's change any more.
    """

    prompt: str
    model: str
    is_apart: bool = False
    files: Mapping[str, str] = field(factory=dict)


@frozen(kw_only=True)
class Continuation:
    """From where a mission goes on.

    Attributes:
        record: What the machine is restored from; None: it starts from the beginning.
        again: Tasks that had been begun or accepted and run once more, or whose files are checked
            and reviewed once more, with the reason.
        kept: Tasks that stay accepted although somebody has changed their files, with the reason.
        is_replanned: Whether the plan that it is given is another one than before.
    """

    record: MissionRecord | None
    again: Mapping[str, str] = field(factory=dict)
    kept: Mapping[str, str] = field(factory=dict)
    is_replanned: bool = False


def find_stale(
    specs: Sequence[TaskSpec],
    results: Mapping[str, Result],
    present: Present,
    digest: Callable[[TaskSpec], str],
) -> dict[str, str]:
    """Say which accepted tasks do not stay as they are, and why; in which order does not matter.

    Args:
        specs: The tasks.
        results: What was accepted, by task.
        present: How things are now.
        digest: Gives a task's digest.
    """
    return {**_find_stale(specs, results, present, digest)[0]}


def _find_stale(  # noqa: C901  (one case for each reason)
    specs: Sequence[TaskSpec],
    results: Mapping[str, Result],
    present: Present,
    digest: Callable[[TaskSpec], str],
) -> tuple[dict[str, str], set[str]]:
    """Return the reasons, and the tasks whose files somebody has changed and that are not redone.

    To run these once more would overwrite what a person has done.
    """
    edited: set[str] = set()
    broken: dict[str, list[str]] = {}
    for name, done in results.items():
        for path in done.after:
            broken.setdefault(path, []).append(name)
    known = {spec.id: spec for spec in specs}
    graph = {spec.id: [each for each in spec.depends if each in known] for spec in specs}
    why: dict[str, str] = {}
    for name in TopologicalSorter(graph).static_order():
        result = results.get(name)
        if result is None:
            continue
        rerun = next((each for each in known[name].depends if each in why), "")
        other = next(
            (each for each, key in result.depends.items() if _key(results, each) != key), ""
        )
        odd = _differing(result, broken, results, present)
        if digest(known[name]) != result.task:
            why[name] = "its task in the plan is another one than was accepted"
        elif result.prompt != present.prompt:
            why[name] = "the worker's prompt is another one than it was done with"
        elif result.model != present.model:
            before, now = result.model or "the default", present.model or "the default"
            why[name] = f"the worker's model was {before} and is {now}"
        elif changed := [path for path in odd if present.files.get(path)]:
            why[name] = f"its file {changed[0]} was changed after it was accepted"
            edited.add(name)
        elif rerun in edited:
            why[name] = f"it depends on {rerun!r}, whose files were changed"
        elif rerun:
            why[name] = f"it depends on {rerun!r}, which runs again"
        elif other:
            why[name] = f"it was made of another result of {other!r} than there is now"
        elif odd:
            why[name] = f"its file {odd[0]} was removed after it was accepted"
    return why, edited


def _key(results: Mapping[str, Result], name: str) -> str:
    found = results.get(name)
    return found.key if found is not None else ""


def _differing(
    result: Result,
    writers: Mapping[str, Sequence[str]],
    results: Mapping[str, Result],
    present: Present,
) -> list[str]:
    """Return the files that hold nothing that a task has left there."""
    # A later task may have gone on with the file: what that one left counts as well.
    return [
        path
        for path in result.after
        if present.files.get(path, "") not in {results[each].after[path] for each in writers[path]}
    ]


def continue_from(
    saved: SavedMission,
    plan: Plan | None,
    present: Present,
    digest: Callable[[TaskSpec], str],
) -> Continuation:
    """Work out from where a mission goes on.

    Args:
        saved: What was written of it.
        plan: The plan that it is given now; None: the one that it had.
        present: How things are now.
        digest: Gives a task's digest.
    """
    record = saved.record
    if record is None or record.state["phase"] not in _AT_WORK:
        return Continuation(record=record)
    was = {spec.id: digest(spec) for spec in record.specs}
    is_replanned = plan is not None and was != {spec.id: digest(spec) for spec in plan.tasks}
    specs = plan.tasks if plan is not None and is_replanned else record.specs
    again, edited = _find_stale(specs, saved.results, present, digest)
    kept = {name: again.pop(name) for name in edited if present.is_apart}
    for spec in specs:
        if spec.id in was and was[spec.id] != digest(spec):
            again.setdefault(spec.id, "its task in the plan is another one than before")
    _spread(specs, record, again)
    anew = again.keys() - edited
    gone = {part.id for part, parent in record.parts if parent in anew}
    tasks: dict[str, Mapping[str, Any]] = {}
    for position, spec in enumerate(specs):
        plain = record.tasks.get(spec.id, {"state": TaskState.WAITING.value, "round": 0})
        if spec.id in anew:
            left = {name: plain[name] for name in _KEPT if name in plain}
            plain = {**left, "state": TaskState.WAITING.value, "round": 0}
        elif spec.id in again:
            plain = {**plain, "state": TaskState.CHECKING.value}
        tasks[spec.id] = {**plain, "position": position} if is_replanned else plain
    parts = tuple(
        (part, parent) for part, parent in record.parts if part.id not in gone and parent in tasks
    )
    tasks |= {part.id: record.tasks[part.id] for part, _ in parts if part.id in record.tasks}
    has_work = bool(again) or is_replanned
    state = {**record.state, "phase": Phase.TASKS.value} if has_work else record.state
    return Continuation(
        record=evolve(
            record,
            state=state,
            plan=specs if is_replanned else record.plan,
            specs=tuple(specs),
            parts=parts,
            tasks=tasks,
        ),
        again=again,
        kept=kept,
        is_replanned=is_replanned,
    )


def _spread(specs: Sequence[TaskSpec], record: MissionRecord, again: dict[str, str]) -> None:
    """Add what had begun with a result that will be another one."""
    begun = {
        name for name, plain in record.tasks.items() if plain["state"] != TaskState.WAITING.value
    }
    is_growing = bool(again)
    while is_growing:
        is_growing = False
        for spec in specs:
            cause = next((each for each in spec.depends if each in again), "")
            if cause and spec.id not in again and spec.id in begun:
                again[spec.id] = f"it depends on {cause!r}, which runs again"
                is_growing = True
