"""Write what was measured: JSON for machines, a table and a picture for the documentation."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from benchmarks.frame import Comparison, Outcome, Series

_CURRENT = ("attrs", "anyio", "trio", "hypothesis")


def surroundings(command: str, *, seed: int, rounds: int, peers: Sequence[str]) -> dict[str, Any]:
    """Say how, where and with what the figures came about.

    Args:
        command: What to type to get them again.
        seed: Of the workloads.
        rounds: Figures per row.
        peers: Distributions that take part.
    """
    return {
        "command": command,
        "seed": seed,
        "rounds": rounds,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
        "load": [round(load, 2) for load in os.getloadavg()],
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": {
            name: metadata.version(name) for name in sorted({*_CURRENT, *peers}, key=str.lower)
        },
    }


def as_json(outcomes: Sequence[Outcome], about: dict[str, Any]) -> str:
    """Everything, every single figure included.

    Args:
        outcomes: What was measured.
        about: From `surroundings`.
    """
    return (
        json.dumps(
            {
                **about,
                "benchmarks": [
                    {
                        "name": outcome.benchmark.name,
                        "title": outcome.benchmark.title,
                        "unit": outcome.benchmark.unit,
                        "workloads": outcome.workloads,
                        "series": [
                            {
                                "row": series.row,
                                "backend": series.backend,
                                "values": [float(f"{value:.4g}") for value in series.values],
                            }
                            for series in outcome.series
                        ],
                        "ratios": [
                            {
                                "backend": mine.backend,
                                "peer": comparison.peer.row,
                                "ratio": round(comparison.ratio, 4),
                                "quartiles": [round(comparison.low, 4), round(comparison.high, 4)],
                                "bound": comparison.bound,
                                "is_met": comparison.is_met,
                            }
                            for mine, comparisons in outcome.comparisons()
                            for comparison in comparisons
                        ],
                    }
                    for outcome in outcomes
                ],
            },
            indent=1,
        )
        + "\n"
    )


def as_rst(outcomes: Sequence[Outcome], about: dict[str, Any]) -> str:
    """One list-table per benchmark, and how it was measured.

    Args:
        outcomes: What was measured.
        about: From `surroundings`.
    """
    lines = [".. Written by python -m benchmarks; do not edit.", ""]
    for outcome in outcomes:
        unit = "ns per operation" if outcome.benchmark.unit == "ns" else outcome.benchmark.unit
        lines += [
            f".. list-table:: {outcome.benchmark.title} ({unit})",
            "   :header-rows: 1",
            "   :widths: 34 10 12 24 12 8",
            "",
            *_rst_row("", "loop", "median", "ours / this", "bound", "met"),
        ]
        for mine, comparisons in outcome.comparisons():
            lines += _rst_row(f"**{mine.row}**", mine.backend, _figure(outcome, mine), "", "", "")
            for comparison in comparisons:
                lines += _rst_row(
                    comparison.peer.row,
                    mine.backend,
                    _figure(outcome, comparison.peer),
                    _spread(comparison),
                    comparison.bound,
                    _verdict(comparison),
                )
        lines += ["", *([outcome.benchmark.note, ""] if outcome.benchmark.note else [])]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    how = (
        f"``{about['command']}``; {about['rounds']} rounds, seed {about['seed']}; "
        f"{about['python']}, {about['machine']} (shared, load {about['load'][0]}); {versions}."
    )
    return "\n".join([*lines, how, ""])


def _rst_row(*cells: str) -> list[str]:
    return [
        f"   {'*' if number == 0 else ' '} - {cell}".rstrip() for number, cell in enumerate(cells)
    ]


def as_text(outcome: Outcome) -> str:
    """The same, for the terminal.

    Args:
        outcome: What was measured.
    """
    lines = [f"{outcome.benchmark.name}: {outcome.benchmark.title}"]
    for mine, comparisons in outcome.comparisons():
        lines.append(f"  {mine.row + ' [' + mine.backend + ']':44} {_figure(outcome, mine):>12}")
        lines += [
            f"    {'/ ' + comparison.peer.row:42} {_figure(outcome, comparison.peer):>12}"
            f"   {_spread(comparison):22} {comparison.bound:8} {_verdict(comparison)}"
            for comparison in comparisons
        ]
    return "\n".join(lines)


def _figure(outcome: Outcome, series: Series) -> str:
    if outcome.benchmark.unit == "ns":
        return f"{series.median * 1e9:,.0f}"
    return f"{series.median:,.4g}"


def _spread(comparison: Comparison) -> str:
    low, high = _ratio(comparison.low), _ratio(comparison.high)
    return f"{_ratio(comparison.ratio)} ({low}-{high})"


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value >= 0.01 else f"{value:.1g}"


def _verdict(comparison: Comparison) -> str:
    return {True: "yes", False: "NO", None: ""}[comparison.is_met]


def as_svg(outcomes: Sequence[Outcome], title: str) -> str:
    """Bars on a logarithmic axis: left of 1 ours is smaller, right of it ours is larger.

    Args:
        outcomes: What was measured.
        title: Above the picture.
    """
    left, width, step, top = 430, 420, 22, 54
    entries = [
        (outcome, mine, comparison)
        for outcome in outcomes
        for mine, comparisons in outcome.comparisons()
        for comparison in comparisons
    ]
    reach = [
        value
        for *_, comparison in entries
        for value in (comparison.low, comparison.high, *_bounds(comparison))
        if 0 < value < math.inf
    ]
    # Two decades to each side; what is further out ends at the edge, and its figure says so.
    span = min(max(abs(math.log10(value)) for value in (*reach, 2.0)), 2.0) * 1.08
    bottom = top + 6 + step * (len(entries) + len(outcomes)) + 10

    def x(ratio: float) -> float:
        inside = min(max(ratio, 10**-span), 10**span)
        return left + width / 2 * (1 + math.log10(inside) / span)

    legend = (
        "ours divided by theirs in the same round; "
        "bar: median, black line: middle half of the rounds, red mark: the bound"
    )
    parts = [
        _text(16, 24, title, 'font-size="15" font-weight="bold"'),
        _text(16, 42, legend, 'fill="#555555"'),
    ]
    for exponent in range(math.ceil(-span), math.floor(span) + 1):
        at = x(10.0**exponent)
        parts.append(_line(at, top, at, bottom, "#333333" if exponent == 0 else "#dddddd"))
        parts.append(_text(at, bottom + 16, f"{10.0**exponent:g}x", 'text-anchor="middle"'))
    y = top + 6
    current: Outcome | None = None
    for outcome, mine, comparison in entries:
        if outcome is not current:
            current = outcome
            y += step
            parts.append(_text(16, y, outcome.benchmark.title, 'font-weight="bold"'))
        y += step
        label = comparison.peer.row + (f" ({mine.backend})" if mine.backend != "sync" else "")
        parts += [
            _text(left - 10, y, label, 'text-anchor="end"'),
            _bar(x(1), x(comparison.ratio), y),
            _line(x(comparison.low), y - 4.5, x(comparison.high), y - 4.5, "#111111"),
            *(_line(x(b), y - 13, x(b), y + 4, "#cc2222", width=2) for b in _bounds(comparison)),
            _text(left + width + 10, y, f"{_ratio(comparison.ratio)}x"),
        ]
    head = (
        '<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" font-size="12" '
        f'viewBox="0 0 {left + width + 110} {bottom + 30}">'
    )
    background = '<rect width="100%" height="100%" fill="#ffffff"/>'
    return "\n".join([head, background, *parts, "</svg>", ""])


def _bounds(comparison: Comparison) -> list[float]:
    return [b for b in (comparison.peer.at_most, comparison.peer.at_least) if b is not None]


def _text(x: float, y: float, text: str, style: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, *, width: int = 1) -> str:
    points = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {points} stroke="{colour}" stroke-width="{width}"/>'


def _bar(one: float, at: float, y: float) -> str:
    box = f'x="{min(one, at):.1f}" y="{y - 10:.1f}" width="{abs(at - one):.1f}" height="11"'
    return f'<rect {box} fill="{"#3b7dd8" if at <= one else "#d8883b"}"/>'


def save(group: str, outcomes: Sequence[Outcome], about: dict[str, Any], folder: Path) -> None:
    """Write ``<group>.json``, ``<group>.rst`` and ``<group>.svg``.

    Args:
        group: The name of the benchmark module without its prefix.
        outcomes: What was measured.
        about: From `surroundings`.
        folder: Where to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{group}.json").write_text(as_json(outcomes, about), encoding="utf-8")
    (folder / f"{group}.rst").write_text(as_rst(outcomes, about), encoding="utf-8")
    picture = as_svg(outcomes, f"{group}, {about['python']}, {sys.platform}")
    (folder / f"{group}.svg").write_text(picture, encoding="utf-8")
