"""The agents of a mission at work: sessions, slots, turns, and the hooks around them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import final

import anyio
from attrs import evolve

from orchestra import (
    Agent,
    ConcurrencyController,
    HookRegistry,
    Session,
    SessionBackend,
    SessionLease,
    SessionPool,
)
from orchestra.errors import (
    BlockedError,
    BudgetExceededError,
    HookError,
    OrchestraError,
    UnknownPriceError,
)
from orchestra.events import (
    Finished,
    FinishReason,
    SessionEvent,
    ToolCalled,
    TurnError,
    Usage,
    UsageReported,
)
from orchestra.opencode.agents.roles import add_rules
from orchestra.opencode.mission.alarms import Alarms
from orchestra.opencode.mission.attempts import Attempts
from orchestra.opencode.mission.attribution import edited_paths
from orchestra.opencode.mission.desks import Desks
from orchestra.opencode.mission.events import AgentActed, MissionEvent, TurnFinished, TurnStarted
from orchestra.opencode.mission.failures import as_finished
from orchestra.opencode.mission.hook_points import (
    AFTER_TURN,
    BEFORE_PROMPT,
    SESSION_EVENT,
    MissionPrompt,
    MissionTurn,
    SessionTold,
)
from orchestra.opencode.mission.loop_guard import LoopGuard
from orchestra.opencode.mission.memory.mission import MissionMemory
from orchestra.opencode.mission.orders import AgentAnswered, Ask, Event, WorkStarted
from orchestra.opencode.mission.plan import MissionSettings, Role
from orchestra.opencode.mission.providers import (
    Passage,
    ProviderAwayError,
    ProviderGates,
)
from orchestra.opencode.mission.report import Span
from orchestra.opencode.mission.scrubbing import Scrubber, TextFeed
from orchestra.opencode.mission.spending import Bill, Spending
from orchestra.opencode.mission.turn import Turn
from orchestra.opencode.mission.turn_watch import TurnStoppedError, TurnWatch
from orchestra.opencode.mission.wait_log import WaitLog, turn_cause
from orchestra.opencode.mission.waits import Cause
from orchestra.opencode.mission.workplaces import Workplace, WorkplaceError

__all__ = ("Crew", "make_pool")

_logger = logging.getLogger(__name__)


_MAX_SESSIONS = 10_000


def make_pool(backend: SessionBackend, agents: Iterable[Agent]) -> SessionPool:
    """Return the pool that a mission's sessions come from.

    Slots are what bounds the turns. A session is held between turns too, also by those who wait
    for others, so that a bound on sessions could make them wait for each other.

    Args:
        backend: Where the agents run.
        agents: The agents.
    """
    sizes = {agent.name: _MAX_SESSIONS for agent in agents}
    return SessionPool(backend, sizes=sizes, max_size=_MAX_SESSIONS, min_idle=0, grace_period=0.0)


@final
class Crew:
    """Takes turns with a mission's agents.

    Args:
        mission_id: The mission; sessions carry it in their metadata.
        desks: Where each of them works.
        agents: The agent of each role.
        model: The model of agents that name none; None: not known.
        settings: Their ``turn_timeout`` counts.
        controller: Gives the slots of each role.
        gates: The ways to the providers of the models.
        spending: Pays.
        hooks: What steps in.
        scrubber: Takes secrets out of what no hook sees.
        memory: Adds to prompts what is relevant, and learns from briefs.
        now: Gives seconds after the mission's start.
        post: Takes what the machine must know.
        publish: Takes what the mission tells.
        waits: Takes what is waited for.

    Attributes:
        memory: What agents are told of earlier work.
        timeline: The turns that have ended.
        usage: What they have consumed.
        opened: The ids of all the sessions that were opened.
        turns_running: Prompts under way.
        turns_finished: Prompts that have ended, one way or the other.
    """

    def __init__(
        self,
        mission_id: str,
        *,
        desks: Desks,
        agents: Mapping[Role, Agent],
        model: str | None,
        settings: MissionSettings,
        controller: ConcurrencyController,
        gates: ProviderGates,
        spending: Spending,
        hooks: HookRegistry,
        scrubber: Scrubber,
        memory: MissionMemory,
        now: Callable[[], float],
        post: Callable[[Event], None],
        publish: Callable[[MissionEvent], None],
        waits: WaitLog,
    ) -> None:
        self._mission_id = mission_id
        self._desks = desks
        self._agents = agents
        self._model = model
        self._settings = settings
        self._specialists = {each.agent.name: each.agent for each in settings.specialists}
        self._controller = controller
        self._gates = gates
        self._spending = spending
        self._hooks = hooks
        self._scrubber = scrubber
        self._now = now
        self._post = post
        self._publish = publish
        self._waits = waits
        self._sessions: dict[str, SessionLease] = {}
        self._pool: SessionPool | None = None
        self._attempts: Attempts | None = None
        self._alarms = Alarms(self._is_ours)
        self.memory: MissionMemory = memory
        self.opened: list[str] = []
        self.timeline: list[Span] = []
        self.usage: Usage = Usage()
        self.turns_running: int = 0
        self.turns_finished: int = 0

    def enter(self, pool: SessionPool, attempts: Attempts) -> None:
        """Take sessions from this pool from now on.

        Args:
            pool: Where new sessions come from; it has been entered.
            attempts: Where those of earlier processes come from, and the names of prompts.
        """
        self._pool = pool
        self._attempts = attempts

    async def keep_time(self) -> None:
        """Cut turns off that take too long; to be run beside the mission."""
        await self._alarms.keep()

    async def _is_ours(self) -> bool:
        return self._attempts is None or await self._attempts.is_ours()

    @property
    def sessions_open(self) -> int:
        """How many sessions it holds."""
        return len(self._sessions)

    async def work(self, ask: Ask) -> None:
        """Wait for provider, slot and budget, take the turn, and post how it went. A checkpoint.

        Args:
            ask: What to ask whom.
        """
        turn = Turn(queued=self._now())
        finished = None
        try:
            await self._wait_provider(ask)
            if ask.delay:
                left = max(0.0, turn.queued + ask.delay - self._now())
                self._waits.turn(ask.task_id, Cause.BACKOFF, seconds=left)
                await anyio.sleep(left)
            while finished is None:
                await self._wait_provider(ask)
                finished = await self._try_turn(ask, turn)
        except ProviderAwayError as exc:
            finished = self._refused(exc, retry_after=exc.retry_after)
        except BudgetExceededError as exc:
            finished = turn.cut_off(self._spending.explain(exc))
        except UnknownPriceError as exc:
            finished = as_finished(exc, "")
        self._post(self._answered(ask, turn, finished))

    async def _wait_provider(self, ask: Ask) -> None:
        """Wait until the model's provider may be asked; no slot and no money is held meanwhile."""
        gate = self._gates.of(self._model_of(ask))

        def told(cause: Cause, seconds: float | None) -> None:
            self._waits.turn(ask.task_id, cause, by=[gate.name], seconds=seconds)

        await gate.wait_open(self._patience(ask), told=told)

    def _patience(self, ask: Ask) -> float:
        """Return how long a turn waits for its provider: for ever if there is no other."""
        return self._gates.patience(
            self._model_of(ask), self._settings.later_models(ask.role, ask.model)
        )

    async def _try_turn(self, ask: Ask, turn: Turn) -> Finished | None:
        """Take the turn; None when the provider went away before it had a slot."""
        self._waits.queue(ask)
        async with self._controller.lease(ask.role.value, priority=ask.priority):
            self._waits.granted(ask)
            passage = self._gates.of(self._model_of(ask)).enter()
            if passage is None:
                return None
            with passage:
                self._waits.turn(ask.task_id, Cause.BUDGET)
                async with self._spending.turn(ask, self._model_of(ask)) as bill:
                    return await self._run_turn(ask, turn, bill, passage)

    async def _run_turn(self, ask: Ask, turn: Turn, bill: Bill, passage: Passage) -> Finished:
        """Take the turn, which has all that it needs, and write down how it went."""
        turn.started = self._now()
        self._waits.turn(ask.task_id, turn_cause(ask.role))
        turn.watch = TurnWatch(
            bill,
            passage,
            LoopGuard(self._settings.loop.equal_calls),
            time_limit=self._settings.turn_timeout,
            patience=partial(self._patience, ask),
            clock=anyio.current_time,
        )
        self._post(WorkStarted(ticket=ask.ticket))
        try:
            finished = await self._take_turn(ask, turn, turn.watch)
            turn.finished = finished = await self._after_turn(ask, finished)
            if finished.reason is FinishReason.DONE:
                self.memory.hear(ask, finished.text)
            else:
                passage.ended(self._answered(ask, turn, finished))
            return finished
        finally:
            bill.settle(turn.cut_off().usage if turn.finished is None else turn.finished.usage)
            self._end_turn(ask, turn)

    def _answered(self, ask: Ask, turn: Turn, finished: Finished) -> AgentAnswered:
        return AgentAnswered(
            ticket=ask.ticket,
            reason=finished.reason,
            text=finished.text,
            is_truncated=finished.is_truncated,
            usage=finished.usage,
            error=finished.error,
            calls="" if turn.watch is None else turn.watch.loop.digest,
        )

    def _refused(self, exc: ProviderAwayError, retry_after: float | None) -> Finished:
        error = TurnError(name=type(exc).__name__, message=str(exc), retry_after=retry_after)
        return Finished(session_id="", reason=FinishReason.FAILED, error=error)

    def _model_of(self, ask: Ask) -> str | None:
        return ask.model or self._agents[ask.role].model or self._model

    async def _take_turn(self, ask: Ask, turn: Turn, watch: TurnWatch) -> Finished:
        """Run one turn to its end, whatever that is."""
        try:
            with self._alarms.move_on_after(watch.seconds_left):
                return await self._prompt(ask, turn)
            return turn.cut_off(watch.time_over(self._settings.turn_timeout))
        except TurnStoppedError as exc:
            return turn.cut_off(self._scrubber.value(exc.error))
        except BlockedError as exc:
            return evolve(as_finished(exc, turn.session_id), usage=turn.usage)
        except (OrchestraError, OSError, anyio.ClosedResourceError, WorkplaceError) as exc:
            return as_finished(exc, turn.session_id)
        except Exception as exc:  # noqa: BLE001  (logged, without secrets)
            self._log_exception("the backend failed in a way its contract does not know")
            return as_finished(exc, turn.session_id)

    async def _after_turn(self, ask: Ask, finished: Finished) -> Finished:
        """Let the hooks see how a turn has ended."""
        ended = MissionTurn(role=ask.role, task_id=ask.task_id, round=ask.round, finished=finished)
        try:
            return (await self._hooks.run(AFTER_TURN, ended)).finished
        except (BlockedError, HookError) as exc:
            if isinstance(exc, HookError):
                self._log_exception(f"a hook failed after a turn of {ask.name}")
            refused = as_finished(exc, finished.session_id)
            return self._scrubber.value(evolve(refused, usage=finished.usage))

    def _end_turn(self, ask: Ask, turn: Turn) -> None:
        """Write down what a turn was, also one that the mission's end cut off."""
        turn.finished = turn.finished or turn.cut_off()
        self.usage += turn.finished.usage
        self.timeline.append(turn.span(ask, ended=self._now()))
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
        if self._pool is None:
            raise RuntimeError("the crew has no sessions to take: call enter() first")
        lease = await self._pool.acquire(
            self._equip(ask),
            directory=self._desks.directory_of(ask),
            mission=self._mission_id,
            title=ask.name,
            metadata={
                "mission": self._mission_id,
                "role": ask.role.value,
                "task": ask.task_id or "",
                "round": str(ask.round),
            },
            priority=ask.priority,
        )
        self._sessions[ask.session] = lease
        return lease.session

    def _equip(self, ask: Ask) -> Agent:
        """Return whom to ask, with what this mission's rules and memory add to it."""
        agent = self._specialists.get(ask.agent) or self._agents[ask.role]
        agent = self.memory.equip(ask, agent)
        room = max(self._settings.loop.depth - ask.depth, 0)
        rules = self._settings.people.permissions.get(ask.role.value, ())
        return evolve(
            agent,
            model=ask.model or agent.model,
            subagent_depth=room,
            permissions=add_rules(agent, rules),
        )

    async def _prompt(self, ask: Ask, turn: Turn) -> Finished:
        draft = MissionPrompt(
            role=ask.role, task_id=ask.task_id, round=ask.round, message=ask.message
        )
        prompt = await self._hooks.run(BEFORE_PROMPT, draft)
        if ask.role is Role.WORKER:
            self._waits.turn(ask.task_id, Cause.PLACE)
        async with self._desks.working(ask) as place:
            self._waits.turn(ask.task_id, turn_cause(ask.role))
            return await self._send(ask, turn, prompt.message, place)

    async def _send(self, ask: Ask, turn: Turn, message: str, place: Workplace | None) -> Finished:
        lease = self._sessions.get(ask.session)
        if self._attempts is None:
            raise RuntimeError("the crew cannot name prompts: call enter() first")
        session, prompt_id = await self._attempts.begin(
            ask,
            lease.session if lease is not None else None,
            agent=self._equip(ask),
            directory=self._desks.directory_of(ask),
            open_=partial(self._open, ask),
        )
        if session.id not in self.opened:
            self.opened.append(session.id)
        turn.session_id = session.id
        self._publish(
            TurnStarted(at=self._now(), role=ask.role, task_id=ask.task_id, session_id=session.id)
        )
        self.turns_running += 1
        try:
            listener = partial(self._on_session_event, ask, turn, self._scrubber.feed(), place)
            return await session.prompt(message, listener=listener, prompt_id=prompt_id)
        finally:
            self.turns_running -= 1
            self.turns_finished += 1

    def _on_session_event(
        self, ask: Ask, turn: Turn, feed: TextFeed, place: Workplace | None, event: SessionEvent
    ) -> None:
        if isinstance(event, UsageReported):
            turn.usage += event.usage
        elif isinstance(event, ToolCalled) and place is not None:
            for path in edited_paths(event):
                place.on_edit(path)
        self._waits.see(ask.task_id, event)
        if turn.watch is not None:
            turn.watch.see(event)
        for part in feed.take(event):
            told = self._hooks.call(
                SESSION_EVENT, SessionTold(role=ask.role, task_id=ask.task_id, event=part)
            )
            self._publish(
                AgentActed(at=self._now(), role=ask.role, task_id=ask.task_id, event=told.event)
            )

    def close(self, key: str) -> None:
        """Give a session back; the pool sees to it that it becomes idle and is closed.

        Args:
            key: What the machine calls it.
        """
        if (lease := self._sessions.pop(key, None)) is not None:
            lease.release()

    async def detach_all(self) -> None:
        """Leave every session as it is, to somebody else. A checkpoint if there is one."""
        for lease in self._sessions.values():
            await lease.session.detach()
        if self._attempts is not None:
            await self._attempts.detach()

    def close_all(self) -> None:
        """Give back every session that is left."""
        for key in list(self._sessions):
            self.close(key)

    def _log_exception(self, message: str) -> None:
        self._scrubber.log_exception(_logger, message)

    def __repr__(self) -> str:
        return f"<Crew {self.turns_running} turns, {len(self._sessions)} sessions>"
