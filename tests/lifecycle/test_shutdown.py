from __future__ import annotations

import contextvars
import gc
import math
import pickle
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from signal import SIGTERM, Signals
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra._core.shutdown import LAST_CALL, Budget, Order, ShutdownTimes
from orchestra.errors import RejectedError, ShuttingDownError
from orchestra.events import HandlerOutcome, ShutdownChanged, ShutdownPhase
from orchestra.shutdown import HandlerReport, ShutdownHandler, ShutdownManager, ShutdownReport
from orchestra.testing import settle, virtual_time_options

OK, TIMEOUT, ERROR = HandlerOutcome.OK, HandlerOutcome.TIMEOUT, HandlerOutcome.ERROR


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Time is virtual: what is said about seconds is exact."""
    return request.param, virtual_time_options(request.param)


class Diary:
    """Makes handlers that write down when they begin and end."""

    def __init__(self) -> None:
        self.lines: list[tuple[float, str]] = []

    def note(self, text: str) -> None:
        self.lines.append((anyio.current_time(), text))

    def handler(
        self, name: str, seconds: float = 0.0, error: BaseException | None = None
    ) -> Callable[[], Awaitable[None]]:
        async def handle() -> None:
            self.note(f"{name} begins")
            await anyio.sleep(seconds)
            if error is not None:
                raise error
            self.note(f"{name} ends")

        return handle

    @property
    def words(self) -> list[str]:
        return [text for _, text in self.lines]


@contextmanager
def failing(count: int) -> Iterator[list[BaseException]]:
    """Expect so many errors of handlers (and the block), and give them afterwards."""
    errors: list[BaseException] = []
    try:
        yield errors
    except BaseExceptionGroup as group:
        errors.extend(group.exceptions)
    assert len(errors) == count


async def resist(seconds: float = math.inf) -> None:
    """Sleep whatever anybody says."""
    with anyio.CancelScope(shield=True):
        await anyio.sleep(seconds)


def report_of(shutdown: ShutdownManager) -> ShutdownReport:
    """The report of a shutdown that is over."""
    assert shutdown.report is not None
    return shutdown.report


def outcomes(shutdown: ShutdownManager) -> dict[str, HandlerOutcome]:
    """How each handler ended."""
    return {line.name: line.outcome for line in report_of(shutdown).handlers}


# ---- order, bounds, outcomes ----


async def test_higher_priorities_first_and_equal_ones_together() -> None:
    """A priority begins when the one above has ended, and its handlers run side by side."""
    diary = Diary()
    async with ShutdownManager() as shutdown:
        shutdown.register(diary.handler("late", 1), name="late", priority=-5)
        shutdown.register(diary.handler("one", 2), name="one", priority=5)
        shutdown.register(diary.handler("two", 1), name="two", priority=5)
        shutdown.register(diary.handler("middle", 1), name="middle")
        start = anyio.current_time()
    assert [(when - start, text) for when, text in diary.lines[:2]] in (
        [(0, "one begins"), (0, "two begins")],
        [(0, "two begins"), (0, "one begins")],
    )
    assert [(when - start, text) for when, text in diary.lines[2:]] == [
        (1, "two ends"),
        (2, "one ends"),
        (2, "middle begins"),
        (3, "middle ends"),
        (3, "late begins"),
        (4, "late ends"),
    ]
    assert [line.name for line in report_of(shutdown).handlers] == ["two", "one", "middle", "late"]


async def test_five_hanging_handlers_cost_one_timeout() -> None:
    """Handlers that hang side by side end together, after one time-out."""
    with failing(5) as errors:
        async with ShutdownManager() as shutdown:
            for number in range(5):
                shutdown.register(anyio.sleep_forever, name=f"h{number}", timeout=5.0)
            start = anyio.current_time()
    assert anyio.current_time() - start == 5.0
    assert set(outcomes(shutdown).values()) == {TIMEOUT}
    assert all(type(error) is TimeoutError for error in errors)
    assert "was cancelled after 5.0 s" in str(errors[0])


async def test_every_outcome_is_reported_and_errors_come_out_together() -> None:
    """The report has each handler's outcome and duration; a failure stops nobody else."""
    diary = Diary()
    broken = OSError("broken")
    with failing(2) as errors:
        async with ShutdownManager() as shutdown:
            shutdown.register(diary.handler("fine", 1), name="fine", priority=1)
            shutdown.register(diary.handler("bad", 2, broken), name="bad", priority=1)
            shutdown.register(anyio.sleep_forever, name="slow", priority=1, timeout=3.0)
            shutdown.register(diary.handler("last"), name="last")
    assert outcomes(shutdown) == {"fine": OK, "bad": ERROR, "slow": TIMEOUT, "last": OK}
    assert [line.duration for line in report_of(shutdown).handlers] == [1, 2, 3, 0]
    assert errors[0] is broken
    assert "last ends" in diary.words
    counts = shutdown.statistics().outcomes
    assert counts == {OK: 2, TIMEOUT: 1, ERROR: 1}


