"""Performs what the mission's machine orders: sessions, limits, commands, clock, files."""

from __future__ import annotations

import logging
import random
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, final

import anyio
import anyio.lowlevel
from anyio import AsyncContextManagerMixin
from anyio.abc import TaskGroup

from orchestra import (
    Agent,
    ConcurrencyController,
    HookRegistry,
    MemoryStore,
    MVCCStore,
    SessionBackend,
    SessionPool,
    background_tasks,
)
from orchestra.errors import MissionError, StoreError
from orchestra.opencode.agents.roles import ROLE_AGENTS
from orchestra.opencode.mission.checks import Checks
from orchestra.opencode.mission.continuity import Continuity
from orchestra.opencode.mission.crew import Crew, make_pool
from orchestra.opencode.mission.desks import Desks
from orchestra.opencode.mission.events import (
    MissionEvent,
    MissionFinished,
    MissionStarted,
    WarningRaised,
)
from orchestra.opencode.mission.evidence import Witness
from orchestra.opencode.mission.machine import MissionMachine
from orchestra.opencode.mission.mailbox import Mailbox
from orchestra.opencode.mission.memory.mission import MissionMemory
from orchestra.opencode.mission.orders import (
    Ask,
    Cancel,
    CheckPlan,
    CloseSession,
    Command,
    Discard,
    Event,
    Finish,
    Integrate,
    Order,
    PlanMade,
    RunGates,
    StopRequested,
    TaskAdded,
    TaskMoved,
)
from orchestra.opencode.mission.places import Places
from orchestra.opencode.mission.plan import MissionSettings, Plan, Role
from orchestra.opencode.mission.providers import ProviderGates
from orchestra.opencode.mission.report import (
    MissionOutcome,
    MissionReport,
    TaskState,
)
from orchestra.opencode.mission.reporting import Reporter
from orchestra.opencode.mission.saved import SavedMission
from orchestra.opencode.mission.scrubbing import Scrubber
from orchestra.opencode.mission.spending import Spending
from orchestra.opencode.mission.statistics import MissionStatistics
from orchestra.opencode.mission.steps import OwnSteps, check_plan
from orchestra.opencode.mission.subscriptions import Subscriptions
from orchestra.opencode.mission.telling import as_event
from orchestra.opencode.mission.transitions import OVER
from orchestra.opencode.mission.wait_log import WaitLog
from orchestra.opencode.people.cancelling import Quiescence
from orchestra.opencode.people.questions import Person
from orchestra.opencode.people.side import PeopleSide

__all__ = ("Mission",)

_logger = logging.getLogger(__name__)

_GIVEN_UP = {TaskState.SPLIT, *OVER} - {TaskState.ACCEPTED}
_QUIET_LIMIT = 10.0
"""Seconds that sessions get at the end to become idle, after each was aborted and closed."""


