"""The odd tool server, and what tests want to know of processes."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio

from orchestra import ToolCommand

SERVER = Path(__file__).parents[1] / "tools" / "odd_server.py"


def odd_command(directory: Path, *arguments: str, **options: Any) -> ToolCommand:
    """How to start the odd server."""
    options = {"grace": 5.0, "name": "odd", **options}
    return ToolCommand(
        argv=(sys.executable, "-IS", os.fspath(SERVER), *arguments), directory=directory, **options
    )


def is_running(pid: int) -> bool:
    """Whether a process exists and is more than a zombie that nobody has reaped yet."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return not Path("/proc").is_dir()
    except ProcessLookupError:  # it ended between opening and reading
        return False


async def until(is_so: Callable[[], bool]) -> None:
    """Wait for what other processes do and no event tells."""
    with anyio.fail_after(20):
        while not is_so():  # noqa: ASYNC110
            await anyio.sleep(0.005)


def children() -> set[int]:
    """The processes that this one has started, zombies too."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):  # a thread that has just ended
            found |= set(map(int, (task / "children").read_text().split()))
    return found


def counts() -> dict[str, int]:
    """What may leak: file descriptors, child processes, threads, tasks."""
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),  # noqa: PTH208
        "children": len(children()),
        # trio keeps the threads in which it starts processes for another ten seconds
        "threads": sum(not t.name.startswith("Trio thread") for t in threading.enumerate()),
        "tasks": len(anyio.get_running_tasks()),
    }
