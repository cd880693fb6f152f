"""A mission's state in the store: what is decided is written there before it is done.

Each step of the mission is one commit under its own namespace, so the store's history tells in
which order things were decided, and a crash finds either all of a step written or nothing. What
has not changed is not written again: the history grows with the changes. The keys are in `keys`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, final

import anyio
import anyio.to_thread
from attrs import asdict

from orchestra import MVCCStore, Transaction
from orchestra.opencode.mission.keys import (
    ATTEMPT,
    EVIDENCE,
    MISSION,
    PART,
    PLAN,
    PROPOSAL,
    SETUP,
    SPENT,
    STATE,
    TASK,
    WAITS,
)
from orchestra.opencode.mission.orders import (
    Ask,
    AskApproval,
    CloseSession,
    Command,
    Finish,
    Integrate,
    PlanMade,
    RunGates,
    TaskAdded,
    TaskHeld,
    TaskMoved,
)
from orchestra.opencode.mission.ownership import Ownership
from orchestra.opencode.mission.plain import clean, spec_to_plain
from orchestra.opencode.mission.plan import Plan, TaskSpec
from orchestra.opencode.mission.report import TaskState
from orchestra.opencode.mission.saved import RUNNING, Attempt, SavedMission
from orchestra.opencode.mission.scrubbing import Scrubber
from orchestra.opencode.mission.todo_file import place_section
from orchestra.opencode.mission.todo_list import TodoList, TodoSync
from orchestra.opencode.mission.todo_merge import TodoConflict
from orchestra.opencode.mission.todo_outline import ITEM, OUTLINE, Outline, load_list
from orchestra.opencode.mission.todo_text import TodoLine, TodoMark, wrap_section

__all__ = ("MISSION", "PLAN", "SPENT", "TASK", "Ledger", "Recorded")

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
    one: str = clean(" ".join(text.split()))
    return one.replace("-->", "-- >").replace("<!--", "< !--")


class Recorded(Protocol):
    """What a ledger asks the mission's machine about."""

    def record(self) -> dict[str, Any]:
        """Return what has to be kept of the mission as a whole."""
        ...

    def task_record(self, task_id: str) -> dict[str, Any]:
        """Return what has to be kept of a task."""
        ...

    def evidence_of(self, task_id: str) -> str:
        """Return the change that a task's reviewer is shown."""
        ...

    def specs(self) -> tuple[TaskSpec, ...]:
        """Return the tasks of all plans."""
        ...