async def test_an_error_after_the_time_limit_is_a_timeout() -> None:
    """What a handler raises because it was cancelled is the cause of its time-out."""

    async def fail_when_cancelled() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise LookupError("while it unwinds")

    with failing(1) as errors:
        async with ShutdownManager() as shutdown:
            shutdown.register(fail_when_cancelled, name="h")
    assert outcomes(shutdown) == {"h": TIMEOUT}
    assert isinstance(errors[0].__cause__, LookupError)


async def test_a_timeout_error_of_the_handler_is_an_error() -> None:
    """A handler that raises TimeoutError itself was not cancelled by us."""
    own = TimeoutError("mine")
    with failing(1) as errors:
        async with ShutdownManager() as shutdown:
            shutdown.register(Diary().handler("h", 1, own), name="h")
    assert outcomes(shutdown) == {"h": ERROR}
    assert errors == [own]


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt(), SystemExit(3)])
async def test_an_interrupt_in_a_handler_stops_no_other(interrupt: BaseException) -> None:
    """KeyboardInterrupt and SystemExit come out at the end, after every handler was called."""
    diary = Diary()
    with failing(1) as errors:
        async with ShutdownManager() as shutdown:
            shutdown.register(diary.handler("h", 0, interrupt), name="h", priority=1)
            shutdown.register(diary.handler("last"), name="last")
    assert errors == [interrupt]
    assert diary.words == ["h begins", "last begins", "last ends"]


async def test_a_stray_cancellation_is_an_error_of_the_handler() -> None:
    """A handler that awaits an asyncio task it has cancelled fails, and hides nothing."""
    import asyncio

    async def cancel_and_await() -> None:
        raise asyncio.CancelledError

    if anyio.get_cancelled_exc_class() is not asyncio.CancelledError:
        return
    with failing(1) as errors:
        async with ShutdownManager() as shutdown:
            shutdown.register(cancel_and_await, name="h")
    assert "raised a cancellation that is not its own" in str(errors[0])
    assert outcomes(shutdown) == {"h": ERROR}


async def test_a_partial_of_an_async_function_is_awaited() -> None:
    """It needs no thread."""
    diary = Diary()
    async with ShutdownManager() as shutdown:
        shutdown.register(partial(diary.handler("partial", 1)), name="partial")
    assert diary.words == ["partial begins", "partial ends"]


# ---- the block ----


async def test_what_the_block_raises_comes_out_as_it_is() -> None:
    """Without failed handlers the block's exception is neither wrapped nor changed."""
    error = LookupError("mine")
    with pytest.raises(LookupError) as caught:
        async with ShutdownManager() as shutdown:
            raise error
    assert caught.value is error
    assert report_of(shutdown).reason == "the block was left"


async def test_the_blocks_exception_and_the_handlers_come_out_together() -> None:
    """An error of a handler does not hide the block's, nor the other way round."""
    mine, theirs = LookupError("mine"), OSError("theirs")
    with failing(2) as errors:
        async with ShutdownManager() as shutdown:
            shutdown.register(Diary().handler("h", 0, theirs))
            raise mine
    assert errors == [mine, theirs]


async def test_in_a_cancelled_scope_every_handler_still_runs_to_its_end() -> None:
    """Cancellation around the block reaches no handler, and comes out afterwards."""
    diary = Diary()
    with anyio.CancelScope() as scope:
        scope.cancel()
        async with ShutdownManager() as shutdown:
            shutdown.register(diary.handler("one", 1), priority=1)
            shutdown.register(diary.handler("two", 1))
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert diary.words == ["one begins", "one ends", "two begins", "two ends"]
    assert report_of(shutdown).duration == 2


