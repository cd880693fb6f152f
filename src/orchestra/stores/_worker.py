"""A thread that does an engine's blocking work, many jobs at a time.

``anyio.to_thread`` takes any free thread for each call. A database connection wants always the same
one, which moreover takes all that is waiting at once: that is what makes a group commit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, Generic, Protocol, TypeVar, cast, final

import anyio
import anyio.lowlevel

__all__ = ("Job", "Worker")

T = TypeVar("T")


@final
class Job(Generic[T]):
    """One piece of work: a function for the thread, and what came of it.

    ``group`` is None, or what the job is about; jobs with one may be done together.
    """

    __slots__ = ("_claim", "batch", "do", "error", "group", "result")

    def __init__(self, do: Callable[[], T], group: object = None) -> None:
        self.do = do
        self.group = group
        self.result: T | None = None
        self.error: BaseException | None = None
        self.batch: _Batch | None = None
        self._claim = threading.Lock()

    def claim(self) -> bool:
        """Whether the caller is the first to ask: the thread, to begin, or who gives up waiting."""
        return self._claim.acquire(blocking=False)

    @property
    def is_finished(self) -> bool:
        """Whether the thread is through with it."""
        return self.batch is not None and self.batch.finished.is_set()

    async def wait(self) -> None:
        """Wait until the thread is through with it."""
        if self.batch is None:
            raise RuntimeError("the job has not been handed in")
        await self.batch.finished.wait()

    def run(self) -> None:
        """Do it, in the thread."""
        try:
            self.result = self.do()
        except BaseException as exc:  # noqa: BLE001  (raised where it is waited for)
            self.error = exc

    def take(self) -> T:
        """Return or raise what came of it."""
        if self.error is not None:
            try:
                raise self.error
            finally:
                # The error's traceback holds this frame, and this frame the job.
                self.error = None
        return cast("T", self.result)


class _Batch:
    """Jobs that the thread takes at once; those who wait for them share one event."""

    __slots__ = ("finished", "is_taken", "jobs")

    def __init__(self) -> None:
        self.jobs: list[Job[Any]] = []
        self.is_taken = False
        self.finished = anyio.Event()


class _Asyncio(Protocol):
    def call_soon_threadsafe(self, fn: Callable[..., object], *args: object) -> object: ...


class _Trio(Protocol):
    def run_sync_soon(self, fn: Callable[..., object], *args: object) -> object: ...


def _caller() -> Callable[..., object]:
    """Return what runs a function in this event loop from any thread, without waiting for it.

    ``anyio.from_thread.run_sync`` would wait, and so keep the thread from its next jobs.
    """
    token: Any = anyio.lowlevel.current_token().native_token
    if hasattr(token, "run_sync_soon"):
        return cast("_Trio", token).run_sync_soon
    return cast("_Asyncio", token).call_soon_threadsafe


@final
class Worker:
    """Owns one thread; made and closed in one event loop.

    Args:
        name: The thread's name.
        handle: Called in the thread with all the jobs that were waiting; runs each of them.
    """

    def __init__(self, name: str, handle: Callable[[Sequence[Job[Any]]], None]) -> None:
        self._handle = handle
        self._call = _caller()
        self._queue: SimpleQueue[_Batch | None] = SimpleQueue()
        self._lock = threading.Lock()  # held for an append or an assignment
        self._batch: _Batch | None = None
        self._ended = anyio.Event()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Job[Any]) -> None:
        """Hand a job in; the thread runs jobs in this order."""
        with self._lock:
            batch = self._batch
            if batch is not None and not batch.is_taken:
                batch.jobs.append(job)
                job.batch = batch
                return
        self._batch = job.batch = batch = _Batch()
        batch.jobs.append(job)
        self._queue.put(batch)

    async def run(self, do: Callable[[], T]) -> T:
        """Run a function in the thread. A checkpoint; when it is cancelled the result is dropped.

        Args:
            do: The function.
        """
        await anyio.lowlevel.checkpoint_if_cancelled()
        job = Job(do)
        self.submit(job)
        await job.wait()
        return job.take()

    async def aclose(self, patience: float) -> None:
        """Finish what has been handed in, and end the thread.

        Args:
            patience: Seconds to wait for it at most.
        """
        self._queue.put(None)
        with anyio.move_on_after(patience, shield=True):
            await self._ended.wait()
            # It has told so with its last step: there is nothing to wait for but its exit.
            self._thread.join()

    def _work(self) -> None:
        while (batch := self._queue.get()) is not None:
            with self._lock:
                batch.is_taken = True
            self._handle([job for job in batch.jobs if job.claim()])
            self._tell(batch.finished.set)
        self._tell(self._ended.set)

    def _tell(self, fn: Callable[..., object], *args: object) -> None:
        try:
            self._call(fn, *args)
        except RuntimeError:
            # The event loop has ended, so nobody waits for it any more. Both loops say it like this
            # (trio.RunFinishedError is a RuntimeError).
            return