@final
class Mission(AsyncContextManagerMixin):
    """A mission under way: it starts on entering; leaving stops what still runs.

    ::

        async with Mission("add an audit log", backend=backend, directory=Path()) as mission:
            async for event in mission.events():
                print(event)
            report = await mission.wait_finished()

    Args:
        goal: What the mission is for.
        backend: Where the agents run. One that is not open is entered, and left with the mission.
        directory: The workspace: agents and acceptance commands work in it.
        plan: A ready plan; None: commander and planner make one.
        agents: Agents that replace a role's own.
        settings: The rules of the run.
        listener: Called with each event, at once; one that raises is logged and dropped.
        store: Where the mission's state is written before anything is done, in a namespace named
            after its id; an open one. None: in memory, for as long as the mission is.
        hooks: Steps of yours at the mission's hook points. The registry is copied: what is
            registered later does not count, and what they did is in ``mission.hooks.statistics()``.
        notes: Plain data, without secrets, that is kept with the records for whoever goes on with
            the mission after a crash.
        saved: A mission to go on with, from `load_mission`; what is not given is as it was.
        approve: Asked about the plan when ``settings.must_approve`` is set, beside those who answer
            in the store; the first answer counts.

    Raises:
        MissionError: The mission to go on with has come to its end.
        HookOrderError: The hooks and the mission's own steps fit into no order.
        ValueError: The goal is empty, a hook has the name of a step of the mission, or nobody can
            be asked about the plan although somebody must.
        NotADirectoryError: The workspace does not exist (on entering).
        WorkspaceOwnedError: Somebody else runs a mission in the workspace, with records in the
            same store (on entering).
    """

    def __init__(
        self,
        goal: str,
        *,
        backend: SessionBackend,
        directory: Path | str = ".",
        plan: Plan | None = None,
        agents: Mapping[Role, Agent] | None = None,
        settings: MissionSettings | None = None,
        listener: Callable[[MissionEvent], object] | None = None,
        store: MVCCStore | None = None,
        hooks: HookRegistry | None = None,
        approve: Person | None = None,
        notes: Mapping[str, Any] | None = None,
        saved: SavedMission | None = None,
    ) -> None:
        if saved is not None:
            if saved.is_over:
                raise MissionError(f"mission {saved.id} has ended as {saved.state}; start another")
            directory, plan, settings = (
                saved.directory,
                plan or saved.given,
                settings or saved.settings,
            )
            agents, notes = {**saved.agents, **(agents or {})}, notes or saved.launch
        if not goal.strip():
            raise ValueError("the goal is empty: say what the mission is for")
        self._backend = backend
        self._directory = Path(directory).resolve()
        self._settings = settings or MissionSettings()
        if self._settings.must_approve and approve is None and store is None:
            raise ValueError("must_approve is set, but nobody can be asked: give approve or store")
        self._person = approve
        self._mail = Mailbox()
        self._scrubber = Scrubber(self._settings.redactor)
        self._goal = self._scrubber.text(goal.strip())
        team = {**ROLE_AGENTS, **(agents or {})}
        self._steps = OwnSteps(team, self._scrubber, self._warn)
        self._hooks = self._steps.join(hooks)
        self._machine = MissionMachine(
            self._goal, settings=self._settings, plan=plan, random=random.random
        )
        self._controller = ConcurrencyController({"acceptance": 4, **self._settings.limits})
        self._id = f"mission_{secrets.token_hex(4)}" if saved is None else saved.id
        self._plan = plan
        self._notes = notes or {}
        self._saved = saved
        self._memory = MissionMemory(self._id, self._directory, self._settings, self._scrubber)
        self._team = team
        self._spending = Spending(self._settings.budget)
        self._waits = WaitLog(self._now)
        self._desks = Desks(self._directory, self._machine)
        self._crew = Crew(
            self._id,
            desks=self._desks,
            agents=team,
            model=backend.model,
            settings=self._settings,
            controller=self._controller,
            gates=ProviderGates(self._settings.providers, backend.name, random=random.random),
            spending=self._spending,
            hooks=self._hooks,
            scrubber=self._scrubber,
            memory=self._memory,
            now=self._now,
            post=self._mail.post,
            publish=self._publish,
            waits=self._waits,
        )
        self._checks = Checks(
            self._desks,
            workspace=self._directory,
            settings=self._settings,
            controller=self._controller,
            scrubber=self._scrubber,
            now=self._now,
            publish=self._publish,
            warn=self._warn,
            waits=self._waits,
        )
        self._witness = Witness(
            self._directory,
            skipped=[self._settings.todo_file or ""],
            redactor=self._settings.redactor,
        )
        self._store = store
        self._reporter = Reporter(
            goal=self._goal,
            backend=backend.name,
            directory=str(self._directory),
            machine=self._machine,
            crew=self._crew,
            steps=self._steps,
            spending=self._spending,
            waits=self._waits,
            hooks=self._hooks,
            scrubber=self._scrubber,
        )
        self._sessions: SessionPool  # on entering
        self._continuity: Continuity  # on entering, when there is a store
        self._people: PeopleSide
        self._quiescence = Quiescence(sessions=0)
        self._subscriptions = Subscriptions()
        self._listener = listener
        self._report: MissionReport | None = None
        self._finished = anyio.Event()
        self._started = 0.0
        self._started_at = ""
        self._is_entered = False
        self._warnings: list[str] = []
        self._scopes: dict[int, anyio.CancelScope] = {}

    # --- for the caller ---

    @property
    def id(self) -> str:
        """The mission's id; sessions carry it in their metadata."""
        return self._id

    @property
    def report(self) -> MissionReport | None:
        """The report, once the mission is over."""
        return self._report

    @property
    def is_lost(self) -> bool:
        """Whether another process carries the mission on; then this one has written nothing more."""
        return self._is_entered and self._continuity.is_lost

    @property
    def directory(self) -> Path:
        """The workspace."""
        return self._directory

    @property
    def hooks(self) -> HookRegistry:
        """The mission's hooks, its own steps among them; for their order and statistics."""
        return self._hooks

    def events(self) -> AsyncIterator[MissionEvent]:
        """Return a feed of what happens from now on; it ends after `MissionFinished`.

        A step of the iteration is a checkpoint when nothing is buffered, and every 64th in any
        case. A feed that is not read in time loses its oldest events and says so with
        `EventsDropped`; a ``listener`` loses none.
        """
        return self._subscriptions.open()

    async def wait_finished(self) -> MissionReport:
        """Wait for the end. Always a checkpoint.

        Returns:
            The report.

        Raises:
            RuntimeError: The mission was left before it ended.
        """
        await anyio.lowlevel.checkpoint()
        await self._finished.wait()
        if self._report is None:
            raise RuntimeError("the mission was left before it ended: there is no report")
        return self._report

    def stop(self, reason: str = "it was stopped") -> None:
        """End the mission early: every session is aborted, the report says INTERRUPTED.

        Returns at once; `wait_finished` waits for the end. On a finished mission it does nothing.

        Args:
            reason: Why; goes into the report.
        """
        self._mail.post(StopRequested(reason=self._scrubber.text(reason)))

    async def cancel(self, reason: str = "it was cancelled") -> Quiescence:
        """End the mission, and see that nothing of it runs any more. Always a checkpoint.

        Args:
            reason: Why; goes into the report.

        Returns:
            What the backend says of its sessions; ``busy`` lists those that are not known to be
            idle. Of a mission that is over, what was found at its end.

        Raises:
            RuntimeError: The mission was left before it ended.
        """
        self.stop(reason)
        await self.wait_finished()
        return self._quiescence

    def statistics(self) -> MissionStatistics:
        """Count what the mission is doing and has done."""
        return self._reporter.statistics()

    def __repr__(self) -> str:
        return f"<Mission {self._id} {self._goal[:40]!r} {self._machine!r}>"

    # --- life ---

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncIterator[Mission]:
        if self._is_entered:
            raise RuntimeError("the mission has been started before: make a new one")
        if not await anyio.Path(self._directory).is_dir():
            raise NotADirectoryError(f"the workspace {self._directory} does not exist")
        self._is_entered = True
        async with AsyncExitStack() as stack:
            if not self._backend.is_open:
                await stack.enter_async_context(self._backend)
            self._started = anyio.current_time()
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            self._started_at = now if self._saved is None else self._saved.started_at
            store = self._store
            if store is None:
                store = await stack.enter_async_context(MemoryStore())
            self._continuity = self._keep_records(store)
            self._continuity.ledger.waits = self._waits.take_news
            await self._continuity.claim()
            stack.push_async_callback(self._continuity.release)
            await self._memory.begin(store, self._continuity.check)
            self._desks.places = Places(
                self._directory,
                store.namespace(self._id),
                mission_id=self._id,
                isolation=self._settings.isolation,
                skipped=[self._settings.todo_file or ""],
                is_watched=self._settings.has_evidence,
                told=self._waits.merging,
                check=self._continuity.check,
            )
            await stack.enter_async_context(self._checks)
            stack.push_async_callback(self._desks.places.aclose)
            self._sessions = await stack.enter_async_context(
                make_pool(self._backend, self._team.values())
            )
            self._crew.enter(self._sessions, self._continuity.attempts)
            self._people = PeopleSide(
                self._id,
                store.namespace(self._id),
                settings=self._settings.people,
                check=self._continuity.check,
                person=self._person,
                scrubber=self._scrubber,
            )
            try:
                async with background_tasks() as tasks:
                    tasks.start_soon(self._drive)
                    try:
                        yield self
                    finally:
                        if not self._finished.is_set():
                            self.stop("the mission was left before it ended")
                            with anyio.CancelScope(shield=True):
                                await self._finished.wait()
            finally:
                self._finished.set()
                self._subscriptions.end()

    async def _drive(self) -> None:
        """Feed the machine and perform its commands, until the mission is over."""
        finish = None
        events: list[Event] = []
        try:
            async with anyio.create_task_group() as work:
                work.start_soon(self._continuity.keep, self._lose)
                self._publish(MissionStarted(at=self._now(), goal=self._goal))
                commands = await self._continuity.begin()
                if problem := await self._begin(work):
                    stop = StopRequested(reason=problem, outcome=MissionOutcome.FAILED)
                    commands = self._machine.handle(stop)
                while finish is None:
                    commands = await self._record(commands, events)
                    if not self._continuity.is_lost:
                        await self._memory.take(commands, self._machine)
                    for command in commands:
                        if isinstance(command, Finish) or not self._continuity.is_lost:
                            finish = self._perform(work, command)
                    if finish is None:
                        events = await self._mail.take()
                        commands = [
                            each for event in events for each in self._machine.handle(event)
                        ]
                await self._continuity.let_go(self._crew.detach_all)
                work.cancel_scope.cancel()
        finally:
            try:
                with anyio.CancelScope(shield=True):
                    await self._wind_up(finish)
            finally:
                self._finished.set()  # also when this fails: leaving the mission waits for it

    async def _wind_up(self, finish: Finish | None) -> None:
        """Close, write and tell what is left; without a finish the mission was cancelled."""
        self._crew.close_all()
        await self._sessions.aclose()
        await self._continuity.clean_up()
        evidence = None
        if finish is None:
            await self._record(self._continuity.interrupt("it was cancelled"))
            finish = self._machine.finish
        else:
            await self._record([])  # what the turns that were cut off have cost
            evidence = await self._witness.end()
        if self._continuity.is_lost:
            self._desks.places.abandon()
        else:
            self._quiescence = await self._people.confirm(
                self._backend, self._crew.opened, limit=_QUIET_LIMIT
            )
        await self._desks.places.aclose()
        self._tell_of_places()
        await self._continuity.show(self._warn)
        for warning in self._witness.warnings:
            self._warn(warning)
        if not self._quiescence.is_quiet:
            self._warn(f"something may still run: {self._quiescence}")
        if finish is not None:
            await self._memory.settle(finish.outcome)
            self._report = self._reporter.report(
                finish,
                evidence=evidence,
                spans=self._checks.timeline,
                warnings=self._warnings,
                started_at=self._started_at,
                elapsed=self._now(),
            )
            self._publish(MissionFinished(at=self._now(), report=self._report))

    async def _begin(self, work: TaskGroup) -> str:
        """Start what goes on beside everything else; return why nothing can be worked on."""
        if self._settings.todo_file is not None:
            work.start_soon(self._continuity.keep_shown, self._warn)
        await self._people.begin()
        work.start_soon(self._keep_listening)
        work.start_soon(self._waits.keep, self._continuity.ledger.write_news)
        work.start_soon(self._crew.keep_time)
        if problem := await self._spending.begin(
            self._backend, self._directory, self._team.values()
        ):
            self._warn(problem)
        if self._saved is not None:
            self._saved.repay(self._spending)
            self._waits.restore(self._saved.waits, self._saved.started_at)
        if (limit := self._settings.deadline) is not None:
            left = max(0.0, limit - self._waits.carried_on())
            work.start_soon(self._keep_deadline, left, f"deadline of {limit:g} s")
        if (seconds := self._spending.seconds_left()) is not None:
            work.start_soon(self._keep_deadline, seconds, "budget of time")
        if self._settings.has_evidence:
            await self._witness.begin()
        return await self._desks.begin(self._continuity.inputs)

    def _keep_records(self, store: MVCCStore) -> Continuity:
        if self._saved is not None:
            self._crew.usage = self._saved.usage
        return Continuity(
            store,
            self._id,
            machine=self._machine,
            backend=self._backend,
            directory=self._directory,
            agents=self._team,
            settings=self._settings,
            scrubber=self._scrubber,
            goal=self._goal,
            started_at=self._started_at,
            plan=self._plan,
            launch=self._notes,
            saved=self._saved,
            is_shared=self._store is not None,
        )

    def _lose(self, reason: str) -> None:
        self._mail.post(StopRequested(reason=reason, outcome=MissionOutcome.FAILED))

    async def _record(self, commands: list[Command], events: Sequence[Event] = ()) -> list[Command]:
        """Write what was decided; if that fails, the decision is to end the mission."""
        self._waits.observe(commands)
        try:
            await self._continuity.record(commands, events, spent=self._spending.take_news())
        except StoreError as exc:
            reason = await self._continuity.explain(exc)
            stop = StopRequested(reason=reason, outcome=MissionOutcome.FAILED)
            return [*commands, *self._machine.handle(stop)]
        return commands

    def _perform(self, work: TaskGroup, command: Command) -> Finish | None:
        if isinstance(command, Order):
            self._scopes[command.ticket] = anyio.CancelScope()
            work.start_soon(self._fulfil, command, self._scopes[command.ticket])
        elif isinstance(command, Cancel):
            if command.ticket in self._scopes:
                self._scopes[command.ticket].cancel()
        elif isinstance(command, CloseSession):
            self._crew.close(command.session)
        elif isinstance(command, Discard):
            work.start_soon(self._desks.leave, command.task_id)
        elif isinstance(command, Finish):
            return command
        else:
            self._tell(work, command)
        return None

    def _tell(self, work: TaskGroup, command: Command) -> None:
        """Publish what the machine tells."""
        if isinstance(command, TaskMoved | PlanMade):
            self._continuity.show_soon()
        if isinstance(command, TaskAdded):
            self._spending.add_part(command.spec.id, command.parent)
        elif isinstance(command, TaskMoved) and command.state in _GIVEN_UP:
            work.start_soon(self._desks.leave, command.task_id)
        if (event := as_event(command, self._now(), self._steps.show_plan)) is not None:
            self._publish(event)

    async def _fulfil(self, order: Order, scope: anyio.CancelScope) -> None:
        """Do what was ordered, until it is done or not wanted any more."""
        try:
            with scope, self._waits.during(order):
                if isinstance(order, Ask):
                    await self._crew.work(order)
                elif isinstance(order, CheckPlan):
                    self._mail.post(await check_plan(order, self._hooks, self._scrubber))
                elif isinstance(order, RunGates):
                    self._mail.post(await self._checks.run(order))
                elif isinstance(order, Integrate):
                    self._mail.post(await self._desks.integrate(order))
                else:
                    shown = self._steps.show_plan(order.plan)
                    self._mail.post(await self._people.approve(order, shown))
        except StoreError as exc:
            reason = await self._continuity.explain(exc)
            self._mail.post(StopRequested(reason=reason, outcome=MissionOutcome.FAILED))
        finally:
            del self._scopes[order.ticket]
            self._tell_of_places()

    # --- clock, people ---

    async def _keep_listening(self) -> None:
        self._mail.post(await self._people.wait_cancel())

    async def _keep_deadline(self, seconds: float, what: str) -> None:
        await anyio.sleep(seconds)
        reason = f"the mission's {what} is over"
        self._mail.post(StopRequested(reason=reason, outcome=MissionOutcome.FAILED))

    def _tell_of_places(self) -> None:
        warnings = self._desks.places.warnings
        while warnings:
            self._warn(warnings.pop(0))

    def _now(self) -> float:
        return anyio.current_time() - self._started

    def _publish(self, event: MissionEvent) -> None:
        self._subscriptions.publish(event)
        if self._listener is not None:
            try:
                self._listener(event)
            except Exception:  # noqa: BLE001  (logged, without secrets)
                message = "the mission's listener failed; it is not called again"
                self._scrubber.log_exception(_logger, message)
                self._listener = None

    def _warn(self, message: str) -> None:
        message = self._scrubber.text(message)
        if message not in self._warnings and len(self._warnings) < 1_000:
            self._warnings.append(message)
            self._publish(WarningRaised(at=self._now(), message=message))
