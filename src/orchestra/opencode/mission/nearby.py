"""Whether reading a few files is cheaper than handing the work to a thread."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from orchestra import WorkStealingPool

__all__ = ("is_little", "run_near")

T = TypeVar("T")

_FILES = 8
_BYTES = 16_384
"""Bytes of all the files together; reading, hashing or parsing them takes less than a
millisecond, a way to a thread and back about a fifth of that in the best case, and far more when
the threads of a busy interpreter wait for each other."""


async def run_near(
    pool: WorkStealingPool,
    root: str,
    paths: Sequence[str],
    function: Callable[..., T],
    /,
    *args: Any,
) -> T:
    """Call a function that reads some files: here if they are few and small, else on the pool.

    A checkpoint only when it goes to the pool.

    Args:
        pool: Where it runs otherwise.
        root: The folder that the files are in.
        paths: The files.
        function: What to call.
        *args: Its arguments.
    """
    return function(*args) if is_little(root, paths) else await pool.run(function, *args)


def is_little(root: str, paths: Sequence[str]) -> bool:
    """Whether some files are few and small.

    Args:
        root: The folder that they are in.
        paths: The files.
    """
    return len(paths) <= _FILES and _size(root, paths) <= _BYTES


def _size(root: str, paths: Sequence[str]) -> int:
    total = 0
    for path in paths:
        try:
            total += os.stat(os.path.join(root, path)).st_size  # noqa: PTH116, PTH118  (hot)
        except (OSError, ValueError):
            continue  # gone: there is nothing to read
    return total
