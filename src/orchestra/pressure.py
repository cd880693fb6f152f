"""Whether memory is short, so that unimportant work can wait for a better time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final, final

from attrs import frozen

from orchestra._core.checks import finite

__all__ = ("MemoryPressure", "MemoryReading", "read_memory")

_logger: Final = logging.getLogger(__name__)


@frozen(kw_only=True)
class MemoryReading:
    """How scarce memory is.

    Attributes:
        usage: The part that is in use, from 0.0 to 1.0.
        stalled: The part of the last 10 seconds in which some task waited for memory, from 0.0 to
            1.0; 0.0 where the kernel does not tell (it needs Linux with pressure stall information).
    """

    usage: float
    stalled: float = 0.0


@final
class MemoryPressure:
    """A look at memory that is at most ``interval`` seconds old.

    Memory is short when more than ``threshold`` of it is in use, or when tasks stall for it for
    more than ``stall_threshold`` of the time. An entered `ConcurrencyController` reads it in the
    background; without that, a request of LOW priority does, if the last reading is too old.

    Args:
        threshold: The part in use above which memory is short; above 0.0, at most 1.0.
        stall_threshold: The part of the time, likewise.
        interval: The least seconds between two readings, above 0.
        probe: Reads the memory; it should not block. By default ``read_memory``. When it raises
            ``OSError`` or ``ValueError`` the last reading stays.

    Raises:
        TypeError: ``probe`` is not callable.
        ValueError: A number is out of its range.
    """

    def __init__(
        self,
        threshold: float = 0.8,
        *,
        stall_threshold: float = 0.1,
        interval: float = 0.25,
        probe: Callable[[], MemoryReading] | None = None,
    ) -> None:
        for name, value in (("threshold", threshold), ("stall_threshold", stall_threshold)):
            if not 0 < finite(name, value) <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1, not {value!r}")
        if finite("interval", interval) <= 0:
            raise ValueError(f"interval must be above 0 seconds, not {interval!r}")
        if probe is not None and not callable(probe):
            raise TypeError(f"probe must be callable, not {probe!r}")
        self.interval: Final = interval
        self._threshold = threshold
        self._stall_threshold = stall_threshold
        self._probe = read_memory if probe is None else probe
        self._reading = MemoryReading(usage=0.0)
        self._read_at = float("-inf")
        self._has_failed = False

    @property
    def is_high(self) -> bool:
        """Whether memory was short at the last reading."""
        reading = self._reading
        return reading.usage > self._threshold or reading.stalled > self._stall_threshold

    def refresh(self, now: float) -> None:
        """Read memory if the last reading is ``interval`` old.

        Args:
            now: Seconds of a monotonic clock, always the same one.
        """
        if now - self._read_at < self.interval:
            return
        self._read_at = now
        try:
            self._reading = self._probe()
        except (OSError, ValueError) as exc:
            if not self._has_failed:
                self._has_failed = True
                _logger.warning("memory cannot be read, the last reading stays: %s", exc)

    def statistics(self) -> MemoryReading:
        """Return the last reading."""
        return self._reading

    def __repr__(self) -> str:
        state = "high" if self.is_high else "ok"
        return f"<MemoryPressure {state}: usage {self._reading.usage:.0%} of {self._threshold:.0%}>"


def read_memory(root: Path = Path("/")) -> MemoryReading:
    """Read the memory of this process's control group, or of the system if that is shorter.

    The page cache that the kernel can drop does not count as used. About 60 microseconds.

    Args:
        root: Where ``proc`` and ``sys`` are.

    Returns:
        The reading; usage 0.0 on a system that has neither.
    """
    groups = _control_groups(root)
    usages = [_system_usage(root / "proc/meminfo"), *map(_group_usage, groups)]
    stalls = [_stalled(group / "memory.pressure") for group in groups[:1]]
    return MemoryReading(
        usage=max(usages), stalled=max([*stalls, _stalled(root / "proc/pressure/memory")])
    )


def _text(path: Path) -> str:
    try:
        return path.read_text("ascii")
    except OSError:
        return ""  # another kernel, or not our business to see


def _control_groups(root: Path) -> list[Path]:
    for line in _text(root / "proc/self/cgroup").splitlines():
        if line.startswith("0::/"):
            top = root / "sys/fs/cgroup"
            own = top / line.removeprefix("0::/")
            # Any ancestor may have the limit that counts.
            return [own, *(parent for parent in own.parents if parent.is_relative_to(top))]
    return []


def _group_usage(group: Path) -> float:
    limit = _text(group / "memory.max").strip()
    if not limit.isdigit() or limit == "0":
        return 0.0
    used = int(_text(group / "memory.current") or 0)
    cache = _fields(_text(group / "memory.stat")).get("inactive_file", 0)
    return max(0, used - cache) / int(limit)


def _system_usage(meminfo: Path) -> float:
    fields = _fields(_text(meminfo))
    total = fields.get("MemTotal:", 0)
    return 1 - fields.get("MemAvailable:", total) / total if total else 0.0


def _fields(text: str) -> dict[str, int]:
    return {
        parts[0]: int(parts[1])
        for line in text.splitlines()
        if len(parts := line.split()) >= 2 and parts[1].isdigit()
    }


def _stalled(pressure: Path) -> float:
    # some avg10=0.12 avg60=0.05 avg300=0.01 total=12345
    for line in _text(pressure).splitlines():
        if line.startswith("some avg10="):
            return float(line.split()[1].removeprefix("avg10=")) / 100
    return 0.0