async def test_cancelled_during_clean_up_the_rest_still_runs() -> None:
    """A cancellation that comes while handlers run changes nothing for them."""
    diary = Diary()
    with anyio.move_on_after(0.5) as scope:
        async with ShutdownManager() as shutdown:
            shutdown.register(diary.handler("one", 1), priority=1)
            shutdown.register(diary.handler("two", 1))
    assert scope.cancelled_caught
    assert diary.words[-1] == "two ends"


async def test_errors_are_not_lost_in_a_cancelled_scope() -> None:
    """When the block is cancelled and a handler fails, the failure is what is raised."""
    with failing(1) as errors:
        with anyio.CancelScope() as scope:
            scope.cancel()
            async with ShutdownManager() as shutdown:
                shutdown.register(Diary().handler("h", 0, OSError("lost?")))
                await anyio.sleep_forever()
    assert [str(error) for error in errors] == ["lost?"]


async def test_the_block_may_finish_while_draining() -> None:
    """After a request the block is work in flight: it ends by itself, in its own time."""
    diary = Diary()
    async with anyio.create_task_group() as tasks, ShutdownManager(grace_period=10) as shutdown:
        shutdown.register(diary.handler("close"))
        tasks.start_soon(wait_and_note, shutdown, diary)
        await settle()
        shutdown.request("enough")
        shutdown.request("again")
        await anyio.sleep(4)
        diary.note("the block ends")
    assert diary.words == ["enough", "the block ends", "close begins", "close ends"]
    report = report_of(shutdown)
    assert (report.reason, report.is_drained, report.unfinished) == ("enough", True, ())
    assert report.duration == 4


async def wait_and_note(shutdown: ShutdownManager, diary: Diary) -> None:
    """Write down the reason when there is one."""
    diary.note(await shutdown.wait_requested())


async def test_a_block_that_does_not_end_is_cancelled_when_its_share_is_over() -> None:
    """The share of the drain over, the block is cancelled without an error; then comes clean-up."""
    diary = Diary()
    async with ShutdownManager(grace_period=10, drain_share=0.3) as shutdown:
        shutdown.register(diary.handler("close"))
        start = anyio.current_time()
        shutdown.request("enough")
        try:
            await anyio.sleep_forever()
        finally:
            diary.note("cancelled")
    assert [(when - start, text) for when, text in diary.lines][:2] == [
        (3, "cancelled"),
        (3, "close begins"),
    ]
    report = report_of(shutdown)
    assert (report.is_drained, report.unfinished, report.is_cut) == (False, ("the block",), False)


async def test_a_cancelled_block_unwinds_while_the_handlers_can_wait() -> None:
    """Handlers begin when the block is out, or when what is left is what they need."""
    diary = Diary()
    async with ShutdownManager(grace_period=10, drain_share=0.3) as shutdown:
        shutdown.register(diary.handler("close", 1), timeout=5.0)
        start = anyio.current_time()
        shutdown.request()
        try:
            await anyio.sleep_forever()
        finally:
            await resist(30)
            diary.note("the block is out")
    assert [(when - start, text) for when, text in diary.lines] == [
        (5, "close begins"),
        (6, "close ends"),
        (33, "the block is out"),
    ]


# ---- work in flight ----


async def test_work_under_a_guard_is_waited_for() -> None:
    """Clean-up begins when the last guard is released."""
    diary = Diary()

    async def work(shutdown: ShutdownManager, seconds: float) -> None:
        with shutdown.guard(f"work of {seconds} s"):
            await anyio.sleep(seconds)
            diary.note(f"work {seconds} over")

    async with anyio.create_task_group() as tasks, ShutdownManager() as shutdown:
        shutdown.register(diary.handler("close"))
        tasks.start_soon(work, shutdown, 2)
        tasks.start_soon(work, shutdown, 7)
        await settle()
        assert shutdown.statistics().in_flight == 2
    assert diary.words == ["work 2 over", "work 7 over", "close begins", "close ends"]
    assert report_of(shutdown).is_drained


