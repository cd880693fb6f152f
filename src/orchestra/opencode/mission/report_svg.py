"""The pictures of a report: who worked when, and how many at once. Plain SVG text, no script.

Colours come from CSS classes that `report_html` defines for light and dark screens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from itertools import groupby

from attrs import frozen

from orchestra.opencode.mission.report import MissionReport, Span

__all__ = (
    "AXIS",
    "MARGIN",
    "OUTCOME_CLASSES",
    "WIDTH",
    "Row",
    "Scale",
    "as_svg",
    "clean",
    "draw_axis",
    "draw_label",
    "draw_lanes",
    "draw_load",
    "duration",
    "end_of",
    "row_size",
)

OUTCOME_CLASSES = {
    "done": "done",
    "accepted": "ok",
    "rejected": "again",
    "aborted": "cut",
    "interrupted": "cut",
    "stopped": "cut",
    "skipped": "cut",
    "refused": "cut",
}
"""The CSS class of a span's outcome; any other outcome is ``bad``."""

WIDTH = 1200.0
MARGIN = 8.0
AXIS = 22.0
_LOAD_HEIGHT = 96.0
_MOST_STEPS = 1500
_CLOCK_STEPS = (30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 21600.0, 86400.0)
_WORDS = {"worker": "work", "reviewer": "review", "acceptance": "check"}
_HEIGHTS = {"reviewer": 0.62, "acceptance": 0.34}
"""What part of a row's height a span fills; the others fill it all."""


def clean(text: str, limit: int | None = None) -> str:
    """Make text safe inside HTML: escaped, without control characters, possibly cut.

    Args:
        text: Anything; agents and commands wrote it.
        limit: Characters that are kept.
    """
    if limit is not None and len(text) > limit:
        text = f"{text[: limit - 1]}\u2026"
    kept = "".join(
        char if char.isprintable() or char in "\n\t\u00a0" else "\ufffd" for char in text
    )
    return escape(kept.replace("\r", ""), quote=True)


def duration(seconds: float) -> str:
    """Say how long something took, for people.

    Args:
        seconds: The time.
    """
    if not math.isfinite(seconds) or seconds < 0:
        return "?"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


@frozen
class Scale:
    """Where a time is on the picture."""

    left: float
    end: float

    def x(self, seconds: float) -> float:
        part = min(max(seconds / self.end, 0.0), 1.0) if self.end > 0 else 0.0
        return self.left + part * (WIDTH - MARGIN - self.left)

    def ticks(self) -> Iterator[float]:
        """Yield at most 11 round numbers of seconds, from 0."""
        if not 1e-6 < self.end < math.inf:
            return
        magnitude = 10.0 ** math.floor(math.log10(self.end))
        steps = [magnitude * part for part in (0.1, 0.2, 0.5, 1.0)]
        if 120 < self.end < 10 * _CLOCK_STEPS[-1]:
            steps = list(_CLOCK_STEPS)
        step = next(size for size in steps if self.end / size <= 10)
        yield from (step * index for index in range(int(self.end / step) + 1))


@frozen
class Row:
    """How big a row of the lanes is: smaller the more there are."""

    height: float
    left: float
    label_every: int


def row_size(count: int) -> Row:
    """Return how big each of so many rows is.

    Args:
        count: How many.
    """
    if count <= 80:
        return Row(26.0, 230.0, 1)
    if count <= 300:
        return Row(14.0, 230.0, 1)
    return Row(5.0, 110.0, 10)


def as_svg(height: float, label: str, body: Iterable[str]) -> str:
    """Return a picture.

    Args:
        height: How high it is, where the width is `WIDTH`.
        label: What it shows, for those who cannot see it.
        body: Its elements.
    """
    return (
        f'<svg viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img" aria-label="{clean(label)}">'
        + "".join(body)
        + "</svg>"
    )


