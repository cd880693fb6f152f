from __future__ import annotations

import io

import pytest

from orchestra.events import TextReceived, ToolCalled, ToolStatus
from orchestra.opencode.mission.events import (
    AgentActed,
    CommandFinished,
    EventsDropped,
    MissionEvent,
    MissionFinished,
    MissionStarted,
    PlanAccepted,
    TaskChanged,
    TurnFinished,
    WarningRaised,
)
from orchestra.opencode.mission.plan import Plan, Role, TaskSpec
from orchestra.opencode.mission.report import (
    CommandResult,
    MissionOutcome,
    MissionReport,
    TaskReport,
    TaskState,
)
from orchestra.opencode.progress import LiveProgress, PlainProgress, one_line

EVIL = "\x1b]0;owned\x07\x1b[2J\r\nbold [red]markup[/red] \u202e"


def _change(task_id: str, state: TaskState, note: str = "", round_: int = 1) -> TaskChanged:
    return TaskChanged(at=1.0, task_id=task_id, state=state, round=round_, note=note)


def _tool(task_id: str) -> AgentActed:
    event = ToolCalled(
        session_id="s",
        call_id="c",
        tool="edit",
        status=ToolStatus.COMPLETED,
        input={"path": f"{EVIL}a.py"},
    )
    return AgentActed(at=1.0, role=Role.WORKER, task_id=task_id, event=event)


def _events(count: int) -> list[MissionEvent]:
    tasks = tuple(TaskSpec(id=f"t{number}", title=EVIL) for number in range(count))
    text = TextReceived(session_id="s", text=EVIL)
    return [
        MissionStarted(at=0.0, goal=EVIL),
        PlanAccepted(at=0.5, plan=Plan(tasks)),
        _change("t0", TaskState.WORKING),
        _tool("t0"),
        AgentActed(at=1.0, role=Role.COMMANDER, task_id=None, event=text),
        TurnFinished(
            at=1.0, role=Role.WORKER, task_id="t0", session_id="s", outcome="done", cost=0.25
        ),
        _change("t1", TaskState.FAILED, EVIL),
        _change("t2", TaskState.ACCEPTED, round_=2),
        WarningRaised(at=1.0, message=EVIL),
    ]


def _show(count: int, height: int = 24) -> tuple[str, LiveProgress]:
    console = pytest.importorskip("rich.console")
    out = io.StringIO()
    screen = console.Console(file=out, width=100, height=height, markup=False, highlight=False)
    progress = LiveProgress(screen)
    for event in _events(count):
        progress.handle(event)
    screen.print(progress.render())
    return out.getvalue(), progress


def test_foreign_text_cannot_steer_the_terminal() -> None:
    """What agents write reaches neither kind of display with control characters in it."""
    lines: list[str] = []
    plain = PlainProgress(lines.append)
    for event in _events(3):
        plain.handle(event)
    plain.handle(
        CommandFinished(at=1.0, task_id="t0", result=CommandResult(argv=("sh", EVIL), refusal=EVIL))
    )
    shown = [*lines, *_show(3)[0].splitlines()]
    assert all(line.isprintable() for line in shown)
    assert any("[red]markup[/red]" in line for line in shown)


def test_the_table_says_what_is_going_on() -> None:
    """Counts, cost, each task's state and what its worker does are to be seen."""
    shown, _ = _show(4)
    assert "1 of 4 accepted" in shown
    assert "1 at work" in shown
    assert "1 failed" in shown
    assert "1 warning " in shown
    assert "$0.2500" in shown
    assert "in round 2" in shown
    (row,) = [line for line in shown.splitlines() if line.startswith(" t0 ")]
    assert "working" in row
    assert "edit" in row


def test_a_big_mission_fits_the_screen() -> None:
    """With 2,000 tasks those at work and those that failed are shown, and the rest is counted."""
    shown, progress = _show(2000, height=20)
    lines = shown.splitlines()
    assert len(lines) <= 20
    assert any(line.startswith(" t0 ") for line in lines)
    assert any(line.startswith(" t1 ") for line in lines)
    assert "and 1986 more tasks" in shown
    assert repr(progress) == "<LiveProgress 2000 tasks>"


def test_the_end_is_shown_whatever_was_missed() -> None:
    """A display that missed events, even the plan, shows in the end what the report says."""
    console = pytest.importorskip("rich.console")
    out = io.StringIO()
    screen = console.Console(file=out, width=100, height=24)
    progress = LiveProgress(screen)
    lines: list[str] = []
    plain = PlainProgress(lines.append)
    report = MissionReport(
        goal="g",
        outcome=MissionOutcome.ACCEPTED,
        reason="",
        backend="b",
        directory="d",
        tasks=(TaskReport(id="t0", title="The title", state=TaskState.ACCEPTED, rounds=2),),
    )
    for event in (
        EventsDropped(at=1.0, count=7),
        _change("t0", TaskState.WORKING),
        MissionFinished(at=2.0, report=report),
    ):
        progress.handle(event)
        plain.handle(event)
    screen.print(progress.render())
    assert "1 of 1 accepted" in out.getvalue()
    assert "in round 2" in out.getvalue()
    assert "7 events came too fast to be shown" in lines[-1]


def test_one_line_is_cut_and_whole() -> None:
    """Text is brought to one line of bounded length, also when it is 5 MB long."""
    assert one_line("a\n b\tc") == "a b c"
    assert len(one_line("x" * 5_000_000, 80)) == 80
    assert one_line(" " * 5_000_000) == ""
