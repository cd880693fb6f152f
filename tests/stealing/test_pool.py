"""The pool as threads see it; test_pool_async.py has its use from event loops."""

from __future__ import annotations

import gc
import os
import signal
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError
from time import sleep
from typing import Any

import anyio
import pytest

from orchestra import TaskScope, WorkStealingPool, _scheduler

pytestmark = pytest.mark.usefixtures("pools")


class Gate:
    """A task that says when it has begun, and ends when it is told to."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go = threading.Event()

    def __call__(self, *_: object) -> str:
        self.begun.set()
        assert self.go.wait(30)
        return "done"


def test_map_keeps_the_order() -> None:
    """Results come in the order of the items, whoever computed them."""
    with WorkStealingPool(3) as pool:
        assert pool.map(str, range(1000)) == [str(number) for number in range(1000)]
        assert pool.map(str, ()) == []


def test_every_task_runs_once() -> None:
    """Tasks that submit tasks, from inside and outside, are each run exactly once."""
    seen: list[int] = []

    def split(scope: TaskScope, low: int, high: int) -> None:
        if high - low == 1:
            seen.append(low)
            return
        middle = (low + high) // 2
        scope.submit(split, scope, low, middle)
        scope.submit(split, scope, middle, high)

    with WorkStealingPool(4) as pool:
        with pool.scope() as scope:
            scope.submit(split, scope, 0, 3000)
            scope.submit_many(seen.append, range(3000, 6000))
        assert sorted(seen) == list(range(6000))
        statistics = pool.statistics()
        assert statistics.executed == 5999 + 3000
        assert statistics.queued == 0


def test_block_waits_for_its_tasks() -> None:
    """A scope's block ends after its last task, however late that was submitted."""
    gate = Gate()
    ended: list[str] = []

    def outer(scope: TaskScope) -> None:
        gate()
        scope.submit(ended.append, "inner")

    with WorkStealingPool(1) as pool:
        with pool.scope() as scope:
            scope.submit(outer, scope)
            assert gate.begun.wait(30)
            gate.go.set()
        assert ended == ["inner"]
        with pytest.raises(anyio.ClosedResourceError):
            scope.submit(print)


def test_first_error_drops_what_has_not_started() -> None:
    """After an error no further task of the scope begins, and the block raises it."""
    gate = Gate()
    ran: list[int] = []

    def fail() -> None:
        gate()
        raise LookupError("first")

    with WorkStealingPool(1) as pool:
        with pytest.raises(ExceptionGroup) as caught, pool.scope() as scope:  # noqa: PT012
            scope.submit(fail)
            assert gate.begun.wait(30)
            scope.submit_many(ran.append, range(10))
            gate.go.set()
        assert [str(error) for error in caught.value.exceptions] == ["first"]
        assert ran == []
        assert pool.map(abs, [-1]) == [1]


def test_all_errors_are_raised() -> None:
    """Errors of tasks that ran at the same time, and of the block, are all in the group."""
    barrier = threading.Barrier(2)

    def fail(text: str) -> None:
        barrier.wait(30)
        raise LookupError(text)

    with WorkStealingPool(2) as pool:
        with pytest.raises(ExceptionGroup) as caught, pool.scope() as scope:  # noqa: PT012
            futures = [scope.future(lambda: None) for _ in range(2)]
            assert [future.result(30) for future in futures] == [None, None]
            scope.submit(fail, "one")
            scope.submit(fail, "two")
            while not scope.is_cancelled:
                pass
            raise KeyError("block")
        assert {str(error) for error in caught.value.exceptions} == {"one", "two", "'block'"}


def test_error_in_the_block_drops_what_has_not_started() -> None:
    """What the block raises comes out as it is, after the tasks that run have ended."""
    gate = Gate()
    ran: list[int] = []
    with WorkStealingPool(1) as pool:
        with pytest.raises(KeyError, match="block"), pool.scope() as scope:  # noqa: PT012
            running = scope.future(gate)
            assert gate.begun.wait(30)
            scope.submit(ran.append, 1)
            gate.go.set()
            raise KeyError("block")
        assert running.result(0) == "done"
        assert ran == []


