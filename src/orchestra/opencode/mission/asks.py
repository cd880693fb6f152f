"""What is ordered for a task: its worker's and reviewer's prompts, and its gates."""

from __future__ import annotations

from attrs import evolve

from orchestra.opencode.mission.messages import reviewer_message, worker_message
from orchestra.opencode.mission.orders import Ask, RunGates
from orchestra.opencode.mission.plan import MissionSettings, Role, TaskMode, TaskSpec
from orchestra.opencode.mission.tracking import TrackedTask

__all__ = ("racers_of", "reviewer_ask", "unit_gates", "worker_ask", "worker_session")


def racers_of(spec: TaskSpec) -> list[TaskSpec]:
    """Return the tasks that race for another one.

    Args:
        spec: What they race for.
    """
    return [
        evolve(spec, id=f"{spec.id}#{number}", mode=TaskMode.NORMAL, depends=())
        for number in range(1, spec.racers + 1)
    ]


def worker_session(task: TrackedTask) -> str:
    """Return the name of the session that a task's worker is in.

    Args:
        task: The task.
    """
    return f"worker/{task.id}/{task.sessions}"


def worker_ask(
    task: TrackedTask, settings: MissionSettings, round_: int, delay: float = 0.0
) -> Ask:
    """Return the prompt of a task's worker.

    Args:
        task: The task.
        settings: The rules of the run.
        round_: The round that it begins, or is in.
        delay: Seconds to wait before.
    """
    return Ask(
        ticket=0,
        session=worker_session(task),
        role=Role.WORKER,
        message=worker_message(
            task.spec, round_, task.sent_back, task.note, may_split=task.may_split
        ),
        task_id=task.id,
        round=round_,
        turn=task.turns,
        delay=delay,
        model=task.troubles.pick(settings.chain(Role.WORKER)),
        priority=task.spec.priority,
        depth=task.lineage,
        agent=task.spec.agent,
    )


def reviewer_ask(task: TrackedTask, settings: MissionSettings, delay: float = 0.0) -> Ask:
    """Return the first prompt of a task's reviewer.

    Args:
        task: The task.
        settings: The rules of the run.
        delay: Seconds to wait before.
    """
    return Ask(
        ticket=0,
        session=f"reviewer/{task.id}/{task.reviews}",
        role=Role.REVIEWER,
        message=reviewer_message(task.spec, task.round, task.summary, task.evidence),
        task_id=task.id,
        round=task.round,
        delay=delay,
        model=task.review_troubles.pick(settings.chain(Role.REVIEWER)),
        priority=task.spec.priority,
        depth=task.lineage,
    )


def unit_gates(task: TrackedTask, settings: MissionSettings) -> RunGates:
    """Return the gates of a task.

    Args:
        task: The task.
        settings: The rules of the run.
    """
    permitted, refused = settings.sort_commands(task.spec.acceptance)
    return RunGates(
        ticket=0,
        stage="unit",
        commands=permitted,
        refused=refused,
        files=() if task.parts else task.spec.files,  # its parts were checked for them
        is_silent=settings.has_evidence  # else nobody knows whether a file changed
        and not (task.parts or task.calls or task.summary.strip()),
        task_id=task.id,
        round=task.round,
    )
