"""A mission's state in the store: what is decided is written there before it is done.

Under the mission's own namespace: ``mission`` (goal, state, reason), ``plan``, ``task/<id>`` for
each task, and ``todo/...``, the list that TODO.md shows. Each step of the mission is one commit, so
the store's history tells in which order things were decided.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import anyio.to_thread

from orchestra import MVCCStore, Transaction
from orchestra.opencode.mission.orders import Command, Finish, PlanMade, TaskMoved
from orchestra.opencode.mission.plan import Plan
from orchestra.opencode.mission.report import TaskReport, TaskState
from orchestra.opencode.mission.scrubbing import Scrubber
from orchestra.opencode.mission.todo_file import place_section
from orchestra.opencode.mission.todo_list import TodoList, TodoSync
from orchestra.opencode.mission.todo_merge import TodoConflict
from orchestra.opencode.mission.todo_outline import ITEM, OUTLINE, Outline, load_list
from orchestra.opencode.mission.todo_text import TodoLine, TodoMark, wrap_section

__all__ = ("MISSION", "PLAN", "SPENT", "TASK", "Ledger")

MISSION = "mission"
PLAN = "plan"
TASK = "task/"
SPENT = "spent/"
_AUTHOR = "mission"

_MARKS: Mapping[TaskState, TodoMark] = {
    TaskState.WAITING: TodoMark.OPEN,
    TaskState.READY: TodoMark.OPEN,
    TaskState.WORKING: TodoMark.ACTIVE,
    TaskState.SPLIT: TodoMark.ACTIVE,
    TaskState.CHECKING: TodoMark.ACTIVE,
    TaskState.REVIEWING: TodoMark.ACTIVE,
    TaskState.MERGING: TodoMark.ACTIVE,
    TaskState.ACCEPTED: TodoMark.DONE,
    TaskState.FAILED: TodoMark.DROPPED,
    TaskState.SKIPPED: TodoMark.DROPPED,
    TaskState.CANCELLED: TodoMark.DROPPED,
    TaskState.REPLACED: TodoMark.DROPPED,
}


def _line(text: str) -> str:
    """Return the text as one line that cannot end the section it stands in."""
    one: str = _clean(" ".join(text.split()))
    return one.replace("-->", "-- >").replace("<!--", "< !--")


def _clean(value: Any) -> Any:
    """Return plain data that UTF-8 can hold: halves of surrogate pairs come from broken answers."""
    if isinstance(value, str):
        return value.encode("utf-8", errors="replace").decode()
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if isinstance(value, dict):
        return {key: _clean(item) for key, item in value.items()}
    return value


def _plain_task(task: TaskReport, scrubber: Scrubber) -> dict[str, Any]:
    return {
        "state": task.state.value,
        "round": task.rounds,
        "reasons": list(task.reasons),
        "summary": task.summary,
        "cost": task.usage.cost,
        "commands": [
            {
                "argv": list(scrubber.command(result.argv)),
                "exit_code": result.exit_code,
                "refusal": result.refusal,
                "error": result.error,
            }
            for result in task.commands
        ],
    }


def _plain_plan(plan: Plan, scrubber: Scrubber) -> list[dict[str, Any]]:
    return [
        {
            "id": task.id,
            "title": task.title,
            "instructions": task.instructions,
            "files": list(task.files),
            "depends": list(task.depends),
            "acceptance": [list(scrubber.command(argv)) for argv in task.acceptance],
        }
        for task in plan.tasks
    ]


@final
class Ledger:
    """Writes a mission's steps into the store, and keeps TODO.md in step with it.

    Args:
        store: The mission's namespace.
        about: What is known of the mission at its start.
        todo_path: The file that shows the list; None: none.
        scrubber: Takes secrets out of everything that is written.
    """

    def __init__(
        self,
        store: MVCCStore,
        *,
        about: Mapping[str, Any],
        todo_path: Path | None,
        scrubber: Scrubber | None = None,
    ) -> None:
        self._store = store.using(author=_AUTHOR)
        self._scrubber = scrubber or Scrubber(None)
        self._about = dict(about)
        self._path = todo_path
        self._has_begun = False
        self._is_placed = False
        self._shown: set[str] = set()
        self._conflicts: list[TodoConflict] = []
        self.todo: TodoList = TodoList(
            store, path=todo_path, is_synced=False, listener=self._conflicts.append
        )
        self.warnings: list[str] = []

    async def record(
        self,
        commands: Sequence[Command],
        report: Callable[[str], TaskReport],
        *,
        spent: Mapping[str, Any] | None = None,
    ) -> None:
        """Write what the machine has decided, as one commit. A checkpoint if there is anything.

        The first call also writes that the mission has started.

        Args:
            commands: What the machine ordered.
            report: Tells what is known of a task.
            spent: What was paid since the last call, by the name of the turn.

        Raises:
            StoreError: It cannot be written; nothing of it was.
        """
        plan = next((each.plan for each in commands if isinstance(each, PlanMade)), None)
        finish = next((each for each in commands if isinstance(each, Finish)), None)
        moved = [] if plan is None else [task.id for task in plan.tasks]
        moved += [each.task_id for each in commands if isinstance(each, TaskMoved)]
        tasks = {name: report(name) for name in moved}
        if self._has_begun and plan is None and finish is None and not tasks and not spent:
            return
        state = {"state": "running", "reason": ""}
        if finish is not None:
            state = {"state": finish.outcome.value, "reason": finish.reason}
        marks = {name: _MARKS[task.state] for name, task in tasks.items()}

        async def write(tx: Transaction) -> None:
            if finish is not None or not self._has_begun:
                tx.put(MISSION, self._plain({**self._about, **state}))
            if plan is not None:
                tx.put(PLAN, self._plain(_plain_plan(plan, self._scrubber)))
                await self._show_plan(tx, plan)
            for name, task in tasks.items():
                tx.put(TASK + name, self._plain(_plain_task(task, self._scrubber)))
            for name, bill in (spent or {}).items():
                tx.put(SPENT + name, bill)
            for name, mark in marks.items():
                # The text may have been edited meanwhile, and stays; the mark is the mission's.
                item = await tx.get(ITEM + name)
                if item is not None and item["mark"] != mark.value:
                    tx.put(ITEM + name, {**item, "mark": mark.value})

        await self._store.transact(write)
        self._has_begun = True
        self._shown.update(tasks)

    def _plain(self, value: Any) -> Any:
        return _clean(self._scrubber.value(value))

    async def _show_plan(self, tx: Transaction, plan: Plan) -> None:
        outline = Outline.read(await tx.get(OUTLINE))
        goal = self._scrubber.text(self._about["goal"])
        heading = TodoLine(text=f"# {_line(goal)[:200]}")
        document = [("", heading), ("", TodoLine(text=""))]
        for task in plan.tasks:
            text = f"{task.id}: {task.title}"
            if task.depends:
                text += f" (after {', '.join(task.depends)})"
            line = TodoLine(text=_line(self._scrubber.text(text)), mark=TodoMark.OPEN)
            document.append((task.id, line))
            tx.put(ITEM + task.id, {"text": line.text, "mark": TodoMark.OPEN.value})
        outline.replace(document)
        tx.put(OUTLINE, outline.plain())

    async def project(self) -> None:
        """Bring TODO.md and the store together. A checkpoint.

        What others have written into the list is taken over, but the mark of a task is the
        mission's to make: a tick proves nothing.

        Raises:
            OSError: The file cannot be read or written.
        """
        if self._path is None or not self._shown:
            return
        if not self._is_placed:
            # A section of an earlier mission is replaced; other people's lists are left alone.
            async with self._store.snapshot() as snap:
                document = await load_list(snap)
            section = wrap_section([line for _, line in document], snap.revision)
            await anyio.to_thread.run_sync(place_section, self._path, section)
            self._is_placed = True
        sync: TodoSync = await self.todo.read_back()
        if sync.is_changed:
            self.warnings += await self._store.transact(self._restore_marks)
        while self._conflicts:
            conflict = self._conflicts.pop()
            self.warnings.append(
                f"TODO.md: {conflict.text[:100]!r} was changed on both sides ({conflict.what}); "
                "the mission's word stands"
            )
        await self.todo.project()

    async def _restore_marks(self, tx: Transaction) -> list[str]:
        # Mark and task are read together: a step that is being written meanwhile is a conflict.
        warnings = []
        for name in sorted(self._shown):
            item, task = await tx.get(ITEM + name), await tx.get(TASK + name)
            if item is None or task is None:
                continue
            mark = _MARKS[TaskState(task["state"])]
            if item["mark"] != mark.value:
                tx.put(ITEM + name, {**item, "mark": mark.value})
                warnings.append(
                    f"TODO.md: somebody marked {name} as [{item['mark']}]; it is "
                    f"[{mark.value}] until the mission says otherwise"
                )
        return warnings

    def __repr__(self) -> str:
        return f"<Ledger {self._store.name!r} tasks={len(self._shown)}>"