def test_exit_exceptions_do_not_kill_a_worker() -> None:
    """SystemExit in a task reaches the block, in a group, and the worker lives on."""
    with WorkStealingPool(1) as pool:
        with pytest.raises(BaseExceptionGroup) as caught, pool.scope() as scope:
            scope.submit(exit, 3)
        assert isinstance(caught.value.exceptions[0], SystemExit)
        assert pool.map(abs, [-1]) == [1]


def test_map_raises_the_first_error_alone() -> None:
    """map() raises what a call raised, not a group."""
    with WorkStealingPool(2) as pool, pytest.raises(ZeroDivisionError):
        pool.map(lambda number: 1 / number, [1, 0, 0, 0])


def test_future_has_the_outcome() -> None:
    """A future has its task's result or error, and an error there does not cancel the scope."""
    with WorkStealingPool(2) as pool, pool.scope() as scope:
        good = scope.future(divmod, 7, 2)
        bad = scope.future(divmod, 7, 0)
        assert good.result(30) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            bad.result(30)
        assert not scope.is_cancelled


def test_dropped_future_is_cancelled() -> None:
    """cancel() drops what has not started; its futures say so."""
    gate = Gate()
    with WorkStealingPool(1) as pool, pool.scope() as scope:
        running = scope.future(gate)
        assert gate.begun.wait(30)
        waiting = scope.future(abs, -1)
        unwanted = scope.future(abs, -1)
        assert unwanted.cancel()
        scope.cancel()
        gate.go.set()
        assert running.result(30) == "done"
        with pytest.raises(CancelledError):
            waiting.result(30)


@pytest.mark.parametrize("workers", [1, 2])
def test_task_that_waits_for_tasks_helps(workers: int) -> None:
    """A scope in a task runs other tasks while it waits, so that one worker is enough."""

    def tree(depth: int) -> int:
        if depth == 0:
            return 1
        counts: list[int] = []
        with pool.scope() as scope:
            for _ in range(2):
                scope.submit(lambda: counts.append(tree(depth - 1)))
        return sum(counts)

    with WorkStealingPool(workers) as pool:
        assert pool.map(tree, [6]) == [64]


def test_waiting_task_does_not_pile_up_others() -> None:
    """Many tasks that each wait for their own do not nest without bound."""
    depth = threading.local()
    deepest: list[int] = []

    def outer(_: int) -> None:
        depth.now = getattr(depth, "now", 0) + 1
        deepest.append(depth.now)
        with pool.scope() as scope:
            scope.submit_many(lambda number: sum(range(number)), [200] * 8)
        depth.now -= 1

    with WorkStealingPool(4) as pool:
        pool.map(outer, range(500))
    assert max(deepest) < 60


def test_waiting_task_sleeps_while_others_run_its_tasks() -> None:
    """A task whose own tasks run elsewhere sleeps until they end, and has their errors."""
    gate = Gate()

    def fail() -> None:
        gate()
        raise LookupError

    def outer() -> None:
        with pool.scope() as inner:
            inner.submit(fail)
            assert gate.begun.wait(30)  # the other worker has stolen it

    with WorkStealingPool(2) as pool, pool.scope() as scope:
        future = scope.future(outer)
        assert gate.begun.wait(30)
        while pool.statistics().sleeping < 1:
            pass
        gate.go.set()
        assert isinstance(future.exception(30), ExceptionGroup)


def test_helping_worker_drops_and_fails_like_any() -> None:
    """A worker that runs tasks while it waits drops those of cancelled scopes, and keeps errors."""
    ran: list[int] = []

    def outer() -> None:
        with pool.scope() as inner:
            inner.submit_many(ran.append, range(5))
            inner.submit(divmod, 1, 0)  # popped first

    with WorkStealingPool(1) as pool, pool.scope() as scope:
        future = scope.future(outer)
        assert isinstance(future.exception(30), ExceptionGroup)
    assert ran == []


def test_interrupt_while_waiting_drops_and_waits() -> None:
    """Ctrl-C at the end of a block drops what has not started, waits for the rest, and comes out."""
    gate = Gate()
    ran: list[int] = []

    def interrupt() -> None:
        while not scope._group.latch._callbacks:  # until the block waits at its end
            sleep(0.001)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        while not scope.is_cancelled:
            sleep(0.001)
        gate.go.set()

    helper = threading.Thread(target=interrupt, daemon=True)
    with WorkStealingPool(1) as pool:
        with pytest.raises(KeyboardInterrupt), pool.scope() as scope:  # noqa: PT012
            running = scope.future(gate)
            scope.submit(ran.append, 1)
            helper.start()
        helper.join(30)
        assert running.result(0) == "done"
        assert ran == []


