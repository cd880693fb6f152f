"""``orchestra why TASK``: why a task ran, waits, or would run again; from the records alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio.to_thread
from attrs import frozen

from orchestra import SQLiteStore
from orchestra.errors import ConfigurationError
from orchestra.opencode.mission.content import digest_files, prompt_digest, task_digest
from orchestra.opencode.mission.ownership import find_owner
from orchestra.opencode.mission.plan import Role, TaskSpec
from orchestra.opencode.mission.report import TaskState
from orchestra.opencode.mission.report_files import REPORT_FOLDER
from orchestra.opencode.mission.resuming import Present, find_stale
from orchestra.opencode.mission.saved import SavedMission, load_mission
from orchestra.opencode.mission.transitions import OVER
from orchestra.opencode.mission.wait_words import explain_time, explain_wait
from orchestra.opencode.mission.waits import read_book
from orchestra.opencode.records import MISSION, RECORDS, find_absence, find_mission

__all__ = ("EXPLAINERS", "Explainer", "TaskExplanation", "explain", "explain_task")

_OVER = {state.value for state in OVER}
_HOLDING = {"working", "checking", "reviewing", "merging", "split"}


@frozen(kw_only=True)
class TaskExplanation:
    """Why a task is where it is.

    Attributes:
        mission: The mission.
        task: The task.
        state: How far it is.
        reasons: The reasons, one sentence each.
    """

    mission: str
    task: str
    state: str
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        lines = "".join(f"\n  {reason}" for reason in self.reasons)
        return f"{self.task} is {self.state} in {self.mission}{lines}"


@frozen(kw_only=True)
class Case:
    """What an explainer looks at.

    Attributes:
        saved: The mission's records.
        spec: The task.
        plain: What is recorded of it.
        stale: The tasks that would run again now, with the reason.
        is_carried: Whether a process carries the mission on, as far as can be seen.
        absence: That none does although the mission has not ended; else empty.
    """

    saved: SavedMission
    spec: TaskSpec
    plain: Mapping[str, Any]
    stale: Mapping[str, str]
    is_carried: bool = True
    absence: str = ""

    def state_of(self, name: str) -> str:
        """Return how far a task is."""
        tasks = self.saved.record.tasks if self.saved.record is not None else {}
        return str(tasks.get(name, {}).get("state", TaskState.WAITING.value))


Explainer = Callable[[Case], Iterator[str]]
"""Gives reasons for where a task is; none when it has nothing to say."""


def why_it_ran(case: Case) -> Iterator[str]:
    """Say why it was begun, and why it was begun again."""
    if again := case.saved.why.get(case.spec.id):
        yield f"it was done or checked once more, since {again}"
    elif case.plain.get("round"):
        yield "it ran, since the plan has it and there was no result of it"
    for number, reason in enumerate(case.plain.get("reasons", ()), 1):
        yield f"it was sent back or failed ({number}): {reason}"


def why_it_waits(case: Case) -> Iterator[str]:
    """Say what it waits for: others, files, a slot."""
    state = case.plain.get("state")
    if not case.saved.is_over and read_book(case.saved.waits).is_open(case.spec.id):
        return  # it was written down: where its time went begins with it
    if state == TaskState.WAITING.value:
        for name in case.spec.depends:
            if case.state_of(name) != TaskState.ACCEPTED.value:
                yield f"it waits for {name!r}, which is {case.state_of(name)}"
    elif state == TaskState.READY.value:
        specs = case.saved.record.specs if case.saved.record is not None else ()
        for other in specs:
            shared = sorted(set(other.files) & set(case.spec.files))
            if other.id != case.spec.id and shared and case.state_of(other.id) in _HOLDING:
                yield f"it waits for {', '.join(shared)}, which {other.id!r} holds"
                return
        yield "it waits for a worker's slot"
    elif state in _HOLDING:
        yield f"it is in round {case.plain.get('round')}"


def whether_anybody_is_there(case: Case) -> Iterator[str]:
    """Say of a task that is not over that nobody is at work on it any more."""
    if case.absence and case.plain.get("state") not in _OVER:
        yield case.absence


def whether_it_runs_again(case: Case) -> Iterator[str]:
    """Say of what was accepted whether going on would pay for it again."""
    if case.plain.get("state") != TaskState.ACCEPTED.value:
        return
    if reason := case.stale.get(case.spec.id):
        yield f"it would run or be checked again, since {reason}"
    elif result := case.saved.results.get(case.spec.id):
        yield f"it would not run again: all it was made of is as it was (key {result.key[:12]})"


def where_its_time_went(case: Case) -> Iterator[str]:
    """Say what it waits for at this moment, and what its time was spent on."""
    book, now = read_book(case.saved.waits), None
    if not case.saved.is_over:
        passed = datetime.now(UTC) - datetime.fromisoformat(case.saved.started_at)
        now = max(book.last, passed.total_seconds())
        if not case.is_carried:
            book.leave()
        # What has no cause of its own yet goes with the mission.
        name = case.spec.id if case.spec.id in book.tasks else ""
        if (segment := book.now(name)) is not None:
            yield explain_wait(segment, now)
    yield from explain_time(book.segments(case.spec.id, now))


EXPLAINERS: tuple[Explainer, ...] = (
    whether_anybody_is_there,
    why_it_ran,
    why_it_waits,
    where_its_time_went,
    whether_it_runs_again,
)
"""Asked in this order; whoever records further causes adds one."""


async def explain_task(directory: Path, task: str, reference: str = "last") -> TaskExplanation:
    """Say why a task is where it is. A checkpoint.

    Args:
        directory: The workspace.
        task: The task's id.
        reference: The mission's id, the beginning of it, or ``last``.

    Raises:
        ConfigurationError: There is no such mission, or no such task in it.
        StoreError: The records cannot be read.
    """
    name = await find_mission(directory, reference)
    async with SQLiteStore(directory / REPORT_FOLDER / RECORDS, read_only=True) as store:
        saved = await load_mission(store, name)
        owner = await find_owner(store, saved.directory)
        absence = await find_absence(store, name, await store.namespace(name).get(MISSION))
    paths = sorted({path for result in saved.results.values() for path in result.after})
    files = await anyio.to_thread.run_sync(digest_files, saved.directory, paths)
    is_carried = owner is not None and owner.mission == name
    return explain(saved, task, files, is_carried=is_carried, absence=absence)


def explain(
    saved: SavedMission,
    task: str,
    files: Mapping[str, str],
    *,
    is_carried: bool = True,
    absence: str = "",
) -> TaskExplanation:
    """Say why a task is where it is.

    Args:
        saved: The mission's records.
        task: The task's id.
        files: The digests of what its results have changed, as it is now.
        is_carried: Whether a process carries the mission on.
        absence: As for `Case`.

    Raises:
        ConfigurationError: There is no such task in it.
    """
    record = saved.record
    # A plan that waits for its approval is not among the mission's own tasks yet.
    found = [] if record is None else [*record.specs, *(part for part, _ in record.parts)]
    specs = {each.id: each for each in ([] if record is None else [*record.plan, *found])}
    if record is None or task not in specs:
        known = ", ".join(list(specs)[:20]) or "none"
        raise ConfigurationError(f"mission {saved.id} has no task {task!r}; it has {known}")
    worker = saved.agents[Role.WORKER]
    present = Present(prompt=prompt_digest(worker), model=worker.model or "", files=files)
    case = Case(
        saved=saved,
        spec=specs[task],
        plain=record.tasks.get(task, {"state": TaskState.WAITING.value}),
        stale=find_stale(record.specs, saved.results, present, task_digest),
        is_carried=is_carried,
        absence=absence,
    )
    return TaskExplanation(
        mission=saved.id,
        task=task,
        state=str(case.plain["state"]),
        reasons=tuple(reason for explainer in EXPLAINERS for reason in explainer(case)),
    )
