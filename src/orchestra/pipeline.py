"""Put policies together, and bound the time of a call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, ParamSpec, TypeVar, final

import anyio
import attrs

from orchestra._core.checks import seconds
from orchestra._functions import decorated
from orchestra.abc import Policy

__all__ = ("Pipeline", "Timeout", "TimeoutStatistics")

P = ParamSpec("P")
T = TypeVar("T")


@attrs.frozen(kw_only=True)
class TimeoutStatistics:
    """What a `Timeout` has done since it was made.

    Attributes:
        expired: Calls it cancelled.
    """

    expired: int


@final
@attrs.define(eq=False)
class _Counts:
    expired: int = 0


@final
@attrs.frozen(eq=False)
class Timeout:
    """Cancels an async call that takes too long.

    ::

        reply = await Timeout(60.0).call(session.prompt, "hello")

    The call gets the cancellation of its event loop and may clean up; what it does in a shield is
    waited for, so the call can take longer. A sync function cannot be interrupted.

    Args:
        seconds: How long a call may take; above 0.

    Raises:
        TypeError: ``seconds`` is no number.
        ValueError: ``seconds`` is out of range.
    """

    seconds: float = attrs.field(validator=seconds)
    _counts: _Counts = attrs.field(factory=_Counts, init=False, repr=False)

    async def call(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call an async function for a limited time; a checkpoint where the function is one.

        Args:
            fn: What to call.
            *args: Its arguments.
            **kwargs: Its keyword arguments.

        Raises:
            TimeoutError: The call was cancelled.
        """
        with anyio.move_on_after(self.seconds):
            return await fn(*args, **kwargs)
        self._counts.expired += 1
        raise TimeoutError(f"the call was cancelled after {self.seconds:g} s; allow it more time")

    def __call__(
        self, fn: Callable[P, Coroutine[Any, Any, T]], /
    ) -> Callable[P, Coroutine[Any, Any, T]]:
        """Decorate an async function; the signature stays.

        Args:
            fn: A coroutine function.

        Raises:
            TypeError: ``fn`` is no coroutine function.
        """
        return decorated(self, fn)

    def statistics(self) -> TimeoutStatistics:
        """Count what it did so far."""
        return TimeoutStatistics(expired=self._counts.expired)


@final
class Pipeline:
    """Several policies as one; the first is outermost.

    ::

        resilient = Pipeline(Timeout(60), Retry(on=RejectedError), breaker, controller.at("worker"))
        reply = await resilient.call(session.prompt, "hello")

        @resilient
        async def ask(prompt: str) -> str: ...

    The order decides what it means: here 60 seconds bound all attempts together, every attempt
    asks the breaker, and only what the breaker lets through waits for a slot. For the breaker to
    count a call that hangs, a `Timeout` must be *inside* it.

    Args:
        *policies: Anything with the ``call`` of `orchestra.abc.Policy`, pipelines included.

    Raises:
        TypeError: A policy has no ``call``.
    """

    __slots__ = ("_policies",)

    def __init__(self, *policies: Policy) -> None:
        for number, policy in enumerate(policies, 1):
            if isinstance(policy, type) or not callable(getattr(policy, "call", None)):
                raise TypeError(f"policy {number} must have a method call(), not be {policy!r}")
        self._policies = policies

    @property
    def policies(self) -> tuple[Policy, ...]:
        """The policies, the outermost first."""
        return self._policies

    async def call(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call an async function under all policies; a checkpoint where the function is one.

        Args:
            fn: What to call.
            *args: Its arguments.
            **kwargs: Its keyword arguments.
        """
        inner: Callable[..., Awaitable[T]] = fn
        for policy in reversed(self._policies):
            inner = partial(policy.call, inner)
        return await inner(*args, **kwargs)

    def __call__(
        self, fn: Callable[P, Coroutine[Any, Any, T]], /
    ) -> Callable[P, Coroutine[Any, Any, T]]:
        """Decorate an async function; the signature stays.

        Args:
            fn: A coroutine function.

        Raises:
            TypeError: ``fn`` is no coroutine function.
        """
        return decorated(self, fn)

    def __repr__(self) -> str:
        return f"Pipeline({', '.join(map(repr, self._policies))})"
