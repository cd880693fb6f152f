"""The mission's own steps, as hooks: metrics, tool guard, plan validation, redaction, notices."""

from __future__ import annotations

import logging
import posixpath
import re
from collections.abc import Callable, Mapping
from typing import TypeVar, final

from attrs import evolve

from orchestra import Agent, Block, HookPhase, HookPoint, HookRegistry, Modify, SyncHookPoint
from orchestra.errors import BlockedError, HookError
from orchestra.events import (
    PermissionAsked,
    QuestionAsked,
    RetryScheduled,
    SubagentStarted,
    ToolCalled,
    ToolStatus,
)
from orchestra.opencode.mission.hook_points import (
    AFTER_TURN,
    BEFORE_PROMPT,
    PLAN_RECEIVED,
    REPORT_READY,
    SESSION_EVENT,
    SessionTold,
)
from orchestra.opencode.mission.orders import CheckPlan, PlanChecked
from orchestra.opencode.mission.plan import Plan, Role
from orchestra.opencode.mission.report import MissionReport
from orchestra.opencode.mission.scrubbing import Scrubber

__all__ = (
    "METRICS",
    "NOTICES",
    "PLAN_VALIDATION",
    "SECRET_REDACTION",
    "TOOL_GUARD",
    "OwnSteps",
    "check_plan",
)

_logger = logging.getLogger(__name__)

METRICS = "metrics"
NOTICES = "notices"
PLAN_VALIDATION = "plan-validation"
SECRET_REDACTION = "secret-redaction"  # noqa: S105  (the step's name)
TOOL_GUARD = "tool-guard"

T = TypeVar("T")

_MAX_TASKS = 10_000
_ACTS: Mapping[str, str] = {
    "apply_patch": "edit",
    "edit": "edit",
    "multiedit": "edit",
    "patch": "edit",
    "read": "read",
    "write": "edit",
}
"""Which permission a tool's call takes, for those that the guard looks at. What a command did is
for the evidence to tell."""
_SUBJECTS = ("filePath", "file_path", "path")
"""The arguments that say what a call is about."""


