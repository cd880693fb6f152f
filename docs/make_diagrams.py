"""Draw the diagrams of the documentation from the tables that the code obeys.

``python docs/make_diagrams.py`` writes them; with ``--check`` it only says whether they are current.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from math import hypot
from pathlib import Path
from xml.sax.saxutils import escape

from orchestra.breaker import TRANSITIONS
from orchestra.events import CircuitCause, CircuitState

HERE = Path(__file__).parent

Point = tuple[float, float]

BOX: Point = (130, 44)
PLACES: dict[CircuitState, Point] = {
    CircuitState.CLOSED: (110, 220),
    CircuitState.OPEN: (330, 60),
    CircuitState.HALF_OPEN: (550, 220),
}


def common_causes() -> dict[CircuitCause, CircuitState]:
    """What leads from every state to the same one."""
    first, *others = TRANSITIONS.values()
    return {
        cause: state
        for cause, state in first.items()
        if all(other.get(cause) is state for other in others)
    }


def edges() -> dict[tuple[CircuitState, CircuitState], list[str]]:
    """The other transitions, with all causes of one arrow together."""
    found = defaultdict(list)
    for source, row in TRANSITIONS.items():
        for cause, target in row.items():
            if cause not in common_causes():
                found[source, target].append(cause.value)
    return dict(found)


def box(state: CircuitState, centre: Point) -> str:
    """A state."""
    (x, y), (width, height) = centre, BOX
    return (
        f'<rect x="{x - width / 2}" y="{y - height / 2}" width="{width}" height="{height}" rx="8" '
        'fill="#eef3fb" stroke="#3b5b8c"/>'
        f'<text x="{x}" y="{y + 5}" text-anchor="middle" font-weight="bold">{state.value}</text>'
    )


def at_border(centre: Point, towards: Point) -> Point:
    """Where a straight line from the centre of a box leaves it."""
    dx, dy = towards[0] - centre[0], towards[1] - centre[1]
    scale = min(
        (BOX[0] / 2 + 4) / abs(dx) if dx else float("inf"),
        (BOX[1] / 2 + 4) / abs(dy) if dy else float("inf"),
    )
    return centre[0] + dx * scale, centre[1] + dy * scale


def arrow(source: Point, target: Point, labels: list[str]) -> str:
    """A curved arrow with its labels, bent to its left so that two opposite ones stay apart."""
    dx, dy = target[0] - source[0], target[1] - source[1]
    length = hypot(dx, dy)
    bend = 26
    bent = (
        (source[0] + target[0]) / 2 + dy / length * bend,
        (source[1] + target[1]) / 2 - dx / length * bend,
    )
    (x1, y1), (x2, y2) = at_border(source, bent), at_border(target, bent)
    path = (
        f'<path d="M {x1:.1f} {y1:.1f} Q {bent[0]:.1f} {bent[1]:.1f} {x2:.1f} {y2:.1f}" '
        'fill="none" stroke="#333333" marker-end="url(#tip)"/>'
    )
    lines = [
        f'<text x="{bent[0]:.1f}" y="{bent[1] - 2 + 15 * number:.1f}" text-anchor="middle" '
        f'stroke="#ffffff" stroke-width="4" paint-order="stroke">{escape(label)}</text>'
        for number, label in enumerate(labels)
    ]
    return "\n".join([path, *lines])


HEAD = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1010 300" font-family="sans-serif" \
font-size="13">
<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" \
orient="auto"><path d="M 0 0 L 10 5 L 0 10 z" fill="#333333"/></marker></defs>
<rect width="100%" height="100%" fill="#ffffff"/>"""


def by_hand(cause: CircuitCause, target: CircuitState, y: float) -> str:
    """An arrow from any state."""
    left, right = 700, 870
    middle = (left + 64 + right) / 2
    return "\n".join(
        [
            f'<text x="{left}" y="{y + 5}">any state</text>',
            f'<path d="M {left + 64} {y} H {right - 4}" stroke="#333333" marker-end="url(#tip)"/>',
            f'<text x="{middle}" y="{y - 6}" text-anchor="middle">{escape(cause.value)}</text>',
            box(target, (right + BOX[0] / 2, y)),
        ]
    )


def breaker_diagram() -> str:
    """The states of a circuit breaker and what leads from one to another."""
    arrows = [
        arrow(PLACES[source], PLACES[target], labels)
        for (source, target), labels in edges().items()
    ]
    boxes = [box(state, place) for state, place in PLACES.items()]
    commands = [
        by_hand(cause, target, 60 + 80 * number)
        for number, (cause, target) in enumerate(common_causes().items())
    ]
    return "\n".join([HEAD, *arrows, *boxes, *commands, "</svg>", ""])


DIAGRAMS = {"breaker.svg": breaker_diagram}


def main(arguments: list[str]) -> int:
    """Write the diagrams, or tell which ones are not current.

    Args:
        arguments: Without the program's name.
    """
    stale = []
    for name, draw in DIAGRAMS.items():
        path, drawn = HERE / name, draw()
        if "--check" not in arguments:
            path.write_text(drawn, encoding="utf-8")
        elif not path.exists() or path.read_text("utf-8") != drawn:
            stale.append(name)
    if stale:
        sys.stderr.write(f"not current: {', '.join(stale)}; run python docs/make_diagrams.py\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
