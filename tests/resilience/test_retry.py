from __future__ import annotations

import functools
import inspect
import logging
import math
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from orchestra import Backoff, Retry, RetryBudget
from orchestra._core.retry import decide, retry_after_of
from orchestra.errors import RejectedError
from orchestra.events import AttemptFailed, RetryVerdict


class World:
    """A clock that only sleeping moves, what was slept, and work that fails as it is told."""

    def __init__(self, *outcomes: BaseException | None, takes: float = 0.0) -> None:
        self.now = 1000.0
        self.naps: list[float] = []
        self.outcomes = list(outcomes)
        self.takes = takes
        self.calls = 0

    def clock(self) -> float:
        return self.now

    def block(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.now += seconds

    async def sleep(self, seconds: float) -> None:
        await checkpoint()
        self.block(seconds)

    def work(self, value: int = 7) -> int:
        """Take time, then fail or succeed."""
        self.calls += 1
        self.now += self.takes
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if outcome is not None:
            raise outcome
        return value

    async def async_work(self, value: int = 7) -> int:
        await checkpoint()
        return self.work(value)

    def retry(self, **options: Any) -> Retry:
        """A policy in this world, whose jitter is always the longest possible."""
        defaults: dict[str, Any] = {
            "on": OSError,
            "clock": self.clock,
            "sleep": self.sleep,
            "block": self.block,
            "random": lambda: 1.0,
            "backoff": Backoff(initial=1.0, factor=2.0, maximum=5.0),
        }
        return Retry(**(defaults | options))


# Every way to make a call that is repeated.


async def by_call(retry: Retry, world: World, *args: Any) -> int:
    return await retry.call(world.async_work, *args)


async def by_async_function(retry: Retry, world: World, *args: Any) -> int:
    return await retry(world.async_work)(*args)


async def by_function(retry: Retry, world: World, *args: Any) -> int:
    return retry(world.work)(*args)


every_way = pytest.mark.parametrize(
    "way", [by_call, by_async_function, by_function], ids=lambda way: way.__name__
)
Way = Callable[..., Any]


@every_way
async def test_success_is_not_repeated(way: Way) -> None:
    """A call that succeeds is made once, with its arguments, and nothing is slept."""
    world = World()
    retry = world.retry()
    assert await way(retry, world, 3) == 3
    assert (world.calls, world.naps) == (1, [])
    assert (retry.statistics().retried, retry.statistics().given_up) == (0, 0)


@every_way
async def test_waits_grow_up_to_the_maximum(way: Way) -> None:
    """The call is repeated after waits that double up to the maximum, until it succeeds."""
    world = World(*[OSError("down")] * 5)
    retry = world.retry(attempts=6)
    assert await way(retry, world) == 7
    assert world.naps == [1.0, 2.0, 4.0, 5.0, 5.0]
    assert (retry.statistics().retried, retry.statistics().given_up) == (5, 0)


@every_way
async def test_last_error_is_raised_as_it_is(way: Way) -> None:
    """After the last attempt its own error is raised, without the earlier ones in its context."""
    errors = [OSError(str(number)) for number in range(3)]
    world = World(*errors)
    retry = world.retry(attempts=3)
    with pytest.raises(OSError, match="2") as caught:
        await way(retry, world)
    assert caught.value is errors[2]
    assert caught.value.__context__ is None
    assert (world.calls, retry.statistics().given_up) == (3, 1)


@every_way
@pytest.mark.parametrize("error", [KeyError("bug"), KeyboardInterrupt()])
async def test_other_errors_are_not_repeated(way: Way, error: BaseException) -> None:
    """What is not in ``on`` is raised at once."""
    world = World(error)
    with pytest.raises(type(error)):
        await way(world.retry(), world)
    assert (world.calls, world.naps) == (1, [])


@every_way
async def test_deadline_includes_the_waits(way: Way) -> None:
    """A wait that would end at the deadline or after it is not begun: the error comes at once."""
    world = World(*[OSError("down")] * 9, takes=1.0)
    # attempt 0-1, wait -2, attempt -3, wait -5, attempt -6, wait -10
    with pytest.raises(OSError, match="down"):
        await way(world.retry(attempts=9, deadline=10.0), world)
    assert (world.calls, world.naps, world.now) == (3, [1.0, 2.0], 1006.0)
    world = World(*[OSError("down")] * 3, takes=1.0)
    assert await way(world.retry(attempts=9, deadline=10.1), world) == 7
    assert world.now == 1011.0


@every_way
async def test_retry_after_is_the_least_wait(way: Way) -> None:
    """What the other side asked for is waited in full, and the jitter comes on top of it."""
    world = World(RejectedError("busy", 20.0), RejectedError("busy"), RejectedError("busy", 0.5))
    assert await way(world.retry(on=RejectedError), world) == 7
    assert world.naps == [21.0, 2.0, 4.5]


@every_way
async def test_retry_after_beyond_the_deadline_gives_up(way: Way) -> None:
    """When the other side asks for more time than there is, nothing is slept."""
    world = World(RejectedError("busy", 3600.0))
    with pytest.raises(RejectedError):
        await way(world.retry(on=RejectedError, deadline=60.0), world)
    assert world.naps == []


async def test_retry_after_may_be_read_by_a_function() -> None:
    """A function reads the wait from any error."""
    world = World(OSError("13"))
    assert await world.retry(retry_after=lambda error: float(str(error))).call(world.async_work)
    assert world.naps == [14.0]


async def test_cancellation_is_not_repeated() -> None:
    """A cancelled call is not made again, whether it was working or waiting."""
    world = World(*[OSError("down")] * 3)
    retry = world.retry(sleep=anyio.sleep, backoff=Backoff(initial=3600.0, maximum=3600.0))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(retry.call, world.async_work)
        tasks.start_soon(retry.call, anyio.sleep_forever)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert world.calls == 1


async def test_budget_bounds_the_repetitions_of_all() -> None:
    """Calls that share a budget repeat no more than its share of them, and then give up at once."""
    world = World(*[OSError("down")] * 1000)
    budget = RetryBudget(ratio=0.2, per_second=0.0, seconds=1000.0, clock=world.clock)
    verdicts: list[RetryVerdict] = []
    policies = [
        world.retry(budget=budget, listener=lambda event: verdicts.append(event.verdict))
        for _ in range(2)
    ]
    for number in range(100):
        with pytest.raises(OSError, match="down"):
            await policies[number % 2].call(world.async_work)
    assert world.calls == 120
    assert sum(policy.statistics().retried for policy in policies) == 20
    assert verdicts.count(RetryVerdict.BUDGET_SPENT) == 100
    statistics = budget.statistics()
    assert (statistics.calls, statistics.retries, statistics.balance) == (100, 20, 0.0)
    assert repr(budget) == "<RetryBudget 20 retries of 100 calls in 1000 s, 0 left>"


def test_budget_forgets_and_refills() -> None:
    """Calls and repetitions leave the window, and the reserve is granted in every window."""
    world = World()
    budget = RetryBudget(ratio=0.5, per_second=1.0, seconds=10.0, clock=world.clock)
    assert [budget.withdraw() for _ in range(11)] == [True] * 10 + [False]
    for _ in range(4):
        budget.deposit()
    assert [budget.withdraw() for _ in range(3)] == [True, True, False]
    world.now += 9.0
    assert not budget.withdraw()
    world.now += 1.0
    assert budget.statistics().retries == 0
    assert [budget.withdraw() for _ in range(11)] == [True] * 10 + [False]


budgets = st.fixed_dictionaries(
    {
        "ratio": st.sampled_from([0.0, 0.1, 0.5, 1.0]),
        "per_second": st.sampled_from([0.0, 0.5, 2.0]),
        "seconds": st.sampled_from([1.0, 10.0]),
    }
)
steps = st.lists(st.sampled_from(["call", "retry", 0.05, 0.5, 1.0, 7.0]), max_size=80)


@given(budget=budgets, steps=steps)
def test_budget_agrees_with_a_log(budget: dict[str, float], steps: list[str | float]) -> None:
    """A repetition is granted exactly when a log of the window says that one is left."""
    world = World()
    subject = RetryBudget(**budget, clock=world.clock)
    log: list[tuple[float, str]] = []
    step_length = budget["seconds"] / 10
    for step in steps:
        if isinstance(step, float):
            world.now += step
            continue
        window = [kind for at, kind in log if at // step_length > world.now // step_length - 10]
        left = budget["ratio"] * window.count("call") + budget["per_second"] * budget["seconds"]
        if step == "call":
            subject.deposit()
            log.append((world.now, "call"))
        else:
            is_left = left - window.count("retry") >= 1
            assert subject.withdraw() == is_left
            if is_left:
                log.append((world.now, "retry"))


def test_listener_hears_every_failed_attempt() -> None:
    """Each failed attempt is told, with the wait before the next one or why there is none."""
    errors = [OSError("a"), OSError("b")]
    world = World(*errors)
    events: list[AttemptFailed] = []
    with pytest.raises(OSError, match="b"):
        world.retry(attempts=2, listener=events.append)(world.work)()
    assert events == [
        AttemptFailed(attempt=1, error=errors[0], verdict=RetryVerdict.AGAIN, delay=1.0),
        AttemptFailed(attempt=2, error=errors[1], verdict=RetryVerdict.ATTEMPTS_SPENT),
    ]


def test_listener_that_raises_is_logged_and_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """A bug in a listener does not end the call, is logged once, and is not repeated."""
    world = World(OSError("a"), OSError("b"))

    def listener(event: AttemptFailed) -> None:
        raise KeyError("bug")

    with caplog.at_level(logging.ERROR, logger="orchestra"):
        assert world.retry(listener=listener)(world.work)() == 7
    assert len(caplog.records) == 1


def test_default_jitter_is_full() -> None:
    """The default waits are spread over the whole range, not gathered at its end."""
    world = World(*[OSError("down")] * 400)
    backoff = Backoff(initial=1.0, factor=1.0, maximum=1.0)
    retry = Retry(on=OSError, attempts=401, backoff=backoff, block=world.block)
    assert retry(world.work)() == 7
    assert min(world.naps) < 0.1
    assert max(world.naps) > 0.9
    assert 0.4 < sum(world.naps) / 400 < 0.6


@given(
    initial=st.floats(0.001, 100.0),
    factor=st.floats(1.0, 10.0),
    maximum=st.floats(100.0, 1e6),
    attempt=st.integers(1, 10_000),
)
def test_ceiling_never_overflows(
    initial: float, factor: float, maximum: float, attempt: int
) -> None:
    """For any number of attempts the longest wait is finite, grows, and stays in its bounds."""
    backoff = Backoff(initial=initial, factor=factor, maximum=maximum)
    ceiling = backoff.ceiling(attempt)
    assert initial <= ceiling <= maximum
    assert backoff.ceiling(attempt + 1) >= ceiling


@given(
    attempt=st.integers(1, 8),
    attempts=st.integers(1, 8),
    jitter=st.floats(0.0, 1.0, exclude_max=True),
    retry_after=st.none() | st.floats(0.0, 100.0),
    elapsed=st.floats(0.0, 100.0),
    deadline=st.none() | st.floats(0.1, 100.0),
)
def test_decision_keeps_its_bounds(
    attempt: int,
    attempts: int,
    jitter: float,
    retry_after: float | None,
    elapsed: float,
    deadline: float | None,
) -> None:
    """No attempt too many, no wait past the deadline, none shorter than the other side asked."""
    verdict, delay = decide(
        attempt=attempt,
        attempts=attempts,
        backoff=Backoff(),
        jitter=jitter,
        retry_after=retry_after,
        elapsed=elapsed,
        deadline=deadline,
    )
    is_late = deadline is not None and elapsed + delay >= deadline
    if attempt >= attempts:
        assert verdict is RetryVerdict.ATTEMPTS_SPENT
    else:
        assert verdict is (RetryVerdict.DEADLINE_REACHED if is_late else RetryVerdict.AGAIN)
    least = retry_after or 0.0
    assert least <= delay <= least + Backoff().ceiling(attempt)


@pytest.mark.parametrize("value", [None, -1.0, math.inf, math.nan, "3", True], ids=repr)
def test_retry_after_that_is_no_time_is_ignored(value: Any) -> None:
    """An attribute that is not a number from 0 up says nothing."""
    error = RejectedError("busy", value)
    assert retry_after_of(error) is None
    assert retry_after_of(OSError()) is None
    assert retry_after_of(RejectedError("busy", 0)) == 0


def test_policy_is_data() -> None:
    """A policy shows its fields and can be varied; the variant counts for itself."""
    world = World(OSError("a"))
    retry = world.retry()
    retry(world.work)()
    other = evolve(retry, attempts=9)
    assert (other.attempts, other.on, retry.attempts) == (9, (OSError,), 4)
    assert (retry.statistics().retried, other.statistics().retried) == (1, 0)
    assert repr(Retry(on=OSError)) == (
        "Retry(on=(<class 'OSError'>,), attempts=4, "
        "backoff=Backoff(initial=0.5, factor=2.0, maximum=30.0), deadline=None, budget=None)"
    )


def test_decorated_function_keeps_its_signature() -> None:
    """Name, parameters and kind of the function stay what they were."""
    world = World()
    retry = world.retry()
    assert inspect.signature(retry(world.work)) == inspect.signature(world.work)
    assert inspect.iscoroutinefunction(retry(functools.partial(world.async_work, 1)))
    assert not inspect.iscoroutinefunction(retry(world.work))


def numbers() -> Iterator[int]:
    yield 1


async def async_numbers() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize("fn", [numbers, async_numbers, 7])
def test_what_cannot_be_repeated_is_refused(fn: Any) -> None:
    """A generator function, whose work begins after its call, is refused when decorated."""
    with pytest.raises(TypeError, match="cannot decorate"):
        Retry(on=OSError)(fn)


@pytest.mark.parametrize(
    ("make", "options", "error", "field"),
    [
        (Retry, {"on": BaseException}, TypeError, "on"),
        (Retry, {"on": "OSError"}, TypeError, "on"),
        (Retry, {"attempts": 0}, ValueError, "attempts"),
        (Retry, {"attempts": 1.5}, TypeError, "attempts"),
        (Retry, {"backoff": 3}, TypeError, "backoff"),
        (Retry, {"deadline": 0}, ValueError, "deadline"),
        (Retry, {"deadline": "60"}, TypeError, "deadline"),
        (Retry, {"budget": 0.2}, TypeError, "budget"),
        (Retry, {"retry_after": 3}, TypeError, "retry_after"),
        (Retry, {"listener": 3}, TypeError, "listener"),
        (Retry, {"clock": 3}, TypeError, "clock"),
        (Retry, {"random": 0.5}, TypeError, "random"),
        (Retry, {"sleep": 1.0}, TypeError, "sleep"),
        (Retry, {"block": 1.0}, TypeError, "block"),
        (Backoff, {"initial": 0}, ValueError, "initial"),
        (Backoff, {"factor": 0.9}, ValueError, "factor"),
        (Backoff, {"factor": "2"}, TypeError, "factor"),
        (Backoff, {"maximum": 0.1}, ValueError, "maximum"),
        (Backoff, {"maximum": math.inf}, ValueError, "maximum"),
        (RetryBudget, {"ratio": -0.1}, ValueError, "ratio"),
        (RetryBudget, {"ratio": "x"}, TypeError, "ratio"),
        (RetryBudget, {"per_second": -1}, ValueError, "per_second"),
        (RetryBudget, {"seconds": 0}, ValueError, "seconds"),
        (RetryBudget, {"clock": 0}, TypeError, "clock"),
    ],
)
def test_bad_configuration_names_the_field(
    make: Callable[..., Any], options: dict[str, Any], error: type[Exception], field: str
) -> None:
    """What cannot work is refused at construction, with the name of the field."""
    if make is Retry:
        options = {"on": OSError} | options
    with pytest.raises(error, match=rf"^{field} must "):
        make(**options)
