"""What a mission is doing, in numbers."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen

from orchestra.opencode.mission.report import TaskState

__all__ = ("MissionStatistics",)


@frozen(kw_only=True)
class MissionStatistics:
    """What a mission is doing and has done.

    Attributes:
        tasks: How many tasks are in each state.
        turns_running: Agent turns under way.
        turns_finished: Agent turns that ended.
        retries: Turns asked again because one failed.
        permissions: Permission requests that the policy answered.
        questions: Questions of agents that were answered for the absent person.
        tool_calls: Tool calls that ended.
        stale_events: Answers to work that had been given up.
        sessions_open: Sessions that the mission holds.
    """

    tasks: Mapping[TaskState, int] = field(factory=dict)
    turns_running: int = 0
    turns_finished: int = 0
    retries: int = 0
    permissions: int = 0
    questions: int = 0
    tool_calls: int = 0
    stale_events: int = 0
    sessions_open: int = 0
