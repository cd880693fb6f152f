"""What there is to learn from how a mission goes, without asking any model; pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import islice

from orchestra.opencode.mission.failures import explain
from orchestra.opencode.mission.memory.index import words_of
from orchestra.opencode.mission.memory.rules import MemoryEntry, MemorySource, MemoryTier, new_entry
from orchestra.opencode.mission.plan import Role
from orchestra.opencode.mission.report import TaskReport

__all__ = ("from_accepted", "from_brief", "from_rejected")

_MAX_LESSONS = 8
"""How many reasons of one task are remembered, and how many facts of one brief."""
_MAX_REASON = 330
_MAX_CURE = 200
_MAX_SUBJECT = 4_000
_MAX_SUMMARY = 400
_MAX_FACT = 300
_LEAST_WORDS = 4
"""A text with fewer words of its own says nothing ("Done.")."""
_WORKERS = (Role.WORKER.value,)
_LOOKERS = (Role.COMMANDER.value, Role.WORKER.value)

_PART = re.compile(
    r"^[\s#*\d.)]*(goal|where|parts|done when|care)\b[*\s]*:?[*\s]*(.*)$", re.IGNORECASE
)
_PATH = re.compile(r"[\w.-]+(?:/[\w.-]+)+|\w[\w-]*\.\w{1,5}\b")


def from_rejected(report: TaskReport, reasons: Iterable[str], now: int) -> list[MemoryEntry]:
    """Return what a task that was sent back should remember; nobody knows the cure yet.

    Args:
        report: The task.
        reasons: Why it was sent back this time.
        now: The mission's number.
    """
    return [
        new_entry(
            MemoryTier.TASK,
            _source(report, reason),
            f"An earlier round was sent back: {_squeeze(reason, _MAX_REASON)}",
            about=f"{report.id} {_subject(reason)}",
            files=report.files,
            roles=_WORKERS,
            task=report.id,
            now=now,
        )
        for reason in list(reasons)[:_MAX_LESSONS]
    ]


def from_accepted(report: TaskReport, now: int) -> list[MemoryEntry]:
    """Return what an accepted task has shown: what was wrong before it was right, and what it did.

    Args:
        report: The task, accepted.
        now: The mission's number.
    """
    title = _squeeze(report.title, 100)
    cure = _squeeze(report.summary, _MAX_CURE)
    lessons = []
    # The later reasons are those that stood between the work and its acceptance.
    for reason in dict.fromkeys(report.reasons[-_MAX_LESSONS:]):
        text = f"{title}: sent back because {_squeeze(reason, _MAX_REASON)}"
        if cure:
            text += f" Accepted after: {cure}"
        lessons.append(
            new_entry(
                MemoryTier.MISSION,
                _source(report, reason),
                text,
                about=_subject(reason),
                files=report.files,
                roles=_WORKERS,
                task=report.id,
                now=now,
            )
        )
    if len(words_of(report.summary)) >= _LEAST_WORDS:
        lessons.append(
            new_entry(
                MemoryTier.MISSION,
                MemorySource.SUMMARY,
                f"{title}: done: {_squeeze(report.summary, _MAX_SUMMARY)}",
                files=report.files,
                roles=_WORKERS,
                task=report.id,
                now=now,
            )
        )
    return lessons


def from_brief(brief: str, now: int) -> list[MemoryEntry]:
    """Return the facts of a commander's brief: where things are, and what to take care of.

    Args:
        brief: What the commander wrote.
        now: The mission's number.
    """
    facts = [_squeeze(fact, _MAX_FACT) for fact in islice(_facts(brief), _MAX_LESSONS)]
    return [
        new_entry(
            MemoryTier.MISSION,
            MemorySource.BRIEF,
            fact,
            files=_PATH.findall(fact),
            roles=_LOOKERS,
            now=now,
        )
        for fact in facts
    ]


def _facts(brief: str) -> Iterator[str]:
    part = ""
    for line in brief.splitlines():
        rest = line
        if heading := _PART.match(line):
            part, rest = heading[1].lower(), heading[2]
        fact = rest.strip().lstrip("-*• ").strip()
        if part in {"where", "care"} and len(words_of(fact)) >= _LEAST_WORDS:
            fact = fact if part == "where" else f"Care: {fact}"
            yield fact


def _source(report: TaskReport, reason: str) -> MemorySource:
    is_command = any(
        reason == explain(result) for result in report.commands if result.is_failed
    ) or reason.startswith("`")
    return MemorySource.COMMAND if is_command else MemorySource.REVIEW


def _subject(reason: str) -> str:
    """Return what makes a reason the same as another one: numbers in what commands print do not."""
    lines = reason.strip()[:_MAX_SUBJECT].splitlines()
    if len(lines) < 2:
        return reason[:_MAX_SUBJECT]
    return f"{lines[0]} {re.sub(r'[0-9]+', '', lines[-1])}"


def _squeeze(text: str, limit: int) -> str:
    """Return a text as one line; of a long one, how it begins and how it ends."""
    text = " ".join(text.split())
    if len(text) <= limit:
        return text
    tail = limit // 2
    return f"{text[: limit - tail - 5]} ... {text[-tail:]}"
