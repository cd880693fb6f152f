"""Run the suite: ``python -m benchmarks [group ...] [--rounds N] [--seed N] [--save FOLDER]``.

A group is a module ``bench_<group>.py`` beside this one. It has ``BENCHMARKS``, a sequence of
`benchmarks.frame.Benchmark`, and ``PEERS``, the distributions it compares with.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

from benchmarks import report
from benchmarks.frame import run


def groups() -> list[str]:
    """The names of all groups."""
    return sorted(
        path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py")
    )


def main(arguments: list[str]) -> int:
    """Run what the command line names; 1 when ``--strict`` and a bound was missed.

    Args:
        arguments: Without the program's name.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("group", nargs="*", help=f"some of: {', '.join(groups())}; default: all")
    parser.add_argument("--only", default="", help="only benchmarks whose name contains this")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--save", type=Path, help="write JSON, table and picture there")
    parser.add_argument("--strict", action="store_true", help="exit with 1 on a missed bound")
    options = parser.parse_args(arguments)
    unknown = set(options.group) - set(groups())
    if unknown:
        parser.error(f"no such group: {', '.join(sorted(unknown))}")
    is_missed = False
    for group in options.group or groups():
        module = import_module(f"benchmarks.bench_{group}")
        about = report.surroundings(
            f"python -m benchmarks {group} --rounds {options.rounds} --seed {options.seed}",
            seed=options.seed,
            rounds=options.rounds,
            peers=module.PEERS,
        )
        outcomes = []
        for benchmark in module.BENCHMARKS:
            if options.only not in benchmark.name:
                continue
            outcome = run(benchmark, rounds=options.rounds, seed=options.seed)
            outcomes.append(outcome)
            print(report.as_text(outcome), flush=True)
            is_missed |= any(
                comparison.is_met is False
                for _, comparisons in outcome.comparisons()
                for comparison in comparisons
            )
        if options.save is not None and outcomes:
            report.save(group, outcomes, about, options.save)
    return 1 if options.strict and is_missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