@final
class OwnSteps:
    """What a mission does itself at its hook points.

    Args:
        agents: The agent of each role; its permissions are what the tool guard enforces.
        scrubber: Takes secrets out.
        warn: Takes what should be known.
    """

    def __init__(
        self, agents: Mapping[Role, Agent], scrubber: Scrubber, warn: Callable[[str], None]
    ) -> None:
        self._agents = agents
        self._scrubber = scrubber
        self._warn = warn
        self.tool_calls: int = 0
        self.permissions: int = 0
        self.questions: int = 0

    def join(self, hooks: HookRegistry | None) -> HookRegistry:
        """Return a registry of the user's hooks and of these.

        Args:
            hooks: The user's; it stays as it is.

        Raises:
            HookOrderError: A wish of the user's hooks cannot be met.
            ValueError: One of them has the name of one of these.
        """
        joined = HookRegistry() if hooks is None else hooks.copy()
        joined.register(SESSION_EVENT, self._count, name=METRICS, phase=HookPhase.EARLY, priority=1)
        joined.register(SESSION_EVENT, self._guard, name=TOOL_GUARD, phase=HookPhase.EARLY)
        joined.register(PLAN_RECEIVED, _validate, name=PLAN_VALIDATION, phase=HookPhase.LATE)
        # Redaction has the last word, so that no other step can bring a secret back by accident.
        self._redact_at(joined, BEFORE_PROMPT, self._scrubber.value)
        self._redact_at(joined, SESSION_EVENT, self._scrubber.value)
        self._redact_at(joined, AFTER_TURN, self._scrubber.value)
        self._redact_at(joined, PLAN_RECEIVED, self._scrub_plan)
        self._redact_at(joined, REPORT_READY, self.scrub_report)
        joined.register(
            SESSION_EVENT,
            self._notice,
            name=NOTICES,
            phase=HookPhase.LATE,
            priority=-100,
            after=[SECRET_REDACTION],
        )
        return joined

    def _redact_at(
        self, hooks: HookRegistry, point: HookPoint[T] | SyncHookPoint[T], scrub: Callable[[T], T]
    ) -> None:
        def redact(value: T) -> Modify[T] | None:
            scrubbed = scrub(value)
            return None if scrubbed == value else Modify(scrubbed)

        hooks.register(point, redact, name=SECRET_REDACTION, phase=HookPhase.LATE, priority=-100)

    def _count(self, told: SessionTold) -> None:
        event = told.event
        if isinstance(event, ToolCalled):
            self.tool_calls += event.status in {ToolStatus.COMPLETED, ToolStatus.FAILED}
        elif isinstance(event, PermissionAsked):
            self.permissions += 1
        elif isinstance(event, QuestionAsked):
            self.questions += 1

    def _guard(self, told: SessionTold) -> Block | None:
        """Refuse a turn in which an agent has written or read what its permissions deny it.

        Backends enforce them before the act; this is for those that do not or could not. A call
        that the backend refused has failed, and is no reason to give up the turn.
        """
        call = told.event
        agent = self._agents.get(told.role)
        if agent is None or not isinstance(call, ToolCalled):
            return None
        permission = _ACTS.get(call.tool)
        if permission is None or call.status is not ToolStatus.COMPLETED:
            return None
        subject = next((str(call.input[key]) for key in _SUBJECTS if key in call.input), "")
        action = "allow"
        for rule in agent.permissions:
            if _fits(rule.permission, permission) and _fits(rule.pattern, subject):
                action = rule.action
        if action != "deny":
            return None
        return Block(f"{agent.name} used {call.tool!r}, which its permissions deny")

    def _notice(self, told: SessionTold) -> None:
        event = told.event
        if isinstance(event, PermissionAsked) and not event.reply.is_allowed:
            what = " ".join(event.request.patterns)[:200]
            self._warn(f"refused to {event.request.agent}: {event.request.permission} {what}")
        elif isinstance(event, SubagentStarted) and event.is_refused:
            who = event.agent or "a sub-agent"
            self._warn(
                f"session {event.child_id} of {who} was aborted: it is {event.depth} below the "
                f"{told.role.value} that started it, deeper than this mission goes"
            )
        elif isinstance(event, RetryScheduled):
            name = f"{told.role.value} {told.task_id}" if told.task_id else told.role.value
            self._warn(
                f"{name}: the model call is repeated in {event.delay:.1f} s ({event.message[:200]})"
            )

    def _scrub_plan(self, plan: Plan) -> Plan:
        """Take secrets out of what agents are told; commands must stay to be run as they are."""
        return Plan(
            tuple(
                evolve(
                    task,
                    title=self._scrubber.text(task.title),
                    instructions=self._scrubber.text(task.instructions),
                )
                for task in plan.tasks
            )
        )

    def show_plan(self, plan: Plan) -> Plan:
        """Return the plan as it may be told: without the secrets of its commands either.

        Args:
            plan: A plan that has passed the steps.
        """
        return Plan(
            tuple(
                evolve(task, acceptance=tuple(map(self._scrubber.command, task.acceptance)))
                for task in self._scrub_plan(plan).tasks
            )
        )

    def scrub_report(self, report: MissionReport) -> MissionReport:
        """Return a report without secrets.

        Args:
            report: The report.
        """
        return self._scrubber.value(report)

    def __repr__(self) -> str:
        return f"<OwnSteps tool_calls={self.tool_calls} permissions={self.permissions}>"


def _fits(pattern: str, text: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), text, re.DOTALL) is not None


def _validate(plan: Plan) -> Block | None:
    """Refuse a plan that would reach out of the workspace, or that no mission can carry out."""
    if len(plan.tasks) > _MAX_TASKS:
        return Block(f"{len(plan.tasks)} tasks are more than the {_MAX_TASKS} a plan may have")
    for task in plan.tasks:
        for file in task.files:
            path = posixpath.normpath(file.replace("\\", "/"))
            if path.startswith(("/", "../")) or path == ".." or re.match(r"[A-Za-z]:", path):
                return Block(f"task {task.id!r}: {file!r} is not a path inside the workspace")
    return None


async def check_plan(check: CheckPlan, hooks: HookRegistry, scrubber: Scrubber) -> PlanChecked:
    """Let the hooks see a plan, and change or refuse it. A checkpoint.

    Args:
        check: The plan.
        hooks: The mission's.
        scrubber: Takes secrets out of what they say.
    """
    plan, problem = check.plan, ""
    try:
        plan = await hooks.run(PLAN_RECEIVED, plan)
    except BlockedError as exc:
        problem = scrubber.text(exc.reason)
    except HookError as exc:
        scrubber.log_exception(_logger, "a hook failed at a plan")
        problem = str(exc)
    return PlanChecked(ticket=check.ticket, plan=plan, problem=problem)
