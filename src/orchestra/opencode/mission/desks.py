"""Which workplace a turn, a check or a merge belongs to: the mission's way to its workplaces."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol, final

from orchestra.errors import StoreError
from orchestra.opencode.mission.orders import Ask, Integrate, Integrated
from orchestra.opencode.mission.plan import Role
from orchestra.opencode.mission.report import TaskReport, TaskState
from orchestra.opencode.mission.workplaces import Workplace, WorkplaceError, Workplaces

__all__ = ("Desks",)

_UNDER_WAY = {
    TaskState.WORKING,
    TaskState.CHECKING,
    TaskState.REVIEWING,
    TaskState.MERGING,
}


class TaskBook(Protocol):
    """What must be known of tasks; the machine tells it."""

    def task_report(self, task_id: str, /) -> TaskReport:
        """Return what is known of a task."""

    def states(self) -> dict[str, TaskState]:
        """Return every task's state, in plan order."""

    def position_of(self, task_id: str, /) -> float:
        """Return a task's place in the plan."""

    def parts_of(self, task_id: str, /) -> tuple[str, ...]:
        """Return the parts that a task was split into."""


@final
class Desks:
    """Finds and makes the workplaces of a mission's tasks.

    Args:
        directory: The workspace.
        tasks: Tells what is known of tasks.

    Attributes:
        places: The workplaces; set before anything is asked of this.
    """

    def __init__(self, directory: Path, tasks: TaskBook) -> None:
        self._directory = directory
        self._tasks = tasks
        self._taken: set[str] = set()
        self.places: Workplaces

    async def begin(self, before: Mapping[str, Mapping[str, str]]) -> str:
        """Look at the workspace for the first time. A checkpoint.

        Tasks that are under way already, of an earlier process, get their workplaces at once:
        their workers may be writing.

        Args:
            before: As for `Workplaces.recall`.

        Returns:
            Why the mission cannot work there; empty: it can.
        """
        try:
            await self.places.begin()
            self.places.recall(before)
            for task_id, state in self._tasks.states().items():
                if state is TaskState.MERGING and await self._is_taken(task_id):
                    self._taken.add(task_id)
                elif state in _UNDER_WAY:
                    await self.open(task_id, is_resumed=True)
                elif state is TaskState.SPLIT:
                    await self.leave(task_id)
        except WorkplaceError as exc:
            return str(exc)
        except StoreError as exc:
            return f"the mission's state cannot be written: {exc}"
        return ""

    async def _is_taken(self, task_id: str) -> bool:
        task = self._tasks.task_report(task_id)
        tree = task.receipt.tree if task.receipt is not None else ""
        return bool(tree) and await self.places.is_taken(task_id, task.files, tree)

    async def open(self, task_id: str, *, is_resumed: bool = False) -> Workplace:
        """Give a task the workplace of the attempt that begins, or goes on. A checkpoint.

        Args:
            task_id: The task.
            is_resumed: Whether an earlier process has begun with it.

        Raises:
            WorkplaceError: There cannot be one.
            StoreError: Its leases cannot be written.
        """
        task = self._tasks.task_report(task_id)
        is_racing = bool(task.parent) and task_id.startswith(f"{task.parent}#")
        return await self.places.open(
            task_id,
            task.files,
            is_apart=is_racing,
            # Those who race for the same task do not wait for each other.
            position=self._tasks.position_of(task.parent if is_racing else task_id),
            parts=self._tasks.parts_of(task_id),
            is_resumed=is_resumed,
        )

    @asynccontextmanager
    async def working(self, ask: Ask) -> AsyncIterator[Workplace | None]:
        """Let a worker work at its workplace during this block; the others only look.

        Args:
            ask: What is asked of whom.

        Raises:
            WorkplaceError: There cannot be a workplace.
        """
        if ask.role is not Role.WORKER or ask.task_id is None:
            yield None
            return
        place = await self.open(ask.task_id)
        async with place.at_work():
            yield place

    def directory_of(self, ask: Ask) -> Path:
        """Return where an agent's session is.

        Args:
            ask: What is asked of whom.
        """
        place = None if ask.task_id is None else self.places.find(ask.task_id)
        return self._directory if place is None else place.directory

    async def integrate(self, order: Integrate) -> Integrated:
        """Take a task's change over into the workspace. A checkpoint.

        Args:
            order: The machine's.

        Raises:
            StoreError: It cannot be written that it was.
        """
        if order.task_id in self._taken:
            self._taken.remove(order.task_id)
            return Integrated(ticket=order.ticket)
        try:
            place = self.places.find(order.task_id) or await self.open(order.task_id)
            taken = await place.integrate(order.receipt.tree)
        except WorkplaceError as exc:
            return Integrated(ticket=order.ticket, problem=str(exc))
        return Integrated(ticket=order.ticket, problem=taken.problem, is_moved=taken.is_moved)

    async def leave(self, task_id: str) -> None:
        """A task has ended without a change that counts, or goes on in parts. A checkpoint.

        Args:
            task_id: The task.
        """
        await self.places.leave(task_id, split_at=self._split_at(task_id))

    def _split_at(self, task_id: str) -> float | None:
        is_split = self._tasks.task_report(task_id).state is TaskState.SPLIT
        has_parts = is_split and bool(self._tasks.parts_of(task_id))
        return self._tasks.position_of(task_id) if has_parts else None

    def __repr__(self) -> str:
        return f"<Desks {self.places!r}>"
