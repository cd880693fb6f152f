"""A pool of threads for CPU work, each with a deque of its own, that steal from each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from operator import index
from types import TracebackType
from typing import Any, Literal, TypeVar, final
from warnings import warn

import anyio
import anyio.lowlevel
from attrs import frozen

from orchestra._groups import Call
from orchestra._scheduler import Scheduler
from orchestra.scopes import TaskScope, is_in_event_loop, raise_first
from orchestra.stealing import IMPLEMENTATION, available_cores, default_workers

__all__ = ("WorkStealingPool", "WorkStealingStatistics", "WorkerStatistics")

T = TypeVar("T")
R = TypeVar("R")


@frozen(kw_only=True)
class WorkerStatistics:
    """What one worker has done.

    Attributes:
        role: The worker's role.
        executed: Tasks run, failed ones included, dropped ones not.
        stolen: Tasks taken from other workers.
        attempts: Visits to another worker's deque, in vain or not.
        parks: How often it went to sleep for want of work.
        queued: Tasks in its deque now.
        cpu_time: Seconds of CPU time from taking up work to running out of it: the tasks, plus a
            fraction of a microsecond of the pool's own for each.
    """

    role: str
    executed: int
    stolen: int
    attempts: int
    parks: int
    queued: int
    cpu_time: float


@frozen(kw_only=True)
class WorkStealingStatistics:
    """What a `WorkStealingPool` has done since it was entered.

    Attributes:
        implementation: ``native`` or ``fallback``.
        workers: One record for each worker.
        cores: How many cores the process may use.
        queued: Tasks that no worker has taken up yet.
        sleeping: Workers that sleep, or are about to.
        wall_time: Seconds from entering to now, or to the end.
    """

    implementation: Literal["native", "fallback"]
    workers: tuple[WorkerStatistics, ...]
    cores: int
    queued: int
    sleeping: int
    wall_time: float

    @property
    def executed(self) -> int:
        """Tasks run by all workers."""
        return sum(worker.executed for worker in self.workers)

    @property
    def stolen(self) -> int:
        """Tasks that changed from one worker to another."""
        return sum(worker.stolen for worker in self.workers)

    @property
    def attempts(self) -> int:
        """Visits of a worker to another one's deque."""
        return sum(worker.attempts for worker in self.workers)

    @property
    def parks(self) -> int:
        """How often a worker went to sleep."""
        return sum(worker.parks for worker in self.workers)

    @property
    def cpu_time(self) -> float:
        """Seconds of CPU time that all workers spent on tasks."""
        return sum(worker.cpu_time for worker in self.workers)

    @property
    def useful_utilisation(self) -> float:
        """CPU time spent on tasks / (wall time x cores), 0.0 to 1.0.

        Waiting for the GIL, searching and sleeping add nothing, so that this is low for a pool
        that is merely busy. For tasks of a few microseconds it is too high, since their time
        includes the pool's own; there compare with the CPU time of a serial run.
        """
        return self.cpu_time / (self.wall_time * self.cores) if self.wall_time else 0.0