async def test_work_that_does_not_end_is_named() -> None:
    """When the share is over, clean-up begins, and the report names what was in flight."""
    diary = Diary()

    async def work(shutdown: ShutdownManager) -> None:
        with shutdown.guard("request 7"):
            await anyio.sleep(60)
            diary.note("work over")

    async with anyio.create_task_group() as tasks, ShutdownManager(grace_period=20) as shutdown:
        shutdown.register(diary.handler("close"))
        tasks.start_soon(work, shutdown)
        await settle()
    assert diary.words == ["close begins", "close ends", "work over"]
    assert report_of(shutdown).unfinished == ("request 7",)
    assert report_of(shutdown).duration == 10


async def test_new_work_is_rejected_once_draining() -> None:
    """A guard is refused as not started from the request on, also when all is over."""
    async with ShutdownManager() as shutdown:
        early = shutdown.guard()
        with early, pytest.raises(RuntimeError, match="held already"):
            early.__enter__()
        shutdown.request("enough")
        with pytest.raises(ShuttingDownError, match="shutting down \\(enough\\)"), early:
            pass
    with pytest.raises(RejectedError), shutdown.guard():
        pass


async def test_a_guard_ends_however_its_work_does() -> None:
    """An exception and a cancellation release the guard."""
    async with ShutdownManager() as shutdown:
        with pytest.raises(LookupError), shutdown.guard():
            raise LookupError
        with anyio.move_on_after(1), shutdown.guard():
            await anyio.sleep_forever()
        assert shutdown.statistics().in_flight == 0


async def test_drain_functions_are_called_at_once_and_waited_for() -> None:
    """What was registered for draining runs from the request on, before any handler."""
    diary = Diary()
    async with ShutdownManager() as shutdown:
        shutdown.register(diary.handler("close"), priority=100)
        shutdown.register_drain(diary.handler("stop", 3), name="stop")
        withdrawn = shutdown.register_drain(diary.handler("withdrawn"))
        assert withdrawn.unregister()
        shutdown.request()
        await anyio.sleep(1)
        assert diary.words == ["stop begins"]
        shutdown.register_drain(diary.handler("late"), name="late")
    assert diary.words[-3:] == ["stop ends", "close begins", "close ends"]
    assert "late ends" in diary.words
    assert report_of(shutdown).duration == 3
    with pytest.raises(ShuttingDownError):
        shutdown.register_drain(diary.handler("too late"))


async def test_a_drain_function_has_the_share_of_the_drain() -> None:
    """One that hangs is cancelled when the share is over, and is a failure like any other."""
    with failing(1):
        async with ShutdownManager(grace_period=8, drain_share=0.25) as shutdown:
            shutdown.register_drain(anyio.sleep_forever, name="stop")
    assert outcomes(shutdown) == {"stop": TIMEOUT}
    report = report_of(shutdown)
    assert (report.duration, report.unfinished) == (2, ("stop",))


async def test_without_a_share_nothing_is_waited_for() -> None:
    """With a share of 0 the block is cancelled by the request; idle, it is still drained."""
    async with ShutdownManager(drain_share=0) as shutdown:
        start = anyio.current_time()
        shutdown.request()
        await anyio.sleep_forever()
    assert anyio.current_time() == start
    assert not report_of(shutdown).is_drained
    async with ShutdownManager(drain_share=0) as idle:
        pass
    assert report_of(idle).is_drained


# ---- the grace ----


async def test_when_the_grace_is_short_everybody_gets_the_same_part() -> None:
    """Ten priorities that hang for 5 s in 20 s get 2 s each, and the whole takes 20 s."""
    with failing(10):
        async with ShutdownManager(grace_period=20) as shutdown:
            for priority in range(10):
                shutdown.register(anyio.sleep_forever, priority=priority)
    report = report_of(shutdown)
    assert report.duration == pytest.approx(20)
    assert [line.duration for line in report.handlers] == [pytest.approx(2)] * 10
    assert [line.priority for line in report.handlers] == list(range(9, -1, -1))


async def test_what_some_do_not_use_the_others_get() -> None:
    """Parts are computed again for each priority: the quick ones leave their time to the rest."""
    diary = Diary()
    async with ShutdownManager(grace_period=20) as shutdown:
        for priority in range(1, 9):
            shutdown.register(diary.handler("quick"), priority=priority)
        shutdown.register(diary.handler("slow", 4.5), name="slow")
    assert outcomes(shutdown)["slow"] is OK