def test_scope_whose_end_was_cut_off_does_not_hold_up_the_pool() -> None:
    """A block that an interrupt left without its end is ended by a pool that drops its tasks."""
    gate = Gate()
    with WorkStealingPool(1) as pool:
        scopes = [pool.scope().__enter__(), pool.scope().__enter__()]
        scopes[0].submit(gate)
        scopes[0].submit(print, "never")
        assert gate.begun.wait(30)
        gate.go.set()
        assert len(pool.close(cancel_pending=True)) <= 1
    for scope in scopes:
        with pytest.raises(anyio.ClosedResourceError):
            scope.submit(print)


def test_threads_that_cannot_start_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the system refuses a thread, entering raises and the threads started so far end."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "short-worker-2":
            raise RuntimeError("can't start new thread")
        start(thread)

    pool = WorkStealingPool(4, name="short")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start"):
            pool.__enter__()
    for worker in pool._scheduler.workers[:2]:
        worker.thread.join(30)
        assert not worker.thread.is_alive()
    with pytest.raises(anyio.ClosedResourceError):
        pool.map(abs, [1])


@pytest.mark.parametrize("order", ["lifo", "fifo"])
def test_order_of_the_own_deque(order: Any) -> None:
    """A worker takes its own newest task, or its oldest where that is asked for."""
    ran: list[int] = []

    def outer(scope: TaskScope) -> None:
        for number in range(5):
            scope.submit(ran.append, number)

    with WorkStealingPool(1, order=order) as pool, pool.scope() as scope:
        scope.submit(outer, scope)
    assert ran == (list(range(5)) if order == "fifo" else list(range(4, -1, -1)))


@pytest.mark.parametrize("order", ["lifo", "fifo"])
def test_tasks_from_outside_keep_their_order(order: Any) -> None:
    """One worker runs what comes from outside in the order of submission."""
    ran: list[int] = []
    gate = Gate()
    with WorkStealingPool(1, order=order) as pool, pool.scope() as scope:
        scope.submit(gate)
        assert gate.begun.wait(30)
        scope.submit_many(ran.append, range(20))
        gate.go.set()
    assert ran == list(range(20))


def test_busy_worker_looks_outside_now_and_then() -> None:
    """Tasks that go on submitting tasks keep out neither older ones nor those from outside."""
    gate = Gate()
    stop = threading.Event()
    count = 0

    def again(scope: TaskScope) -> None:
        nonlocal count
        if not stop.is_set():
            count += gate.go.is_set()
            scope.submit(again, scope)

    with WorkStealingPool(1) as pool, pool.scope() as scope:
        scope.submit(again, scope)
        scope.submit(gate)
        assert gate.begun.wait(30)
        scope.submit(stop.set)
        gate.go.set()
    assert count <= 4 * 61


def test_roles_come_first_but_not_alone() -> None:
    """A worker takes its own role's tasks first, and then those of other roles."""
    gates = [Gate(), Gate()]
    holder: dict[str, Gate] = {}
    ran: list[tuple[str, str]] = []

    def hold(gate: Gate) -> None:
        holder[threading.current_thread().name] = gate
        gate()

    def note(task: str) -> None:
        ran.append((task, threading.current_thread().name))
        if len(ran) == 2:
            holder["p-worker-0"].go.set()

    with WorkStealingPool({"planner": 1, "worker": 1}, name="p") as pool:
        with pool.scope("worker") as workers, pool.scope("planner") as planners:
            for gate in gates:
                workers.submit(hold, gate)
                assert gate.begun.wait(30)
            workers.submit(note, "work")
            planners.submit(note, "plan")
            holder["p-planner-0"].go.set()
        assert ran == [("plan", "p-planner-0"), ("work", "p-planner-0")]
        assert [worker.role for worker in pool.statistics().workers] == ["planner", "worker"]
        with pytest.raises(ValueError, match="no worker has the role 'cook'; choose one of 'plan"):
            pool.scope("cook")


