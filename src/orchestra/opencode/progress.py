"""How a mission looks while it runs: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Protocol, final

import anyio
from attrs import define, field

from orchestra.events import (
    PermissionAsked,
    PermissionPending,
    RetryScheduled,
    TextReceived,
    ToolCalled,
    ToolStatus,
)
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
    TurnStarted,
    WarningRaised,
)
from orchestra.opencode.mission.plan import Role
from orchestra.opencode.mission.report import CostNode, MissionReport, TaskState
from orchestra.opencode.mission.report_svg import duration
from orchestra.opencode.mission.wait_words import describe_path, describe_totals

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.text import Text

__all__ = ("LiveProgress", "PlainProgress", "Progress", "one_line", "summary_lines")

_ACTIVE = (TaskState.WORKING, TaskState.REVIEWING, TaskState.CHECKING)
_ENDED = (TaskState.ACCEPTED, TaskState.FAILED, TaskState.SKIPPED)
_STYLES = {
    TaskState.WORKING: "blue",
    TaskState.REVIEWING: "magenta",
    TaskState.CHECKING: "cyan",
    TaskState.ACCEPTED: "green",
    TaskState.FAILED: "bold red",
}


def one_line(text: str, limit: int = 200) -> str:
    """Make foreign text fit for one line of a terminal: no control characters, cut at a length.

    Args:
        text: What an agent or a command wrote.
        limit: Characters that are kept.
    """
    line = " ".join(text[: limit * 4].split())
    line = "".join(char if char.isprintable() else "\ufffd" for char in line)
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


def summary_lines(report: MissionReport) -> list[str]:
    """Say how a mission ended, in a few lines for people.

    Args:
        report: The report.
    """
    states = Counter(task.state for task in report.tasks)
    again = sum(max(task.rounds - 1, 0) for task in report.tasks)
    facts = ["no task was planned"]
    if report.tasks:
        facts = [
            f"{states[TaskState.ACCEPTED]} of {len(report.tasks)} tasks accepted",
            f"{again} extra rounds" if again != 1 else "1 extra round",
        ]
    facts.append(duration(report.elapsed))
    if report.usage.cost:
        facts.append(f"${report.usage.cost:.4f}")
    lines = [f"mission {report.outcome.value}: {one_line(report.reason, 500)}", ", ".join(facts)]
    if report.causes:
        lines.append(f"time of the tasks: {describe_totals(report.causes)}")
        lines.append(f"critical path: {one_line(describe_path(report.critical_path), 500)}")
    lines += _cost_lines(report.costs)
    troubled = [
        task for task in report.tasks if task.state in {TaskState.FAILED, TaskState.SKIPPED}
    ]
    for task in troubled[:10]:
        last = one_line(task.reasons[-1], 300) if task.reasons else "it was never started"
        lines.append(f"  {task.id} {task.state.value}: {last}")
    if len(troubled) > 10:
        lines.append(f"  and {len(troubled) - 10} more")
    lines += [f"  refused: {one_line(r.refusal, 300)}" for r in report.commands if r.refusal]
    lines += [f"  warning: {one_line(warning, 300)}" for warning in report.warnings[:10]]
    if len(report.warnings) > 10:
        lines.append(f"  and {len(report.warnings) - 10} more warnings, see the report")
    return lines


def _cost_lines(costs: CostNode | None) -> list[str]:
    """Say which parts were the dearest, each with all that belongs to it."""
    if costs is None or not costs.tokens:
        return []
    dearest = sorted(costs.parts, key=lambda part: (-part.dollars, -part.tokens))
    lines = [f"  cost of {part.name}: {_amount(part)}" for part in dearest[:5]]
    return [f"cost: {_amount(costs)}, of it", *lines] if lines else []


def _amount(part: CostNode) -> str:
    money = f", ${part.dollars:.4f}" if part.dollars else ""
    return f"{part.tokens:,} tokens{money}"


class Progress(Protocol):
    """Shows a mission while it runs."""

    def handle(self, event: MissionEvent) -> None:
        """Take in one event.

        Args:
            event: The event.
        """

    async def run(self) -> None:
        """Show what was taken in, until cancelled."""

    def paused(self) -> AbstractContextManager[None]:
        """Return a block during which the display stands still, since somebody is asked."""


@final
class PlainProgress:
    """One line for each thing that happens, for pipes and logs.

    Args:
        write: Called with each line, without its end.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._missed = 0

    def __repr__(self) -> str:
        return "<PlainProgress>"

    def handle(self, event: MissionEvent) -> None:
        """Print the event, when it is one that people want to see.

        Args:
            event: The event.
        """
        line = _describe(event)
        if isinstance(event, EventsDropped):
            self._missed += event.count
        elif isinstance(event, MissionFinished) and self._missed:
            line = f"({self._missed} events came too fast to be shown)"
        if line:
            self._write(f"{event.at:8.1f} s  {line}")

    async def run(self) -> None:
        """Do nothing, until cancelled: lines are printed as they come."""
        await anyio.sleep_forever()

    def paused(self) -> AbstractContextManager[None]:
        """Return a block that changes nothing: lines do not disturb a question."""
        return nullcontext()


