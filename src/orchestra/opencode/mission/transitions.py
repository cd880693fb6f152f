"""What a task may do: the whole table, and which states are ends."""

from __future__ import annotations

from collections.abc import Mapping

from orchestra.opencode.mission.report import TaskState

__all__ = ("OVER", "TRANSITIONS")

_BACK = frozenset({TaskState.READY, TaskState.FAILED, TaskState.CANCELLED})
TRANSITIONS: Mapping[TaskState, frozenset[TaskState]] = {
    TaskState.WAITING: frozenset({TaskState.READY, TaskState.SKIPPED, TaskState.CANCELLED}),
    TaskState.READY: frozenset(
        {
            TaskState.WORKING,
            TaskState.SPLIT,
            TaskState.FAILED,
            TaskState.SKIPPED,
            TaskState.CANCELLED,
        }
    ),
    TaskState.WORKING: _BACK | {TaskState.SPLIT, TaskState.CHECKING},
    TaskState.SPLIT: _BACK | {TaskState.CHECKING, TaskState.ACCEPTED},
    TaskState.CHECKING: _BACK | {TaskState.REVIEWING},
    TaskState.REVIEWING: _BACK | {TaskState.MERGING},
    TaskState.MERGING: _BACK | {TaskState.CHECKING, TaskState.ACCEPTED},
    TaskState.ACCEPTED: frozenset(),
    TaskState.FAILED: frozenset({TaskState.REPLACED}),
    TaskState.SKIPPED: frozenset({TaskState.REPLACED}),
    TaskState.CANCELLED: frozenset(),
    TaskState.REPLACED: frozenset(),
}
OVER = frozenset(
    {
        TaskState.ACCEPTED,
        TaskState.FAILED,
        TaskState.SKIPPED,
        TaskState.CANCELLED,
        TaskState.REPLACED,
    }
)
"""States in which nothing more is done for a task."""
