"""The threads behind `orchestra.workers`: finding work, running it, sleeping when there is none."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from threading import Lock, Thread, get_ident
from time import perf_counter, thread_time
from typing import Any, Protocol, TypeAlias
from weakref import WeakSet

import anyio

from orchestra.stealing import EventCount, Stealer, WorkStealingDeque

__all__ = ("Group", "Latch", "Scheduler", "Task", "Worker")

FAIRNESS_TICK = 61  # every so many tasks a worker takes the oldest one (Go's number)
BATCH = 32  # what one visit to an injector takes at most, as in one theft


class Group(Protocol):
    """What tasks belong to. The pool calls it from any thread."""

    is_cancelled: bool
    """Whether tasks that have not started are dropped."""

    def failed(self, error: BaseException) -> None:
        """Take what a task raised."""

    def skipped(self, task: Task) -> Callable[[], object] | None:
        """Take note that a task is dropped; returns its call if that is the pool's doing."""

    def finished(self, count: int) -> None:
        """Take note that so many tasks are over: run, failed or dropped."""

    def abort(self) -> None:
        """Drop what has not started, because the pool closes."""


Task: TypeAlias = tuple[Group, Callable[..., object], tuple[Any, ...]]


class Latch:
    """Is set once, from any thread, and then calls back."""

    __slots__ = ("_callbacks", "_is_set", "_lock")

    def __init__(self) -> None:
        self._lock = Lock()
        self._callbacks: list[Callable[[], object]] = []
        self._is_set = False

    def is_set(self) -> bool:
        """Whether it has been set."""
        return self._is_set

    def set(self) -> None:
        """Set it, and call back in this thread."""
        with self._lock:
            self._is_set = True
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def call_when_set(self, callback: Callable[[], object]) -> None:
        """Have ``callback`` called by whoever sets the latch; at once if it is set."""
        with self._lock:
            if not self._is_set:
                self._callbacks.append(callback)
                return
        callback()

    def wait(self, timeout: float | None = None) -> bool:
        """Block this thread; False on timeout (seconds)."""
        gate = Lock()
        gate.acquire()
        self.call_when_set(gate.release)
        return gate.acquire(timeout=-1 if timeout is None else max(timeout, 0))

    async def wait_async(self) -> None:
        """Wait in an event loop. Always a checkpoint."""
        event = anyio.Event()
        native: Any = anyio.lowlevel.current_token().native_token
        # Unlike anyio.from_thread.run_sync, these do not wait for the loop, so no worker is held up.
        schedule = getattr(native, "call_soon_threadsafe", None) or native.run_sync_soon

        def wake() -> None:
            with suppress(RuntimeError):  # the loop is closed, and who waited is gone with it
                schedule(event.set)

        self.call_when_set(wake)
        await event.wait()


