from __future__ import annotations

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra.testing import (
    Action,
    Job,
    ScheduleStep,
    ScriptedFailure,
    play,
    random_schedule,
    virtual_time_options,
)

pytestmark = pytest.mark.parametrize("backend", ["asyncio", "trio"])


class Diary:
    """What happened to the jobs."""

    def __init__(self) -> None:
        self.events: list[tuple[int, str]] = []

    async def body(self, job: Job) -> None:
        self.events.append((job.number, "start"))
        try:
            await job.work()
        except ScriptedFailure:
            self.events.append((job.number, "fail"))
            raise
        except BaseException:
            self.events.append((job.number, "cancel"))
            raise
        self.events.append((job.number, "complete"))


def run(backend: str, schedule: tuple[ScheduleStep, ...], diary: Diary) -> float:
    """Play a schedule; return how long it took."""

    async def main() -> float:
        begin = anyio.current_time()
        await play(schedule, diary.body)
        return anyio.current_time() - begin

    return anyio.run(main, backend=backend, backend_options=virtual_time_options(backend))


def test_every_action_does_what_it_says(backend: str) -> None:
    """Jobs are started, cancelled, completed and failed in order, and what is left completes."""
    diary = Diary()
    seconds = run(
        backend,
        (
            *(ScheduleStep(Action.START, number) for number in range(4)),
            ScheduleStep(Action.ADVANCE, seconds=60.0),
            ScheduleStep(Action.FAIL, 2),
            ScheduleStep(Action.CANCEL, 0),
            ScheduleStep(Action.COMPLETE, 1),
            ScheduleStep(Action.COMPLETE, 2),
        ),
        diary,
    )
    assert diary.events == [
        *((number, "start") for number in range(4)),
        (2, "fail"),
        (0, "cancel"),
        (1, "complete"),
        (3, "complete"),
    ]
    assert seconds == pytest.approx(60.0)


def test_at_once_leaves_no_time_to_react(backend: str) -> None:
    """Of two things that happen at once to a job, neither is too early for the other."""
    diary = Diary()
    run(
        backend,
        (
            ScheduleStep(Action.START, 0),
            ScheduleStep(Action.COMPLETE, 0, at_once=True),
            ScheduleStep(Action.FAIL, 0),
        ),
        diary,
    )
    assert diary.events == [(0, "start"), (0, "complete")]


def test_a_wrong_check_ends_the_play(backend: str) -> None:
    """What the check raises comes out."""

    async def main() -> None:
        def check() -> None:
            raise KeyError

        await play([ScheduleStep(Action.START, 0)], Diary().body, check=check)

    with pytest.raises(ExceptionGroup) as caught:
        anyio.run(main, backend=backend, backend_options=virtual_time_options(backend))
    assert caught.group_contains(KeyError)


def test_slow_ends_are_waited_for(backend: str) -> None:
    """A job that takes its time after its work is given it."""
    done = False

    async def body(job: Job) -> None:
        nonlocal done
        await job.work()
        await anyio.sleep(1000)
        done = True

    async def main() -> None:
        await play([ScheduleStep(Action.START, 0)], body)

    anyio.run(main, backend=backend, backend_options=virtual_time_options(backend))
    assert done


@given(seed=st.integers(0, 1 << 32), jobs=st.integers(1, 8), steps=st.integers(0, 60))
def test_random_schedules_repeat_and_end(backend: str, seed: int, jobs: int, steps: int) -> None:
    """The same seed gives the same schedule, each job is started once at most, and all end."""
    schedule = random_schedule(seed, jobs=jobs, steps=steps)
    assert schedule == random_schedule(seed, jobs=jobs, steps=steps)
    starts = [step.job for step in schedule if step.action is Action.START]
    assert starts == list(range(len(starts)))
    assert len(starts) <= jobs
    diary = Diary()
    run(backend, schedule, diary)
    begun = {number for number, event in diary.events if event == "start"}
    ended = [number for number, event in diary.events if event != "start"]
    assert len(ended) == len(set(ended))
    assert set(ended) == begun
    assert begun <= set(starts)