async def test_a_handler_that_resists_holds_up_the_end_and_nobody_else() -> None:
    """One that does not unwind is waited for at the end; the next begin a second after its time."""
    diary = Diary()
    async with ShutdownManager() as shutdown:
        shutdown.register(partial(resist, 60), name="resists", priority=1, timeout=2.0)
        shutdown.register(diary.handler("next"), name="next")
        start = anyio.current_time()
    assert diary.lines[0] == (start + 2.0 + LAST_CALL, "next begins")
    assert anyio.current_time() - start == 60
    assert [line.name for line in report_of(shutdown).handlers] == ["next", "resists"]


async def test_cutting_the_grace_while_draining() -> None:
    """Cut, the block is cancelled at once, and every handler still gets a chance."""
    diary = Diary()
    with failing(3):
        async with ShutdownManager() as shutdown:
            shutdown.register_drain(anyio.sleep_forever, name="drain")
            shutdown.register(anyio.sleep_forever, name="hangs", priority=1)
            shutdown.register(diary.handler("slow", 9), name="slow", priority=1)
            shutdown.register(diary.handler("quick"), name="quick")
            shutdown.request()
            await anyio.sleep(1)
            shutdown.cut_grace()
            shutdown.cut_grace()
            await anyio.sleep_forever()
    report = report_of(shutdown)
    assert outcomes(shutdown) == {"drain": TIMEOUT, "hangs": TIMEOUT, "slow": TIMEOUT, "quick": OK}
    assert report.is_cut
    assert 1 <= report.duration <= 1 + LAST_CALL


async def test_cutting_the_grace_while_handlers_run() -> None:
    """Cut, those that are being called are cancelled, and the next are called with what is left."""
    diary = Diary()
    with failing(2):
        async with ShutdownManager() as shutdown:
            shutdown.register(diary.handler("slow", 4), name="slow", priority=2)
            shutdown.register(partial(cut_after, shutdown, 1), name="cut", priority=2)
            shutdown.register(diary.handler("next"), name="next")
            start = anyio.current_time()
    assert (start + 1, "next ends") in diary.lines
    assert outcomes(shutdown) == {"slow": TIMEOUT, "cut": TIMEOUT, "next": OK}


async def cut_after(shutdown: ShutdownManager, seconds: float) -> None:
    """Cut the grace after a while."""
    await anyio.sleep(seconds)
    shutdown.cut_grace()
    await anyio.sleep_forever()


async def test_cutting_the_grace_does_not_wait_for_what_resists() -> None:
    """Cut while a block and a handler resist: the others are called within about a second each."""
    diary = Diary()

    async def cut(shutdown: ShutdownManager) -> None:
        await anyio.sleep(2)
        shutdown.cut_grace()

    async with anyio.create_task_group() as tasks, ShutdownManager() as shutdown:
        shutdown.register(partial(resist, 40), name="resists", priority=1)
        shutdown.register(diary.handler("next"), name="next")
        start = anyio.current_time()
        tasks.start_soon(cut, shutdown)
        await resist(50)
    assert diary.lines[0][0] - start <= 2 + 3 * LAST_CALL
    assert anyio.current_time() - start == 50


async def test_cutting_what_nobody_requested_requests_it() -> None:
    """cut_grace alone begins the shutdown, and afterwards does nothing."""
    async with ShutdownManager() as shutdown:
        shutdown.cut_grace()
        await anyio.sleep_forever()
    shutdown.cut_grace()
    shutdown.request("too late")
    assert report_of(shutdown).reason == "the grace was cut"


# ---- registering ----


async def test_registration_while_others_are_called_runs_at_once() -> None:
    """What is registered during clean-up is called at once, with its own bound."""
    diary = Diary()

    async def late(shutdown: ShutdownManager) -> None:
        await anyio.sleep(1)
        shutdown.register(diary.handler("late", 1), name="late", priority=99)
        shutdown.register(anyio.sleep_forever, name="hangs", timeout=3.0)
        await anyio.sleep(1.5)
        diary.note("registering ends")

    with failing(1):
        async with ShutdownManager() as shutdown:
            shutdown.register(partial(late, shutdown), name="registering", priority=5)
            shutdown.register(diary.handler("next"), name="next")
            start = anyio.current_time()
    assert diary.lines[0] == (start + 1, "late begins")
    assert diary.words == [
        "late begins",
        "late ends",
        "registering ends",
        "next begins",
        "next ends",
    ]
    assert report_of(shutdown).duration == 4
    assert outcomes(shutdown)["hangs"] is TIMEOUT


