"""Random but repeatable schedules: what a hostile scheduler could do to some tasks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from enum import Enum
from random import Random
from typing import final

import anyio
from attrs import frozen

from orchestra.testing.clock import settle

__all__ = ("Action", "Job", "ScheduleStep", "ScriptedFailure", "play", "random_schedule")


class Action(Enum):
    """What a step does."""

    START = "start"
    """Start a job."""
    CANCEL = "cancel"
    """Cancel a job, wherever it is."""
    COMPLETE = "complete"
    """Let a job's work end well."""
    FAIL = "fail"
    """Let a job's work raise `ScriptedFailure`."""
    ADVANCE = "advance"
    """Let time pass."""


@frozen
class ScheduleStep:
    """One step of a schedule.

    Attributes:
        action: What to do.
        job: With which job; meaningless for `Action.ADVANCE`.
        seconds: How much time passes, for `Action.ADVANCE`.
        at_once: Do not wait for the effect: the next step happens before any task runs again, so
            that for instance a job is cancelled in the same moment in which it got what it waited
            for.
    """

    action: Action
    job: int = 0
    seconds: float = 0.0
    at_once: bool = False


class ScriptedFailure(Exception):  # noqa: N818 - it is no error of anybody
    """A job's work failed because the schedule said so."""


@final
class Job:
    """A job of a schedule, as its body sees it.

    Attributes:
        number: Which one it is, from 0.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._scope = anyio.CancelScope()
        self._told = anyio.Event()
        self._fails = False

    async def work(self) -> None:
        """Work until the schedule ends it: return, raise, or be cancelled. A checkpoint.

        Raises:
            ScriptedFailure: The schedule said `Action.FAIL`.
        """
        await self._told.wait()
        if self._fails:
            raise ScriptedFailure(f"job {self.number} failed as scheduled")


def random_schedule(seed: int, *, jobs: int = 6, steps: int = 30) -> tuple[ScheduleStep, ...]:
    """Draw a schedule; the same for the same arguments.

    With Hypothesis: ``st.builds(random_schedule, st.integers(0, 2**32))``.

    Args:
        seed: Anything.
        jobs: How many jobs there are; each is started once at most.
        steps: How many steps to draw.
    """
    random = Random(seed)  # noqa: S311 - no secret
    schedule: list[ScheduleStep] = []
    started = 0
    for _ in range(steps):
        action = random.choice(list(Action))
        if started == 0 or (action is Action.START and started < jobs):
            step = ScheduleStep(Action.START, started)
            started += 1
        elif action is Action.ADVANCE:
            step = ScheduleStep(action, seconds=random.choice((0.001, 0.1, 1.0, 60.0)))
        elif action is Action.START:
            continue
        else:
            at_once = random.random() < 0.5
            step = ScheduleStep(action, random.randrange(started), at_once=at_once)
        schedule.append(step)
    return tuple(schedule)


async def play(
    schedule: Iterable[ScheduleStep],
    body: Callable[[Job], Awaitable[None]],
    *,
    check: Callable[[], object] = lambda: None,
) -> None:
    """Perform a schedule; afterwards complete what still runs, in order, until all jobs are done.

    To be used in virtual time, see `virtual_time_options`.

    Args:
        schedule: The steps.
        body: What a job does; between taking and giving back it should ``await job.work()``. Its
            `ScriptedFailure` is expected, any other exception is not.
        check: Called whenever every task waits; raises when something is wrong.
    """
    jobs: dict[int, Job] = {}
    running: set[int] = set()

    async def run(job: Job) -> None:
        try:
            with job._scope:  # noqa: SLF001 - `Job` is half of this function
                await body(job)
        except ScriptedFailure:
            pass
        finally:
            running.discard(job.number)

    async with anyio.create_task_group() as tasks:
        for step in schedule:
            if step.action is Action.START:
                job = jobs[step.job] = Job(step.job)
                running.add(step.job)
                tasks.start_soon(run, job)
            elif step.action is Action.ADVANCE:
                await anyio.sleep(step.seconds)
            else:
                _tell(jobs[step.job], step.action)
            if not step.at_once:
                await settle()
                check()
        while running:
            for number in sorted(running):
                _tell(jobs[number], Action.COMPLETE)
            await settle()
            check()
            if running:
                await anyio.sleep(60.0)
    check()


def _tell(job: Job, action: Action) -> None:
    if action is Action.CANCEL:
        job._scope.cancel()  # noqa: SLF001 - `Job` is half of this module
    elif not job._told.is_set():  # noqa: SLF001
        job._fails = action is Action.FAIL  # noqa: SLF001
        job._told.set()  # noqa: SLF001
