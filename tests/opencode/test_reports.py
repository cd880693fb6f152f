from __future__ import annotations

import json
import math
import re
import stat
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
from orchestra.opencode.mission.report_files import write_report
from orchestra.opencode.mission.report_html import report_to_html
from orchestra.opencode.mission.report_json import report_from_json, report_to_json
from orchestra.opencode.mission.waits import Cause, Segment

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
_findings = st.lists(st.builds(Finding, path=_text, line=_counts, message=_text), max_size=3).map(
    tuple
)
_receipts = st.none() | st.builds(
    Receipt,
    stage=st.sampled_from(["unit", "integration", "seal"]),
    tree=_text,
    problems=_texts,
    commands=_commands,
    findings=_findings,
    changed=_texts,
    strays=_texts,
)
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
    parent=_text,
    receipt=_receipts,
)
_any_spans = st.builds(
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
_evidence = st.builds(
    Evidence,
    before=_text,
    after=_text,
    files=_counts,
    added=_texts,
    changed=_texts,
    removed=_texts,
    unlisted=_counts,
    findings=_findings,
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
    timeline=st.lists(_any_spans, max_size=3).map(tuple),
    usage=_usages,
    elapsed=_seconds,
    started_at=_text,
    warnings=_texts,
    evidence=st.none() | _evidence,
    receipt=_receipts,
    statistics=st.dictionaries(_text, _counts, max_size=3),
)


@given(REPORTS)
def test_round_trip(report: MissionReport) -> None:
    """A report that went through JSON text is the same report."""
    text = json.dumps(report_to_json(report), allow_nan=False)
    assert report_from_json(json.loads(text)) == report


def test_output_is_written_once() -> None:
    """What a command printed is in the file once, although receipts hold it too, and read back whole."""
    passed = CommandResult(argv=("make",), exit_code=0, output="all is well")
    other = CommandResult(argv=("make",), exit_code=1, output="an earlier word")
    receipt = Receipt(tree="d", commands=(other, passed))
    task = TaskReport(
        id="t", title="T", state=TaskState.ACCEPTED, commands=(passed,), receipt=receipt
    )
    report = MissionReport(
        goal="g",
        outcome=MissionOutcome.ACCEPTED,
        reason="r",
        backend="embedded",
        directory="d",
        tasks=(task,),
        commands=(passed, other),
        receipt=receipt,
    )
    document = report_to_json(report)
    assert json.dumps(document).count("all is well") == 2
    assert json.dumps(document).count("an earlier word") == 2
    assert [each.get("same_as") for each in document["receipt"]["commands"]] == [1, 0]
    assert [each.get("same_as") for each in document["tasks"][0]["receipt"]["commands"]] == [
        None,
        0,
    ]
    assert report_from_json(json.loads(json.dumps(document))) == report


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
    segment = Segment(cause=Cause.SLOT, since=1.0, until=3.0, of="t", by=("worker",))
    wait = {
        "cause": "slot",
        "since": 1.0,
        "until": 3.0,
        "of": "t",
        "by": ["worker"],
        "expected": None,
    }
    report = MissionReport(
        goal="g",
        outcome=MissionOutcome.ACCEPTED,
        reason="all",
        backend="embedded",
        directory="/w",
        tasks=(
            TaskReport(
                id="t",
                title="T",
                state=TaskState.ACCEPTED,
                receipt=Receipt(tree="d", findings=(Finding(path="p", line=1, message="m"),)),
                segments=(segment,),
            ),
        ),
        causes={"slot": 2.0},
        critical_path=(PathStep(task="t", segment=segment),),
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
        evidence=Evidence(
            before="a", after="b", files=1, findings=(Finding(path="p", line=1, message="m"),)
        ),
        costs=CostNode(name="mission", tokens=3, parts=(CostNode(name="task t", tokens=3),)),
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
                "parent": "",
                "receipt": {
                    "stage": "unit",
                    "tree": "d",
                    "problems": [],
                    "commands": [],
                    "findings": [{"path": "p", "line": 1, "message": "m"}],
                    "changed": [],
                    "strays": [],
                },
                "segments": [wait],
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
        "evidence": {
            "before": "a",
            "after": "b",
            "files": 1,
            "added": [],
            "changed": [],
            "removed": [],
            "unlisted": 0,
            "findings": [{"path": "p", "line": 1, "message": "m"}],
        },
        "receipt": None,
        "costs": {
            "name": "mission",
            "tokens": 3,
            "dollars": 0.0,
            "own_tokens": 0,
            "own_dollars": 0.0,
            "parts": [
                {
                    "name": "task t",
                    "tokens": 3,
                    "dollars": 0.0,
                    "own_tokens": 0,
                    "own_dollars": 0.0,
                    "parts": [],
                }
            ],
        },
        "segments": [],
        "causes": {"slot": 2.0},
        "critical_path": [{"task": "t", "segment": wait}],
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


EVIL = "<script>alert('x')</script>\x1b[31m\u202e\udcff & \"quoted\""


def _spans(task_id: str | None, start: float) -> tuple[Span, ...]:
    rounds = [("worker", "done"), ("reviewer", "rejected"), ("worker", "failed")]
    return tuple(
        Span(
            name=name,
            task_id=task_id,
            round=1,
            queued=start + number,
            started=start + number + 0.5,
            ended=start + number + 1.0,
            outcome=outcome,
        )
        for number, (name, outcome) in enumerate(rounds)
    )


def _evil_report(count: int) -> MissionReport:
    command = CommandResult(argv=(EVIL,), exit_code=1, output=EVIL, refusal="")
    tasks = tuple(
        TaskReport(
            id=f"t{number}",
            title=EVIL,
            state=TaskState.FAILED,
            rounds=2,
            reasons=(EVIL,),
            depends=(EVIL,),
            summary=f"{EVIL}\n{EVIL}",
            commands=(command, attrs.evolve(command, refusal=EVIL)),
            receipt=Receipt(
                stage=EVIL,
                tree=EVIL,
                findings=(Finding(path=EVIL, line=3, message=EVIL),),
                changed=(EVIL,),
                strays=(EVIL,),
            ),
        )
        for number in range(count)
    )
    spans = [span for task in tasks for span in _spans(task.id, 0.0)]
    return MissionReport(
        goal=EVIL * 20,
        outcome=MissionOutcome.FAILED,
        reason=EVIL,
        backend=EVIL,
        directory=EVIL,
        tasks=tasks,
        commands=(command,),
        timeline=(*_spans(None, 0.0), *_spans(EVIL, 0.0), *spans),
        elapsed=3.0,
        started_at=EVIL,
        warnings=(EVIL,),
        statistics={"turns": 9},
    )


class _Page(HTMLParser):
    """Checks that tags nest, and collects what would load or run something."""

    _VOID = frozenset({"meta"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in self._VOID and not (self.get_starttag_text() or "").endswith("/>"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_a_hostile_text_stays_text() -> None:
    """Markup, terminal codes and direction marks of agents reach the page as harmless text."""
    text = report_to_html(_evil_report(3))
    page = _Page(text)
    assert "script" not in page.tags
    assert not {"src", "href", "style", "onload"} & {name for name, _ in page.attributes}
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u202e\ud800-\udfff]", text)
    assert "<script>alert('x')</script>" in "".join(page.texts)
    assert "url(" not in text
    assert "@import" not in text
    assert ("http-equiv", "Content-Security-Policy") in page.attributes
    assert "default-src 'none'" in text


@settings(deadline=None)
@given(REPORTS)
def test_any_report_has_a_page(report: MissionReport) -> None:
    """Every report, however odd, becomes a page whose tags nest."""
    assert _Page(report_to_html(report)).tags[0] == "html"


def test_the_picture_shows_every_span() -> None:
    """Each span is a bar with its outcome's colour, and each wait a lighter one before it."""
    text = report_to_html(_evil_report(2))
    lanes = text[text.index("<h2>Timeline</h2>") :]
    lanes = lanes[lanes.index("</ul>") : lanes.index("</section>")]
    for kind in ("wait", "done", "again", "bad"):
        spans = 12 if kind == "wait" else 4
        assert lanes.count(f'class="{kind}"') == spans


def test_receipts_are_shown() -> None:
    """What was checked of a task and of the whole is said with its tree, findings and strays."""
    receipt = Receipt(
        tree="0123456789abcdef0123",
        findings=(Finding(path="a.py", line=3, message="it looks like a password"),),
        changed=("a.py", "b.py"),
        strays=("c.py",),
    )
    report = MissionReport(
        goal="g",
        outcome=MissionOutcome.FAILED,
        reason="",
        backend="b",
        directory="d",
        tasks=(TaskReport(id="t", title="T", state=TaskState.ACCEPTED, receipt=receipt),),
        receipt=attrs.evolve(receipt, stage="integration", problems=("no",), strays=()),
    )
    text = re.sub(r"<[^>]+>", "", report_to_html(report))
    assert "unit: passed 2 changed files, tree 0123456789abcdef" in text
    assert "integration: not passed 2 changed files" in text
    assert text.count("a.py:3 it looks like a password") == 2
    assert text.count("c.py was put back") == 1


def test_two_thousand_tasks_fit(tmp_path: Path) -> None:
    """A mission of 2,000 tasks gives a page with a row for each, of bounded size per task."""
    files = write_report(_evil_report(2000), tmp_path)
    page = _Page(files.html.read_text("utf-8"))
    assert page.tags.count("tr") == 2001
    assert files.html.stat().st_size < 2000 * 4000


def test_files_are_private_whole_and_ignored(tmp_path: Path) -> None:
    """Only the owner can read the files, git ignores them, and nothing else is left behind."""
    write_report(_evil_report(1), tmp_path)
    files = write_report(_evil_report(2), tmp_path)
    folder = tmp_path / ".orchestra"
    assert [path.name for path in tmp_path.iterdir()] == [".orchestra"]
    assert sorted(path.name for path in folder.iterdir()) == [
        ".gitignore",
        "report.html",
        "report.json",
    ]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert (folder / ".gitignore").read_text() == "*\n"
    assert report_from_json(json.loads(files.json.read_bytes())) == _evil_report(2)


def test_a_failed_write_keeps_the_last_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the disk refuses, the last report stands as it was and no half file is left."""
    files = write_report(_evil_report(1), tmp_path)
    before = files.json.read_bytes()

    def refuse(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(OSError, match="No space left"):
        write_report(_evil_report(2), tmp_path)
    assert files.json.read_bytes() == before
    assert len(list((tmp_path / ".orchestra").iterdir())) == 3


def test_a_link_does_not_lead_the_report_outside(tmp_path: Path) -> None:
    """A workspace whose ``.orchestra`` is a link elsewhere is refused, and elsewhere is untouched."""
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o755)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / ".orchestra").symlink_to(outside)
    with pytest.raises(NotADirectoryError, match="is a link"):
        write_report(_evil_report(1), tmp_path / "work")
    assert list(outside.iterdir()) == []
    assert stat.S_IMODE(outside.stat().st_mode) == 0o755