@final
class Ledger:
    """Writes a mission's steps into the store, and keeps TODO.md in step with it.

    Args:
        store: The mission's namespace.
        about: What is known of the mission at its start.
        todo_path: The file that shows the list; None: none.
        scrubber: Takes secrets out of everything that is written.
        owner: Proves that this process may write; None: there is nobody else.
    """

    def __init__(
        self,
        store: MVCCStore,
        *,
        about: Mapping[str, Any],
        todo_path: Path | None,
        scrubber: Scrubber | None = None,
        owner: Ownership | None = None,
    ) -> None:
        self._store = store.using(author=_AUTHOR)
        self._scrubber = scrubber or Scrubber(None)
        self._about = dict(about)
        self._owner = owner
        self._path = todo_path
        self._has_begun = False
        self._is_interrupted = False
        self._is_placed = False
        self._shown: set[str] = set()
        self._plans: dict[str, int] = {}
        self._written: dict[str, Any] = {}
        self._marked: dict[str, TodoMark] = {}
        self._fields: dict[str, tuple[Mapping[str, Any], dict[str, Any]]] = {}
        self._conflicts: list[TodoConflict] = []
        self._of_sessions: dict[str, dict[str, None]] = {}
        self._coming: dict[str, Attempt] = {}
        self._lock = anyio.Lock()
        self.attempts: dict[str, Attempt] = {}
        self.setup: Mapping[str, Any] | None = None
        """What is needed for going on with the mission, in plain form; written with the start."""
        self.waits: Callable[[], Mapping[str, Any]] = dict
        """Called with each commit: news of what tasks wait for, which are no reason for one."""
        self.todo: TodoList = TodoList(
            store, path=todo_path, is_synced=False, listener=self._conflicts.append
        )
        self.warnings: list[str] = []

    def resume(self, saved: SavedMission) -> None:
        """Go on with the records of a mission that was interrupted.

        Args:
            saved: What is written there.
        """
        for key, attempt in saved.attempts.items():
            self._keep_attempt(key, attempt)
        if saved.record is not None:
            self._written[STATE] = saved.record.state
            self._shown.update(spec.id for spec in saved.record.specs)
            self._plans.update(saved.plans)

    async def enter(self) -> None:
        """Write that this process may write from now on, and no earlier one. A checkpoint.

        Raises:
            LeaseLostError: Somebody else owns the mission by now.
            StoreError: It cannot be written.
        """
        if self._owner is not None:
            await self._store.transact(self._owner.enter)

    async def confirm(self) -> None:
        """See that this process may write still. A checkpoint.

        Raises:
            LeaseLostError: Somebody else owns the mission by now.
            StoreError: The store cannot be read.
        """
        await self._store.transact(self._check)

    async def record(
        self,
        commands: Sequence[Command],
        source: Recorded,
        *,
        further: Mapping[str, Any] | None = None,
        touched: Iterable[str] = (),
    ) -> None:
        """Write what the machine has decided, as one commit. A checkpoint if there is anything.

        The first call also writes that the mission has started, or goes on. Of a mission that is
        interrupted, or whose backend is gone, only that is written: it can be gone on with.

        Args:
            commands: What the machine ordered.
            source: The machine.
            further: What is to be written beside, by key; None deletes.
            touched: Further tasks that have changed.

        Raises:
            LeaseLostError: Somebody else owns the mission by now.
            StoreError: It cannot be written; nothing of it was.
        """
        plan = next((each.plan for each in commands if isinstance(each, PlanMade)), None)
        puts, marks = self._compose(commands, source, touched)
        puts |= further or {}
        puts = {
            key: value
            for key, value in ((key, self._record(key, value)) for key, value in puts.items())
            if self._written.get(key) != value or value is None
        }
        if not puts and plan is None:
            return
        puts |= self._news()
        # What others have written there is put right when TODO.md is read back.
        marks = {name: mark for name, mark in marks.items() if self._marked.get(name) is not mark}

        async def write(tx: Transaction) -> None:
            await self._check(tx)
            for key, value in puts.items():
                if value is None:
                    tx.delete(key)
                else:
                    tx.put(key, value)
            if plan is not None:
                await self._show_plan(tx, plan)
            for name, mark in marks.items():
                # The text may have been edited meanwhile, and stays; the mark is the mission's.
                item = await tx.get(ITEM + name)
                if item is not None and item["mark"] != mark.value:
                    tx.put(ITEM + name, {**item, "mark": mark.value})

        await self._store.transact(write)
        self._has_begun = True
        self._written |= {key: puts[key] for key in puts if key == STATE or key.startswith(TASK)}
        self._shown.update(marks)
        self._marked.update(marks)

    def _compose(
        self, commands: Sequence[Command], source: Recorded, touched: Iterable[str]
    ) -> tuple[dict[str, Any], dict[str, TodoMark]]:
        """Return what a step changes, by key, and the marks of its tasks."""
        finish = next((each for each in commands if isinstance(each, Finish)), None)
        puts: dict[str, Any] = {}
        if finish is not None or not self._has_begun:
            puts[MISSION] = {
                **self._about,
                "state": RUNNING if finish is None else finish.outcome.value,
                "reason": "" if finish is None else finish.reason,
                "is_over": finish is not None and not finish.is_resumable,
            }
        if not self._has_begun and self.setup is not None:
            puts[SETUP] = self.setup
        marks: dict[str, TodoMark] = {}
        if finish is not None:
            self._is_interrupted = finish.is_resumable
        if not self._is_interrupted:  # also what is written after its end leaves it as it was
            puts[STATE] = source.record()
            for name in dict.fromkeys([*touched, *_touched(commands)]):
                task = puts[TASK + name] = source.task_record(name)
                marks[name] = _MARKS[TaskState(task["state"])]
            puts |= self._describe(commands, source)
        return puts, marks

    def _describe(self, commands: Sequence[Command], source: Recorded) -> dict[str, Any]:
        """Return what commands say themselves, by key."""
        puts: dict[str, Any] = {}
        for each in commands:
            if isinstance(each, PlanMade):
                self._plans |= dict.fromkeys((task.id for task in each.plan.tasks), each.iteration)
                puts[PLAN] = [
                    {**self.describe(spec), "plan": self._plans[spec.id]} for spec in source.specs()
                ]
            elif isinstance(each, AskApproval):
                puts[PROPOSAL] = [self.describe(spec) for spec in each.plan.tasks]
            elif isinstance(each, TaskAdded):
                puts[PART + each.spec.id] = {**self.describe(each.spec), "parent": each.parent}
            elif isinstance(each, TaskMoved) and each.state is TaskState.REVIEWING:
                if evidence := source.evidence_of(each.task_id):
                    puts[EVIDENCE + each.task_id] = evidence
            elif isinstance(each, CloseSession):
                for key in self._of_sessions.pop(each.session, ()):
                    del self.attempts[key]
                    puts[ATTEMPT + key] = None
        return puts

    def describe(self, spec: TaskSpec) -> dict[str, Any]:
        """Return a task's plain form, as it may be written.

        Args:
            spec: The task.
        """
        plain = spec_to_plain(spec)
        plain["acceptance"] = [list(self._scrubber.command(argv)) for argv in spec.acceptance]
        described: dict[str, Any] = self._plain(plain)
        return described

    def attempts_in(self, session: str) -> list[str]:
        """Return which prompts were sent in a session, oldest first.

        Args:
            session: What the machine calls it.
        """
        return list(self._of_sessions.get(session, ()))

    def _keep_attempt(self, key: str, attempt: Attempt) -> None:
        self.attempts[key] = attempt
        self._of_sessions.setdefault(key.rpartition(":")[0], {})[key] = None

    async def begin_attempt(self, key: str, attempt: Attempt) -> None:
        """Write down a prompt that is about to be sent; those that come at once, in one commit.

        A checkpoint.

        Args:
            key: `Ask.key`.
            attempt: Under which id it is sent, and where.

        Raises:
            LeaseLostError: Somebody else owns the mission by now; it must not be sent.
            StoreError: It cannot be written.
        """
        self._coming[key] = attempt
        try:
            async with self._lock:
                if self.attempts.get(key) is not attempt:  # nobody has written it along
                    batch, self._coming = {**self._coming, key: attempt}, {}
                    await self._write_attempts(batch)
        finally:
            self._coming.pop(key, None)

    async def _write_attempts(self, attempts: Mapping[str, Attempt]) -> None:
        async def write(tx: Transaction) -> None:
            await self._check(tx)
            for key, attempt in attempts.items():
                tx.put(ATTEMPT + key, asdict(attempt))

        await self._store.transact(write)
        for key, attempt in attempts.items():
            self._keep_attempt(key, attempt)

    async def _check(self, tx: Transaction) -> None:
        if self._owner is None:
            return
        if self._has_begun:
            await self._owner.check(tx)
        else:
            await self._owner.enter(tx)

    async def write_news(self) -> None:
        """Write what did not come with a step in time; not before the start. A checkpoint then.

        Raises:
            LeaseLostError: Somebody else owns the mission by now.
            StoreError: It cannot be written.
        """

        async def write(tx: Transaction) -> None:
            await self._check(tx)
            for key, value in news.items():
                tx.put(key, value)

        if self._has_begun and (news := self._news()):
            await self._store.transact(write)

    def _news(self) -> dict[str, Any]:
        # Nothing but names, times and causes: there is no secret to look for.
        return {WAITS + name: clean(value) for name, value in self.waits().items()}

    def _record(self, key: str, value: Any) -> Any:
        """Return what is to be written; fields of a task that are as they were are done already."""
        if not key.startswith(TASK) or value is None:
            return self._plain(value)
        before, done = self._fields.get(key, ({}, {}))
        changes = {
            name: item for name, item in value.items() if name not in done or before[name] != item
        }
        plain = {**done, **self._plain(changes)}
        self._fields[key] = value, plain
        return plain

    def _plain(self, value: Any) -> Any:
        return clean(self._scrubber.value(value))

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


def _touched(commands: Sequence[Command]) -> Iterable[str]:
    """Return the tasks that commands are about: what is known of them may have changed."""
    for each in commands:
        if isinstance(each, PlanMade):
            yield from (task.id for task in each.plan.tasks)
        elif isinstance(each, TaskAdded):
            yield each.spec.id
            yield each.parent
        elif isinstance(each, Ask | RunGates | Integrate | TaskHeld | TaskMoved):
            task_id: str | None = each.task_id
            if task_id is not None:
                yield task_id