class Worker:
    """One thread, its deque, and its counters, which only this thread writes."""

    __slots__ = (
        "_scheduler",
        "_take",
        "_tick",
        "_victims",
        "attempts",
        "cpu_time",
        "deque",
        "executed",
        "parks",
        "role",
        "stealer",
        "stolen",
        "thread",
    )

    def __init__(self, scheduler: Scheduler, role: str, name: str, *, is_fifo: bool) -> None:
        self._scheduler = scheduler
        self._tick = 0
        self._victims: deque[Worker] = deque()
        self.role: str = role
        self.deque: WorkStealingDeque[Task] = WorkStealingDeque()
        self.stealer: Stealer[Task] = self.deque.stealer
        self._take: Callable[[], Task | None] = self.stealer.steal if is_fifo else self.deque.pop
        self.executed: int = 0
        self.stolen: int = 0
        self.attempts: int = 0
        self.parks: int = 0
        self.cpu_time: float = 0.0
        self.thread: Thread = Thread(target=self._main, name=name, daemon=True)

    def meet(self, workers: list[Worker]) -> None:
        """Learn whom to steal from: the others, own role first, beginning with the next one."""
        me = workers.index(self)
        others = workers[me + 1 :] + workers[:me]
        self._victims.extend(sorted(others, key=lambda other: other.role != self.role))

    def _main(self) -> None:
        self.deque.adopt()
        while (task := self._next()) is not None:
            self._run(task)
            del task  # a sleeping worker holds on to nothing
        self._scheduler.worker_ended()

    def _next(self) -> Task | None:
        """Find a task, or sleep until there is one; None when the pool stops."""
        parking = self._scheduler.parking
        while True:
            parking.begin_search()
            task = self._find()
            is_last = parking.end_search()
            if task is not None:
                # What was published while we searched woke nobody.
                if is_last and self._scheduler.has_work():
                    parking.notify()
                return task
            key = parking.prepare()
            if self._scheduler.has_work():
                parking.cancel()
            elif self._scheduler.is_stopping:
                parking.cancel()
                return None
            else:
                self.parks += 1
                parking.wait(key)

    def _find(self) -> Task | None:
        return self._take() or self._from_injectors() or self._steal()

    def _from_injectors(self) -> Task | None:
        for injector in self._scheduler.injectors_for(self.role):
            try:
                task = injector.popleft()
            except IndexError:
                continue
            share = min(len(injector) // len(self._scheduler.workers), BATCH - 1)
            if share > 0:
                batch: list[Task] = []
                with suppress(IndexError):  # other workers were here at the same time
                    batch.extend(injector.popleft() for _ in range(share))
                if self._scheduler.is_fifo:
                    self.deque.push_many(batch)
                else:
                    self.deque.push_many(reversed(batch))  # popped in the order of submission
                self._scheduler.parking.notify()
            return task
        return None

    def _steal(self) -> Task | None:
        for victim in self._victims:
            self.attempts += 1
            if count := victim.stealer.steal_into(self.deque):
                self.stolen += count
                self._victims.rotate(-1)
                return self._take()
        return None

    def _oldest(self) -> Task | None:
        """What has waited longest, outside or, in turn, below the newer tasks of the own deque."""
        if self._tick % (2 * FAIRNESS_TICK):
            return self._from_injectors() or self.stealer.steal()
        return self.stealer.steal() or self._from_injectors()

    def _run(self, first: Task) -> None:
        """Run a task, and then everything in the own deque."""
        began = thread_time()
        take = self._take
        current = first[0]
        done = skipped = 0
        task: Task | None = first
        while task is not None:
            group, fn, args = task
            if group is not current:
                self.executed += done - skipped
                current.finished(done)
                current = group
                done = skipped = 0
            if group.is_cancelled:
                self._scheduler.skip(task)
                skipped += 1
            else:
                try:
                    fn(*args)
                except BaseException as error:  # noqa: BLE001 - the group raises it in its block
                    group.failed(error)
            done += 1
            self._tick += 1
            task = self._oldest() if self._tick % FAIRNESS_TICK == 0 else None
            if task is None:
                task = take()
        self.executed += done - skipped
        self.cpu_time += thread_time() - began
        current.finished(done)

    def _run_one(self, task: Task) -> None:
        group, fn, args = task
        if group.is_cancelled:
            self._scheduler.skip(task)
        else:
            self.executed += 1
            try:
                fn(*args)
            except BaseException as error:  # noqa: BLE001 - the group raises it in its block
                group.failed(error)
        group.finished(1)

    def help_until(self, latch: Latch) -> None:
        """Run tasks, this worker's own first, until the latch is set: a task waits for others."""
        parking = self._scheduler.parking
        latch.call_when_set(parking.notify_all)
        while not latch.is_set():
            if (task := self._find()) is not None:
                self._run_one(task)
                del task
                continue
            key = parking.prepare()
            if latch.is_set() or self._scheduler.has_work():
                parking.cancel()
            else:
                self.parks += 1
                parking.wait(key)


_started: WeakSet[Scheduler] = WeakSet()


@cache
def _watch_forks() -> None:
    """Have a forked child told that the threads are not there; asking for the pid is slower."""

    def tell() -> None:
        for scheduler in _started:
            scheduler.is_foreign = True

    os.register_at_fork(after_in_child=tell)


class Scheduler:
    """The workers, the queues that tasks from outside come through, and the groups of tasks.

    It does not know the pool, so that a pool that was forgotten can be collected.
    """

    def __init__(self, workers: Mapping[str, int], name: str, *, is_fifo: bool) -> None:
        self.name: str = name
        self.is_fifo: bool = is_fifo
        self.parking: EventCount = EventCount()
        self.injectors: dict[str, deque[Task]] = {role: deque() for role in workers}
        self._injectors_for = {
            role: [own, *(queue for queue in self.injectors.values() if queue is not own)]
            for role, own in self.injectors.items()
        }
        self._default_role = next(iter(workers))
        self.workers: list[Worker] = []
        for role, count in workers.items():
            for number in range(count):
                thread_name = f"{name}-{role}-{number}"
                self.workers.append(Worker(self, role, thread_name, is_fifo=is_fifo))
        for worker in self.workers:
            worker.meet(self.workers)
        self._by_thread: dict[int, Worker] = {}
        self._lock = Lock()
        self._groups: set[Group] = set()
        self._running = 0
        self._process = 0
        self._began = 0.0
        self._ended = 0.0
        self.is_foreign: bool = False  # this process was forked from the one that has the threads
        self.is_closing: bool = False
        self.is_stopping: bool = False
        self._dropped: list[Callable[[], object]] = []
        self.idle: Latch = Latch()  # closing, and every group is finished
        self.stopped: Latch = Latch()  # every worker has ended

    @property
    def is_started(self) -> bool:
        """Whether the threads have been started."""
        return self._process != 0

    @property
    def wall_time(self) -> float:
        """Seconds since the start, or from start to end."""
        if not self.is_started:
            return 0.0
        return (self._ended or perf_counter()) - self._began

    def start(self) -> None:
        """Start the threads."""
        if hasattr(os, "register_at_fork"):
            _watch_forks()
            _started.add(self)
        self._process = os.getpid()
        self._began = perf_counter()
        self._running = len(self.workers)
        for started, worker in enumerate(self.workers):
            try:
                worker.thread.start()
            except BaseException:
                self._running = started
                self.is_closing = self.is_stopping = True
                self.parking.notify_all()
                raise
            self._by_thread[worker.thread.ident or 0] = worker

    def check(self) -> None:
        """Raise if tasks would not be run."""
        if not self._process:
            raise RuntimeError("this pool has not been entered; use it in a with block")
        if self.is_foreign:
            raise RuntimeError(
                f"this pool's threads are in process {self._process}, from which this one was "
                "forked; make a new pool here"
            )

    def current_worker(self) -> Worker | None:
        """The worker whose thread this is."""
        return self._by_thread.get(get_ident())

    def check_role(self, role: str | None) -> None:
        """Raise if no worker has the role."""
        if role is not None and role not in self.injectors:
            known = ", ".join(map(repr, self.injectors))
            raise ValueError(f"no worker has the role {role!r}; choose one of {known}")

    def put(self, task: Task, role: str | None) -> None:
        """Queue a task and wake a worker if need be."""
        worker = self._by_thread.get(get_ident())
        if worker is not None and (role is None or role == worker.role):
            worker.deque.push(task)
        else:
            self.injectors[role or self._default_role].append(task)
        self.parking.notify()

    def put_many(self, tasks: list[Task], role: str | None) -> None:
        """Queue tasks and wake a worker if need be; it wakes the next one."""
        worker = self._by_thread.get(get_ident())
        if worker is not None and (role is None or role == worker.role):
            worker.deque.push_many(tasks)
        else:
            self.injectors[role or self._default_role].extend(tasks)
        self.parking.notify()

    def injectors_for(self, role: str) -> list[deque[Task]]:
        """The queues of tasks from outside, the role's own first."""
        return self._injectors_for[role]

    def has_work(self) -> bool:
        """Whether a queue has a task."""
        return any(self.injectors.values()) or any(len(worker.deque) for worker in self.workers)

    def queued(self) -> int:
        """How many tasks have not been taken up."""
        inside = sum(len(worker.deque) for worker in self.workers)
        return inside + sum(map(len, self.injectors.values()))

    def skip(self, task: Task) -> None:
        """Drop a task of a cancelled group."""
        call = task[0].skipped(task)
        if call is not None:
            self._dropped.append(call)

    def take_dropped(self) -> list[Callable[[], object]]:
        """The calls that were dropped because the pool closes, each of them once."""
        dropped, self._dropped = self._dropped, []
        return dropped

    def wait(self, latch: Latch) -> None:
        """Block this thread until the latch is set; a worker works meanwhile."""
        if (worker := self.current_worker()) is not None:
            worker.help_until(latch)
        else:
            latch.wait()

    def open_group(self, group: Group) -> None:
        """Register a group: closing waits for it."""
        self.check()
        with self._lock:
            if self.is_closing:
                raise anyio.ClosedResourceError
            self._groups.add(group)

    def close_group(self, group: Group) -> None:
        """A group has no tasks any more."""
        with self._lock:
            self._groups.discard(group)
            is_idle = self.is_closing and not self._groups
        if is_idle:
            self.idle.set()

    def close(self, *, cancel_pending: bool) -> None:
        """Refuse new groups; `idle` is set when the present ones have finished."""
        with self._lock:
            self.is_closing = True
            groups = list(self._groups)
        if cancel_pending:
            for group in groups:
                group.abort()
        if not groups:
            self.idle.set()

    def stop(self) -> None:
        """End the threads once their queues are empty; `stopped` is set by the last one."""
        self.is_stopping = True
        if self._running:
            self.parking.notify_all()
        else:
            self.stopped.set()

    def worker_ended(self) -> None:
        """A worker's thread is about to end."""
        with self._lock:
            self._running -= 1
            is_last = not self._running
        if is_last:
            self._ended = perf_counter()
            self.stopped.set()

    def join(self) -> None:
        """Wait for the last instructions of threads that have said goodbye."""
        for worker in self.workers:
            worker.thread.join()