@final
class WorkStealingPool:
    """Threads that share CPU work by stealing from each other.

    Each worker takes the newest task of its own deque; one that runs out takes half of another
    worker's, or of the tasks from outside. So one long task holds up nothing but itself. ::

        with WorkStealingPool() as pool:
            digests = pool.map(digest, files)

        async with WorkStealingPool() as pool:
            tree = await pool.run(hash_tree, directory)

    Tasks are light: without a future, for tens of thousands of small ones. With a GIL, they gain
    from several threads only while they release it (hashing, compressing, reading); Python code
    does not get faster. Tasks of an event loop, such as agent sessions, do not belong here: a
    `ConcurrencyController` serves them in order of priority.

    Entering starts the threads, and leaving waits for all work; after an error or a cancellation
    what has not started is dropped. A call that has started cannot be interrupted, so leaving waits
    for it in any case. A pool is entered once.

    Args:
        workers: How many threads, or how many for each role. A worker serves its own role first
            and then every other. None: one for each core, but at most 4 where there is a GIL.
        order: Whether a worker takes the newest task of its own deque (``lifo``, best for the
            cache) or the oldest (``fifo``, best for the longest wait).
        name: What the threads' names begin with.

    Raises:
        ValueError: A number of workers is below 1, no role is given, or the order is unknown.
        TypeError: ``workers`` is neither a number nor a mapping of roles to numbers.
    """

    def __init__(
        self,
        workers: int | Mapping[str, int] | None = None,
        *,
        order: Literal["lifo", "fifo"] = "lifo",
        name: str = "orchestra",
    ) -> None:
        if workers is None:
            workers = default_workers()
        counts = workers if isinstance(workers, Mapping) else {"worker": workers}
        if not counts:
            raise ValueError("workers names no role; give at least one")
        for role, count in counts.items():
            if isinstance(count, bool):
                raise TypeError(f"workers for {role!r} is a bool; give a number")
            if index(count) < 1:
                raise ValueError(f"{count} workers for {role!r} is too few; give at least 1")
        if order not in {"lifo", "fifo"}:
            raise ValueError(f"order {order!r} is unknown; choose 'lifo' or 'fifo'")
        self._scheduler = Scheduler(counts, name, is_fifo=order == "fifo")

    def scope(self, role: str | None = None) -> TaskScope:
        """A block for tasks that belong together, for ``with`` or ``async with``.

        Args:
            role: Whose workers take the tasks first; None: the submitting worker itself, or from
                outside the first role.

        Raises:
            ValueError: No worker has that role.
        """
        self._scheduler.check_role(role)
        return TaskScope(self._scheduler, role)

    def map(self, fn: Callable[[T], R], items: Iterable[T], *, role: str | None = None) -> list[R]:
        """Call ``fn(item)`` for each item in the workers, and wait. Blocks; not for event loops.

        Args:
            fn: What to call, in other threads.
            items: A finite iterable.
            role: As for `scope`.

        Returns:
            The results in the order of the items.

        Raises:
            Exception: What the first call to fail raised; calls that had not started were dropped.
            anyio.ClosedResourceError: The pool is closing, or closed while calls were waiting.
        """
        results: list[R] = []
        try:
            with self.scope(role) as scope:
                results = self._fill(scope, fn, items)
        except BaseExceptionGroup as group:
            raise_first(group)
        return results

    async def run(self, fn: Callable[..., R], /, *args: Any, role: str | None = None) -> R:
        """Call ``fn(*args)`` in a worker, and wait for it. Always a checkpoint.

        The call sees a copy of the context variables. Cancelled before the call has begun, it is
        not made. Cancelled later, this waits for its end, since a thread cannot be interrupted:
        then the result is dropped, but an error is raised in place of the cancellation.

        Args:
            fn: What to call, in another thread.
            args: Its arguments.
            role: As for `scope`.

        Returns:
            What ``fn`` returns.

        Raises:
            Exception: What ``fn`` raises.
            anyio.ClosedResourceError: The pool is closing, or closed before the call began.
            ValueError: No worker has that role.
        """
        await anyio.lowlevel.checkpoint_if_cancelled()
        self._scheduler.check_role(role)
        call = Call(self._scheduler, fn, args)
        self._scheduler.open_group(call)
        self._scheduler.put((call, call.execute, ()), role)
        try:
            await call.latch.wait_async()
        except BaseException:
            if call.revoke():
                self._scheduler.close_group(call)
                raise
            with anyio.CancelScope(shield=True):
                await call.latch.wait_async()
            call.outcome()
            raise
        result: R = call.outcome()
        return result

    async def run_many(
        self, fn: Callable[[T], R], items: Iterable[T], *, role: str | None = None
    ) -> list[R]:
        """Call ``fn(item)`` for each item in the workers, and wait. Always a checkpoint.

        Cancelled, it drops the calls that have not begun and waits for those that have.

        Args:
            fn: What to call, in other threads.
            items: A finite iterable.
            role: As for `scope`.

        Returns:
            The results in the order of the items.

        Raises:
            Exception: What the first call to fail raised; calls that had not started were dropped.
            anyio.ClosedResourceError: The pool is closing, or closed while calls were waiting.
            ValueError: No worker has that role.
        """
        results: list[R] = []
        try:
            async with self.scope(role) as scope:
                results = self._fill(scope, fn, items)
        except BaseExceptionGroup as group:
            raise_first(group)
        return results

    def _fill(self, scope: TaskScope, fn: Callable[[T], R], items: Iterable[T]) -> list[R]:
        given = list(items)
        results: list[Any] = [None] * len(given)

        def call(numbered: tuple[int, T]) -> None:
            position, item = numbered
            results[position] = fn(item)

        scope.submit_many(call, enumerate(given))
        return results

    def close(
        self, *, cancel_pending: bool = False, timeout: float | None = None
    ) -> list[Callable[[], object]]:
        """Refuse new work, wait for what there is, and end the threads. Blocks. Idempotent.

        Args:
            cancel_pending: Drop tasks that have not started; their scopes and calls raise
                ``anyio.ClosedResourceError``.
            timeout: Seconds to wait; None waits as long as it takes.

        Returns:
            The calls that were dropped, so that they can be made elsewhere.

        Raises:
            TimeoutError: Work still runs. The pool stays closed; close it again to wait on.
            RuntimeError: This is a worker's thread or an event loop's.
        """
        if is_in_event_loop():
            raise RuntimeError("close() would block this event loop; use 'await pool.aclose()'")
        return self._close(cancel_pending=cancel_pending, timeout=timeout)

    def _close(self, *, cancel_pending: bool, timeout: float | None) -> list[Callable[[], object]]:
        scheduler = self._scheduler
        if scheduler.current_worker() is not None:
            raise RuntimeError("a pool cannot be closed by one of its tasks; close it from outside")
        scheduler.close(cancel_pending=cancel_pending)
        if scheduler.is_started and not scheduler.is_foreign:
            if not scheduler.idle.wait(timeout):
                raise TimeoutError(
                    f"{self!r} still has work after {timeout} s; close it again to wait on"
                )
            scheduler.stop()
            scheduler.stopped.wait()
            scheduler.join()
        return scheduler.take_dropped()

    async def aclose(self, *, cancel_pending: bool = False) -> list[Callable[[], object]]:
        """As `close`, for an event loop. Always a checkpoint.

        Cancelled, it drops what has not started and waits for what runs, in a shield.

        Args:
            cancel_pending: As for `close`.

        Returns:
            The calls that were dropped.
        """
        scheduler = self._scheduler
        scheduler.close(cancel_pending=cancel_pending)
        if not scheduler.is_started or scheduler.is_foreign:
            await anyio.lowlevel.checkpoint()
            return scheduler.take_dropped()
        try:
            await scheduler.idle.wait_async()
        except BaseException:
            scheduler.close(cancel_pending=True)
            with anyio.CancelScope(shield=True):
                await scheduler.idle.wait_async()
                await self._stop()
            raise
        with anyio.CancelScope(shield=True):
            await self._stop()
        return scheduler.take_dropped()

    async def _stop(self) -> None:
        self._scheduler.stop()
        await self._scheduler.stopped.wait_async()
        self._scheduler.join()

    def _start(self) -> None:
        if self._scheduler.is_started or self._scheduler.is_closing:
            raise RuntimeError("a pool can be entered once; make a new one")
        self._scheduler.start()

    def __enter__(self) -> WorkStealingPool:
        if is_in_event_loop():
            raise RuntimeError("leaving a pool would block this event loop; use 'async with'")
        self._start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close(cancel_pending=exc is not None, timeout=None)

    async def __aenter__(self) -> WorkStealingPool:
        await anyio.lowlevel.checkpoint()
        self._start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose(cancel_pending=exc is not None)

    def __del__(self) -> None:
        scheduler: Scheduler | None = getattr(self, "_scheduler", None)
        if scheduler is None or not scheduler.is_started or scheduler.is_foreign:
            return
        if not scheduler.is_closing:
            warn(f"{self!r} was never closed; use a with block", ResourceWarning, stacklevel=1)
            scheduler.close(cancel_pending=True)
            scheduler.stop()

    def statistics(self) -> WorkStealingStatistics:
        """Count what the workers have done; a guess while they work."""
        scheduler = self._scheduler
        return WorkStealingStatistics(
            implementation=IMPLEMENTATION,
            workers=tuple(
                WorkerStatistics(
                    role=worker.role,
                    executed=worker.executed,
                    stolen=worker.stolen,
                    attempts=worker.attempts,
                    parks=worker.parks,
                    queued=len(worker.deque),
                    cpu_time=worker.cpu_time,
                )
                for worker in scheduler.workers
            ),
            cores=available_cores(),
            queued=scheduler.queued(),
            sleeping=scheduler.parking.waiting,
            wall_time=scheduler.wall_time,
        )

    def __repr__(self) -> str:
        scheduler = self._scheduler
        if not scheduler.is_started:
            state = "not entered"
        elif scheduler.is_foreign:
            state = "of another process"
        elif scheduler.is_closing:
            state = "closed" if scheduler.stopped.is_set() else "closing"
        else:
            state = f"{scheduler.queued()} tasks queued, {scheduler.parking.waiting} asleep"
        count = len(scheduler.workers)
        return f"<WorkStealingPool {scheduler.name!r} {IMPLEMENTATION}: {count} workers, {state}>"
