"""How a mission comes to its plans: the talk with the commander and the planner; pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, final

from orchestra.errors import PlanError
from orchestra.events import FinishReason
from orchestra.opencode.mission.answers import parse_direct, parse_plan
from orchestra.opencode.mission.failures import describe
from orchestra.opencode.mission.messages import (
    commander_message,
    continuation_message,
    planner_message,
    repeat_message,
)
from orchestra.opencode.mission.orders import AgentAnswered, Ask, CloseSession
from orchestra.opencode.mission.plan import MissionSettings, Plan, Role
from orchestra.opencode.mission.recovery import Action, ErrorClass, Recovery, Troubles
from orchestra.opencode.mission.report import TaskReport, TaskState
from orchestra.opencode.mission.tickets import Tickets
from orchestra.opencode.mission.tracking import OpenWork

__all__ = ("Planning",)


@final
class Planning:
    """Asks the commander for a brief and the planner for a plan; once more when a plan has failed.

    The commander's session is the mission's root session: it stays from plan to plan.

    Args:
        goal: What the mission is for.
        tickets: Where orders go out.
        settings: The rules of the run.
        recovery: Decides about failed turns.
        warn: Told what does not stop the mission but should be known.
        fail: Ends the mission, with a reason.
        propose: Takes a plan that is valid.
        reports: Tells what is known of every task.
    """

    def __init__(
        self,
        goal: str,
        tickets: Tickets,
        settings: MissionSettings,
        recovery: Recovery,
        *,
        warn: Callable[[str], None],
        fail: Callable[[str], None],
        propose: Callable[[Plan], None],
        reports: Callable[[], tuple[TaskReport, ...]],
    ) -> None:
        self._goal = goal
        self._tickets = tickets
        self._settings = settings
        self._recovery = recovery
        self._warn = warn
        self._on_failed = fail
        self._propose = propose
        self._reports = reports
        self._proposal: OpenWork | None = None
        self._is_planner_asked = False
        self._is_stagnant = False
        self._brief = ""
        self._why = ""
        self._problem = ""
        self._sessions = {Role.COMMANDER: 1, Role.PLANNER: 0}
        self._turns = {Role.COMMANDER: 0, Role.PLANNER: 0}
        self.iteration: int = 1
        self.retries: int = 0

    # --- asking ---

    def begin(self) -> None:
        """Ask for the first brief."""
        self._ask(Role.COMMANDER, Troubles())

    def again(self, why: str, *, is_stagnant: bool, is_changed: bool) -> None:
        """Ask how to go on, in the root session.

        Args:
            why: Why the mission is not done.
            is_stagnant: Whether the last plans have moved nothing.
            is_changed: Whether another commander is to be asked, who does not remember them.
        """
        self.iteration += 1
        self._why = why
        self._is_stagnant = is_stagnant
        self._is_planner_asked = False
        if is_changed:
            self._renew(Role.COMMANDER)
        self._ask(Role.COMMANDER, Troubles())

    def replan(self, note: str) -> None:
        """Ask for another plan, since somebody did not approve the last one.

        Args:
            note: What is to be changed.
        """
        self._brief += f"\n\nThe last plan was not approved: {note}"
        self._ask_planner(Troubles())

    def _ask_planner(self, troubles: Troubles) -> None:
        self._is_planner_asked = True
        self._problem = ""
        self._sessions[Role.PLANNER] += 1
        self._turns[Role.PLANNER] = 0
        self._ask(Role.PLANNER, troubles)

    def _renew(self, role: Role) -> None:
        """Let the next turn have a session of its own."""
        self._tickets.put(CloseSession(session=self._session(role)))
        self._sessions[role] += 1
        self._turns[role] = 0

    def _session(self, role: Role) -> str:
        return f"{role.value}/{self._sessions[role]}"

    def _ask(self, role: Role, troubles: Troubles, delay: float = 0.0) -> None:
        self._turns[role] += 1
        self._tickets.order(
            Ask(
                ticket=0,
                session=self._session(role),
                role=role,
                message=self._message(role),
                turn=self._turns[role],
                delay=delay,
                model=troubles.pick(self._settings.chain(role)),
            ),
            troubles=troubles,
        )

    def _message(self, role: Role) -> str:
        if role is Role.PLANNER:
            if self._problem:
                return repeat_message(self._problem)
            specialists = self._settings.specialists
            return planner_message(self._goal, self._brief, self._done(), specialists)
        if self.iteration == 1:
            return commander_message(self._goal)
        tasks = [task for task in self._reports() if not task.parent]
        return continuation_message(
            self._goal, tasks, self._why, self.iteration, is_stagnant=self._is_stagnant
        )

    def _done(self) -> tuple[str, ...]:
        """Return what is accepted already, one line each."""
        return tuple(
            f"{task.id}: {task.title}"
            for task in self._reports()
            if task.state is TaskState.ACCEPTED and not task.parent
        )

    # --- what comes back ---

    def on_answer(self, work: OpenWork, event: AgentAnswered) -> None:
        """A commander's or planner's turn has ended.

        Args:
            work: What was asked.
            event: How it ended.
        """
        role = work.of_ask.role
        if event.reason is not FinishReason.DONE:
            models = len(self._settings.chain(role))
            remedy = self._recovery.decide(event, work.troubles, models=models)
            if remedy.action in {Action.GIVE_UP, Action.WIND_DOWN, Action.STOP}:
                self._fail(f"the {role.value} failed: {describe(event)}")
                return
            self.retries += 1
            self._problem = ""  # a new session has seen no plan that could be mended
            self._renew(role)
            self._ask(role, work.troubles, remedy.delay)
        elif role is Role.COMMANDER:
            self._on_brief(event)
        else:
            self._on_plan(work, event)

    def _on_brief(self, event: AgentAnswered) -> None:
        self._brief = event.text.strip()
        if not self._brief:
            self._warn("the commander's answer was empty; the plan is made from the goal")
        try:
            direct = parse_direct(event.text)
            if direct is not None:
                plan = Plan((direct,))
                self._check(plan)
                self._proposal = None
                self._propose(plan)
                return
        except PlanError as exc:
            self._warn(f"the commander's task cannot be used, so a plan is made: {exc}")
        self._ask_planner(Troubles())

    def _on_plan(self, work: OpenWork, event: AgentAnswered) -> None:
        try:
            if event.is_truncated:
                raise PlanError("the answer is too long")
            plan = parse_plan(event.text)
            self._check(plan)
        except PlanError as exc:
            self._mend(work, str(exc))
            return
        self._proposal = work
        self._propose(plan)

    def settle(self) -> None:
        """The plan that was proposed is taken: the planner is not needed any more."""
        work, self._proposal = self._proposal, None
        if work is not None:
            self._tickets.put(CloseSession(session=work.of_ask.session))

    def refuse(self, problem: str) -> None:
        """The plan that was proposed cannot be carried out: ask for a better one.

        Args:
            problem: Why.
        """
        work, self._proposal = self._proposal, None
        if work is not None:
            self._mend(work, problem)
        else:  # it was the commander's own
            self._warn(f"the commander's task cannot be used, so a plan is made: {problem}")
            self._ask_planner(Troubles())

    def _check(self, plan: Plan) -> None:
        accepted = {task.id for task in self._reports() if task.state is TaskState.ACCEPTED}
        if taken := [spec.id for spec in plan.tasks if spec.id in accepted]:
            raise PlanError(f"the ids {', '.join(taken)} are those of accepted tasks")
        if problem := self._settings.check_agents(plan.tasks):
            raise PlanError(problem)

    def _mend(self, work: OpenWork, problem: str) -> None:
        """Ask the planner again, in the same session as long as that helps."""
        models = len(self._settings.chain(Role.PLANNER))
        remedy = self._recovery.remedy(ErrorClass.PARSE, work.troubles, models=models)
        if remedy.action is Action.GIVE_UP:
            self._fail(f"the planner gave no usable plan: {problem}")
            return
        self._warn(f"the planner's answer was no usable plan, asked again: {problem}")
        if remedy.action is Action.REASK:
            self._problem = problem
            self._ask(Role.PLANNER, work.troubles)
        else:
            self._tickets.put(CloseSession(session=work.of_ask.session))
            self._ask_planner(work.troubles)

    def _fail(self, reason: str) -> None:
        if self._why:
            reason = f"{self._why}; and going on failed, since {reason}"
        self._on_failed(reason)

    # --- after a restart ---

    def record(self) -> dict[str, Any]:
        """Return what has to be kept, in plain form."""
        return {
            "is_planner_asked": self._is_planner_asked,
            "is_stagnant": self._is_stagnant,
            "brief": self._brief,
            "why": self._why,
            "problem": self._problem,
            "iteration": self.iteration,
            "sessions": [self._sessions[Role.COMMANDER], self._sessions[Role.PLANNER]],
            "turns": [self._turns[Role.COMMANDER], self._turns[Role.PLANNER]],
        }

    def restore(self, plain: Mapping[str, Any]) -> None:
        """Bring the talk to where it was.

        Args:
            plain: What `record` returned.
        """
        self._is_planner_asked = plain["is_planner_asked"]
        self._is_stagnant = plain["is_stagnant"]
        self._brief = plain["brief"]
        self._why = plain["why"]
        self._problem = plain["problem"]
        self.iteration = plain["iteration"]
        for name, counts in (("sessions", self._sessions), ("turns", self._turns)):
            counts[Role.COMMANDER], counts[Role.PLANNER] = plain[name]

    def resume(self) -> None:
        """Ask again what was being asked, under the same name."""
        role = Role.PLANNER if self._is_planner_asked else Role.COMMANDER
        self._turns[role] -= 1
        self._ask(role, Troubles())
