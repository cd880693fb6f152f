"""Performs what the mission's machine orders: sessions, limits, commands, clock, files."""

from __future__ import annotations

import logging
import random
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import final

import anyio
import anyio.lowlevel
from anyio import AsyncContextManagerMixin
from anyio.abc import TaskGroup

from orchestra import (
    Agent,
    ConcurrencyController,
    MemoryStore,
    MVCCStore,
    Session,
    SessionBackend,
    background_tasks,
)
from orchestra.errors import (
    OrchestraError,
    StoreError,
)
from orchestra.events import (
    Finished,
    PermissionAsked,
    QuestionAsked,
    RetryScheduled,
    SessionEvent,
    ToolCalled,
    ToolStatus,
    TurnError,
    Usage,
    UsageReported,
)
from orchestra.opencode.agents.roles import ROLE_AGENTS
from orchestra.opencode.mission.acceptance import run_acceptance
from orchestra.opencode.mission.events import (
    AgentActed,
    CommandFinished,
    MissionEvent,
    MissionFinished,
    MissionStarted,
    PlanAccepted,
    TaskChanged,
    TurnFinished,
    TurnStarted,
    WarningRaised,
)
from orchestra.opencode.mission.evidence import Witness
from orchestra.opencode.mission.failures import as_finished
from orchestra.opencode.mission.ledger import Ledger
from orchestra.opencode.mission.machine import MissionMachine
from orchestra.opencode.mission.orders import (
    AgentAnswered,
    ApprovalGiven,
    Ask,
    AskApproval,
    CheckPlan,
    CloseSession,
    Command,
    Event,
    Finish,
    GatesFinished,
    Integrate,
    Integrated,
    PlanChecked,
    PlanMade,
    RunGates,
    StopRequested,
    TaskMoved,
    Warn,
    WorkStarted,
)
from orchestra.opencode.mission.plan import MissionSettings, Plan, Role
from orchestra.opencode.mission.report import (
    CommandResult,
    Evidence,
    MissionOutcome,
    MissionReport,
    Receipt,
    Span,
    TaskState,
)
from orchestra.opencode.mission.statistics import MissionStatistics
from orchestra.opencode.mission.subscriptions import Subscriptions
from orchestra.opencode.mission.turn import Turn

__all__ = ("Mission",)

_logger = logging.getLogger(__name__)