async def test_registration_while_draining_takes_its_place() -> None:
    """Work in flight may register what it opens: it is not closed under its hands."""
    diary = Diary()
    async with ShutdownManager() as shutdown:
        shutdown.register(diary.handler("low"), priority=1)
        shutdown.request()
        shutdown.register(diary.handler("high"), priority=2)
        await anyio.sleep(1)
        assert diary.words == []
    assert diary.words == ["high begins", "high ends", "low begins", "low ends"]


async def test_registration_by_a_block_that_unwinds_late_runs_at_once() -> None:
    """As long as the block is not out, somebody calls what it registers."""
    diary = Diary()
    async with ShutdownManager(grace_period=2) as shutdown:
        shutdown.request()
        try:
            await anyio.sleep_forever()
        finally:
            await resist(60)
            shutdown.register(diary.handler("late"), name="late")
    assert outcomes(shutdown) == {"late": OK}


async def test_registration_after_the_end_is_refused() -> None:
    """Nobody would call it, so the caller is told to do it himself."""
    async with ShutdownManager() as shutdown:
        pass
    with pytest.raises(anyio.ClosedResourceError, match="'x' would not be called"):
        shutdown.register(anyio.sleep_forever, name="x")


async def test_unregister_takes_a_handler_back_unless_it_was_called() -> None:
    """Taken back it is not called; the answer tells whether that is sure."""
    diary = Diary()
    handlers: list[ShutdownHandler] = []

    async def look() -> None:
        diary.note(f"{handlers[0].unregister()} {handlers[1].unregister()}")

    async with ShutdownManager() as shutdown:
        gone = shutdown.register(diary.handler("gone"))
        assert (gone.unregister(), gone.unregister()) == (True, False)
        handlers.append(shutdown.register(look, name="look", priority=1, timeout=2.5))
        handlers.append(shutdown.register(diary.handler("next"), name="next"))
        assert repr(handlers[0]) == "<ShutdownHandler 'look' priority 1, 2.5 s>"
    assert diary.words == ["False True"]
    assert outcomes(shutdown) == {"look": OK}


async def test_a_manager_is_entered_once() -> None:
    """A second `async with` is an error, and so is one within the first."""
    async with ShutdownManager() as shutdown:
        with pytest.raises(RuntimeError, match="entered"):
            async with shutdown:
                pass
    with pytest.raises(RuntimeError, match="entered once"):
        async with shutdown:
            pass


async def test_requested_before_it_is_entered() -> None:
    """A request that comes before the block is kept."""
    shutdown = ShutdownManager(grace_period=2)
    shutdown.request("early")
    async with shutdown:
        assert await shutdown.wait_requested() == "early"
        await anyio.sleep_forever()
    assert report_of(shutdown).reason == "early"


# ---- waiting for the request ----


async def test_wait_requested_is_a_checkpoint_before_and_after() -> None:
    """Cancelled before and while it waits it raises, and another waiter is still woken."""
    async with ShutdownManager() as shutdown:
        with anyio.move_on_after(1) as parked:
            await shutdown.wait_requested()
        assert parked.cancelled_caught
        shutdown.request("now")
        with anyio.CancelScope() as cancelled:
            cancelled.cancel()
            await shutdown.wait_requested()
        assert cancelled.cancelled_caught
        assert await shutdown.wait_requested() == "now"
        assert shutdown.is_requested


async def test_requested_and_cancelled_in_the_same_moment() -> None:
    """A waiter that is cancelled with the request takes it from nobody."""
    diary = Diary()
    async with anyio.create_task_group() as tasks, ShutdownManager() as shutdown:
        scope = anyio.CancelScope()

        async def wait() -> None:
            with scope:
                await wait_and_note(shutdown, diary)

        tasks.start_soon(wait)
        tasks.start_soon(wait_and_note, shutdown, diary)
        await settle()
        shutdown.request("now")
        scope.cancel()
    assert diary.words in (["now"], ["now", "now"])


