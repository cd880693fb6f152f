"""One cooldown and one breaker for all turns of a provider, in virtual time."""

from __future__ import annotations

import random

import anyio
import pytest

from orchestra.events import FinishReason, RetryScheduled, TurnError
from orchestra.opencode.mission.allowances import ProviderSettings
from orchestra.opencode.mission.orders import AgentAnswered
from orchestra.opencode.mission.providers import (
    Passage,
    ProviderAwayError,
    ProviderGate,
    ProviderGates,
)

SETTINGS = ProviderSettings(failure_threshold=3, recovery_timeout=30.0, spacing=0.1, patience=5.0)


def gates() -> ProviderGates:
    return ProviderGates(SETTINGS, "own", random=random.Random(1).random)


def failed(status: int | None = 500, retry_after: float | None = None) -> AgentAnswered:
    error = TurnError(name="APIError", message="no", status=status, retry_after=retry_after)
    return AgentAnswered(ticket=1, reason=FinishReason.FAILED, error=error)


async def enter(gate: ProviderGate) -> Passage:
    """Wait as long as it takes."""
    while True:
        await gate.wait_open()
        if (passage := gate.enter()) is not None:
            return passage


def open_circuit(gate: ProviderGate) -> None:
    for _ in range(SETTINGS.failure_threshold):
        passage = gate.enter()
        assert passage is not None
        with passage:
            passage.ended(failed())
    assert gate.enter() is None


async def test_nobody_comes_before_the_longest_wish_nor_all_at_once() -> None:
    """Of several ``Retry-After`` the longest counts for all, who then go one after the other."""
    gate = gates().of("p/m")
    began = anyio.current_time()
    for seconds in (3.0, 20.0, 7.0):
        gate.rest(seconds)
    times: list[float] = []

    async def turn() -> None:
        with await enter(gate):
            times.append(anyio.current_time() - began)

    async with anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(turn)
    assert min(times) >= 20.0
    gaps = [after - before for before, after in zip(sorted(times), sorted(times)[1:], strict=False)]
    assert min(gaps) >= 0.5 * SETTINGS.spacing - 1e-9
    assert max(times) < 20.0 + 51 * 1.5 * SETTINGS.spacing


async def test_a_wish_that_comes_while_they_wait_counts() -> None:
    """Who waits already waits longer when the provider says so."""
    gate = gates().of("p/m")
    began = anyio.current_time()
    gate.rest(5.0)
    async with anyio.create_task_group() as group:

        async def turn() -> None:
            with await enter(gate):
                assert anyio.current_time() - began >= 50.0

        for _ in range(5):
            group.start_soon(turn)
        await anyio.sleep(4.9)  # they have their places already
        gate.rest(45.1)


async def test_one_tries_and_the_others_wait() -> None:
    """jac#8064: at the end of a break one of many callers asks, and then they go in a row."""
    gate = gates().of("p/m")
    open_circuit(gate)
    began = anyio.current_time()
    times: list[float] = []

    async def turn() -> None:
        with await enter(gate) as passage:
            times.append(anyio.current_time() - began)
            await anyio.sleep(10.0)
            passage.answered()

    async with anyio.create_task_group() as group:
        for _ in range(9):
            group.start_soon(turn)
    first, *others = sorted(times)
    assert first >= 30.0
    assert min(others) >= first + 10.0, "nobody asks while one tries"
    assert max(others) - min(others) >= 7 * 0.5 * SETTINGS.spacing


async def test_a_try_that_is_cancelled_is_the_next_ones() -> None:
    """Cancellation says nothing about the provider: the next who waits tries at once."""
    gate = gates().of("p/m")
    open_circuit(gate)
    scope = anyio.CancelScope()
    is_over = anyio.Event()

    async def cancelled() -> None:
        with scope, await enter(gate):
            await anyio.sleep_forever()

    async def next_one() -> None:
        with await enter(gate) as passage:
            passage.answered()
        is_over.set()

    async with anyio.create_task_group() as group:
        group.start_soon(cancelled)
        await anyio.sleep(31.0)
        group.start_soon(next_one)
        await anyio.sleep(1.0)
        assert not is_over.is_set()
        scope.cancel()
        with anyio.fail_after(1.0):
            await is_over.wait()


async def test_a_failed_try_means_another_break() -> None:
    """When the one who tries fails, the break begins anew."""
    gate = gates().of("p/m")
    open_circuit(gate)
    with await enter(gate) as passage:
        passage.retrying(RetryScheduled(session_id="s", attempt=1, message="no", delay=2.0))
    assert gate.enter() is None
    assert not gate.is_open
    assert gate.why == "provider 'p' fails again and again"


async def test_the_servers_own_retries_count_once() -> None:
    """A server repeats a call five times and gives up: that is one failed call, not six."""
    gate = gates().of("p/m")
    passage = gate.enter()
    assert passage is not None
    with passage:
        for attempt in range(1, 6):
            passage.retrying(
                RetryScheduled(session_id="s", attempt=attempt, message="reset", delay=2.0)
            )
        passage.ended(failed())
    assert gate.is_open


async def test_a_server_that_waits_for_a_limit_warns_the_others() -> None:
    """A retry because of too many requests holds back new turns as long; another does not."""
    gate = gates().of("p/m")
    with await enter(gate) as passage:
        passage.retrying(RetryScheduled(session_id="s", attempt=1, message="reset", delay=9.0))
        assert gate.is_open
        passage.retrying(
            RetryScheduled(session_id="s", attempt=2, message="Too Many Requests", delay=9.0)
        )
        assert not gate.is_open
    began = anyio.current_time()
    with await enter(gate):
        assert anyio.current_time() - began >= 9.0


@pytest.mark.parametrize(
    "error",
    [
        TurnError(name="LoopError", message="again"),
        TurnError(name="MessageAbortedError", message="aborted"),
        TurnError(name="TransportError", message="the server cannot be reached"),
        TurnError(name="APIError", message="bad request", status=400, is_retryable=False),
        None,
    ],
)
async def test_only_the_providers_failures_count(error: TurnError | None) -> None:
    """A worker's own mistakes, cancellation and the way to the backend are not its fault."""
    gate = gates().of("p/m")
    for _ in range(10):
        with await enter(gate) as passage:
            passage.ended(AgentAnswered(ticket=1, reason=FinishReason.FAILED, error=error))
    assert gate.is_open


async def test_patience_has_an_end_where_there_is_another_provider() -> None:
    """With a model of another provider a turn waits 5 s, without one as long as it takes."""
    all_gates = gates()
    gate = all_gates.of("p/m")
    assert all_gates.patience("p/m", ["q/m"]) == SETTINGS.patience
    assert all_gates.patience("p/m", ["p/other"]) == float("inf")
    gate.rest(4.0)
    await gate.wait_open(SETTINGS.patience)
    gate.rest(60.0)
    began = anyio.current_time()
    with pytest.raises(ProviderAwayError) as caught:
        await gate.wait_open(SETTINGS.patience)
    assert caught.value.retry_after == pytest.approx(60.0)
    assert anyio.current_time() == began, "what is known to take too long is not waited for"
    all_gates.of("q/m").rest(60.0)
    assert all_gates.patience("p/m", ["q/m"]) == float("inf")


async def test_wishes_are_bounded() -> None:
    """A provider that wants to be left alone for an hour is asked again after 600 s."""
    gate = gates().of(None)
    gate.rest(3600.0)
    began = anyio.current_time()
    with await enter(gate):
        assert 600.0 <= anyio.current_time() - began < 601.0
    assert "own" in repr(gate)
