"""A mission's report as plain JSON data, and back: the documented, stable form for programs.

Within one ``schema`` number keys are only ever added. A reader ignores keys that it does not know.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum
from typing import Any, TypeVar

from attrs import fields

from orchestra.errors import ConfigurationError
from orchestra.events import Usage
from orchestra.opencode.mission.critical_path import PathStep
from orchestra.opencode.mission.report import (
    CommandResult,
    CostNode,
    Evidence,
    Finding,
    MissionOutcome,
    MissionReport,
    Receipt,
    Span,
    TaskReport,
    TaskState,
)
from orchestra.opencode.mission.tables import Table, describe
from orchestra.opencode.mission.waits import Cause, Segment

__all__ = ("SCHEMA", "report_from_json", "report_to_json")

SCHEMA = 1
"""The number of the form that is written."""

_Choice = TypeVar("_Choice", bound=Enum)
_LARGEST = 2**63


def report_to_json(report: MissionReport) -> dict[str, Any]:
    """Return the report as data that ``json.dumps`` takes, with ``schema`` as its first key.

    Args:
        report: The report.
    """
    return {"schema": SCHEMA, **_record(report)}


def _record(value: Any) -> dict[str, Any]:
    record = {
        attribute.name: _plain(getattr(value, attribute.name)) for attribute in fields(type(value))
    }
    if record.get("receipt") is not None:
        _print_once(record["commands"], record["receipt"]["commands"])
    return record


def _print_once(commands: list[dict[str, Any]], proofs: list[dict[str, Any]]) -> None:
    """Leave the output of a command out of a receipt when its result is listed beside that."""
    for proof in proofs:
        if proof in commands:
            proof |= {"same_as": commands.index(proof), "output": ""}


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, float):
        # JSON has no infinity and no NaN, and a foreign backend may price with either.
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    return _record(value)


def report_from_json(document: object) -> MissionReport:
    """Return the report that `report_to_json` made the data of.

    Args:
        document: What ``json.loads`` returned.

    Raises:
        ConfigurationError: It is not a report of a known schema; one line per fault.
    """
    if not isinstance(document, dict):
        raise ConfigurationError(f"report: expected an object, got {describe(document)}")
    root = Table(document, source="report")
    if document.get("schema") != SCHEMA:
        root.wrong("schema", f"{SCHEMA}, the form that this version reads")
        raise ConfigurationError(*root.problems)
    counters, shares = root.table("statistics"), root.table("causes")
    commands = tuple(map(_command, root.tables("commands")))
    report = MissionReport(
        goal=_text(root, "goal"),
        outcome=_choice(root, "outcome", MissionOutcome.FAILED),
        reason=_text(root, "reason"),
        backend=_text(root, "backend"),
        directory=_text(root, "directory"),
        tasks=tuple(map(_task, root.tables("tasks"))),
        commands=commands,
        timeline=tuple(map(_span, root.tables("timeline"))),
        usage=_usage(root.table("usage")),
        elapsed=root.number("elapsed"),
        started_at=_text(root, "started_at"),
        warnings=_texts(root, "warnings"),
        evidence=_evidence(root),
        receipt=_receipt(root, commands),
        costs=None
        if root.take("costs", "an object or null") is None
        else _costs(root.table("costs")),
        segments=_segments(root),
        causes={key: shares.number(key) for key in shares},
        critical_path=tuple(
            PathStep(task=_text(step, "task"), segment=_segment(step.table("segment")))
            for step in root.tables("critical_path")
        ),
        statistics={key: _count(counters, key) for key in counters},
    )
    if root.problems:
        raise ConfigurationError(*root.problems)
    return report


def _text(table: Table, key: str) -> str:
    return table.text(key, is_filled=False)


def _texts(table: Table, key: str) -> tuple[str, ...]:
    return table.texts(key, is_filled=False)


def _count(table: Table, key: str) -> int:
    return table.integer(key, 0, minimum=0, maximum=_LARGEST)


def _choice(table: Table, key: str, default: _Choice) -> _Choice:
    kind = type(default)
    value = table.choice(key, tuple(str(member.value) for member in kind))
    return default if value is None else kind(value)


def _nullable(table: Table, key: str) -> str | None:
    return None if table.take(key, "text or null") is None else _text(table, key)


def _task(table: Table) -> TaskReport:
    commands = tuple(map(_command, table.tables("commands")))
    return TaskReport(
        id=_text(table, "id"),
        title=_text(table, "title"),
        state=_choice(table, "state", TaskState.WAITING),
        rounds=_count(table, "rounds"),
        reasons=_texts(table, "reasons"),
        files=_texts(table, "files"),
        depends=_texts(table, "depends"),
        usage=_usage(table.table("usage")),
        commands=commands,
        summary=_text(table, "summary"),
        parent=_text(table, "parent"),
        receipt=_receipt(table, commands),
        segments=_segments(table),
    )


def _segments(table: Table) -> tuple[Segment, ...]:
    return tuple(map(_segment, table.tables("segments")))


def _segment(table: Table) -> Segment:
    expected = None
    if table.take("expected", "a number or null") is not None:
        expected = table.number("expected")
    return Segment(
        cause=_choice(table, "cause", Cause.RECORDS),
        since=table.number("since"),
        until=table.number("until"),
        of=_text(table, "of"),
        by=_texts(table, "by"),
        expected=expected,
    )


def _receipt(table: Table, commands: tuple[CommandResult, ...]) -> Receipt | None:
    if table.take("receipt", "an object or null") is None:
        return None
    receipt = table.table("receipt")
    return Receipt(
        stage=_text(receipt, "stage"),
        tree=_text(receipt, "tree"),
        problems=_texts(receipt, "problems"),
        commands=tuple(_proof(each, commands) for each in receipt.tables("commands")),
        findings=_findings(receipt),
        changed=_texts(receipt, "changed"),
        strays=_texts(receipt, "strays"),
    )


def _findings(table: Table) -> tuple[Finding, ...]:
    return tuple(
        Finding(
            path=_text(finding, "path"),
            line=_count(finding, "line"),
            message=_text(finding, "message"),
        )
        for finding in table.tables("findings")
    )


def _proof(table: Table, commands: tuple[CommandResult, ...]) -> CommandResult:
    same_as = table.integer("same_as", -1, minimum=-1, maximum=len(commands) - 1)
    return _command(table) if same_as < 0 else commands[same_as]


def _command(table: Table) -> CommandResult:
    exit_code = None
    if table.take("exit_code", "an integer or null") is not None:
        exit_code = table.integer("exit_code", 0, minimum=-_LARGEST, maximum=_LARGEST)
    return CommandResult(
        argv=_texts(table, "argv"),
        exit_code=exit_code,
        output=_text(table, "output"),
        elapsed=table.number("elapsed"),
        refusal=_text(table, "refusal"),
        error=_text(table, "error"),
    )


def _span(table: Table) -> Span:
    return Span(
        name=_text(table, "name"),
        task_id=_nullable(table, "task_id"),
        round=_count(table, "round"),
        queued=table.number("queued"),
        started=table.number("started"),
        ended=table.number("ended"),
        outcome=_text(table, "outcome"),
        session_id=_text(table, "session_id"),
    )


def _evidence(root: Table) -> Evidence | None:
    if root.take("evidence", "an object or null") is None:
        return None
    table = root.table("evidence")
    return Evidence(
        before=_text(table, "before"),
        after=_text(table, "after"),
        files=_count(table, "files"),
        added=_texts(table, "added"),
        changed=_texts(table, "changed"),
        removed=_texts(table, "removed"),
        unlisted=_count(table, "unlisted"),
        findings=_findings(table),
    )


def _costs(table: Table) -> CostNode:
    return CostNode(
        name=_text(table, "name"),
        tokens=_count(table, "tokens"),
        dollars=table.number("dollars"),
        own_tokens=_count(table, "own_tokens"),
        own_dollars=table.number("own_dollars"),
        parts=tuple(map(_costs, table.tables("parts"))),
    )


def _usage(table: Table) -> Usage:
    tokens = {
        attribute.name: _count(table, attribute.name)
        for attribute in fields(Usage)
        if attribute.name != "cost"
    }
    return Usage(**tokens, cost=table.number("cost"))
