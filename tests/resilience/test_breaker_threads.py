from __future__ import annotations

import sys
import threading
from collections import Counter
from random import Random

import anyio
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.resilience.support import Clock, fail, half_open, make, state

from orchestra import CircuitBreaker, CircuitPermit, CircuitTrip
from orchestra.errors import CircuitOpenError
from orchestra.events import CircuitState


def test_half_open_admits_exactly_the_configured_probes_to_threads(clock: Clock) -> None:
    """Of 20 threads that call at the same moment in half-open exactly two get through."""
    breaker = make(clock, half_open_max=2)
    half_open(breaker, clock)
    start = threading.Barrier(20)
    permits: list[CircuitPermit] = []

    def caller() -> None:
        start.wait(10)
        try:
            permits.append(breaker.acquire())
        except CircuitOpenError:
            return

    threads = [threading.Thread(target=caller) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(permits) == 2
    assert breaker.statistics().rejected == 18


def test_threads_call_at_the_same_time(clock: Clock) -> None:
    """Eight threads are inside the protected call at once, so no lock is held during it."""
    breaker = make(clock)
    everybody_is_inside = threading.Barrier(8)

    @breaker
    def work() -> None:
        everybody_is_inside.wait(10)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert breaker.statistics().succeeded == 8


class Call:
    """A task that makes one call and ends it as it is told."""

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.scope = anyio.CancelScope()
        self.step = ""

    async def run(self, breaker: CircuitBreaker, running: list[Call], ended: Counter[str]) -> None:
        try:
            with self.scope, breaker:
                running.append(self)
                await self.done.wait()
                if self.step == "fail":
                    raise OSError("down")
        except CircuitOpenError:
            self.step = "rejected"
        except OSError:
            assert self.step == "fail"
        ended[self.step] += 1

    def end(self, step: str) -> None:
        self.step = step
        if step == "cancel":
            self.scope.cancel()
        else:
            self.done.set()


steps = st.lists(
    st.tuples(
        st.sampled_from(["start", "start", "succeed", "fail", "cancel", "wait"]),
        st.integers(0, 7),
    ),
    min_size=20,
    max_size=60,
)


@settings(max_examples=60)
@given(steps=steps, half_open_max=st.integers(1, 3))
async def test_random_schedules(steps: list[tuple[str, int]], half_open_max: int) -> None:
    """However tasks start, end and are cancelled: probes are bounded, no permit is lost."""
    clock = Clock()
    breaker = make(clock, half_open_max=half_open_max)
    running: list[Call] = []
    ended: Counter[str] = Counter()

    async with anyio.create_task_group() as tasks:
        for step, number in steps:
            if step == "start":
                tasks.start_soon(Call().run, breaker, running, ended)
            elif step == "wait":
                clock.now += 2.0 * number
            elif running:
                running.pop(number % len(running)).end(step)
            await anyio.wait_all_tasks_blocked()
            now = breaker.statistics()
            assert now.probes_out <= min(half_open_max, len(running))
            assert (now.succeeded, now.failed) == (ended["succeed"], ended["fail"])
            assert (now.ignored, now.rejected) == (ended["cancel"], ended["rejected"])
        tasks.cancel_scope.cancel()
    assert breaker.statistics().probes_out == 0


def test_threads_in_every_state(clock: Clock) -> None:
    """Whatever many threads do at once: probes stay bounded, and every call is counted once."""
    breaker = make(clock, half_open_max=2, success_threshold=3)
    counted: list[Counter[str]] = []
    too_many: list[int] = []

    def work(seed: int) -> None:
        random = Random(seed)
        mine: Counter[str] = Counter()
        counted.append(mine)
        for _ in range(400):
            clock.now += random.random()
            try:
                permit = breaker.acquire()
            except CircuitOpenError:
                mine["rejected"] += 1
                continue
            if breaker.statistics().probes_out > 2:
                too_many.append(seed)
            outcome = random.choice(["succeeded", "succeeded", "failed", "ignored"])
            mine[outcome] += 1
            if outcome == "ignored":
                permit.ignore()
            else:
                permit.record(OSError() if outcome == "failed" else None)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    statistics = breaker.statistics()
    total = sum(counted, Counter[str]())
    assert too_many == []
    assert statistics.probes_out == 0
    assert statistics.opened > 5
    assert total == Counter(
        succeeded=statistics.succeeded,
        failed=statistics.failed,
        ignored=statistics.ignored,
        rejected=statistics.rejected,
    )


def test_a_transition_is_not_interrupted(clock: Clock) -> None:
    """While one thread opens the circuit, another cannot move it: it waits for the first."""
    is_waiting: list[bool] = []

    def pause(_trip: CircuitTrip) -> float:
        thread.start()
        thread.join(0.1)
        is_waiting.append(thread.is_alive())
        return 10.0

    breaker = make(clock, recovery_timeout=pause)
    thread = threading.Thread(target=breaker.isolate)
    fail(breaker, 2)
    thread.join()
    assert is_waiting == [True]
    assert state(breaker) is CircuitState.FORCED_OPEN
