"""An agent's turn as the mission sees it: from the wish for a slot to a span of the report."""

from __future__ import annotations

from contextlib import suppress

from attrs import define, field

from orchestra.events import Finished, FinishReason, TurnError, Usage
from orchestra.opencode.mission.answers import VerdictError, parse_verdict
from orchestra.opencode.mission.orders import Ask
from orchestra.opencode.mission.plan import Role
from orchestra.opencode.mission.report import Span
from orchestra.opencode.mission.turn_watch import TurnWatch

__all__ = ("Turn",)


@define(kw_only=True)
class Turn:
    """What is known of a turn under way.

    Attributes:
        queued: Seconds after the mission's start at which it wanted to run.
        started: Seconds after the mission's start at which it got its slot.
        session_id: The session it runs in; empty before there is one.
        usage: What it has consumed so far.
        finished: Its end, once there is one.
        watch: Looks at what it does, once it may begin.
    """

    queued: float
    started: float = 0.0
    session_id: str = ""
    usage: Usage = field(factory=Usage)
    finished: Finished | None = None
    watch: TurnWatch | None = None

    def cut_off(self, error: TurnError | None = None) -> Finished:
        """Return the end of a turn that was not let come to one of its own.

        Args:
            error: Why it was cut off.
        """
        return Finished(
            session_id=self.session_id,
            reason=FinishReason.ABORTED,
            usage=self.usage,
            error=error,
        )

    def span(self, ask: Ask, *, ended: float) -> Span:
        """Return its stretch of the timeline.

        Args:
            ask: What was asked.
            ended: Seconds after the mission's start at which it ended.
        """
        return Span(
            name=ask.role.value,
            task_id=ask.task_id,
            round=ask.round,
            queued=self.queued,
            started=self.started,
            ended=ended,
            outcome=_outcome(ask.role, self.finished or self.cut_off()),
            session_id=self.session_id,
        )


def _outcome(role: Role, finished: Finished) -> str:
    """Return what a turn's span says: for a reviewer who came to one, its verdict."""
    if role is Role.REVIEWER and finished.reason is FinishReason.DONE:
        with suppress(VerdictError):
            return "accepted" if parse_verdict(finished.text).is_accepted else "rejected"
    return finished.reason.value