@pytest.mark.parametrize(
    ("workers", "error"),
    [(0, ValueError), (-1, ValueError), (True, TypeError), ("2", TypeError), ({}, ValueError)],
)
def test_wrong_number_of_workers_is_refused(workers: Any, error: type[Exception]) -> None:
    """A pool has at least one worker, and says so before a thread is started."""
    with pytest.raises(error):
        WorkStealingPool(workers)
    if isinstance(workers, int):
        with pytest.raises(error, match="'planner'"):
            WorkStealingPool({"planner": workers})


def test_unknown_order_is_refused() -> None:
    """The order is one of two words."""
    order: Any = "random"
    with pytest.raises(ValueError, match="choose 'lifo' or 'fifo'"):
        WorkStealingPool(1, order=order)


def test_leaving_waits_for_the_scopes_of_other_threads() -> None:
    """Draining waits for open scopes, refuses new ones, and ends the threads."""
    gate = Gate()
    pool = WorkStealingPool(1)
    results: list[object] = []

    def other() -> None:
        with pool.scope() as scope:
            results.append(scope.future(gate).result(30))

    thread = threading.Thread(target=other)
    with pool:
        thread.start()
        assert gate.begun.wait(30)
        with pytest.raises(TimeoutError, match="still has work after 0 s"):
            pool.close(timeout=0)
        with pytest.raises(anyio.ClosedResourceError), pool.scope():
            pass
        with pytest.raises(anyio.ClosedResourceError):
            pool.map(abs, [1])
        gate.go.set()
    thread.join(30)
    assert results == ["done"]
    assert not any("orchestra-" in each.name for each in threading.enumerate())
    assert pool.close() == []


def test_cancelling_close_returns_what_was_dropped() -> None:
    """Cancelling drops what has not started and hands it back; the scope learns of it."""
    gate = Gate()
    pool = WorkStealingPool(1)
    caught: list[BaseException] = []

    def other() -> None:
        try:
            with pool.scope() as scope:
                scope.submit(gate)
                scope.submit_many(ran.append, range(3))
                future = scope.future(ran.append, 3)
                gate.begun.wait(30)
                ready.set()
                with pytest.raises(CancelledError):
                    future.result(30)
        except anyio.ClosedResourceError as error:
            caught.append(error)

    ran: list[int] = []
    ready = threading.Event()
    thread = threading.Thread(target=other)
    with pool:
        thread.start()
        assert ready.wait(30)
        with pytest.raises(TimeoutError):
            pool.close(cancel_pending=True, timeout=0)
        gate.go.set()
        dropped = pool.close()
    thread.join(30)
    assert len(caught) == 1
    assert ran == []
    assert pool.close() == []
    for call in dropped:
        call()
    assert sorted(ran) == [0, 1, 2, 3]


def test_pool_must_be_open() -> None:
    """Work before entering and after leaving is refused, and a pool is entered once."""
    pool = WorkStealingPool(1)
    with pytest.raises(RuntimeError, match="has not been entered"):
        pool.map(abs, [1])
    with pool, pytest.raises(RuntimeError, match="entered once"):
        pool.__enter__()
    with pytest.raises(anyio.ClosedResourceError):
        pool.map(abs, [1])
    with pytest.raises(RuntimeError, match="entered once"):
        pool.__enter__()
    never = WorkStealingPool(1)
    assert never.close() == []
    with pytest.raises(RuntimeError, match="entered once"):
        never.__enter__()


def test_scope_must_be_open() -> None:
    """A scope takes tasks inside its block only, and is entered once."""
    with WorkStealingPool(1) as pool:
        scope = pool.scope()
        with pytest.raises(anyio.ClosedResourceError):
            scope.submit(print)
        with scope, pytest.raises(RuntimeError, match="entered once"):
            scope.__enter__()
        with pytest.raises(RuntimeError, match="entered once"):
            scope.__enter__()


def test_task_cannot_close_its_pool() -> None:
    """close() in a worker would wait for itself, and is refused."""
    with WorkStealingPool(1) as pool, pytest.raises(RuntimeError, match="close it from outside"):
        pool.map(lambda _: pool.close(), [1])


