"""What a mission is asked to do: tasks, the plan they form, and the rules of the run."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from attrs import field, frozen, validators

__all__ = ("MissionSettings", "Plan", "Role", "TaskSpec")


class Role(Enum):
    """Who does what in a mission."""

    COMMANDER = "commander"
    PLANNER = "planner"
    WORKER = "worker"
    REVIEWER = "reviewer"


@frozen(kw_only=True)
class TaskSpec:
    """One piece of work that one worker can finish.

    Attributes:
        id: Short and unique in its plan.
        title: One line for people.
        instructions: What the worker is told, beyond the title.
        files: Files the task will write, relative to the workspace.
        depends: Ids of tasks that must be accepted first.
        acceptance: Command lines (already split) that must end with exit code 0.
    """

    id: str
    title: str
    instructions: str = ""
    files: tuple[str, ...] = ()
    depends: tuple[str, ...] = ()
    acceptance: tuple[tuple[str, ...], ...] = ()


@frozen
class Plan:
    """Tasks in the order in which they are written down; build it with `parse_plan`."""

    tasks: tuple[TaskSpec, ...]


def _default_limits() -> dict[str, int]:
    return {"commander": 1, "planner": 10, "worker": 10, "reviewer": 10}


@frozen(kw_only=True)
class MissionSettings:
    """The rules of a run.

    Attributes:
        limits: How many sessions of each role may work at once.
        max_rounds: How often a worker may try one task: rejections and failures both count.
        acceptance: Command lines that must succeed after all tasks were accepted.
        allow: Command lines that acceptance may run. An entry that ends in ``*`` allows any
            further arguments; otherwise it must match as a whole.
        command_timeout: Seconds that one acceptance command may take.
        turn_timeout: Seconds that one agent turn may take before it is aborted.
        deadline: Seconds that the whole mission may take; None: no limit.
        todo_file: Where the plan is written, relative to the workspace; None: nowhere.
    """

    limits: Mapping[str, int] = field(factory=_default_limits)
    max_rounds: int = field(default=3, validator=validators.ge(1))
    acceptance: tuple[tuple[str, ...], ...] = ()
    allow: tuple[tuple[str, ...], ...] = ()
    command_timeout: float = field(default=300.0, validator=validators.gt(0))
    turn_timeout: float = field(default=1800.0, validator=validators.gt(0))
    deadline: float | None = field(
        default=None, validator=validators.optional(validators.gt(0))
    )
    todo_file: str | None = "TODO.md"
