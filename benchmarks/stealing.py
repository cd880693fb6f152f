"""What the work-stealing deque and the pool cost and gain, beside what one would use instead.

Competitors take turns within one run, so that a busy machine slows all of them; each row is a ratio
of their best or median figures with a bound. Costs of one thread are CPU time. Useful utilisation is
serial CPU time / (wall time x cores - the time for which our threads were ready, but other processes
had the cores); on an idle machine nothing is subtracted.

Run it with ``python benchmarks/stealing.py [--json FILE] [--rounds N] [--crossbeam PROGRAM]``. With a C
compiler it also builds csrc/bench.c; benchmarks/crossbeam is built with ``cargo build --release``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from statistics import median
from time import perf_counter, process_time, sleep, thread_time
from typing import Any, Literal

from attrs import asdict, frozen

from orchestra import WorkStealingDeque, WorkStealingPool
from orchestra.stealing import IMPLEMENTATION, available_cores

ROOT = Path(__file__).parents[1]
CORES = 2


@frozen
class Row:
    """One line of the result."""

    name: str
    value: float
    bound: float
    sense: Literal["<=", ">="]
    detail: str

    @property
    def is_kept(self) -> bool:
        """Whether the bound is kept."""
        return self.value <= self.bound if self.sense == "<=" else self.value >= self.bound


def waited(thread: int) -> float:
    """Seconds that a thread of this process was ready to run, but other processes had the cores."""
    try:
        text = Path(f"/proc/self/task/{thread}/schedstat").read_text(encoding="ascii")
    except OSError:
        return 0.0
    return int(text.split()[1]) * 1e-9


# --- one thread ----------------------------------------------------------------------------------


def unrolled(statement: str, times: int) -> Callable[..., None]:
    """A function (rounds, it, item) that runs a statement, with little loop around it."""
    body = f"        {statement}\n" * times
    space: dict[str, Any] = {}
    exec(f"def run(rounds, it, item):\n    for _ in rounds:\n{body}", space)  # noqa: S102 - our text
    run: Callable[..., None] = space["run"]
    return run


def deque_rows(rounds: int) -> list[Row]:
    """Single items and batches, by one thread."""
    pairs = 20
    batch = list(range(32))
    competitors: dict[str, tuple[Callable[..., None], object, object, int]] = {
        "native": (unrolled("it.push(item); it.pop()", pairs), WorkStealingDeque(), None, pairs),
        "deque": (unrolled("it.append(item); it.pop()", pairs), deque(), None, pairs),
        "batch": (
            unrolled("it.push_many(item); it.pop_many(32)", 2),
            WorkStealingDeque(),
            batch,
            64,
        ),
    }
    costs: dict[str, list[float]] = {name: [] for name in competitors}
    for _ in range(rounds * 5):
        for name, (run, it, item, per_loop) in competitors.items():
            loops = 12_800 // per_loop
            began = thread_time()
            run(repeat(None, loops), it, item)
            costs[name].append((thread_time() - began) / (loops * per_loop) * 1e9)
    native, theirs, batched = (median(costs[name]) for name in ("native", "deque", "batch"))
    return [
        Row(
            "push+pop / collections.deque append+pop",
            native / theirs,
            1.3,
            "<=",
            f"{native:.1f} ns / {theirs:.1f} ns",
        ),
        Row(
            "item in a batch of 32 / single",
            batched / native,
            0.4,
            "<=",
            f"{batched:.1f} ns / {native:.1f} ns",
        ),
    ]


def rival_row(rounds: int) -> Row:
    """What is left to an owner beside a thread that runs Python code.

    With a GIL the two share one core, so rates are for each second of the process's CPU time, which
    other processes do not disturb.
    """
    run = unrolled("it.push(item); it.pop()", 20)
    it = WorkStealingDeque[None]()

    def rate() -> float:
        began = now = process_time()
        done = 0
        while now < began + 0.1:
            run(repeat(None, 100), it, None)
            done += 1
            now = process_time()
        return done / (now - began)

    def spin() -> None:
        while not stop.is_set():
            sum(range(100))

    shares: list[float] = []
    for _ in range(rounds):
        alone = rate()
        stop = threading.Event()
        rival = threading.Thread(target=spin)
        rival.start()
        shares.append(rate() / alone)
        stop.set()
        rival.join()
    return Row(
        "owner's rate beside a Python thread / alone",
        median(shares),
        0.45,
        ">=",
        f"{min(shares):.2f} to {max(shares):.2f}; a fair share is 0.50",
    )


def raw_rows(rounds: int, crossbeam: str | None) -> list[Row]:
    """Raw C, beside a mutex and, where it was built, beside crossbeam-deque."""
    compiler = next(filter(None, map(shutil.which, ("gcc", "clang", "cc"))), None)
    if compiler is None:
        print("no C compiler: the raw rows are left out")
        return []
    with tempfile.TemporaryDirectory() as directory:
        program = str(Path(directory, "bench"))
        source = str(ROOT / "csrc" / "bench.c")
        command = [compiler, "-std=gnu11", "-O3", "-pthread", source, "-o", program]
        subprocess.run(command, check=True)
        ours: list[float] = []
        mutex: list[float] = []
        theirs: list[float] = []
        for _ in range(rounds):
            run = subprocess.run([program, "10"], capture_output=True, text=True, check=True)
            for line in run.stdout.splitlines():
                figures = line.split()
                ours.append(float(figures[1]))
                mutex.append(float(figures[3]))
            if crossbeam:
                run = subprocess.run([crossbeam, "10"], capture_output=True, text=True, check=True)
                theirs += [float(line.split()[1]) for line in run.stdout.splitlines()]
    rows = [
        Row(
            "raw C: ring behind a mutex / ours",
            min(mutex) / min(ours),
            4.0,
            ">=",
            f"{min(mutex):.2f} ns / {min(ours):.2f} ns",
        )
    ]
    if theirs:
        rows.append(
            Row(
                "raw C: ours / crossbeam-deque",
                min(ours) / min(theirs),
                1.0,
                "<=",
                f"{min(ours):.2f} ns / {min(theirs):.2f} ns",
            )
        )
    return rows


# --- the pool ------------------------------------------------------------------------------------


def nothing(_: object) -> None:
    """A tiny task."""


def tiny_rows(rounds: int) -> list[Row]:
    """Tasks that do nothing, through the pool and through ThreadPoolExecutor."""
    count = 4000
    items = range(count)
    costs: dict[str, list[float]] = {"many": [], "one": [], "executor": []}
    with WorkStealingPool(CORES) as pool, ThreadPoolExecutor(CORES) as executor:
        for _ in range(rounds * 3):
            began = perf_counter()
            with pool.scope() as scope:
                scope.submit_many(nothing, items)
            costs["many"].append((perf_counter() - began) / count * 1e6)
            began = perf_counter()
            with pool.scope() as scope:
                for item in items:
                    scope.submit(nothing, item)
            costs["one"].append((perf_counter() - began) / count * 1e6)
            began = perf_counter()
            for future in [executor.submit(nothing, item) for item in items]:
                future.result()
            costs["executor"].append((perf_counter() - began) / count * 1e6)
    many, one, executor_ = (min(taken) for taken in costs.values())
    usual = {name: median(taken) for name, taken in costs.items()}
    return [
        Row(
            "tiny tasks, ThreadPoolExecutor / submit_many",
            executor_ / many,
            8.0,
            ">=",
            f"{executor_:.2f} us / {many:.2f} us; medians {usual['executor']:.2f} / {usual['many']:.2f}",
        ),
        Row(
            "tiny tasks, ThreadPoolExecutor / submit",
            executor_ / one,
            5.0,
            ">=",
            f"{executor_:.2f} us / {one:.2f} us; medians {usual['executor']:.2f} / {usual['one']:.2f}",
        ),
    ]


def skewed_rows(rounds: int) -> list[Row]:  # noqa: C901 - five competitors
    """sha256 of pieces of very different size: what the cores do for the result."""
    choice = random.Random(4)
    sizes = [min(int(choice.lognormvariate(11, 1.5)), 16 << 20) for _ in range(1500)]
    data = memoryview(choice.randbytes(max(sizes)))
    shuffled = sizes
    in_order = sorted(sizes)  # as when the big files lie in one folder

    def digest(size: int) -> bytes:
        return hashlib.sha256(data[:size]).digest()

    def all_of(part: list[int]) -> None:
        for size in part:
            digest(size)

    def static(part: list[int]) -> float:
        delays: list[float] = []

        def half(mine: list[int]) -> None:
            all_of(mine)
            delays.append(waited(threading.get_native_id()))

        cut = len(part) // 2
        threads = [threading.Thread(target=half, args=(each,)) for each in (part[:cut], part[cut:])]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(delays)

    def through(threads: list[threading.Thread], run: Callable[[], object]) -> float:
        before = sum(waited(thread.native_id or 0) for thread in threads)
        run()
        return sum(waited(thread.native_id or 0) for thread in threads) - before

    def stealing(part: list[int]) -> None:
        with pool.scope() as scope:
            scope.submit_many(digest, part)

    shares: dict[str, list[float]] = {}
    plain: list[float] = []
    reported: list[float] = []
    with ThreadPoolExecutor(CORES) as executor:
        list(executor.map(sleep, [0.01] * CORES))  # it starts its threads when there is work
        crew = [*executor._threads]  # noqa: SLF001 - the names of its threads are nowhere else
        runs: dict[str, Callable[[], float]] = {
            "pool": lambda: through(workers, lambda: stealing(in_order)),
            "static": lambda: static(in_order),
            "executor": lambda: through(crew, lambda: list(executor.map(digest, in_order))),
            "pool, shuffled": lambda: through(workers, lambda: stealing(shuffled)),
            "static, shuffled": lambda: static(shuffled),
        }
        for _ in range(rounds):
            began = thread_time()
            all_of(in_order)
            serial = thread_time() - began
            for name, run in runs.items():
                with WorkStealingPool(CORES, name="skewed") as pool:
                    workers = [t for t in threading.enumerate() if t.name.startswith("skewed-")]
                    started = perf_counter()
                    delay = run()
                    wall = perf_counter() - started
                    if name == "pool":
                        reported.append(pool.statistics().useful_utilisation)
                        plain.append(serial / (wall * CORES))
                shares.setdefault(name, []).append(serial / (wall * CORES - delay))
    best = {name: median(values) for name, values in shares.items()}
    rest = ", ".join(f"{name} {best[name]:.2f}" for name in list(best)[2:])
    return [
        Row(
            "useful utilisation, skewed sha256, pool",
            best["pool"],
            0.93,
            ">=",
            f"by wall time {max(plain):.2f} at best, {median(plain):.2f} median; its own "
            f"statistics {max(reported):.2f} at best; {rest}",
        ),
        Row(
            "useful utilisation, skewed sha256, static halves",
            best["static"],
            0.6,
            "<=",
            f"{min(shares['static']):.2f} to {max(shares['static']):.2f}",
        ),
    ]


def wake_row(rounds: int) -> Row:
    """From submitting a task to its start, when the worker sleeps."""
    taken: list[float] = []
    began = 0.0
    done = threading.Lock()

    def stamp() -> None:
        taken.append((perf_counter() - began) * 1e6)
        done.release()

    with WorkStealingPool(1) as pool, pool.scope() as scope:
        for _ in range(rounds * 60):
            while not pool.statistics().sleeping:
                sleep(0.0002)
            sleep(0.0005)
            done.acquire()
            began = perf_counter()
            scope.submit(stamp)
            done.acquire()
            done.release()
    ordered = sorted(taken)
    return Row(
        "wake-up of a parked worker, us (median)",
        median(ordered),
        30.0,
        "<=",
        f"p10 {ordered[len(ordered) // 10]:.0f}, p90 {ordered[len(ordered) * 9 // 10]:.0f}",
    )


def main() -> int:
    """Measure, print, and compare with the bounds; 1 when one is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--rounds", type=int, default=15, help="how often each thing is measured")
    parser.add_argument("--crossbeam", help="the program built from benchmarks/crossbeam")
    options = parser.parse_args()
    if IMPLEMENTATION != "native":
        print("the extension is not active: the bounds are for the native deque", file=sys.stderr)
        return 2
    before = os.getloadavg()[0]
    rows = [
        *deque_rows(options.rounds),
        rival_row(options.rounds),
        *raw_rows(options.rounds, options.crossbeam),
        *tiny_rows(options.rounds),
        *skewed_rows(options.rounds),
        wake_row(options.rounds),
    ]
    load = f"load {before:.1f} before, {os.getloadavg()[0]:.1f} after"
    title = f"Python {platform.python_version()}, {available_cores()} cores, {load}"
    print(title)
    for row in rows:
        verdict = "kept" if row.is_kept else "BROKEN"
        print(
            f"{row.name:<48} {row.value:7.2f}  {row.sense} {row.bound:<5} {verdict:<7} {row.detail}"
        )
    if options.json:
        report = {
            "python": platform.python_version(),
            "machine": platform.platform(),
            "cores": available_cores(),
            "load": [before, os.getloadavg()[0]],
            "rounds": options.rounds,
            "rows": [asdict(row) | {"is_kept": row.is_kept} for row in rows],
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return int(not all(row.is_kept for row in rows))


if __name__ == "__main__":
    sys.exit(main())
