from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec, TypeVar

import anyio
import pytest
from anyio.lowlevel import checkpoint

from orchestra import Backoff, CircuitBreaker, Pipeline, Retry, Timeout
from orchestra.errors import CircuitOpenError, RejectedError

P = ParamSpec("P")
T = TypeVar("T")


class Spy:
    """A policy that notes when a call passes it."""

    def __init__(self, name: str, notes: list[str]) -> None:
        self.name = name
        self.notes = notes

    async def call(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        self.notes.append(f"into {self.name}")
        try:
            return await fn(*args, **kwargs)
        finally:
            self.notes.append(f"out of {self.name}")

    def __repr__(self) -> str:
        return self.name


async def add(a: int, *, b: int = 1) -> int:
    """Add two numbers."""
    await checkpoint()
    return a + b


async def test_first_policy_is_outermost() -> None:
    """A call passes the policies from left to right and comes back from right to left."""
    notes: list[str] = []
    pipeline = Pipeline(Spy("a", notes), Pipeline(Spy("b", notes), Spy("c", notes)))
    assert await pipeline.call(add, 1, b=2) == 3
    assert notes == ["into a", "into b", "into c", "out of c", "out of b", "out of a"]


async def test_empty_pipeline_calls_the_function() -> None:
    """Without policies the function is simply called."""
    assert await Pipeline().call(add, 1) == 2


async def test_decorated_function_keeps_its_signature() -> None:
    """Name, docstring, parameters and kind of the function stay what they were."""
    for policy in (Pipeline(Timeout(5.0)), Timeout(5.0)):
        decorated = policy(add)
        assert await decorated(1, b=5) == 6
        assert inspect.signature(decorated) == inspect.signature(add)
        assert inspect.iscoroutinefunction(decorated)
        assert (decorated.__name__, decorated.__doc__) == ("add", "Add two numbers.")


async def test_pipeline_passes_through_what_the_function_raises() -> None:
    """The error of the call is the error of the pipeline."""

    async def work() -> None:
        await checkpoint()
        raise KeyError("bug")

    breaker = CircuitBreaker("llm", on=OSError)
    with pytest.raises(KeyError, match="bug"):
        await Pipeline(Timeout(5.0), Retry(on=OSError), breaker).call(work)


async def test_retry_around_a_breaker_waits_for_the_probe() -> None:
    """A rejected call is repeated when the circuit said that a probe may pass, not before."""
    now = 0.0
    naps: list[float] = []
    outcomes = [OSError("down"), OSError("down"), None]

    async def work() -> str:
        await checkpoint()
        outcome = outcomes.pop(0)
        if outcome is not None:
            raise outcome
        return "up"

    async def sleep(seconds: float) -> None:
        nonlocal now
        await checkpoint()
        naps.append(seconds)
        now += seconds

    retry = Retry(
        on=(OSError, RejectedError),
        attempts=4,
        backoff=Backoff(initial=1.0),
        random=lambda: 0.5,
        sleep=sleep,
    )
    breaker = CircuitBreaker("llm", on=OSError, failure_threshold=2, clock=lambda: now)
    assert await Pipeline(retry, breaker).call(work) == "up"
    assert naps == [0.5, 1.0, 29.0 + 2.0]


async def test_timeout_inside_a_breaker_is_a_failure_and_outside_of_it_is_none() -> None:
    """A call that hangs opens the circuit when the time-out is inside; outside it counts nothing."""
    inside = CircuitBreaker("inside", on=TimeoutError, failure_threshold=1)
    outside = CircuitBreaker("outside", on=TimeoutError, failure_threshold=1)
    for pipeline in (Pipeline(inside, Timeout(0.01)), Pipeline(Timeout(0.01), outside)):
        with pytest.raises(TimeoutError):
            await pipeline.call(anyio.sleep_forever)
    with pytest.raises(CircuitOpenError):
        inside.acquire()
    assert outside.statistics().ignored == 1


async def test_timeout_cancels_and_says_so() -> None:
    """The call is cancelled, may clean up, and the error tells the time it had."""
    timeout = Timeout(0.01)
    was_cancelled = False

    async def work() -> None:
        nonlocal was_cancelled
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            was_cancelled = True
            raise

    with pytest.raises(TimeoutError, match=r"^the call was cancelled after 0\.01 s; ") as caught:
        await timeout.call(work)
    assert was_cancelled
    assert caught.value.__context__ is None
    assert timeout.statistics().expired == 1
    assert repr(timeout) == "Timeout(seconds=0.01)"


async def test_timeout_lets_results_errors_and_cancellation_pass() -> None:
    """What ends in time ends as it would without, also by another's TimeoutError or cancellation."""
    timeout = Timeout(3600.0)
    assert await timeout.call(add, 1) == 2

    async def work() -> None:
        await checkpoint()
        raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match=r"^mine$"):
        await timeout.call(work)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await timeout.call(anyio.sleep_forever)
    assert scope.cancelled_caught
    assert timeout.statistics().expired == 0


def sync_function() -> None: ...


async def async_generator() -> Any:
    yield 1


@pytest.mark.parametrize("fn", [sync_function, async_generator, 3])
@pytest.mark.parametrize("policy", [Timeout(1.0), Pipeline()], ids=["timeout", "pipeline"])
def test_only_async_functions_are_decorated(policy: Any, fn: Any) -> None:
    """What cannot be interrupted or awaited is refused when decorated."""
    with pytest.raises(TypeError, match="cannot decorate"):
        policy(fn)


async def test_partial_functions_are_decorated() -> None:
    """A partial of an async function counts as one."""
    assert await Timeout(5.0)(functools.partial(add, b=4))(1) == 5


@pytest.mark.parametrize("policy", [3, Timeout, None])
def test_what_is_no_policy_is_refused(policy: Any) -> None:
    """An object without call(), or a class instead of an instance, is refused with its place."""
    with pytest.raises(TypeError, match=r"^policy 2 must have a method call\(\)"):
        Pipeline(Timeout(1.0), policy)


def test_pipeline_shows_its_policies() -> None:
    """The policies can be read, the outermost first, and are what the representation shows."""
    notes: list[str] = []
    a, b = Spy("a", notes), Spy("b", notes)
    assert Pipeline(a, b).policies == (a, b)
    assert repr(Pipeline(a, Pipeline(b))) == "Pipeline(a, Pipeline(b))"


@pytest.mark.parametrize(
    ("seconds", "error"),
    [(0, ValueError), (-1.0, ValueError), (float("nan"), ValueError), ("60", TypeError)],
)
def test_bad_time_names_the_field(seconds: Any, error: type[Exception]) -> None:
    """A time that is not a positive number of seconds is refused at construction."""
    with pytest.raises(error, match=r"^seconds must "):
        Timeout(seconds)
