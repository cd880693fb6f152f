"""What tasks wait for, in sentences for people. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from orchestra.opencode.mission.critical_path import PathStep
from orchestra.opencode.mission.report_svg import duration
from orchestra.opencode.mission.waits import Cause, Segment, totals

__all__ = ("describe_path", "describe_totals", "explain_time", "explain_wait")

_NOW: Mapping[Cause, str] = {
    Cause.PLANNING: "commander and planner are at work on the plan",
    Cause.APPROVAL: "somebody has to approve the plan; see 'orchestra approve'",
    Cause.TASKS: "the tasks are under way",
    Cause.DEPENDENCY: "it waits for {by}",
    Cause.LEASE: "it waits for a file that {by} holds",
    Cause.BACKOFF: "a turn has failed, and is asked again after a pause",
    Cause.BREAKER: "provider {by} fails again and again, so nobody asks it for now",
    Cause.COOLDOWN: "provider {by} wants to be left alone",
    Cause.SLOT: "it waits for a free slot: every {by} is busy",
    Cause.PRIORITY: "it waits for a free slot, and {by} is more urgent",
    Cause.BUDGET: "what is left of a budget is held by others",
    Cause.PLACE: "its workplace is made ready",
    Cause.WORK: "a worker is at it",
    Cause.PERMISSION: "somebody has to permit {by}; see 'orchestra approve --show'",
    Cause.RETRY: "the server repeats a model call that failed",
    Cause.GATE_QUEUE: "it waits until its acceptance commands may run",
    Cause.GATES: "its change is checked",
    Cause.REVIEW: "a reviewer is at it",
    Cause.MERGE_ORDER: "changes of earlier tasks are taken over first",
    Cause.MERGE: "its change is taken over",
    Cause.PARTS: "its parts are under way",
    Cause.RECORDS: "what was decided is written down",
    Cause.AWAY: "no process carries the mission on; see 'orchestra resume'",
}
_SHOWN = 8


def explain_wait(segment: Segment, now: float) -> str:
    """Say what a task's time is spent on now.

    Args:
        segment: What it is spent on.
        now: Seconds after the mission's start.
    """
    text = _NOW[segment.cause].format(by=_listed(segment.by) or "another one")
    text += f", for {duration(max(now - segment.since, 0.0))}"
    if segment.expected is not None and segment.expected > now:
        text += f"; it should go on in {duration(segment.expected - now)}"
    return text


def explain_time(segments: Sequence[Segment]) -> Iterator[str]:
    """Say where a task's time went: all of it, and then the longest first.

    Args:
        segments: What its time was spent on.
    """
    if not segments:
        return
    whole = segments[-1].until
    parts = ", ".join(
        f"{cause.value} {duration(seconds)}" for cause, seconds in totals(segments).items()
    )
    yield f"of {duration(whole)} since the mission's start: {parts}"


def describe_totals(causes: Mapping[str, float]) -> str:
    """Say what the time of all tasks was spent on, in percent.

    Args:
        causes: Seconds by cause, the longest first.
    """
    whole = sum(causes.values())
    if not whole:
        return "nothing"
    shares = [(name, seconds / whole * 100) for name, seconds in causes.items()]
    return ", ".join(f"{name} {share:.0f} %" for name, share in shares if share >= 1)


def describe_path(path: Iterable[PathStep]) -> str:
    """Say which chain has determined the mission's end.

    Args:
        path: What `critical_path` returned.
    """
    links = []
    for task, steps in groupby(path, key=lambda step: step.task):
        causes = totals(step.segment for step in steps)
        whole = sum(causes.values())
        main = [f"{cause.value} {duration(seconds)}" for cause, seconds in causes.items()][:3]
        links.append((whole, f"{task or 'mission'} ({', '.join(main)})"))
    if len(links) > _SHOWN:  # the short ones say least
        least = sorted(whole for whole, _ in links)[-_SHOWN]
        links = [link for link in links if link[0] >= least][:_SHOWN]
    return " > ".join(text for _, text in links)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) if " " in name else name for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")