def draw_axis(scale: Scale, top: float, bottom: float) -> Iterator[str]:
    """Draw lines and times of the horizontal axis.

    Args:
        scale: Where times are.
        top: Where the lines begin.
        bottom: Where they end.
    """
    for tick in scale.ticks():
        x = scale.x(tick)
        yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>'
        anchor = "start" if x < scale.left + 20 else "end" if x > WIDTH - 40 else "middle"
        yield (
            f'<text class="tick" x="{x:.1f}" y="{top - 7:.1f}" text-anchor="{anchor}">'
            f"{'0' if tick == 0 else duration(tick)}</text>"
        )


def end_of(report: MissionReport) -> float:
    """The last moment of the mission; spans may end a little after what was reported."""
    return max([report.elapsed, *(span.ended for span in report.timeline)])


def draw_lanes(report: MissionReport) -> str:
    """Draw a row per task, first the mission's own: waiting light, running in the outcome's colour.

    Args:
        report: The report.
    """
    titles = {task.id: task.title for task in report.tasks}
    spans: dict[str | None, list[Span]] = {None: []}
    spans.update((task.id, []) for task in report.tasks)
    for span in report.timeline:
        spans.setdefault(span.task_id, []).append(span)
    row = row_size(len(spans))
    scale = Scale(row.left, end_of(report))
    height = AXIS + row.height * len(spans) + MARGIN
    body = list(draw_axis(scale, AXIS, height - MARGIN))
    for number, (task_id, own) in enumerate(spans.items()):
        top = AXIS + number * row.height
        if number % 2 == 0 and row.height > 10:
            body.append(
                f'<rect class="band" x="0" y="{top:.1f}" width="{WIDTH:.0f}"'
                f' height="{row.height:.1f}"/>'
            )
        if number % row.label_every == 0:
            body.append(draw_label(task_id, titles, row, top))
        body.extend(_bars(own, scale, row, top))
    return as_svg(height, f"Timeline of {len(titles)} tasks", body)


def draw_label(task_id: str | None, titles: dict[str, str], row: Row, top: float) -> str:
    """Draw what a row is about.

    Args:
        task_id: The task; None: the mission.
        titles: The titles of all tasks.
        row: How big the row is.
        top: Where it begins.
    """
    size = min(12.0, max(9.0, row.height - 3))
    y = top + row.height / 2 + size * 0.35
    if task_id is None:
        return f'<text class="lane own" x="8" y="{y:.1f}" font-size="{size:.0f}">mission</text>'
    name = clean(task_id, 16)
    if row.left < 200:
        return f'<text class="lane" x="8" y="{y:.1f}" font-size="{size:.0f}">{name}</text>'
    room = 31 - min(len(task_id), 16)
    title = clean(titles.get(task_id, ""), room)
    return (
        f'<text class="lane" x="8" y="{y:.1f}" font-size="{size:.0f}">'
        f'<tspan class="id">{name}</tspan> {title}</text>'
    )


def _bars(own: Sequence[Span], scale: Scale, row: Row, top: float) -> Iterator[str]:
    space = row.height - (6 if row.height > 10 else 1)
    middle = top + row.height / 2
    for span in own:
        left, right = scale.x(span.started), scale.x(span.ended)
        if span.started > span.queued:
            wait = scale.x(span.queued)
            thick = max(space * 0.34, 1.0)
            yield (
                f'<rect class="wait" x="{wait:.1f}" y="{middle - thick / 2:.1f}" rx="1"'
                f' width="{max(left - wait, 0):.1f}" height="{thick:.1f}"/>'
            )
        size = max(space * _HEIGHTS.get(span.name, 1.0), 2.0)
        width = max(right - left, 1.5)
        kind = OUTCOME_CLASSES.get(span.outcome, "bad")
        if span.name == "acceptance" and kind == "done":
            kind = "ok"
        yield (
            f'<rect class="{kind}" x="{left:.1f}" y="{middle - size / 2:.1f}" rx="2"'
            f' width="{width:.1f}" height="{size:.1f}"><title>{_tooltip(span)}</title></rect>'
        )
        word = f"{_WORDS.get(span.name, span.name)} {span.round or ''}".strip()
        if size >= 12 and width > 6.2 * len(word) + 6:
            yield (
                f'<text class="bar" x="{left + 5:.1f}" y="{middle + 3.6:.1f}">{clean(word)}</text>'
            )