# ---- telling ----


async def test_the_listener_hears_the_phases_in_order() -> None:
    """Each phase and the cut are told once; a listener that raises is dropped."""
    heard: list[ShutdownChanged] = []
    async with ShutdownManager(listener=heard.append) as shutdown:
        shutdown.request("why")
        shutdown.cut_grace()
        await anyio.sleep_forever()
    assert [(event.phase, event.is_cut) for event in heard] == [
        (ShutdownPhase.DRAINING, False),
        (ShutdownPhase.DRAINING, True),
        (ShutdownPhase.CLEANING, True),
        (ShutdownPhase.FINISHED, True),
    ]
    assert {event.reason for event in heard} == {"why"}

    def fail(event: ShutdownChanged) -> None:
        raise LookupError(event)

    async with ShutdownManager(listener=fail) as other:
        pass
    assert report_of(other).is_drained


async def test_statistics_and_repr_show_what_is_going_on() -> None:
    """Both show the phase, handlers to call, and work in flight."""
    seen: list[str] = []

    async def look() -> None:
        seen.append(repr(shutdown))

    shutdown = ShutdownManager()
    async with shutdown:
        shutdown.register(look, priority=1)
        shutdown.register(look)
        with shutdown.guard("g") as guard:
            assert repr(guard) == "<ShutdownGuard 'g'>"
            now = shutdown.statistics()
            assert (now.phase, now.handlers, now.in_flight) == (ShutdownPhase.RUNNING, 2, 1)
            seen.append(repr(shutdown))
    assert seen == [
        "<ShutdownManager running: 2 handlers to call, 0 being called, 1 guards>",
        "<ShutdownManager cleaning up: 1 handlers to call, 1 being called, 0 guards>",
        "<ShutdownManager cleaning up: 0 handlers to call, 1 being called, 0 guards>",
    ]
    assert shutdown.statistics().phase is ShutdownPhase.FINISHED


async def test_handlers_see_the_context_that_entered() -> None:
    """Context variables of whoever entered the block are seen by asynchronous handlers."""
    variable = contextvars.ContextVar("variable", default="")
    seen: list[str] = []

    async def look() -> None:
        seen.append(variable.get())

    variable.set("entered")
    async with ShutdownManager() as shutdown:
        variable.set("later")
        shutdown.register(look)
    assert seen == ["entered"]


async def fail_to_shut_down() -> None:
    """A shutdown with an error."""
    with failing(1):
        async with ShutdownManager() as shutdown:
            shutdown.register(Diary().handler("h", 0, OSError("x")))


async def test_nothing_is_left_for_the_collector() -> None:
    """A failed shutdown leaves no reference cycle behind."""
    gc.collect()
    gc.disable()
    try:
        await fail_to_shut_down()
        gc.collect()
        gc.garbage.clear()
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = [kept for kept in gc.garbage if type(kept).__module__.startswith("orchestra")]
        assert left == []
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def test_bad_configuration_is_refused() -> None:
    """A wrong field is named."""
    with pytest.raises(ValueError, match="grace_period must be above 0"):
        ShutdownManager(grace_period=0)
    for share in (1.0, -0.1):
        with pytest.raises(ValueError, match="drain_share must be at least 0 and below 1"):
            ShutdownManager(drain_share=share)
    with pytest.raises(TypeError, match="signals must be"):
        ShutdownManager(signals=[15])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="before_exit must be callable"):
        ShutdownManager(before_exit="x")  # type: ignore[arg-type]
    shutdown = ShutdownManager()
    with pytest.raises(TypeError, match="fn must be callable"):
        shutdown.register(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="timeout must be above 0"):
        shutdown.register(print, timeout=0)
    with pytest.raises(TypeError, match="priority must be an int"):
        shutdown.register(print, priority="high")  # type: ignore[arg-type]


def test_the_exit_code_is_that_of_the_signal() -> None:
    """A report without a signal means 0, one with a signal 128 plus its number."""

    def make(number: Signals | None) -> ShutdownReport:
        line = HandlerReport(name="h", priority=0, outcome=OK, duration=0.1)
        return ShutdownReport(
            reason="r",
            signal=number,
            duration=1.0,
            is_drained=True,
            unfinished=(),
            is_cut=False,
            handlers=(line,),
        )

    assert make(None).exit_code == 0
    assert make(SIGTERM).exit_code == 143


