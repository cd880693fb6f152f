"""What lets a mission go on after a crash: its owner, its records, its attempts, its results."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, final

import anyio
import anyio.to_thread
from attrs import asdict, evolve

from orchestra import Agent, MVCCStore, SessionBackend, Transaction
from orchestra.errors import StoreError
from orchestra.events import Usage
from orchestra.opencode.mission.attempts import Attempts
from orchestra.opencode.mission.content import (
    Result,
    digest_files,
    digest_of,
    prompt_digest,
    task_digest,
)
from orchestra.opencode.mission.keys import INPUT, RESULT, SPENT, TOTALS, WHY
from orchestra.opencode.mission.ledger import Ledger
from orchestra.opencode.mission.machine import MissionMachine
from orchestra.opencode.mission.nearby import is_little
from orchestra.opencode.mission.orders import (
    AgentAnswered,
    Ask,
    Command,
    Event,
    Finish,
    PlanMade,
    StopRequested,
    TaskAdded,
    TaskMoved,
)
from orchestra.opencode.mission.ownership import Ownership
from orchestra.opencode.mission.plain import spec_from_plain
from orchestra.opencode.mission.plain_settings import to_plain
from orchestra.opencode.mission.plan import MissionSettings, Plan, Role, TaskSpec
from orchestra.opencode.mission.report import TaskState
from orchestra.opencode.mission.resuming import Continuation, Present, continue_from
from orchestra.opencode.mission.saved import SavedMission
from orchestra.opencode.mission.scrubbing import Scrubber

__all__ = ("Continuity",)

_LOOK_INTERVAL = 1.0
"""Seconds between two looks at TODO.md for what others have written into it."""
_REST = 9
"""How many times as long as it took to write TODO.md it is left alone afterwards."""
_SHORTEST_REST = 0.2
"""Seconds that it is left alone at least: people do not read faster."""


@final
class Continuity:
    """Keeps all that a mission needs for going on, and goes on with it.

    Args:
        store: An open store.
        mission_id: The mission.
        machine: Decides.
        backend: Where the agents run.
        directory: The workspace.
        agents: The agent of each role.
        settings: The rules of the run.
        scrubber: Takes secrets out of what is written.
        goal: What it is for.
        started_at: When it began.
        plan: The plan that it is given.
        launch: What whoever starts it wants to know when it is started again.
        saved: The mission that is gone on with.
        is_shared: Whether others could use the same store.
    """

    def __init__(
        self,
        store: MVCCStore,
        mission_id: str,
        *,
        machine: MissionMachine,
        backend: SessionBackend,
        directory: Path,
        agents: Mapping[Role, Agent],
        settings: MissionSettings,
        scrubber: Scrubber,
        goal: str,
        started_at: str,
        plan: Plan | None,
        launch: Mapping[str, Any],
        saved: SavedMission | None,
        is_shared: bool,
    ) -> None:
        self._id = mission_id
        self._machine = machine
        self._directory = directory
        self._scrubber = scrubber
        self._plan = plan
        self._saved = saved
        worker = agents[Role.WORKER]
        self._present = Present(
            prompt=prompt_digest(worker),
            model=worker.model or "",
            is_apart=settings.isolation.kind == "worktree",
        )
        self._results: dict[str, Result] = dict(saved.results) if saved is not None else {}
        self._inputs: dict[str, Mapping[str, str]] = dict(saved.inputs) if saved is not None else {}
        self._specs: dict[str, TaskSpec] = {}
        self._parts: dict[str, TaskSpec] = {}
        self._totals = saved.usage if saved is not None else Usage()
        self._is_resuming: Continuation | None = None
        self._failure: StoreError | None = None
        self._has_begun = False
        self._is_stale = anyio.Event()
        self._owner = Ownership(store, directory, mission_id) if is_shared else None
        self._todo = todo = settings.todo_file
        rules = evolve(
            settings,
            acceptance=tuple(map(scrubber.command, settings.acceptance)),
            allow=tuple(map(scrubber.command, settings.allow)),
        )
        self.ledger: Ledger = Ledger(
            store.namespace(mission_id),
            about={
                "goal": goal,
                "backend": backend.name,
                "directory": str(directory),
                "started_at": started_at,
            },
            todo_path=None if todo is None else directory / todo,
            scrubber=scrubber,
            owner=self._owner,
        )
        self.ledger.setup = {
            "settings": to_plain(rules),
            "agents": {role.value: to_plain(agent) for role, agent in agents.items()},
            "launch": dict(launch),
            "plan": None if plan is None else [self.ledger.describe(each) for each in plan.tasks],
        }
        self.attempts: Attempts = Attempts(
            self.ledger, backend=backend, directory=directory, agents=agents
        )

    @property
    def inputs(self) -> Mapping[str, Mapping[str, str]]:
        """The digest of each task's files before anybody worked on it."""
        return self._inputs

    @property
    def is_lost(self) -> bool:
        """Whether somebody else owns the mission by now: nothing may be written, or ended."""
        return self._owner is not None and self._owner.is_lost

    async def claim(self) -> None:
        """Become the workspace's owner. A checkpoint.

        That the store cannot be written is told by the first step.

        Raises:
            WorkspaceOwnedError: Somebody else is.
        """
        if self._owner is not None:
            try:
                await self._owner.claim()
            except StoreError as exc:
                self._failure = exc

    async def explain(self, error: StoreError) -> str:
        """Say why the mission's state cannot be written: another owner, or the store. A checkpoint.

        Args:
            error: What came of writing it.
        """
        if self._owner is not None and self._owner.is_lost:
            return await self._owner.explain_loss()
        return f"the mission's state cannot be written: {error}"

    async def keep(self, lost: Callable[[str], None]) -> None:
        """Stay the owner; to be run beside the mission.

        Args:
            lost: Called with the reason when it is not any more.
        """
        if self._owner is not None and self._failure is None:
            await self._owner.keep(lost)

    async def check(self, tx: Transaction) -> None:
        """Let a transaction of the mission's namespace be committed only while this is the owner.

        Args:
            tx: The transaction.

        Raises:
            LeaseLostError: Somebody else is.
        """
        if self._owner is not None:
            await self._owner.check(tx)

    async def release(self) -> None:
        """Give the workspace back. Shielded; a checkpoint."""
        if self._owner is not None and self._failure is None:
            await self._owner.release()

    # --- the beginning ---

    async def begin(self) -> list[Command]:
        """Start the machine, or go on where it was; returns its first commands. A checkpoint."""
        saved = self._saved
        if saved is None:
            self._has_begun = True
            return self._machine.start()
        self.ledger.resume(saved)
        try:
            await self.ledger.enter()
        except StoreError as exc:  # told by the first step
            self._failure = exc
        await self.attempts.close_others(self._id)
        paths = {path for result in saved.results.values() for path in result.after}
        files = await anyio.to_thread.run_sync(digest_files, self._directory, sorted(paths))
        going = continue_from(saved, self._plan, evolve(self._present, files=files), self._digest)
        self._has_begun = True
        if going.record is None:
            return self._machine.start()
        self._is_resuming = going
        commands = self._machine.restore(going.record)
        self._specs = {spec.id: spec for spec in self._machine.specs()}
        self._parts = {part.id: part for part, _ in going.record.parts}
        for name in going.again:
            self._results.pop(name, None)
        for name in going.kept:
            result = self._results[name]
            self._results[name] = evolve(result, after={path: files[path] for path in result.after})
        if going.is_replanned and self._machine.plan is not None:
            made = PlanMade(plan=self._machine.plan, iteration=self._machine.iteration)
            return [made, *commands]
        return commands

    def interrupt(self, reason: str) -> list[Command]:
        """Return the machine's commands for an end from outside, also before the beginning.

        Args:
            reason: Why it ends.
        """
        if not self._has_begun:
            if self._saved is not None:
                return []  # it stays as it was
            self._machine.start()
        self._machine.handle(StopRequested(reason=reason))
        finish = self._machine.finish  # perhaps it was decided already, and not yet written
        return [] if finish is None else [finish]

    async def let_go(self, detach: Callable[[], Awaitable[None]]) -> None:
        """Leave the sessions to the new owner, if there is one. A checkpoint then.

        Args:
            detach: Does it.
        """
        if self.is_lost:
            await detach()

    async def clean_up(self) -> None:
        """Close the sessions of earlier processes that are left. A checkpoint if it could be."""
        if self._saved is not None and not self.is_lost:
            await self.attempts.close_others(self._id, is_over=True)

    def _digest(self, spec: TaskSpec) -> str:
        return task_digest(spec_from_plain(self.ledger.describe(spec)))

    # --- every step ---

    async def record(
        self,
        commands: Sequence[Command],
        events: Sequence[Event] = (),
        *,
        spent: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a step, with what tells its results apart. A checkpoint if there is anything.

        An owner that has lost the workspace writes nothing.

        Args:
            commands: What the machine ordered.
            events: What it was told before.
            spent: What turns have cost that was not written yet, by their names.

        Raises:
            StoreError: It cannot be written; nothing of it was.
        """
        if self.is_lost:
            return
        if self._failure is not None:
            raise self._failure
        further: dict[str, Any] = {SPENT + name: bill for name, bill in (spent or {}).items()}
        touched: tuple[str, ...] = ()
        if any(isinstance(each, Finish) for each in commands):
            touched = tuple(self._machine.states())
        going, self._is_resuming = self._is_resuming, None
        if going is not None:
            touched = (*touched, *going.again)
            for name, reason in going.again.items():
                further |= {WHY + name: reason, RESULT + name: None}
            for name, reason in going.kept.items():
                kept = f"{reason}, and stays as it is"
                further |= {WHY + name: kept, RESULT + name: self._results[name].plain()}
        self._learn(commands)
        further |= await self._look(commands)
        before = self._totals
        for event in events:
            if isinstance(event, AgentAnswered):
                self._totals += event.usage
        if self._totals != before:
            further[TOTALS] = asdict(self._totals)
        await self.ledger.record(commands, self._machine, further=further, touched=touched)

    def show_soon(self) -> None:
        """The list has changed."""
        self._is_stale.set()

    async def keep_shown(self, warn: Callable[[str], None]) -> None:
        """Write TODO.md whenever the list changed, and look for edits of others in between.

        Args:
            warn: Takes what should be known of it.
        """
        while True:
            with anyio.move_on_after(_LOOK_INTERVAL):
                await self._is_stale.wait()
            self._is_stale = anyio.Event()
            began = anyio.current_time()
            with anyio.CancelScope(shield=True):
                await self.show(warn)
            took = anyio.current_time() - began  # a long list takes long
            await anyio.sleep(max(_SHORTEST_REST, _REST * took))

    async def show(self, warn: Callable[[str], None]) -> None:
        """Bring TODO.md up to date, as long as this is the owner. A checkpoint.

        Args:
            warn: Takes what should be known of it.
        """
        if self.is_lost:
            return
        try:
            await self.ledger.confirm()
            await self.ledger.project()
        except (OSError, StoreError) as exc:
            warn(f"{self._todo} cannot be written: {exc}")
        while self.ledger.warnings:
            warn(self.ledger.warnings.pop())

    def _learn(self, commands: Sequence[Command]) -> None:
        """Keep the tasks that are told of."""
        for each in commands:
            if isinstance(each, PlanMade):
                self._specs |= {spec.id: spec for spec in each.plan.tasks}
            elif isinstance(each, TaskAdded):
                self._parts[each.spec.id] = each.spec

    async def _look(self, commands: Sequence[Command]) -> dict[str, Any]:
        """Take the digests of the files of tasks that begin, and of those that were accepted."""
        begun: dict[str, Sequence[str]] = {}
        accepted: dict[str, Sequence[str]] = {}
        for each in commands:
            if not isinstance(each, TaskMoved | Ask):
                continue
            name = each.task_id or ""
            spec = self._specs.get(name) or self._parts.get(name)
            if spec is None:
                continue
            if _is_begin(each) and spec.files:
                begun[spec.id] = spec.files
            elif (
                isinstance(each, TaskMoved)
                and each.state is TaskState.ACCEPTED
                and spec.id in self._specs
            ):
                receipt = self._machine.task_report(spec.id).receipt
                accepted[spec.id] = (*spec.files, *(receipt.changed if receipt else ()))
        paths = {path for files in (*begun.values(), *accepted.values()) for path in files}
        if not begun and not accepted:
            return {}
        found: dict[str, str] = {}
        if paths:
            look = partial(digest_files, self._directory, sorted(paths))
            is_quick = is_little(str(self._directory), list(paths))
            found = look() if is_quick else await anyio.to_thread.run_sync(look)
        puts: dict[str, Any] = {}
        for name, files in begun.items():
            # Of a task that is done once more, what it changed earlier is its change too.
            earlier = self._inputs.get(name, {})
            self._inputs[name] = {path: found[path] for path in files} | dict(earlier)
            puts[INPUT + name] = self._inputs[name]
        for name, files in accepted.items():
            result = self._results[name] = self._result(
                self._specs[name], {each: found[each] for each in files}
            )
            puts[RESULT + name] = result.plain()
        return puts

    def _result(self, spec: TaskSpec, after: Mapping[str, str]) -> Result:
        return Result(
            task=self._digest(spec),
            depends={
                name: self._results[name].key for name in spec.depends if name in self._results
            },
            before=digest_of(dict(self._inputs.get(spec.id, {}))),
            prompt=self._present.prompt,
            model=self._present.model,
            after=after,
        )

    def __repr__(self) -> str:
        return f"<Continuity of {self._id}, {len(self._results)} results, {self._owner!r}>"


def _is_begin(command: TaskMoved | Ask) -> bool:
    """Whether a task's files are as they were before it from now on; while it waits, others write."""
    if isinstance(command, Ask):
        return command.role is Role.WORKER and command.round == 1
    return command.state is TaskState.SPLIT and command.round == 0
