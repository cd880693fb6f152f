from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra.errors import ConfigurationError
from orchestra.events import Usage
from orchestra.opencode.mission.report import (
    CommandResult,
    MissionOutcome,
    MissionReport,
    Span,
    TaskReport,
    TaskState,
)
from orchestra.opencode.mission.report_json import report_from_json, report_to_json

# Lone surrogates are what invalid UTF-8 in a tool's output may become.
_text = st.text(st.characters(exclude_categories=()), max_size=12)
_texts = st.lists(_text, max_size=3).map(tuple)
_seconds = st.floats(0, 1e9)
_counts = st.integers(0, 2**40)
_usages = st.builds(Usage, input_tokens=_counts, output_tokens=_counts, cost=st.floats(0, 1e6))
_commands = st.lists(
    st.builds(
        CommandResult,
        argv=_texts,
        exit_code=st.none() | st.integers(-64, 255),
        output=_text,
        elapsed=_seconds,
        refusal=_text,
        error=_text,
    ),
    max_size=2,
).map(tuple)
_tasks = st.builds(
    TaskReport,
    id=_text,
    title=_text,
    state=st.sampled_from(TaskState),
    rounds=st.integers(0, 9),
    reasons=_texts,
    files=_texts,
    depends=_texts,
    usage=_usages,
    commands=_commands,
    summary=_text,
)
_spans = st.builds(
    Span,
    name=_text,
    task_id=st.none() | _text,
    round=st.integers(0, 9),
    queued=_seconds,
    started=_seconds,
    ended=_seconds,
    outcome=_text,
    session_id=_text,
)
REPORTS = st.builds(
    MissionReport,
    goal=_text,
    outcome=st.sampled_from(MissionOutcome),
    reason=_text,
    backend=_text,
    directory=_text,
    tasks=st.lists(_tasks, max_size=3).map(tuple),
    commands=_commands,
    timeline=st.lists(_spans, max_size=3).map(tuple),
    usage=_usages,
    elapsed=_seconds,
    started_at=_text,
    warnings=_texts,
    statistics=st.dictionaries(_text, _counts, max_size=3),
)


@given(REPORTS)
def test_round_trip(report: MissionReport) -> None:
    """A report that went through JSON text is the same report."""
    text = json.dumps(report_to_json(report), allow_nan=False)
    assert report_from_json(json.loads(text)) == report


def test_a_price_that_is_no_number_is_null() -> None:
    """What JSON cannot say does not break the file, and comes back as unknown."""
    usage = Usage(cost=math.inf)
    report = MissionReport(
        goal="g", outcome=MissionOutcome.FAILED, reason="", backend="b", directory="d", usage=usage
    )
    text = json.dumps(report_to_json(report), allow_nan=False)
    assert math.isnan(report_from_json(json.loads(text)).usage.cost)


def test_the_form_is_stable() -> None:
    """The keys of schema 1 are these; adding one is fine, anything else needs a new number."""
    report = MissionReport(
        goal="g",
        outcome=MissionOutcome.ACCEPTED,
        reason="all",
        backend="embedded",
        directory="/w",
        tasks=(TaskReport(id="t", title="T", state=TaskState.ACCEPTED),),
        commands=(CommandResult(argv=("true",), exit_code=0),),
        timeline=(
            Span(
                name="worker",
                task_id="t",
                round=1,
                queued=0.0,
                started=0.5,
                ended=1.0,
                outcome="done",
            ),
        ),
        statistics={"turns": 1},
    )
    usage = {
        "input_tokens": 0,
        "output_tokens": 0,
        "reasoning_tokens": 0,
        "cache_read_tokens": 0,
        "cache_write_tokens": 0,
        "cost": 0.0,
    }
    assert report_to_json(report) == {
        "schema": 1,
        "goal": "g",
        "outcome": "accepted",
        "reason": "all",
        "backend": "embedded",
        "directory": "/w",
        "tasks": [
            {
                "id": "t",
                "title": "T",
                "state": "accepted",
                "rounds": 0,
                "reasons": [],
                "files": [],
                "depends": [],
                "usage": usage,
                "commands": [],
                "summary": "",
            }
        ],
        "commands": [
            {
                "argv": ["true"],
                "exit_code": 0,
                "output": "",
                "elapsed": 0.0,
                "refusal": "",
                "error": "",
            }
        ],
        "timeline": [
            {
                "name": "worker",
                "task_id": "t",
                "round": 1,
                "queued": 0.0,
                "started": 0.5,
                "ended": 1.0,
                "outcome": "done",
                "session_id": "",
            }
        ],
        "usage": usage,
        "elapsed": 0.0,
        "started_at": "",
        "warnings": [],
        "statistics": {"turns": 1},
    }


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ([], "report: expected an object, got an array"),
        ({}, "report: schema: expected 1, the form that this version reads, got null"),
        ({"schema": 2}, "report: schema: expected 1, the form that this version reads, got 2"),
        (
            {"schema": 1, "outcome": "grand", "tasks": [{"rounds": "x"}]},
            (
                "report: outcome: expected 'accepted' or 'failed' or 'interrupted', got 'grand'\n"
                "report: tasks[0].rounds: expected an integer from 0 to 9,223,372,036,854,775,808, "
                "got 'x'"
            ),
        ),
    ],
)
def test_what_is_no_report_is_refused(document: Any, expected: str) -> None:
    """A document of another form gives one line per fault, never a half-read report."""
    with pytest.raises(ConfigurationError) as caught:
        report_from_json(document)
    assert str(caught.value) == expected


def test_unknown_keys_are_ignored() -> None:
    """A report of a later version with more keys can still be read."""
    assert report_from_json({"schema": 1, "goal": "g", "moon": {"phase": 1}}).goal == "g"