def _describe(event: MissionEvent) -> str:
    if isinstance(event, MissionStarted):
        return f"mission: {one_line(event.goal)}"
    if isinstance(event, PlanAccepted):
        count = len(event.plan.tasks)
        return f"plan: {count} tasks" if count != 1 else "plan: 1 task"
    if isinstance(event, TaskChanged) and event.state not in {TaskState.WAITING, TaskState.READY}:
        words = [event.task_id, event.state.value]
        if event.round > 1 and event.state in _ACTIVE:
            words.append(f"(round {event.round})")
        note = f": {one_line(event.note)}" if event.note else ""
        return f"{' '.join(words)}{note}"
    if isinstance(event, TaskChanged) and event.round and event.note:
        return f"{event.task_id} sent back: {one_line(event.note)}"
    if isinstance(event, TurnStarted) and event.task_id is None:
        return f"{event.role.value} at work"
    if isinstance(event, CommandFinished):
        return _describe_command(event)
    if isinstance(event, WarningRaised):
        return f"warning: {one_line(event.message)}"
    return ""


def _describe_command(event: CommandFinished) -> str:
    about = event.task_id or "mission"
    line = one_line(" ".join(event.result.argv), 100)
    if event.result.refusal:
        return f"{about} refused to run {line}: {one_line(event.result.refusal)}"
    if event.result.is_failed:
        why = event.result.error or f"exit code {event.result.exit_code}"
        return f"{about} {line}: {one_line(why)}"
    return f"{about} {line}: ok"


@define
class _Row:
    """What is known of one task."""

    title: str
    state: TaskState = TaskState.WAITING
    round: int = 0
    act: str = ""
    since: float = field(default=0.0)


