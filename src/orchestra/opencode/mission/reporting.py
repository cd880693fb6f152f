"""Putting a mission's report together."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import final

from attrs import evolve, frozen

from orchestra import HookRegistry
from orchestra.errors import HookError
from orchestra.opencode.mission.crew import Crew
from orchestra.opencode.mission.critical_path import critical_path
from orchestra.opencode.mission.hook_points import REPORT_READY
from orchestra.opencode.mission.machine import MissionMachine
from orchestra.opencode.mission.orders import Finish
from orchestra.opencode.mission.report import Evidence, MissionReport, Span, TaskState
from orchestra.opencode.mission.scrubbing import Scrubber
from orchestra.opencode.mission.spending import Spending, as_cost_node
from orchestra.opencode.mission.statistics import MissionStatistics
from orchestra.opencode.mission.steps import OwnSteps
from orchestra.opencode.mission.timeline import make_timeline
from orchestra.opencode.mission.wait_log import WaitLog
from orchestra.opencode.mission.waits import totals

__all__ = ("Reporter",)

_logger = logging.getLogger(__name__)


@final
@frozen(kw_only=True)
class Reporter:
    """Gathers what the parts of a mission know.

    Attributes:
        goal: What the mission is for.
        backend: The backend's name.
        directory: The workspace.
        machine: Knows the tasks.
        crew: Knows the turns.
        steps: Know what agents did and asked.
        spending: Knows what was paid.
        waits: Know what was waited for.
        hooks: See the report before it is told.
        scrubber: Takes secrets out of it when they fail.
    """

    goal: str
    backend: str
    directory: str
    machine: MissionMachine
    crew: Crew
    steps: OwnSteps
    spending: Spending
    waits: WaitLog
    hooks: HookRegistry
    scrubber: Scrubber

    def statistics(self) -> MissionStatistics:
        """Count what the mission is doing and has done."""
        tasks: dict[TaskState, int] = {}
        for state in self.machine.states().values():
            tasks[state] = tasks.get(state, 0) + 1
        return MissionStatistics(
            tasks=tasks,
            turns_running=self.crew.turns_running,
            turns_finished=self.crew.turns_finished,
            retries=self.machine.retries,
            permissions=self.steps.permissions,
            questions=self.steps.questions,
            tool_calls=self.steps.tool_calls,
            stale_events=self.machine.stale_events,
            sessions_open=self.crew.sessions_open,
        )

    def report(
        self,
        finish: Finish,
        *,
        evidence: Evidence | None,
        spans: Iterable[Span],
        warnings: Iterable[str],
        started_at: str,
        elapsed: float,
    ) -> MissionReport:
        """Return the report.

        Args:
            finish: How the mission ended.
            evidence: What it did to the files.
            spans: The stretches of its timeline that are not turns.
            warnings: What should be known beside what the machine says.
            started_at: When it began.
            elapsed: Seconds since this process began with it.
        """
        book, now = self.waits.book, self.waits.now()
        tasks = tuple(
            evolve(task, segments=book.segments(task.id, now))
            for task in self.machine.task_reports()
        )
        began = self.waits.began
        report = MissionReport(
            goal=self.goal,
            outcome=finish.outcome,
            reason=finish.reason,
            backend=self.backend,
            directory=self.directory,
            tasks=tasks,
            commands=self.machine.commands,
            timeline=make_timeline(book, (*spans, *self.crew.timeline), began=began),
            usage=self.crew.usage,
            elapsed=began + elapsed,
            started_at=started_at,
            warnings=(*self.machine.warnings, *warnings),
            evidence=evidence,
            receipt=self.machine.receipt,
            costs=as_cost_node(self.spending.tree()),
            segments=book.segments("", now),
            causes={
                cause.value: round(seconds, 4)
                for cause, seconds in totals(
                    each for task in tasks for each in task.segments
                ).items()
            },
            critical_path=critical_path(book, now),
            statistics={
                "turns": self.crew.turns_finished,
                "permissions": self.steps.permissions,
                "questions": self.steps.questions,
                "tool_calls": self.steps.tool_calls,
                "retries": self.machine.retries,
                "memory_entries": self.crew.memory.told,
                "memory_characters": self.crew.memory.characters,
            },
        )
        try:
            return self.hooks.call(REPORT_READY, report)
        except HookError as exc:
            self.scrubber.log_exception(_logger, "a hook failed at the report")
            report = evolve(report, warnings=(*report.warnings, str(exc)))
            return self.scrubber.value(report)
