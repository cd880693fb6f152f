from __future__ import annotations

import logging
import math
import pickle
from pathlib import Path

import anyio
import pytest

from orchestra import ConcurrencyController, MemoryPressure, MemoryReading, Priority
from orchestra.errors import PressureError
from orchestra.pressure import read_memory


class Memory:
    """A probe that says what it is told to, and counts."""

    def __init__(self, usage: float = 0.0) -> None:
        self.usage = usage
        self.reads = 0

    def __call__(self) -> MemoryReading:
        self.reads += 1
        return MemoryReading(usage=self.usage)


async def test_low_priority_is_refused_when_memory_is_short() -> None:
    """Above the threshold LOW is refused, however free the slots; the others pass."""
    memory = Memory(0.9)
    controller = ConcurrencyController({"k": 9}, pressure=MemoryPressure(0.8, probe=memory))
    with pytest.raises(PressureError, match="90% in use") as caught:
        await controller.acquire("k", priority=Priority.LOW)
    assert (caught.value.usage, caught.value.retry_after) == (0.9, 0.25)
    assert pickle.loads(pickle.dumps(caught.value)).usage == 0.9  # noqa: S301 - our own
    with pytest.raises(PressureError):
        controller.acquire_nowait("k", priority=Priority.LOW)
    await controller.acquire("k")
    controller.acquire_nowait("k", priority=Priority.HIGH)
    memory.usage = 0.8
    await anyio.sleep(0.25)
    await controller.acquire("k", priority=Priority.LOW)
    assert controller.statistics("k").in_use == 3


async def test_memory_is_read_at_most_once_per_interval() -> None:
    """However many requests come, memory is read once per interval, for LOW only."""
    memory = Memory()
    controller = ConcurrencyController({"k": 999}, pressure=MemoryPressure(probe=memory))
    for _ in range(20):
        controller.acquire_nowait("k")
    assert memory.reads == 0
    for _ in range(20):
        controller.acquire_nowait("k", priority=Priority.LOW)
    assert memory.reads == 1
    await anyio.sleep(0.25)
    controller.acquire_nowait("k", priority=Priority.LOW)
    assert memory.reads == 2


async def test_an_entered_controller_reads_in_the_background() -> None:
    """Inside the controller's block no request reads memory; its task does, once per interval."""
    memory = Memory(0.9)
    pressure = MemoryPressure(probe=memory, interval=1.0)
    async with ConcurrencyController({"k": 999}, pressure=pressure) as controller:
        await anyio.sleep(10.5)
        assert memory.reads == 11
        for _ in range(5):
            with pytest.raises(PressureError):
                await controller.acquire("k", priority=Priority.LOW)
        assert memory.reads == 11


async def test_pressure_is_looked_at_again_after_waiting() -> None:
    """A LOW request that waited for a slot is refused when memory became short meanwhile."""
    memory = Memory()
    controller = ConcurrencyController({"k": 1}, pressure=MemoryPressure(probe=memory))
    token = await controller.acquire("k")

    async def release() -> None:
        await anyio.sleep(1)
        memory.usage = 1.0
        token.release()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(release)
        with pytest.raises(PressureError):
            await controller.acquire("k", priority=Priority.LOW)
    assert controller.statistics("k").in_use == 0


def test_stalls_count_as_pressure() -> None:
    """When tasks wait for memory it is short, whatever the usage."""
    pressure = MemoryPressure(probe=lambda: MemoryReading(usage=0.1, stalled=0.2))
    assert not pressure.is_high
    pressure.refresh(0.0)
    assert pressure.is_high
    assert pressure.statistics() == MemoryReading(usage=0.1, stalled=0.2)
    assert repr(pressure) == "<MemoryPressure high: usage 10% of 80%>"
    assert repr(MemoryPressure()) == "<MemoryPressure ok: usage 0% of 80%>"


def test_failing_probe_keeps_the_last_reading(caplog: pytest.LogCaptureFixture) -> None:
    """A probe that fails is logged once and changes nothing."""
    readings = [MemoryReading(usage=0.9)]

    def probe() -> MemoryReading:
        if not readings:
            raise OSError("gone")
        return readings.pop()

    pressure = MemoryPressure(probe=probe)
    with caplog.at_level(logging.WARNING):
        for now in range(3):
            pressure.refresh(float(now))
    assert pressure.is_high
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"threshold": 0}, ValueError),
        ({"threshold": 1.1}, ValueError),
        ({"threshold": "x"}, TypeError),
        ({"stall_threshold": -1}, ValueError),
        ({"interval": 0}, ValueError),
        ({"interval": math.inf}, ValueError),
        ({"probe": 3}, TypeError),
    ],
    ids=str,
)
def test_bad_configuration(fields: dict[str, object], error: type[Exception]) -> None:
    """A field out of its range is an error that names it."""
    with pytest.raises(error, match=next(iter(fields))):
        MemoryPressure(**fields)  # type: ignore[arg-type]


def write(root: Path, **files: str) -> None:
    """Make files under a root; a double underscore is a slash, a single one at an end a dot."""
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "ascii")


def test_reading_of_a_control_group(tmp_path: Path) -> None:
    """The shortest of the system, the own group and its ancestors counts, without dead cache."""
    write(
        tmp_path,
        proc__meminfo="MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 900 kB\n",
        proc__self__cgroup="1:name=old:/x\n0::/a/b\n",
        proc__pressure__memory="some avg10=1.50 avg60=0.00 avg300=0.00 total=1\nfull avg10=9\n",
        sys__fs__cgroup__a__b__memory_DOT_max="max\n",
        sys__fs__cgroup__a__b__memory_DOT_pressure="some avg10=4.00 avg60=0.00\n",
        sys__fs__cgroup__a__memory_DOT_max="1000\n",
        sys__fs__cgroup__a__memory_DOT_current="800\n",
        sys__fs__cgroup__a__memory_DOT_stat="anon 5\ninactive_file 300\n",
    )
    assert read_memory(tmp_path) == MemoryReading(usage=0.5, stalled=0.04)


def test_reading_of_a_system_without_groups(tmp_path: Path) -> None:
    """Without control groups the system's memory counts, and without that nothing is short."""
    assert read_memory(tmp_path) == MemoryReading(usage=0.0)
    write(tmp_path, proc__meminfo="MemTotal: 1000 kB\nMemAvailable: 250 kB\n")
    assert read_memory(tmp_path) == MemoryReading(usage=0.75)
    write(tmp_path, proc__self__cgroup="0::/\n", proc__pressure__memory="full avg10=9\n")
    assert read_memory(tmp_path) == MemoryReading(usage=0.75)


def test_reading_of_this_system() -> None:
    """On this machine a reading is within its range."""
    reading = read_memory()
    assert 0.0 <= reading.usage <= 1.5
    assert 0.0 <= reading.stalled <= 1.0
