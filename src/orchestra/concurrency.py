"""How many may work at once, by key."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import final

import anyio
from attrs import frozen

__all__ = ("ConcurrencyController", "ConcurrencyStatistics", "ConcurrencyToken")


@frozen(kw_only=True)
class ConcurrencyStatistics:
    """One key's state.

    Attributes:
        limit: How many tokens may be out at once.
        in_use: How many are out.
        tasks_waiting: How many tasks wait for one.
    """

    limit: int
    in_use: int
    tasks_waiting: int


@final
class ConcurrencyToken:
    """The right to do one bounded piece of work; comes from `ConcurrencyController` only.

    Attributes:
        key: The key it was taken for.
    """

    __slots__ = ("_limiter", "key")

    def __init__(self, key: str, limiter: anyio.CapacityLimiter) -> None:
        self.key: str = key
        self._limiter: anyio.CapacityLimiter | None = limiter

    @property
    def is_released(self) -> bool:
        """Whether the slot has been given back."""
        return self._limiter is None

    def release(self) -> None:
        """Give the slot back; from any task, any number of times."""
        limiter, self._limiter = self._limiter, None
        if limiter is not None:
            limiter.release_on_behalf_of(self)

    def __repr__(self) -> str:
        state = "released" if self.is_released else "held"
        return f"<ConcurrencyToken {self.key!r} {state}>"


@final
class ConcurrencyController:
    """A keyed set of limiters: first come, first served within a key.

    ::

        controller = ConcurrencyController({"worker": 10, "commander": 1})
        async with controller.lease("worker"):
            ...

    It bounds how many work *at once*, not how many start per second.

    Args:
        limits: The limit of each key, at least 1.
        default: The limit of every key that is not named; at least 1.

    Raises:
        ValueError: A limit is below 1.
    """

    def __init__(self, limits: Mapping[str, int] | None = None, *, default: int = 10) -> None:
        self._limits = dict(limits or {})
        self._default = default
        for key, limit in [*self._limits.items(), ("default", default)]:
            if limit < 1:
                raise ValueError(f"the limit of {key!r} must be at least 1, not {limit!r}")
        self._limiters: dict[str, anyio.CapacityLimiter] = {}

    def _limiter(self, key: str) -> anyio.CapacityLimiter:
        limiter = self._limiters.get(key)
        if limiter is None:
            limiter = anyio.CapacityLimiter(self._limits.get(key, self._default))
            self._limiters[key] = limiter
        return limiter

    async def acquire(self, key: str) -> ConcurrencyToken:
        """Wait for a slot. Always a checkpoint.

        Args:
            key: Whose limit counts.

        Returns:
            The token; the caller must ``release()`` it.
        """
        limiter = self._limiter(key)
        token = ConcurrencyToken(key, limiter)
        await limiter.acquire_on_behalf_of(token)
        return token

    @asynccontextmanager
    async def lease(self, key: str) -> AsyncIterator[ConcurrencyToken]:
        """Hold a slot for the length of a block. Entering is a checkpoint.

        Args:
            key: Whose limit counts.
        """
        token = await self.acquire(key)
        try:
            yield token
        finally:
            token.release()

    def statistics(self, key: str) -> ConcurrencyStatistics:
        """Return the state of one key.

        Args:
            key: The key.
        """
        statistics = self._limiter(key).statistics()
        return ConcurrencyStatistics(
            limit=int(statistics.total_tokens),
            in_use=statistics.borrowed_tokens,
            tasks_waiting=statistics.tasks_waiting,
        )

    def __repr__(self) -> str:
        used = ", ".join(
            f"{key}={limiter.borrowed_tokens}/{int(limiter.total_tokens)}"
            for key, limiter in self._limiters.items()
        )
        return f"<ConcurrencyController {used or 'unused'}>"
