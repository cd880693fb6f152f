"""What the machine's commands mean to whoever watches a mission."""

from __future__ import annotations

from collections.abc import Callable

from orchestra.opencode.mission.events import (
    MissionEvent,
    PlanAccepted,
    TaskChanged,
    WarningRaised,
)
from orchestra.opencode.mission.orders import Command, PlanMade, TaskMoved, Warn
from orchestra.opencode.mission.plan import Plan

__all__ = ("as_event",)


def as_event(command: Command, at: float, show: Callable[[Plan], Plan]) -> MissionEvent | None:
    """Return what a command tells; None: nothing.

    Args:
        command: The machine's.
        at: Seconds after the mission's start.
        show: Takes secrets out of a plan.
    """
    if isinstance(command, TaskMoved):
        return TaskChanged(
            at=at,
            task_id=command.task_id,
            state=command.state,
            round=command.round,
            note=command.note,
        )
    if isinstance(command, PlanMade):
        return PlanAccepted(at=at, plan=show(command.plan))
    if isinstance(command, Warn):
        return WarningRaised(at=at, message=command.message)
    return None
