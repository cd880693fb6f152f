"""The part of the HTML report that tells where the time went: a row of causes per task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orchestra.opencode.mission.report import MissionReport
from orchestra.opencode.mission.report_svg import (
    AXIS,
    MARGIN,
    Row,
    Scale,
    as_svg,
    clean,
    draw_axis,
    draw_label,
    duration,
    end_of,
    row_size,
)
from orchestra.opencode.mission.wait_words import describe_path
from orchestra.opencode.mission.waits import Cause, Segment

__all__ = ("WAITS_STYLE", "draw_waits", "waits_section")

_COLOURS = {
    Cause.WORK: "work",
    Cause.REVIEW: "review",
    Cause.GATES: "gates",
    Cause.MERGE: "gates",
    Cause.PLANNING: "plan",
    Cause.TASKS: "own",
    Cause.PARTS: "own",
    Cause.PLACE: "own",
    Cause.RECORDS: "own",
    Cause.DEPENDENCY: "others",
    Cause.LEASE: "others",
    Cause.MERGE_ORDER: "others",
    Cause.SLOT: "slots",
    Cause.PRIORITY: "slots",
    Cause.GATE_QUEUE: "slots",
    Cause.BUDGET: "slots",
    Cause.BREAKER: "away",
    Cause.COOLDOWN: "away",
    Cause.RETRY: "away",
    Cause.BACKOFF: "away",
    Cause.AWAY: "nobody",
    Cause.APPROVAL: "person",
    Cause.PERMISSION: "person",
}
_LEGEND = (
    ("work", "work"),
    ("review", "review"),
    ("gates", "checks and merge"),
    ("plan", "planning"),
    ("others", "waits for other tasks"),
    ("slots", "waits for a slot or budget"),
    ("away", "waits for the provider"),
    ("person", "waits for a person"),
    ("own", "bookkeeping, parts"),
    ("nobody", "nobody was there"),
)

WAITS_STYLE = """
.w-work { fill: var(--done); } .w-review { fill: var(--ok); } .w-gates { fill: var(--again); }
.w-plan { fill: var(--planner); } .w-others { fill: var(--wait); } .w-own { fill: var(--line); }
.w-slots { fill: var(--cut); } .w-away { fill: var(--bad); } .w-person { fill: var(--commander); }
.w-nobody { fill: none; stroke: var(--line); }
"""
"""The colours of causes, made of those of the page."""


def waits_section(report: MissionReport) -> str:
    """Return the section; nothing when nobody has written down what was waited for.

    Args:
        report: The report.
    """
    if not any(task.segments for task in report.tasks):
        return ""
    legend = "".join(
        f'<li><svg viewBox="0 0 14 12"><rect class="w-{kind}" width="14" height="12" rx="3"/>'
        f"</svg>{text}</li>"
        for kind, text in _LEGEND
    )
    whole = sum(report.causes.values()) or 1.0
    rows = "".join(
        f"<tr><td>{clean(name)}</td>"
        f'<td class="number">{duration(seconds)}</td>'
        f'<td class="number">{seconds / whole:.0%}</td></tr>'
        for name, seconds in report.causes.items()
    )
    return (
        f'<section><h2>Where the time went</h2><ul class="legend">{legend}</ul>'
        f'<div class="picture">{draw_waits(report)}</div>'
        f"<p>Critical path: {clean(describe_path(report.critical_path), 3000)}</p>"
        f"<details><summary>All tasks together, by cause</summary><table>{rows}</table></details>"
        "</section>"
    )


def draw_waits(report: MissionReport) -> str:
    """Draw a row per task, each moment in the colour of its cause; below it the critical path.

    Args:
        report: The report.
    """
    titles = {task.id: task.title for task in report.tasks}
    row = row_size(len(report.tasks) + 1)
    # Times of turns begin with the process, those of causes with the mission's first start.
    last = [
        each[-1].until for each in (report.segments, *(t.segments for t in report.tasks)) if each
    ]
    scale = Scale(row.left, max([end_of(report), *last]))
    height = AXIS + row.height * (len(report.tasks) + 1) + MARGIN
    body = list(draw_axis(scale, AXIS, height - MARGIN))
    chosen: dict[str, list[Segment]] = {}
    for step in report.critical_path:
        chosen.setdefault(step.task, []).append(step.segment)
    body += _row(report.segments, chosen.get("", ()), scale, row, AXIS)
    body.append(draw_label(None, titles, row, AXIS))
    for number, task in enumerate(report.tasks, 1):
        top = AXIS + number * row.height
        if number % row.label_every == 0:
            body.append(draw_label(task.id, titles, row, top))
        body += _row(task.segments, chosen.get(task.id, ()), scale, row, top)
    return as_svg(height, f"Where the time of {len(titles)} tasks went", body)


def _row(
    segments: Sequence[Segment], chosen: Sequence[Segment], scale: Scale, row: Row, top: float
) -> Iterator[str]:
    thick = row.height * 0.5
    for each in segments:
        left, right = scale.x(each.since), scale.x(each.until)
        if right - left < 0.2:
            continue
        yield (
            f'<rect class="w-{_COLOURS[each.cause]}" x="{left:.1f}" y="{top + 2:.1f}"'
            f' width="{right - left:.1f}" height="{thick:.1f}"><title>{_tooltip(each)}</title>'
            "</rect>"
        )
    for each in chosen:
        left, right = scale.x(each.since), scale.x(each.until)
        yield (
            f'<rect class="bad" x="{left:.1f}" y="{top + thick + 3:.1f}"'
            f' width="{max(right - left, 0.5):.1f}" height="{max(row.height * 0.1, 1):.1f}"/>'
        )


def _tooltip(segment: Segment) -> str:
    by = f" ({', '.join(segment.by[:5])})" if segment.by else ""
    what = f"{segment.cause.value}{by}"
    return clean(f"{what}: {duration(segment.seconds)} from {duration(segment.since)}", 300)
