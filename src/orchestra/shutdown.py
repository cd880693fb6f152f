"""End everything that was started: in order, bounded, with a report."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from signal import Signals
from typing import final

import anyio
import anyio.lowlevel
from anyio import AsyncContextManagerMixin, CancelScope

from orchestra._core.checks import check_callable, finite
from orchestra._core.shutdown import (
    LAST_CALL,
    Budget,
    HandlerReport,
    Order,
    ShutdownReport,
    ShutdownStatistics,
    ShutdownTimes,
)
from orchestra._ending import EndingFunction
from orchestra._handlers import Caller, ShutdownGuard, ShutdownHandler
from orchestra._listeners import Teller
from orchestra._signals import BeforeExit, received_signals
from orchestra.errors import ShuttingDownError
from orchestra.events import HandlerOutcome, ShutdownChanged, ShutdownPhase

__all__ = (
    "HandlerReport",
    "ShutdownGuard",
    "ShutdownHandler",
    "ShutdownManager",
    "ShutdownReport",
    "ShutdownStatistics",
)

_logger = logging.getLogger("orchestra")

_BLOCK = "the block"


@final
class ShutdownManager(AsyncContextManagerMixin):
    """Ends what a program has started: lets work finish, then calls handlers, all in bounded time.

    ::

        async with ShutdownManager(signals=(SIGINT, SIGTERM)) as shutdown:
            shutdown.register(sessions.aclose, name="sessions", priority=20)
            shutdown.register(store.aclose, name="store", priority=10)
            ...
            await shutdown.wait_requested()

    The shutdown begins with `request`, with a signal, or when the block is left in whatever way.

    1. **Drain.** `guard` refuses new work. Functions given to `register_drain` are called. What is
       in flight may go on: the block, and whoever holds a guard. When its share of the grace is
       over, the block is cancelled, which is not an error; it gets the time that the handlers do
       not need to unwind.
    2. **Clean up.** The handlers are called, those of the highest priority first and those of the
       same priority side by side. Each is cancelled after its time-out. When the grace does not
       suffice for all of them, all get the same part of their time-outs, so that each is called.

    So handlers that hang cost one time-out for each priority, not one each, and never more than
    the grace. They run in shielded scopes: neither a cancelled scope around the block nor an
    interrupt nor the failure of another handler keeps one from being called. What is cancelled
    and does not unwind within a second is no longer waited for by the handlers after it; but the
    end waits for it, because no task may be left behind.

    A handler that is not asynchronous gets a thread of its own. When its time is over, it is left
    alone there and can keep neither the block nor the process from ending.

    **Signals.** With ``signals`` the first one requests the shutdown, the second one cuts the
    grace as `cut_grace` does, the third one exits at once with code 128 plus its number, also when
    the event loop is blocked. They count together. Afterwards the previous handlers are back.

    Leaving raises the errors of the handlers as an ``ExceptionGroup``, together with what the
    block raised. It is a checkpoint. A manager belongs to one event loop, is entered once, and is
    not thread-safe: ``anyio.from_thread.run_sync(shutdown.request, "...")``. The vocabulary is
    that of uvicorn and tokio-graceful.

    Args:
        grace_period: Seconds from the request to the end.
        drain_share: Which part of them work in flight may use; from 0 to below 1.
        signals: Which signals request it. Only one manager of a process can handle signals, and
            only in the main thread.
        listener: Called with every `ShutdownChanged`; one that raises is logged and dropped.
        before_exit: Called with the signal before the third one exits. It must be quick and rely
            on nothing, since it is called in the middle of whatever was executed.

    Raises:
        TypeError: A field has the wrong type.
        ValueError: A field is out of range.
    """

    def __init__(
        self,
        *,
        grace_period: float = 30.0,
        drain_share: float = 0.5,
        signals: Sequence[Signals] = (),
        listener: Callable[[ShutdownChanged], object] | None = None,
        before_exit: BeforeExit | None = None,
    ) -> None:
        self._times = ShutdownTimes(grace_period=grace_period, drain_share=drain_share)
        self._signals = tuple(signals)
        for number in self._signals:
            if not isinstance(number, Signals):
                raise TypeError(f"signals must be of type Signals, not {number!r}")
        if before_exit is not None:
            check_callable("before_exit", before_exit)
        self._before_exit = before_exit
        self._teller = Teller(listener)
        self._phase = ShutdownPhase.RUNNING
        self._reason = ""
        self._signal: Signals | None = None
        self._report: ShutdownReport | None = None
        self._is_entered = False
        self._budget: Budget | None = None
        self._order: Order[ShutdownHandler] = Order(lambda handler: handler.timeout)
        self._drains: dict[ShutdownHandler, None] = {}
        self._caller = Caller(self._look_idle)
        self._guards: dict[ShutdownGuard, None] = {}
        self._is_drained = False
        self._unfinished: tuple[str, ...] = ()
        self._block: CancelScope | None = None  # these two need a running loop to be made
        self._patience: CancelScope | None = None
        self._requested = anyio.Event()
        self._idle = anyio.Event()
        self._block_over = anyio.Event()
        self._finished = anyio.Event()

    # ---- what to end ----

    def register(
        self,
        fn: EndingFunction,
        *,
        name: str | None = None,
        priority: int = 0,
        timeout: float = 5.0,
    ) -> ShutdownHandler:
        """Have a function called when everything ends.

        Registered while others are being called, it is called at once, since its turn may be over.

        Args:
            fn: Takes no arguments. A function that is not asynchronous is called in a thread; what
                it returns is awaited where it can be.
            name: What reports and errors call it; None: what it is called itself.
            priority: The higher, the earlier.
            timeout: How many seconds it may take at most.

        Raises:
            ClosedResourceError: The shutdown is over: end it yourself.
            TypeError: ``fn`` cannot be called, or a field has the wrong type.
            ValueError: ``timeout`` is not above 0.
        """
        if not isinstance(priority, int):
            raise TypeError(f"priority must be an int, not {priority!r}")
        handler = self._make_handler(fn, name, priority, timeout)
        if self._phase in (ShutdownPhase.RUNNING, ShutdownPhase.DRAINING):
            self._order.add(handler, priority)
        elif self._phase is ShutdownPhase.CLEANING and self._budget is not None:
            now = anyio.current_time()
            self._budget.allow_last_call(now)
            self._caller.call(handler, timeout * self._budget.share(now, timeout))
        else:
            raise anyio.ClosedResourceError(
                f"the shutdown is over and {handler.name!r} would not be called: end it yourself"
            )
        return handler

    def register_drain(self, fn: EndingFunction, *, name: str | None = None) -> ShutdownHandler:
        """Have a function called as soon as a shutdown is requested, e.g. to take no more work.

        It is waited for as work in flight is. Registered while draining, it is called at once.

        Args:
            fn: As for `register`.
            name: What reports and errors call it; None: what it is called itself.

        Raises:
            ShuttingDownError: Draining is over.
            TypeError: ``fn`` cannot be called.
        """
        handler = self._make_handler(fn, name, None, self._times.grace_period)
        if not self.is_requested or not self._caller.is_open:
            self._drains[handler] = None
        elif self._phase is ShutdownPhase.DRAINING and not self._idle.is_set():
            self._caller.call(handler, math.inf)  # the end of draining ends it
        else:
            raise ShuttingDownError(self._reason)
        return handler

    def guard(self, name: str = "work") -> ShutdownGuard:
        """Return a ``with`` block for work that a shutdown should wait for. Never blocks.

        Entering it raises `ShuttingDownError` once a shutdown has been requested.

        Args:
            name: What the report calls the work if it does not end in time.
        """
        return ShutdownGuard(name, self._begin_work, self._end_work)

    # ---- ending it ----

    @property
    def is_requested(self) -> bool:
        """Whether the shutdown has begun."""
        return self._requested.is_set()

    @property
    def signal(self) -> Signals | None:
        """The first signal that came, if one did."""
        return self._signal

    @property
    def report(self) -> ShutdownReport | None:
        """How the shutdown went, once it is over."""
        return self._report

    def request(self, reason: str = "it was requested") -> None:
        """Begin the shutdown. Returns at once; after the first time it does nothing.

        Args:
            reason: Why; the first one goes into the report.
        """
        if self._requested.is_set():
            return
        self._reason = reason
        self._budget = Budget(self._times, anyio.current_time())
        self._requested.set()
        self._enter(ShutdownPhase.DRAINING)

    def cut_grace(self) -> None:
        """Be quick: requests the shutdown where nobody has, and ends all patience.

        What is in flight or being called is cancelled. Handlers that have not been called still
        are, in order, but have one second for all of them together.
        """
        self.request("the grace was cut")
        budget = self._budget
        if budget is None or budget.is_cut or self._phase is ShutdownPhase.FINISHED:
            return
        now = anyio.current_time()
        budget.cut(now)
        self._caller.cancel()
        if self._patience is not None:
            is_draining = self._phase is ShutdownPhase.DRAINING
            limit = now if is_draining else now + LAST_CALL
            self._patience.deadline = min(self._patience.deadline, limit)
        self._tell()

    async def wait_requested(self) -> str:
        """Wait until the shutdown begins. Always a checkpoint.

        Returns:
            The reason.
        """
        await anyio.lowlevel.checkpoint()
        await self._requested.wait()
        return self._reason

    def statistics(self) -> ShutdownStatistics:
        """Return where it stands."""
        outcomes = dict.fromkeys(HandlerOutcome, 0)
        for report in self._caller.reports:
            outcomes[report.outcome] += 1
        return ShutdownStatistics(
            phase=self._phase,
            handlers=len(self._order) + len(self._drains),
            in_flight=len(self._guards),
            outcomes=outcomes,
        )

    def __repr__(self) -> str:
        waiting = len(self._order) + len(self._drains)
        return (
            f"<ShutdownManager {self._phase.value}: {waiting} handlers to call, "
            f"{len(self._caller.running)} being called, {len(self._guards)} guards>"
        )

    # ---- life ----

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncIterator[ShutdownManager]:
        if self._is_entered:
            raise RuntimeError("a shutdown manager can be entered once; make a new one")
        self._is_entered = True
        failure: BaseException | None = None
        try:
            async with self._running():
                try:
                    with CancelScope() as self._block:
                        yield self
                except (Exception, KeyboardInterrupt, SystemExit) as exc:  # noqa: BLE001 (raised)
                    failure = exc
        except anyio.get_cancelled_exc_class():
            if not self._caller.errors:
                raise
        errors = self._caller.errors
        try:
            if errors:
                raise BaseExceptionGroup(
                    f"{len(errors)} of {len(self._caller.reports)} shutdown handlers failed",
                    errors if failure is None else [failure, *errors],
                ) from None
            if failure is not None:
                raise failure
        finally:
            del failure, errors  # no cycle through this frame
        await anyio.lowlevel.checkpoint()

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        """Have the shutdown wait for its request, and when the block is over wait for its end."""
        with self._received() as signals:
            async with anyio.create_task_group() as tasks:
                watching = CancelScope(shield=True)
                tasks.start_soon(self._run)
                if signals is not None:
                    tasks.start_soon(self._watch, signals, watching)
                try:
                    yield
                finally:
                    self.request("the block was left")
                    self._block_over.set()
                    self._look_idle()
                    with CancelScope(shield=True):
                        await self._finished.wait()
                    watching.cancel()

    @contextmanager
    def _received(self) -> Iterator[AsyncIterator[Signals] | None]:
        if not self._signals:
            yield None
            return
        with received_signals(self._signals, self._before_exit) as signals:
            yield signals

    async def _watch(self, signals: AsyncIterator[Signals], scope: CancelScope) -> None:
        with scope:
            async for number in signals:
                if self._signal is None:
                    self._signal = number
                    self.request(f"received {number.name}")
                else:
                    self.cut_grace()

    async def _run(self) -> None:
        """The shutdown itself, from the request on."""
        try:
            with CancelScope(shield=True):
                await self._requested.wait()
                async with anyio.create_task_group() as tasks:
                    self._caller.open(tasks)
                    await self._drain()
                    await self._clean_up()
                    # What it registers while it unwinds still needs somebody to call it.
                    await self._block_over.wait()
                self._finish()
        finally:
            self._finished.set()

    async def _drain(self) -> None:
        budget = self._known_budget()
        drains, self._drains = self._drains, {}
        for handler in drains:
            self._caller.call(handler, math.inf)  # the end of draining ends it
        self._look_idle()
        self._patience = CancelScope(deadline=budget.drain_until)
        with self._patience:
            await self._idle.wait()
        self._is_drained = self._idle.is_set()
        if self._is_drained:
            return
        names = [] if self._block_over.is_set() else [_BLOCK]
        names += [guard.name for guard in self._guards]
        calls = list(self._caller.running)
        names += [handler.name for handler in calls]
        self._unfinished = tuple(names)
        _logger.warning("still in flight when draining ended: %s", ", ".join(names))
        self._idle.set()
        self._caller.cancel()
        if self._block is not None:
            self._block.cancel()
        now = anyio.current_time()
        self._patience = CancelScope(deadline=budget.unwind_until(now, self._order.need))
        with self._patience:
            for handler in calls:
                await handler.over.wait()
            await self._block_over.wait()

    async def _clean_up(self) -> None:
        budget = self._known_budget()
        self._enter(ShutdownPhase.CLEANING)
        budget.allow_last_call(anyio.current_time())
        while True:
            need = self._order.need
            group = self._order.take()
            if not group:
                return
            now = anyio.current_time()
            share = budget.share(now, need)
            for handler in group:
                self._caller.call(handler, handler.timeout * share)
            longest = share * max(handler.timeout for handler in group)
            self._patience = CancelScope(deadline=now + longest + LAST_CALL)
            with self._patience:
                for handler in group:
                    await handler.over.wait()
            if self._patience.cancelled_caught:
                budget.allow_last_call(anyio.current_time())

    def _finish(self) -> None:
        budget = self._known_budget()
        self._report = ShutdownReport(
            reason=self._reason,
            signal=self._signal,
            duration=anyio.current_time() - budget.began,
            is_drained=self._is_drained,
            unfinished=self._unfinished,
            is_cut=budget.is_cut,
            handlers=tuple(self._caller.reports),
        )
        self._enter(ShutdownPhase.FINISHED)

    # ---- parts ----

    def _make_handler(
        self, fn: EndingFunction, name: str | None, priority: int | None, timeout: float
    ) -> ShutdownHandler:
        check_callable("fn", fn)
        if finite("timeout", timeout) <= 0:
            raise ValueError(f"timeout must be above 0 seconds, not {timeout!r}")
        if name is None:
            name = str(getattr(fn, "__qualname__", type(fn).__qualname__))
        return ShutdownHandler(fn, name, priority, timeout, self._unregister)

    def _unregister(self, handler: ShutdownHandler) -> bool:
        if handler.priority is not None:
            return self._order.remove(handler, handler.priority)
        return self._drains.pop(handler, handler) is None

    def _begin_work(self, guard: ShutdownGuard) -> None:
        if self._requested.is_set():
            raise ShuttingDownError(self._reason)
        if guard in self._guards:
            raise RuntimeError("this guard is held already: ask the manager for another one")
        self._guards[guard] = None

    def _end_work(self, guard: ShutdownGuard) -> None:
        self._guards.pop(guard, None)
        self._look_idle()

    def _look_idle(self) -> None:
        """Whether draining is over: the block is, no guard is held, nothing is being called."""
        if (
            self._phase is ShutdownPhase.DRAINING
            and self._block_over.is_set()
            and not (self._guards or self._drains or self._caller.running)
        ):
            self._idle.set()

    def _known_budget(self) -> Budget:
        if self._budget is None:
            raise AssertionError("unreachable")
        return self._budget

    def _enter(self, phase: ShutdownPhase) -> None:
        self._phase = phase
        self._tell()

    def _tell(self) -> None:
        budget = self._budget
        self._teller.put(
            ShutdownChanged(
                phase=self._phase,
                reason=self._reason,
                is_cut=budget is not None and budget.is_cut,
            )
        )
        self._teller.deliver()


for _public in (
    HandlerReport,
    ShutdownGuard,
    ShutdownHandler,
    ShutdownReport,
    ShutdownStatistics,
):
    _public.__module__ = __name__