def test_iterable_that_fails_submits_nothing() -> None:
    """submit_many takes all items or, when the iterable raises, none."""
    ran: list[int] = []

    def broken() -> Any:
        yield 1
        raise LookupError

    with WorkStealingPool(1) as pool:
        with pytest.raises(LookupError), pool.scope() as scope:
            scope.submit_many(ran.append, broken())
        assert ran == []


def test_statistics_and_repr() -> None:
    """Both tell the state and the implementation; utilisation is a share of the cores."""
    pool = WorkStealingPool(2, name="crunch")
    assert repr(pool).endswith(" 2 workers, not entered>")
    assert pool.statistics().useful_utilisation == 0
    with pool:
        with pool.scope() as scope:
            scope.submit_many(sum, [range(20_000)] * 50)
            assert repr(scope).startswith("<TaskScope open: ")
            scope.cancel()
            assert repr(scope).startswith("<TaskScope cancelled: ")
        assert repr(scope) == "<TaskScope closed: 0 tasks unfinished, 0 failed>"
        pool.map(sum, [range(20_000)] * 50)
        assert repr(pool).startswith("<WorkStealingPool 'crunch' ")
        assert " asleep>" in repr(pool)
    statistics = pool.statistics()
    assert repr(pool).endswith(" closed>")
    assert 50 <= statistics.executed <= 100
    assert statistics.attempts >= 0
    assert statistics.parks > 0
    assert statistics.sleeping == 0
    assert statistics.cpu_time > 0
    assert 0 < statistics.useful_utilisation <= 1.05
    assert statistics.wall_time == pool.statistics().wall_time


def test_sleeping_worker_holds_on_to_nothing() -> None:
    """What a task was called with can die when the task is over."""

    class Thing:
        pass

    with WorkStealingPool(2) as pool:
        thing = Thing()
        watched = weakref.ref(thing)
        pool.map(id, [thing] * 100)
        del thing
        pool.map(id, [1])
        while pool.statistics().sleeping < 2:
            pass
        gc.collect()
        assert watched() is None


def test_forgotten_pool_warns_and_ends() -> None:
    """A pool that was never closed warns when it is collected, and its threads end."""
    pool = WorkStealingPool(1, name="forgotten")
    pool.__enter__()
    thread = pool._scheduler.workers[0].thread
    forgotten = [pool]
    del pool
    with pytest.warns(ResourceWarning, match="'forgotten' .* was never closed"):
        forgotten.clear()
    thread.join(30)
    assert not thread.is_alive()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_forked_child_is_told_to_make_its_own_pool() -> None:
    """In a forked child the pool refuses work, leaves without waiting, and a new one works."""

    def child() -> None:
        with pytest.raises(RuntimeError, match="make a new pool here"):
            pool.map(abs, [1])
        with pytest.raises(RuntimeError, match="make a new pool here"):
            scope.submit(print)
        assert "of another process" in repr(pool)
        scope.__exit__(None, None, None)
        pool.__exit__(None, None, None)
        with WorkStealingPool(1) as other:
            assert other.map(abs, [-2]) == [2]

    gate = Gate()
    with WorkStealingPool(1) as pool, pool.scope() as scope:
        future = scope.future(gate)
        assert gate.begun.wait(30)
        assert in_child(child) == 0
        gate.go.set()
        assert future.result(30) == "done"


def in_child(call: Callable[[], None]) -> int:
    """The exit status of a forked child that runs a call."""
    process = os.fork()
    if process == 0:
        status = 1
        try:
            call()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def test_eventcount_wakes_and_times_out() -> None:
    """A wait ends with a notification or, False, with its timeout; a searcher needs no wake-up."""
    parking = _scheduler.Scheduler({"worker": 1}, "parking", is_fifo=False).parking
    assert not parking.notify()
    key = parking.prepare()
    assert parking.waiting == 1
    assert not parking.wait(key, 0.001)
    assert parking.waiting == 0
    key = parking.prepare()
    parking.begin_search()
    assert not parking.notify()
    assert parking.end_search()
    assert parking.notify()
    assert parking.wait(key)
    key = parking.prepare()
    parking.notify_all()
    assert parking.wait(key, 10)
    parking.prepare()
    parking.cancel()
    assert parking.waiting == 0
