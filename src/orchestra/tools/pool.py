"""Warm tool processes, shared by many requests at once, started and ended as needed."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from operator import index
from typing import Any, Final, Literal, final

import anyio
from anyio import AsyncContextManagerMixin
from anyio.abc import TaskGroup, TaskStatus
from attrs import frozen

from orchestra._core.checks import check_callable, finite
from orchestra._core.waiters import Priority
from orchestra.background import background_tasks
from orchestra.concurrency import ConcurrencyController
from orchestra.errors import CapacityError, ToolError, ToolStartError
from orchestra.pools.resources import PoolLease, ResourcePool
from orchestra.tools.command import ToolCommand
from orchestra.tools.process import ToolProcess

__all__ = ("ToolPool", "ToolPoolStatistics")

_SLOTS = "requests"


@frozen(kw_only=True)
class ToolPoolStatistics:
    """The state of a `ToolPool`, and what it has done.

    Attributes:
        processes: How many processes there are, those that start or end included.
        idle: How many of them have nothing to do.
        in_flight: How many requests and leases are being served.
        tasks_waiting: How many tasks wait for room.
        started: How many processes were started.
        start_failures: How often starting one failed or was cancelled.
        ended: How many processes have ended.
    """

    processes: int
    idle: int
    in_flight: int
    tasks_waiting: int
    started: int
    start_failures: int
    ended: int


class _Share:
    """A process that several tasks share: leased from the pool when the first one comes."""

    __slots__ = ("failure", "is_ready", "lease", "users")

    def __init__(self) -> None:
        self.users = 0
        self.lease: PoolLease[ToolProcess] | None = None
        self.is_ready = anyio.Event()
        self.failure: ToolError | None = None

    @property
    def is_fit(self) -> bool:
        """Whether somebody may join."""
        if not self.is_ready.is_set():
            return True  # the process is being started
        return self.lease is not None and _is_fit(self.lease.resource)

    @property
    def load(self) -> tuple[int, int]:
        """How much there is to do before a newcomer is served."""
        return self.users, 0 if self.lease is None else self.lease.resource.load


def _is_fit(process: ToolProcess) -> bool:
    return process.is_running and not process.is_stuck


@final
class ToolPool(AsyncContextManagerMixin):
    """Keeps tool processes warm and spreads requests over them.

    ::

        async with ToolPool(command) as tools:
            matches = await tools.request("grep", {"pattern": "TODO"})

    A request goes to a process that has nothing to do, else to a new one, else to the one with the
    least to do; when all have ``requests_per_process`` it waits, by priority and then first come,
    first served. A process that has had nothing to do for ``idle_timeout`` is ended.

    **What goes wrong** costs the requests of one process and no others. One that dies, or breaks
    the protocol, fails its requests at once, and the next request gets another. One that has not
    settled a request that was given up (by its deadline, or because its caller was cancelled)
    within ``command.grace`` gets no new requests, is ended when the rest of its requests are over,
    and is replaced. Nothing is repeated: the pool cannot know whether that does harm.

    **Leaving** refuses those who wait, fails the requests in flight, and ends every process with
    all its children, within a few times ``command.grace``.

    A pool is entered once, belongs to one event loop, and is not thread-safe.

    Args:
        command: What to start, and how to talk to it.
        max_size: How many processes there may be.
        requests_per_process: How many requests one may have at once; 1 for a server that does one
            thing after another.
        min_idle: How many processes are kept idle, started in the background.
        idle_timeout: Seconds after which an idle process is ended; None: never.
        initialize: Awaited with each new process before it is used, for a handshake. When it
            raises, the process is ended.
        start_timeout: Seconds in which a process must have been started and initialized.
        on_notification: As for `ToolProcess`; called for all processes.
        on_request: As for `ToolProcess`.

    Attributes:
        command: As given.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A number is out of range.
    """

    def __init__(
        self,
        command: ToolCommand,
        *,
        max_size: int = 4,
        requests_per_process: int = 8,
        min_idle: int = 0,
        idle_timeout: float | None = 30.0,
        initialize: Callable[[ToolProcess], Awaitable[object]] | None = None,
        start_timeout: float = 30.0,
        on_notification: Callable[[str, Any], object] | None = None,
        on_request: Callable[[str, Any], object] | None = None,
    ) -> None:
        ToolProcess(command, on_notification=on_notification, on_request=on_request)  # checks them
        if index(requests_per_process) < 1:
            raise ValueError(f"requests_per_process must be at least 1, not {requests_per_process}")
        if finite("start_timeout", start_timeout) <= 0:
            raise ValueError(f"start_timeout must be above 0 seconds, not {start_timeout!r}")
        if initialize is not None:
            check_callable("initialize", initialize)
        self.command: Final = command
        self._initialize: Final = initialize
        self._start_timeout: Final = start_timeout
        self._on_notification: Final = on_notification
        self._on_request: Final = on_request
        # Processes are the resource pool's: it starts, counts, checks and ends them. It lends each
        # to one holder, which is not a request but a share in it; how many requests may be at work
        # is the controller's to say. So who has a slot of it always finds a share with room, or
        # room for a process, and nobody waits here.
        self._processes: Final = ResourcePool[ToolProcess](
            self._start,
            validate=self._check,
            destroy=self._stop,
            max_size=max_size,
            min_idle=min_idle,
            idle_timeout=idle_timeout,
            max_uses=None,
            call_timeout=start_timeout + 3 * command.grace,
            name=command.label,
            fast_acquire=True,
        )
        self._slots: Final = ConcurrencyController(
            {_SLOTS: max_size * requests_per_process}, fast_acquire=True
        )
        self._max_size: Final = max_size
        self._most_users: Final = requests_per_process
        self._shares: Final[list[_Share]] = []
        self._retired: Final[set[_Share]] = set()
        self._tasks: TaskGroup | None = None
        self._is_closed = False

    # ---- asking ----

    async def request(
        self,
        method: str,
        params: Any = None,
        *,
        timeout: float | Literal["default"] | None = "default",
        priority: Priority = Priority.NORMAL,
    ) -> Any:
        """Ask one of the processes and wait for its answer. Always a checkpoint.

        Args:
            method: What is asked for.
            params: A dict or a list; None: left out.
            timeout: Seconds until the process must have answered, counted from when it was asked,
                as for ``ToolProcess.request``. Waiting for room is bounded by the caller.
            priority: How urgent it is, while it waits for room.

        Returns:
            The result, as JSON has it.

        Raises:
            CapacityError: The pool is closed.
            ToolStartError: A process was needed and could not be started.
            ToolResponseError: As ``ToolProcess.request``, like all that follow.
            ToolTimeoutError: The process did not answer in time.
            ToolLostError: It has ended or closed its pipes.
            ToolProtocolError: It wrote what is not its protocol, and was ended for it.
            anyio.ClosedResourceError: The pool was left in the meantime.
            TypeError: ``params`` is nothing that JSON can express.
            ValueError: The same.
        """
        async with self.lease(priority=priority) as process:
            return await process.request(method, params, timeout=timeout)

    def lease(
        self, *, priority: Priority = Priority.NORMAL
    ) -> AbstractAsyncContextManager[ToolProcess]:
        """Stay with one process for several requests; it counts as one, however many it makes.

        The process is shared with other tasks. Entering is a checkpoint only when it has to wait;
        leaving is none.

        Args:
            priority: How urgent it is, while it waits for room.

        Raises:
            CapacityError: As `request`.
            ToolStartError: As `request`.
        """
        return self._lease(priority)

    @asynccontextmanager
    async def _lease(self, priority: Priority) -> AsyncIterator[ToolProcess]:
        self._check_open()
        async with self._slots.lease(_SLOTS, priority=priority):
            share, process = await self._join()
            try:
                yield process
            finally:
                self._leave(share)

    # ---- sharing ----

    async def _join(self) -> tuple[_Share, ToolProcess]:
        while True:
            share = self._choose()
            share.users += 1
            try:
                if share.users == 1:
                    await self._open(share)
                else:
                    await share.is_ready.wait()
                if share.lease is not None:
                    return share, share.lease.resource
                if share.failure is not None:
                    raise copy.copy(share.failure)  # a traceback belongs to one task
            except BaseException:
                self._leave(share)
                raise
            self._leave(share)  # who was to open it was cancelled

    def _choose(self) -> _Share:
        """Find or make the share for a task that has a slot."""
        self._check_open()
        for share in [share for share in self._shares if not share.is_fit]:
            self._retire(share)
        roomy = [share for share in self._shares if share.users < self._most_users]
        if roomy and len(self._shares) + len(self._retired) >= self._max_size:
            return min(roomy, key=lambda share: share.load)
        share = _Share()
        self._shares.append(share)
        return share

    async def _open(self, share: _Share) -> None:
        try:
            while share.lease is None:
                share.lease = lease = await self._processes.acquire(owner=_SLOTS)
                # It may still be busy with what was given up. Cancelled here, it goes back as it is.
                if lease.resource.load and not await lease.resource.wait_settled():
                    share.lease = None
                    lease.invalidate()
        except ToolError as exc:
            share.failure = exc
            raise
        finally:
            share.is_ready.set()

    def _retire(self, share: _Share) -> None:
        """Let nobody join any more; who is in it goes on."""
        self._shares.remove(share)
        if share.lease is not None:
            self._retired.add(share)

    def _leave(self, share: _Share) -> None:
        share.users -= 1
        if not share.is_fit and share in self._shares:
            self._retire(share)
        if share.users:
            return
        is_fit = share in self._shares
        if is_fit:
            self._shares.remove(share)
        self._retired.discard(share)
        if share.lease is None:
            return
        if is_fit:
            share.lease.release()
        else:
            share.lease.invalidate()

    # ---- processes ----

    async def _start(self) -> ToolProcess:
        assert self._tasks is not None  # noqa: S101 - for the type checker
        process = ToolProcess(
            self.command, on_notification=self._on_notification, on_request=self._on_request
        )
        await self._tasks.start(self._host, process)
        return process

    async def _host(self, process: ToolProcess, *, task_status: TaskStatus[None]) -> None:
        async with process:
            if self._initialize is not None:
                with anyio.move_on_after(self._start_timeout) as scope:
                    await self._initialize(process)
                if scope.cancelled_caught:
                    raise ToolStartError(
                        f"{self.command.label} was not ready within {self._start_timeout:g} s; "
                        "give it a longer start_timeout or look at what it says",
                        process.stderr,
                    )
            task_status.started()
            await process.wait_over()

    @staticmethod
    async def _check(process: ToolProcess) -> bool:
        return _is_fit(process)

    @staticmethod
    async def _stop(process: ToolProcess) -> None:
        process.close()
        await process.wait_ended()

    # ---- state ----

    def statistics(self) -> ToolPoolStatistics:
        """Count what there is and what has been done."""
        processes = self._processes.statistics()
        slots = self._slots.statistics(_SLOTS)
        return ToolPoolStatistics(
            processes=processes.in_use + processes.idle + processes.busy,
            idle=processes.idle,
            in_flight=sum(share.users for share in (*self._shares, *self._retired)),
            tasks_waiting=slots.tasks_waiting,
            started=processes.created,
            start_failures=processes.create_failures,
            ended=processes.destroyed,
        )

    def __repr__(self) -> str:
        now = self.statistics()
        state = " closed" if self._is_closed else ""
        return (
            f"<ToolPool {self.command.label!r}{state} {now.processes}/{self._max_size} processes, "
            f"{now.in_flight} in flight, {now.tasks_waiting} waiting>"
        )

    # ---- the block ----

    def _check_open(self) -> None:
        if self._is_closed:
            raise CapacityError(
                f"the tools of {self.command.label!r} are closed; ask inside the block of the pool"
            )
        if self._tasks is None:
            raise RuntimeError("the pool has no tasks to work with; enter it with 'async with'")

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncIterator[ToolPool]:
        if self._tasks is not None:
            raise RuntimeError("a tool pool is entered once; make another one")
        async with background_tasks() as self._tasks, self._processes, self._slots:
            try:
                yield self
            finally:
                self._is_closed = True
                for share in (*self._shares, *self._retired):
                    if share.lease is not None:
                        share.lease.resource.close()