# ---- the rules by themselves ----

times = st.builds(
    ShutdownTimes,
    grace_period=st.floats(0.1, 100),
    drain_share=st.floats(0, 0.99),
)


@given(times, st.lists(st.lists(st.floats(0.1, 60), min_size=1, max_size=3), max_size=5))
def test_handlers_that_all_hang_end_within_the_grace(
    limits: ShutdownTimes, wanted: list[list[float]]
) -> None:
    """However many hang, the shares add up to what is left, or to the last call."""
    budget = Budget(limits, 0.0)
    order: Order[tuple[int, int]] = Order(lambda handler: wanted[handler[0]][handler[1]])
    for priority, group in enumerate(wanted):
        for number in range(len(group)):
            order.add((priority, number), priority)
    now = budget.drain_until
    limit = max(budget.deadline, now + LAST_CALL)
    budget.allow_last_call(now)
    previous = len(wanted)
    while True:
        need = order.need
        members = order.take()
        if not members:
            break
        assert {priority for priority, _ in members} == {previous - 1}
        previous -= 1
        share = budget.share(now, need)
        assert 0 < share <= 1
        now += share * max(wanted[priority][number] for priority, number in members)
        assert now <= limit + 1e-6
    assert len(order) == 0


# ---- functions that are not asynchronous: threads, so real time ----


both_loops = pytest.mark.parametrize("loop", ["asyncio", "trio"])


@both_loops
def test_a_sync_handler_runs_in_a_thread(loop: str) -> None:
    """It may block without holding up the others, and what it raises is its outcome."""
    barrier = threading.Barrier(2, timeout=30)
    threads: list[threading.Thread] = []

    def meet() -> None:
        threads.append(threading.current_thread())
        barrier.wait()

    def fail() -> None:
        raise LookupError("mine")

    async def main() -> ShutdownManager:
        with failing(1) as errors:
            async with ShutdownManager() as shutdown:
                shutdown.register(meet, name="one", timeout=30)
                shutdown.register(meet, name="two", timeout=30)
                shutdown.register(fail, name="fail", timeout=30)
        assert [type(error) for error in errors] == [LookupError]
        return shutdown

    shutdown = anyio.run(main, backend=loop)
    assert outcomes(shutdown) == {"one": OK, "two": OK, "fail": ERROR}
    assert threading.main_thread() not in threads
    assert len(set(threads)) == 2


@both_loops
def test_a_lambda_around_an_async_function_is_awaited(loop: str) -> None:
    """What a plain function returns is awaited in the event loop where it can be."""
    ended: list[bool] = []

    async def close() -> None:
        await anyio.lowlevel.checkpoint()
        ended.append(threading.current_thread() is threading.main_thread())

    async def main() -> None:
        async with ShutdownManager() as shutdown:
            shutdown.register(lambda: close(), timeout=30)  # noqa: PLW0108 - what is tested

    anyio.run(main, backend=loop)
    assert ended == [True]


@both_loops
def test_a_sync_handler_that_hangs_is_left_alone(loop: str) -> None:
    """Its thread is abandoned after the time-out, and is one that cannot hold up the process."""
    release = threading.Event()
    threads: list[threading.Thread] = []

    def hang() -> None:
        threads.append(threading.current_thread())
        release.wait(60)

    async def main() -> ShutdownManager:
        with failing(1):
            async with ShutdownManager() as shutdown:
                shutdown.register(hang, name="hang", timeout=0.05)
        return shutdown

    shutdown = anyio.run(main, backend=loop)
    assert outcomes(shutdown) == {"hang": TIMEOUT}
    assert threads[0].is_alive()
    assert threads[0].daemon
    release.set()
    threads[0].join(30)
    assert not threads[0].is_alive()


def test_the_refusal_pickles() -> None:
    """ShuttingDownError comes out of a pickle as it went in."""
    error = pickle.loads(pickle.dumps(ShuttingDownError("why")))  # noqa: S301 - our own
    assert (str(error), error.reason, error.retry_after) == (
        "shutting down (why): begin no new work here",
        "why",
        None,
    )