_LOOK_INTERVAL = 1.0
"""Seconds between two looks at TODO.md for what others have written into it."""


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

    Raises:
        ValueError: The goal is empty.
        NotADirectoryError: The workspace does not exist (on entering).
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
    ) -> None:
        if not goal.strip():
            raise ValueError("the goal is empty: say what the mission is for")
        self._goal = goal.strip()
        self._backend = backend
        self._directory = Path(directory).resolve()
        self._agents: dict[Role, Agent] = dict(agents or {})
        self._settings = settings or MissionSettings()
        self._machine = MissionMachine(
            self._goal, settings=self._settings, plan=plan, random=random.random
        )
        self._controller = ConcurrencyController({"acceptance": 4, **self._settings.limits})
        self._id = f"mission_{secrets.token_hex(4)}"
        self._witness = Witness(self._directory, skipped=[self._settings.todo_file or ""])
        self._store = store
        self._ledger: Ledger  # on entering, when there is a store
        self._subscriptions = Subscriptions()
        self._listener = listener
        self._sessions: dict[str, Session] = {}
        self._timeline: list[Span] = []
        self._usage = Usage()
        self._counts = {"turns": 0, "permissions": 0, "questions": 0, "tool_calls": 0}
        self._turns_running = 0
        self._report: MissionReport | None = None
        self._finished = anyio.Event()
        self._is_todo_stale = anyio.Event()
        self._started = 0.0
        self._started_at = ""
        self._is_entered = False
        self._warnings: list[str] = []
        self._inbox: list[Event] = []
        self._has_mail = anyio.Event()

    # --- for the caller ---

    @property
    def id(self) -> str:
        """The mission's id; sessions carry it in their metadata."""
        return self._id

    @property
    def directory(self) -> Path:
        """The workspace."""
        return self._directory

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
        self._post(StopRequested(reason=reason))

    def statistics(self) -> MissionStatistics:
        """Count what the mission is doing and has done."""
        tasks: dict[TaskState, int] = {}
        for state in self._machine.states().values():
            tasks[state] = tasks.get(state, 0) + 1
        return MissionStatistics(
            tasks=tasks,
            turns_running=self._turns_running,
            turns_finished=self._counts["turns"],
            retries=self._machine.retries,
            permissions=self._counts["permissions"],
            questions=self._counts["questions"],
            tool_calls=self._counts["tool_calls"],
            stale_events=self._machine.stale_events,
            sessions_open=len(self._sessions),
        )

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
            self._started_at = datetime.now(UTC).isoformat(timespec="seconds")
            store = self._store
            if store is None:
                store = await stack.enter_async_context(MemoryStore())
            self._ledger = self._open_ledger(store)
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
        commands = self._machine.start()
        try:
            async with anyio.create_task_group() as work:
                if self._settings.todo_file is not None:
                    work.start_soon(self._keep_todo)
                if self._settings.deadline is not None:
                    work.start_soon(self._keep_deadline, self._settings.deadline)
                self._publish(MissionStarted(at=self._now(), goal=self._goal))
                if self._settings.has_evidence:
                    await self._witness.begin()
                while finish is None:
                    commands = await self._record(commands)
                    for command in commands:
                        finish = self._perform(work, command)
                    if finish is None:
                        events = await self._next_events()
                        commands = [
                            each for event in events for each in self._machine.handle(event)
                        ]
                work.cancel_scope.cancel()
        finally:
            try:
                with anyio.CancelScope(shield=True):
                    await self._close_sessions()
                    if finish is None:
                        stop = StopRequested(reason="it was cancelled")
                        await self._record(self._machine.handle(stop))
                    await self._write_todo()
                    evidence = None if finish is None else await self._witness.end()
                for warning in self._witness.warnings:
                    self._warn(warning)
                if finish is not None:
                    self._report = self._make_report(finish, evidence)
                    self._publish(MissionFinished(at=self._now(), report=self._report))
            finally:
                self._finished.set()  # also when this fails: leaving the mission waits for it

    def _post(self, event: Event) -> None:
        self._inbox.append(event)
        self._has_mail.set()

    async def _next_events(self) -> list[Event]:
        while not self._inbox:
            self._has_mail = anyio.Event()
            await self._has_mail.wait()
        events, self._inbox = self._inbox, []
        return events

    def _open_ledger(self, store: MVCCStore) -> Ledger:
        about = {
            "goal": self._goal,
            "backend": self._backend.name,
            "directory": str(self._directory),
            "started_at": self._started_at,
        }
        todo = self._settings.todo_file
        path = None if todo is None else self._directory / todo
        return Ledger(store.namespace(self._id), about=about, todo_path=path)

    async def _record(self, commands: list[Command]) -> list[Command]:
        """Write what was decided; if that fails, the decision is to end the mission."""
        try:
            await self._ledger.record(commands, self._machine.task_report)
        except StoreError as exc:
            reason = f"the mission's state cannot be written: {exc}"
            stop = StopRequested(reason=reason, outcome=MissionOutcome.FAILED)
            return [*commands, *self._machine.handle(stop)]
        return commands

    def _perform(self, work: TaskGroup, command: Command) -> Finish | None:  # noqa: C901
        if isinstance(command, Ask):
            work.start_soon(self._ask, command)
        elif isinstance(command, RunGates):
            work.start_soon(self._run_gates, command)
        elif isinstance(command, Integrate):
            self._post(Integrated(ticket=command.ticket))
        elif isinstance(command, CheckPlan):
            self._post(PlanChecked(ticket=command.ticket, plan=command.plan))
        elif isinstance(command, AskApproval):
            self._post(ApprovalGiven(ticket=command.ticket, is_approved=True))
        elif isinstance(command, CloseSession):
            if (session := self._sessions.pop(command.session, None)) is not None:
                work.start_soon(self._close, session)
        elif isinstance(command, TaskMoved):
            self._is_todo_stale.set()
            self._publish(
                TaskChanged(
                    at=self._now(),
                    task_id=command.task_id,
                    state=command.state,
                    round=command.round,
                    note=command.note,
                )
            )
        elif isinstance(command, PlanMade):
            self._is_todo_stale.set()
            self._publish(PlanAccepted(at=self._now(), plan=command.plan))
        elif isinstance(command, Warn):
            self._publish(WarningRaised(at=self._now(), message=command.message))
        elif isinstance(command, Finish):
            return command
        return None

    # --- agents ---

    async def _ask(self, ask: Ask) -> None:
        turn = Turn(queued=self._now())
        if ask.delay:
            await anyio.sleep(ask.delay)
        async with self._controller.lease(ask.role.value):
            turn.started = self._now()
            self._post(WorkStarted(ticket=ask.ticket))
            try:
                turn.finished = finished = await self._take_turn(ask, turn)
            finally:
                self._end_turn(ask, turn)
        self._post(
            AgentAnswered(
                ticket=ask.ticket,
                reason=finished.reason,
                text=finished.text,
                is_truncated=finished.is_truncated,
                usage=finished.usage,
                error=finished.error,
            )
        )

    async def _take_turn(self, ask: Ask, turn: Turn) -> Finished:
        """Run one turn to its end, whatever that is."""
        try:
            with anyio.move_on_after(self._settings.turn_timeout):
                return await self._prompt(ask, turn)
            message = f"no answer within {self._settings.turn_timeout:g} s"
            return turn.cut_off(TurnError(name="TimeoutError", message=message))
        except (OrchestraError, OSError, anyio.ClosedResourceError) as exc:
            return as_finished(exc, turn.session_id)
        except Exception as exc:
            _logger.exception("the backend failed in a way its contract does not know")
            return as_finished(exc, turn.session_id)

    def _end_turn(self, ask: Ask, turn: Turn) -> None:
        """Write down what a turn was, also one that the mission's end cut off."""
        turn.finished = turn.finished or turn.cut_off()
        self._usage += turn.finished.usage
        self._timeline.append(turn.span(ask, ended=self._now()))
        self._publish(
            TurnFinished(
                at=self._now(),
                role=ask.role,
                task_id=ask.task_id,
                session_id=turn.session_id,
                outcome=turn.finished.reason.value,
                cost=turn.finished.usage.cost,
            )
        )

    async def _open(self, ask: Ask) -> Session:
        agent = self._agents.get(ask.role)
        return await self._backend.open(
            ROLE_AGENTS[ask.role] if agent is None else agent,
            directory=self._directory,
            title=ask.name,
            metadata={
                "mission": self._id,
                "role": ask.role.value,
                "task": ask.task_id or "",
                "round": str(ask.round),
            },
        )

    async def _prompt(self, ask: Ask, turn: Turn) -> Finished:
        session = self._sessions.get(ask.session)
        if session is None:
            session = self._sessions[ask.session] = await self._open(ask)
        turn.session_id = session.id
        self._publish(
            TurnStarted(at=self._now(), role=ask.role, task_id=ask.task_id, session_id=session.id)
        )
        self._turns_running += 1
        try:
            return await session.prompt(
                ask.message, listener=partial(self._on_session_event, ask, turn)
            )
        finally:
            self._turns_running -= 1
            self._counts["turns"] += 1

    def _on_session_event(self, ask: Ask, turn: Turn, event: SessionEvent) -> None:
        if isinstance(event, ToolCalled):
            if event.status in {ToolStatus.COMPLETED, ToolStatus.FAILED}:
                self._counts["tool_calls"] += 1
        elif isinstance(event, UsageReported):
            turn.usage += event.usage
        elif isinstance(event, PermissionAsked):
            self._counts["permissions"] += 1
            if not event.reply.is_allowed:
                what = " ".join(event.request.patterns)[:200]
                self._warn(f"refused to {event.request.agent}: {event.request.permission} {what}")
        elif isinstance(event, QuestionAsked):
            self._counts["questions"] += 1
        elif isinstance(event, RetryScheduled):
            self._warn(
                f"{ask.name}: the model call is repeated in {event.delay:.1f} s "
                f"({event.message[:200]})"
            )
        self._publish(AgentActed(at=self._now(), role=ask.role, task_id=ask.task_id, event=event))

    # --- commands ---

    async def _run_gates(self, order: RunGates) -> None:
        queued = self._now()
        results = [
            CommandResult(argv=argv, refusal="it is not on the mission's allow list")
            for argv in order.refused
        ]
        async with self._controller.lease("acceptance"):
            started = self._now()
            self._post(WorkStarted(ticket=order.ticket))
            for argv in order.commands:
                result = await run_acceptance(
                    argv, directory=self._directory, settings=self._settings
                )
                results.append(result)
                self._publish(CommandFinished(at=self._now(), task_id=order.task_id, result=result))
        is_failed = any(result.is_failed for result in results)
        if order.commands:
            self._timeline.append(
                Span(
                    name="acceptance",
                    task_id=order.task_id,
                    round=order.round,
                    queued=queued,
                    started=started,
                    ended=self._now(),
                    outcome="failed" if is_failed else "done",
                )
            )
        receipt = Receipt(stage=order.stage, commands=tuple(results))
        self._post(GatesFinished(ticket=order.ticket, receipt=receipt))

    # --- sessions, files, clock ---

    async def _close(self, session: Session) -> None:
        with anyio.CancelScope(shield=True):
            try:
                await session.aclose()
            except (OrchestraError, OSError) as exc:
                _logger.warning("session %s could not be closed: %s", session.id, exc)
            except Exception:
                _logger.exception(
                    "session %s failed in a way its contract does not know", session.id
                )

    async def _close_sessions(self) -> None:
        sessions = list(self._sessions.values())
        self._sessions.clear()
        async with anyio.create_task_group() as group:
            for session in sessions:
                group.start_soon(self._close, session)

    async def _keep_deadline(self, seconds: float) -> None:
        await anyio.sleep(seconds)
        self._post(
            StopRequested(
                reason=f"the mission's deadline of {seconds:g} s is over",
                outcome=MissionOutcome.FAILED,
            )
        )

    async def _keep_todo(self) -> None:
        """Write the plan whenever it changed, and look for edits of others in between."""
        while True:
            with anyio.move_on_after(_LOOK_INTERVAL):
                await self._is_todo_stale.wait()
            self._is_todo_stale = anyio.Event()
            with anyio.CancelScope(shield=True):
                await self._write_todo()

    async def _write_todo(self) -> None:
        try:
            await self._ledger.project()
        except (OSError, StoreError) as exc:
            self._warn(f"{self._settings.todo_file} cannot be written: {exc}")
        while self._ledger.warnings:
            self._warn(self._ledger.warnings.pop())

    def _now(self) -> float:
        return anyio.current_time() - self._started

    def _publish(self, event: MissionEvent) -> None:
        self._subscriptions.publish(event)
        if self._listener is not None:
            try:
                self._listener(event)
            except Exception:
                _logger.exception("the mission's listener failed; it is not called again")
                self._listener = None

    def _warn(self, message: str) -> None:
        if message not in self._warnings and len(self._warnings) < 1_000:
            self._warnings.append(message)
            self._publish(WarningRaised(at=self._now(), message=message))

    def _make_report(self, finish: Finish, evidence: Evidence | None) -> MissionReport:
        return MissionReport(
            goal=self._goal,
            outcome=finish.outcome,
            reason=finish.reason,
            backend=self._backend.name,
            directory=str(self._directory),
            tasks=self._machine.task_reports(),
            commands=self._machine.commands,
            timeline=tuple(sorted(self._timeline, key=lambda span: span.started)),
            usage=self._usage,
            elapsed=self._now(),
            started_at=self._started_at,
            warnings=(*self._machine.warnings, *self._warnings),
            evidence=evidence,
            statistics={**self._counts, "retries": self._machine.retries},
        )
