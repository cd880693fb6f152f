"""Finding and ending the processes that a server has left behind, and only those.

A tool of an agent may start what it likes: in sessions and groups of its own, reparented, or
outliving the server that was killed. What is ours is proved by a random marker in the environment
that children inherit, or by ancestry while the server lives; a name proves nothing. Linux tells
both in ``/proc``. Elsewhere nothing is found here, and only the server's process group is ended.
"""

from __future__ import annotations

import os
import signal
from collections import defaultdict
from pathlib import Path

from attrs import frozen

__all__ = ("ProcessId", "can_find", "find_processes", "kill")

_PROC = Path("/proc")


@frozen
class ProcessId:
    """One process for good: a number alone may be given to another one later.

    Attributes:
        pid: Its number.
        start: When it started, in clock ticks after boot.
    """

    pid: int
    start: int


def can_find() -> bool:
    """Whether this system tells which processes carry a marker."""
    return _read_stat(os.getpid()) is not None


def find_processes(marker: str, ancestor: int | None = None) -> frozenset[ProcessId]:
    """Find the living processes that carry the marker or descend from the ancestor.

    Reads files only; takes a few milliseconds.

    Args:
        marker: ``NAME=value`` as it stands in the environment.
        ancestor: A process whose descendants count too; itself it does not.
    """
    stats: dict[int, tuple[ProcessId, int]] = {}
    children: defaultdict[int, list[int]] = defaultdict(list)
    try:
        names = os.listdir(_PROC)  # noqa: PTH208 - names, not paths, and nothing else
    except OSError:
        return frozenset()
    for name in names:
        if name.isdecimal() and (stat := _read_stat(int(name))) is not None:
            stats[int(name)] = stat
            children[stat[1]].append(int(name))
    found = {pid for pid in stats if pid != os.getpid() and _has_marker(pid, marker.encode())}
    queue = [ancestor] if ancestor is not None else []
    while queue:
        for child in children[queue.pop()]:
            if child not in found:
                found.add(child)
            queue.append(child)
    found.discard(ancestor or 0)
    return frozenset(stats[pid][0] for pid in found)


def kill(process: ProcessId, number: int = signal.SIGKILL) -> bool:
    """Send a signal to exactly that process.

    Args:
        process: The process.
        number: The signal.

    Returns:
        Whether it was still there.
    """
    try:
        handle = os.pidfd_open(process.pid)
    except (OSError, AttributeError):
        return False
    try:
        # The handle pins the process; whether it is the one we mean can now be checked.
        stat = _read_stat(process.pid)
        if stat is None or stat[0] != process:
            return False
        signal.pidfd_send_signal(handle, number)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def _read_stat(pid: int) -> tuple[ProcessId, int] | None:
    """A process and its parent's number; None when it is gone or a zombie."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    # proc(5): "pid (name) state ppid ...", and the name may contain anything.
    fields = text.rpartition(")")[2].split()
    if fields[0] in {"Z", "X"}:
        return None
    return ProcessId(pid, int(fields[19])), int(fields[1])


def _has_marker(pid: int, marker: bytes) -> bool:
    try:
        environment = (_PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return False
    return marker in environment.split(b"\0")
