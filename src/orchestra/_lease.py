"""Holding what a controller gave, for the length of a block."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Final, TypeAlias, final

import anyio
from anyio import CancelScope

from orchestra._core.deadlines import Deadlines
from orchestra._core.retry import retry_after_of

if TYPE_CHECKING:
    from orchestra._admission import Tokens
    from orchestra._lane import ConcurrencyToken
    from orchestra.breaker import CircuitPermit
    from orchestra.pressure import MemoryPressure

__all__ = ("Admission", "Keeper", "Lease")

_Types: TypeAlias = tuple[type[Exception], ...]


def _settle(token: ConcurrencyToken, exc: BaseException | None, dropped_on: _Types) -> None:
    if exc is None:
        token.success()
    elif isinstance(exc, dropped_on):
        token.dropped(retry_after=retry_after_of(exc))
    else:
        token.release()


@final
class Lease(AbstractAsyncContextManager["ConcurrencyToken"]):
    """One token for one block; see ``ConcurrencyController.lease``.

    Args:
        acquire: Gives the token.
        dropped_on: Which exceptions of the block mean overload.
        keeper: Who cancels the holder; None: nobody.
        lifetime: After how many seconds.
    """

    __slots__ = ("_acquire", "_dropped_on", "_keeper", "_lifetime", "_scope", "_token")

    def __init__(
        self,
        acquire: Callable[[], Awaitable[ConcurrencyToken]],
        dropped_on: _Types,
        keeper: Keeper | None,
        lifetime: float,
    ) -> None:
        self._acquire = acquire
        self._dropped_on = dropped_on
        self._keeper = keeper
        self._lifetime = lifetime
        self._scope: CancelScope | None = None

    async def __aenter__(self) -> ConcurrencyToken:
        self._token = token = await self._acquire()
        if self._keeper is not None:
            self._scope = CancelScope()
            self._scope.__enter__()
            self._keeper.watch(self._scope, self._lifetime)
        return token

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        token = self._token
        if self._keeper is None or self._scope is None:
            _settle(token, exc, self._dropped_on)
            return False
        self._keeper.forget(self._scope, self._lifetime)
        try:
            self._scope.__exit__(exc_type, exc, traceback)
        finally:
            _settle(token, exc, self._dropped_on)
        if self._scope.cancelled_caught:
            raise TimeoutError(
                f"the lease of {token.key!r} lasted longer than {self._lifetime:g} s and its "
                f"holder was cancelled; give it a longer lifetime or less to do"
            )
        return False


@final
class Admission(AbstractAsyncContextManager["Tokens"]):
    """Several tokens and a breaker's permit for one block; see ``ConcurrencyController.admit``.

    Args:
        admit: Gives the tokens and the permit.
        dropped_on: Which exceptions of the block mean overload.
    """

    __slots__ = ("_admit", "_dropped_on", "_permit", "_tokens")

    def __init__(
        self,
        admit: Callable[[], Awaitable[tuple[Tokens, CircuitPermit | None]]],
        dropped_on: _Types,
    ) -> None:
        self._admit = admit
        self._dropped_on = dropped_on

    async def __aenter__(self) -> Tokens:
        self._tokens, self._permit = await self._admit()
        return self._tokens

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for token in self._tokens:
            _settle(token, exc, self._dropped_on)
        if self._permit is not None:
            self._permit.record(exc)


@final
class Keeper:
    """The one task of an entered controller: it ends overdue leases and watches memory.

    Args:
        pressure: What to watch.
    """

    def __init__(self, pressure: MemoryPressure | None) -> None:
        self._pressure: Final = pressure
        self._deadlines: Final[Deadlines[CancelScope]] = Deadlines()
        self._wakes_at = float("inf")
        self._earlier = anyio.Event()

    def watch(self, scope: CancelScope, lifetime: float) -> None:
        """Cancel a scope after its lifetime, unless it is forgotten before."""
        deadline = self._deadlines.add(scope, anyio.current_time(), lifetime)
        if deadline < self._wakes_at:
            self._wakes_at = deadline
            self._earlier.set()

    def forget(self, scope: CancelScope, lifetime: float) -> None:
        """Leave a scope alone."""
        self._deadlines.discard(scope, lifetime)

    async def run(self) -> None:
        """Do it until cancelled."""
        while True:
            now = anyio.current_time()
            for scope in self._deadlines.expire(now):
                scope.cancel()
            self._wakes_at = self._deadlines.next_at()
            if self._pressure is not None:
                self._pressure.refresh(now)
                self._wakes_at = min(self._wakes_at, now + self._pressure.interval)
            self._earlier = anyio.Event()
            with CancelScope(deadline=self._wakes_at):
                await self._earlier.wait()