def _tooltip(span: Span) -> str:
    what = f"{span.name} of {span.task_id}" if span.task_id else span.name
    about = f", round {span.round}" if span.round else ""
    waited = span.started - span.queued
    wait = f", after waiting {duration(waited)}" if waited > 0 else ""
    took = duration(span.ended - span.started)
    return clean(f"{what}{about}: {span.outcome}\n{took} from {duration(span.started)}{wait}")


def draw_load(report: MissionReport) -> str:
    """Draw how many were at work at each moment, by role, and above them how many waited.

    Args:
        report: The report.
    """
    names = list(dict.fromkeys(span.name for span in report.timeline))
    steps = _steps(report.timeline, names)
    peak = max([sum(counts) for _, counts in steps], default=0)
    if peak == 0:
        return ""
    scale = Scale(40.0, end_of(report))
    bottom = AXIS + _LOAD_HEIGHT
    unit = _LOAD_HEIGHT / peak
    body = list(draw_axis(scale, AXIS, bottom))
    below = [0] * len(steps)
    for index, name in enumerate([*names, "wait"]):
        above = [low + counts[index] for low, (_, counts) in zip(below, steps, strict=True)]
        path = _area(steps, below, above, scale, unit, bottom)
        kind = "wait" if name == "wait" else f"role {name}"
        body.append(f'<path class="{clean(kind)}" d="{path}"/>')
        below = above
    body.append(f'<text class="tick" x="30" y="{AXIS + 9:.0f}" text-anchor="end">{peak}</text>')
    body.append(f'<text class="tick" x="30" y="{bottom:.0f}" text-anchor="end">0</text>')
    return as_svg(bottom + MARGIN, f"At most {peak} at once", body)


def _steps(timeline: Sequence[Span], names: Sequence[str]) -> list[tuple[float, tuple[int, ...]]]:
    """Return the counts (per name, then waiting) from each moment at which one changes."""
    place = {name: index for index, name in enumerate(names)}
    changes: list[tuple[float, int, int]] = []
    for span in timeline:
        changes.append((span.started, place[span.name], 1))
        changes.append((max(span.ended, span.started), place[span.name], -1))
        if span.started > span.queued:
            changes.append((span.queued, len(names), 1))
            changes.append((span.started, len(names), -1))
    changes.sort()
    counts = [0] * (len(names) + 1)
    steps = []
    for moment, group in groupby(changes, key=lambda change: change[0]):
        for _, index, change in group:
            counts[index] += change
        steps.append((moment, tuple(counts)))
    # More steps than pixels: keep the busiest of each handful.
    handful = -(-len(steps) // _MOST_STEPS) or 1
    return [
        (chunk[0][0], max((counts for _, counts in chunk), key=sum))
        for chunk in (steps[at : at + handful] for at in range(0, len(steps), handful))
    ]


def _area(
    steps: Sequence[tuple[float, tuple[int, ...]]],
    below: Sequence[int],
    above: Sequence[int],
    scale: Scale,
    unit: float,
    bottom: float,
) -> str:
    """Return the path of one layer: along its upper edge, and back along its lower one."""
    marks = [scale.x(moment) for moment, _ in steps]
    ends = [*marks[1:], marks[-1]]
    spots = []
    for left, right, count in zip(marks, ends, above, strict=True):
        y = bottom - count * unit
        spots.append(f"{left:.1f} {y:.1f}L{right:.1f} {y:.1f}")
    for left, right, count in zip(reversed(marks), reversed(ends), reversed(below), strict=True):
        y = bottom - count * unit
        spots.append(f"{right:.1f} {y:.1f}L{left:.1f} {y:.1f}")
    return f"M{'L'.join(spots)}Z"
