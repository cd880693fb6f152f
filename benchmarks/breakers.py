"""Circuit breakers of other libraries, and ours, around a function."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from orchestra import CircuitBreaker, FailureRate

PEERS = ("aiobreaker", "circuitbreaker", "hyx", "purgatory", "pybreaker")


# Without types, and only needed here.
aiobreaker: Any = import_module("aiobreaker")


circuitbreaker: Any = import_module("circuitbreaker")


hyx_breaker: Any = import_module("hyx.circuitbreaker")


purgatory: Any = import_module("purgatory")


purgatory_model: Any = import_module("purgatory.domain.model")


pybreaker: Any = import_module("pybreaker")


class DownError(Exception):
    """What the protected service raises."""


def double(value: int) -> int:
    """The protected work: next to nothing, so that what remains is the breaker."""
    return 2 * value


def breaker_of_ours(**options: Any) -> CircuitBreaker:
    """Ours, with the same rule as the peers unless told otherwise."""
    return CircuitBreaker("benchmark", on=DownError, **options)


def with_aiobreaker(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function under an aiobreaker."""
    guarded: Callable[..., Any] = aiobreaker.CircuitBreaker(fail_max=5)(fn)
    return guarded


def with_circuitbreaker(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function under a circuitbreaker."""
    breaker = circuitbreaker.CircuitBreaker(expected_exception=DownError, name="benchmark")
    guarded: Callable[..., Any] = breaker(fn)
    return guarded


def with_pybreaker(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function under a pybreaker."""
    guarded: Callable[..., Any] = pybreaker.CircuitBreaker(fail_max=5)(fn)
    return guarded


def with_purgatory(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The sync function under a purgatory breaker."""
    guarded: Callable[..., Any] = purgatory.SyncCircuitBreakerFactory()("benchmark")(fn)
    return guarded


def with_async_purgatory(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The async function under a purgatory breaker."""
    guarded: Callable[..., Any] = purgatory.AsyncCircuitBreakerFactory()("benchmark")(fn)
    return guarded


def with_hyx(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The async function under a hyx breaker."""
    guarded: Callable[..., Any] = hyx_breaker.consecutive_breaker(exceptions=DownError)(fn)
    return guarded


def bare(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function itself."""
    return fn


def with_ours(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function under ours, counting consecutive failures as the peers do."""
    return breaker_of_ours()(fn)


def with_count_window(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function under ours with a failure rate over the last 100 calls."""
    return breaker_of_ours(failure_threshold=FailureRate(0.5, calls=100))(fn)


def with_time_window(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function under ours with a failure rate and slow calls over the last minute."""
    rule = FailureRate(0.5, seconds=60.0, slow_after=30.0)
    return breaker_of_ours(failure_threshold=rule)(fn)


def fail(call: Callable[..., Any], times: int) -> None:
    """Call a sync function that fails, through its guard."""
    for _ in range(times):
        try:
            call(None)  # the work cannot double it
        except Exception:  # noqa: BLE001, S112 - the peers wrap what they count
            continue
