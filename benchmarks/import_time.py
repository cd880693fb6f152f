"""What ``import orchestra`` costs beside the import of its own dependencies.

Each import is timed in a fresh interpreter, and the two are taken in turns, so that a busy
machine slows both. The result is the ratio of the medians, with the spread of the paired ratios.
Public names are imported on first use, so the cost of all of them is shown too.

Run it with ``python benchmarks/import_time.py [ROUNDS]``.
"""

from __future__ import annotations

import subprocess
import sys
from statistics import median, quantiles

BASE = "import attrs, anyio, asyncio"
CANDIDATES = {
    "import orchestra": "import orchestra",
    "every core name": "import orchestra; [getattr(orchestra, n) for n in orchestra.__all__]",
}
BOUND = 1.15


def seconds(statement: str) -> float:
    """The time that a statement takes in a fresh interpreter.

    Args:
        statement: What to run.
    """
    code = f"from time import perf_counter as t; a = t()\n{statement}\nprint(t() - a)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(run.stdout)


def main(rounds: int) -> int:
    """Measure, print, and compare with the bound.

    Args:
        rounds: How often each import is timed.

    Returns:
        The exit code: 1 when the bound is broken.
    """
    base: list[float] = []
    times: dict[str, list[float]] = {name: [] for name in CANDIDATES}
    for _ in range(rounds + 1):
        base.append(seconds(BASE))
        for name, statement in CANDIDATES.items():
            times[name].append(seconds(statement))
    print(f"{sys.version.split()[0]}, {rounds} rounds, each in a fresh interpreter")
    print(f"{'attrs + anyio + asyncio':<26} {median(base[1:]) * 1000:7.1f} ms")
    for name, taken in times.items():
        ratios = [mine / theirs for mine, theirs in zip(taken[1:], base[1:], strict=True)]
        low, *_, high = quantiles(ratios, n=10)
        ratio = median(taken[1:]) / median(base[1:])
        spread = f"{ratio:5.2f}x (p10 {low:.2f}, p90 {high:.2f})"
        print(f"{name:<26} {median(taken[1:]) * 1000:7.1f} ms  {spread}")
    worst = median(times["import orchestra"][1:]) / median(base[1:])
    print(f"bound for 'import orchestra': {BOUND}x, {'kept' if worst <= BOUND else 'BROKEN'}")
    return int(worst > BOUND)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 30))