@final
class LiveProgress:
    """A table that is drawn again and again, for terminals. Needs rich.

    Args:
        console: Where to draw.
    """

    _INTERVAL = 0.15

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rows: dict[str, _Row] = {}
        self._goal = ""
        self._act = ""
        self._cost = 0.0
        self._warnings = 0
        self._started = time.monotonic()
        self._is_over = False
        self._live: Live | None = None

    def __repr__(self) -> str:
        return f"<LiveProgress {len(self._rows)} tasks>"

    def handle(self, event: MissionEvent) -> None:
        """Take in one event; it is shown with the next drawing.

        Args:
            event: The event.
        """
        self._started = time.monotonic() - event.at
        if isinstance(event, MissionStarted):
            self._goal = one_line(event.goal)
        elif isinstance(event, PlanAccepted):
            self._rows = {task.id: _Row(one_line(task.title)) for task in event.plan.tasks}
        elif isinstance(event, TaskChanged):
            # The plan itself may be among the events that a slow display has missed.
            row = self._rows.setdefault(event.task_id, _Row(""))
            row.state, row.round, row.since = event.state, event.round, event.at
            row.act = one_line(event.note)
        elif isinstance(event, AgentActed):
            self._show_act(event)
        elif isinstance(event, TurnStarted) and event.task_id is None:
            self._act = f"{event.role.value} at work"
        elif isinstance(event, TurnFinished):
            self._cost += event.cost
            if event.task_id is None:
                self._act = ""
        elif isinstance(event, WarningRaised):
            self._warnings += 1
        elif isinstance(event, MissionFinished):
            self._finish(event.report)

    def _finish(self, report: MissionReport) -> None:
        """Show how it ended, whatever was missed on the way."""
        self._is_over = True
        self._cost = report.usage.cost
        self._warnings = len(report.warnings)
        for task in report.tasks:
            row = self._rows.setdefault(task.id, _Row(one_line(task.title)))
            row.state, row.round = task.state, task.rounds

    def _show_act(self, event: AgentActed) -> None:
        act = _describe_act(event)
        if not act:
            return
        if event.task_id is None:
            self._act = f"{event.role.value}: {act}"
        elif (row := self._rows.get(event.task_id)) is not None:
            row.act = act

    async def run(self) -> None:
        """Draw until cancelled, and once more at the end."""
        from rich.live import Live  # noqa: PLC0415  (an extra)

        # No thread of its own: the drawing is a task like any other.
        live = self._live = Live(console=self._console, auto_refresh=False, transient=False)
        try:
            with live:
                try:
                    while True:
                        if live.is_started:
                            live.update(self.render(), refresh=True)
                        await anyio.sleep(self._INTERVAL)
                finally:
                    live.update(self.render(), refresh=True)
        except OSError:  # the terminal was closed: nobody looks any more
            await anyio.sleep_forever()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the drawing for the length of a block; it goes on below."""
        live = self._live
        if live is None or not live.is_started:
            yield
            return
        with suppress(OSError):
            live.stop()
        try:
            yield
        finally:
            with suppress(OSError):
                live.start()

    def render(self) -> RenderableType:
        """Return the picture of this moment."""
        from rich.console import Group  # noqa: PLC0415  (an extra)
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        head = Text(self._goal, style="bold", no_wrap=True, overflow="ellipsis")
        if not self._rows:
            return Group(head, self._status(), Text(self._act, no_wrap=True))
        table = Table(box=None, padding=(0, 1), expand=True, show_header=False)
        table.add_column(no_wrap=True, max_width=18)
        table.add_column(no_wrap=True, ratio=2)
        table.add_column(no_wrap=True, width=12)
        table.add_column(no_wrap=True, justify="right", width=11)
        table.add_column(no_wrap=True, ratio=3)
        shown = self._choose(max(self._console.size.height - 6, 4))
        for task_id in shown:
            table.add_row(*self._cells(task_id, self._rows[task_id]))
        parts: list[RenderableType] = [head, self._status(), table]
        hidden = len(self._rows) - len(shown)
        if hidden:
            parts.append(Text(f" ... and {hidden} more tasks", style="dim"))
        if self._act:
            parts.append(Text(f" {self._act}", style="dim", no_wrap=True, overflow="ellipsis"))
        return Group(*parts)

    def _status(self) -> Text:
        from rich.text import Text  # noqa: PLC0415  (an extra)

        states = Counter(row.state for row in self._rows.values())
        parts = [(f"{states[TaskState.ACCEPTED]} of {len(self._rows)} accepted", "green")]
        if not self._rows:
            parts = [("planning", "cyan")]
        active = sum(states[state] for state in _ACTIVE)
        waiting = states[TaskState.WAITING] + states[TaskState.READY]
        for count, word, style in (
            (active, "at work", "blue"),
            (waiting, "waiting", "dim"),
            (states[TaskState.FAILED], "failed", "bold red"),
            (states[TaskState.SKIPPED], "skipped", "dim"),
            (self._warnings, "warning" if self._warnings == 1 else "warnings", "yellow"),
        ):
            if count:
                parts.append((f"{count} {word}", style))
        if self._cost:
            parts.append((f"${self._cost:.4f}", ""))
        parts.append((duration(time.monotonic() - self._started), ""))
        return Text(" \u00b7 ", no_wrap=True).join(Text(text, style) for text, style in parts)

    def _cells(self, task_id: str, row: _Row) -> Iterable[Text]:
        from rich.text import Text  # noqa: PLC0415  (an extra)

        elapsed = ""
        if row.state in _ACTIVE and not self._is_over:
            elapsed = duration(max(time.monotonic() - self._started - row.since, 0.0))
        elif row.state is TaskState.ACCEPTED and row.round > 1:
            elapsed = f"in round {row.round}"
        again = f" {row.round}" if row.round > 1 and row.state in _ACTIVE else ""
        return (
            Text(one_line(task_id, 18), "bold", overflow="ellipsis"),
            Text(row.title, overflow="ellipsis"),
            Text(f"{row.state.value}{again}", _STYLES.get(row.state, "dim")),
            Text(elapsed, "dim"),
            Text("" if row.state is TaskState.ACCEPTED else row.act, "dim", overflow="ellipsis"),
        )

    def _choose(self, room: int) -> list[str]:
        """Pick the tasks that are shown: those at work, then failed, waiting and accepted ones."""
        if len(self._rows) <= room:
            return list(self._rows)

        def rank(item: tuple[str, _Row]) -> tuple[int, float]:
            row = item[1]
            if row.state in _ACTIVE:
                return (0, row.since)
            if row.state is TaskState.FAILED:
                return (1, -row.since)
            return (3, -row.since) if row.state in _ENDED else (2, 0.0)

        chosen = {task_id for task_id, _ in sorted(self._rows.items(), key=rank)[:room]}
        return [task_id for task_id in self._rows if task_id in chosen]


def _describe_act(event: AgentActed) -> str:
    told = event.event
    if isinstance(told, ToolCalled):
        target = next((value for value in told.input.values() if isinstance(value, str)), "")
        failed = " failed" if told.status is ToolStatus.FAILED else ""
        return one_line(f"{told.tool}{failed} {target}", 120)
    if isinstance(told, TextReceived) and event.role in {Role.WORKER, Role.COMMANDER}:
        return one_line(told.text, 120)
    if isinstance(told, PermissionPending):
        return one_line(f"waits for leave: {told.request.permission}", 120)
    if isinstance(told, PermissionAsked):
        verdict = "allowed" if told.reply.is_allowed else "refused"
        return one_line(f"{verdict}: {told.request.permission}", 120)
    if isinstance(told, RetryScheduled):
        return one_line(f"model call again in {told.delay:.0f} s: {told.message}", 120)
    return ""
