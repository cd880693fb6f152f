"""A work-stealing deque for CPU work in threads, and the search through many files built on it.

The deque is the Chase-Lev algorithm in C11 where the extension could be built, and a
`collections.deque` with the same behaviour where not; ``repr()`` and ``statistics()`` tell which.
`orchestra.workers` has the pool of threads that uses it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from orchestra._native import (
    IMPLEMENTATION,
    REASON,
    DequeStatistics,
    EventCount,
    Stealer,
    WorkStealingDeque,
)
from orchestra._native import scan_files as _scan_files

__all__ = (
    "IMPLEMENTATION",
    "REASON",
    "DequeStatistics",
    "EventCount",
    "Stealer",
    "WorkStealingDeque",
    "available_cores",
    "default_workers",
    "scan_files",
)


def available_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_workers() -> int:
    """How many threads make sense: every core, but at most 4 where a GIL lets one run Python."""
    is_gil_enabled = getattr(sys, "_is_gil_enabled", lambda: True)()
    return min(available_cores(), 4) if is_gil_enabled else available_cores()


def scan_files(
    paths: Iterable[str | os.PathLike[str]],
    needles: Iterable[bytes],
    *,
    threads: int | None = None,
) -> list[int]:
    """Look for literal needles in many files at once.

    With the extension this is one call of a small C executor whose threads steal ranges of files
    from each other while the GIL is free; without it the files are read one after the other. It
    blocks: from an event loop call it through `WorkStealingPool.run`. ::

        hits = scan_files(paths, [b"TODO", b"BEGIN PRIVATE KEY"])
        with_todo = [path for path, bits in zip(paths, hits) if bits > 0 and bits & 1]

    Args:
        paths: Files to read, of any size; not followed into directories.
        needles: At most 62 byte strings, none of them empty.
        threads: How many threads read, 1 to 64; None for one on each core. The fallback uses one.

    Returns:
        For each path an integer in which bit k is set if needle k occurs, or a negative
        ``errno`` if the file cannot be read to its end.

    Raises:
        ValueError: There are too many needles or threads, a needle is empty, or a path has a null
            byte.
        TypeError: A needle is not bytes, or a path is not a path.
    """
    if threads is None:
        threads = min(available_cores(), 64)
    return _scan_files(tuple(paths), tuple(needles), threads=threads)
