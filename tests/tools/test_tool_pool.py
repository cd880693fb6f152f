"""The tool pool: warm processes, shared, replaced when they fail, and gone when it is left."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from math import inf
from pathlib import Path
from random import Random
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from tool_processes import children, counts, is_running, odd_command, until

from orchestra import CancelStyle, Priority, ToolCommand, ToolPool, ToolProcess
from orchestra.errors import (
    CapacityError,
    ToolError,
    ToolLostError,
    ToolProtocolError,
    ToolStartError,
    ToolTimeoutError,
)

pytestmark = pytest.mark.skipif(os.name != "posix", reason="process groups are POSIX")


@asynccontextmanager
async def odd_pool(
    directory: Path, *arguments: str, command: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[ToolPool]:
    """A pool of odd servers, for a bounded time."""
    with anyio.fail_after(40):
        async with ToolPool(odd_command(directory, *arguments, **command or {}), **options) as pool:
            yield pool


async def together(call: Callable[[], Coroutine[Any, Any, None]], count: int) -> None:
    """Make a call several times at once, and wait for all of them."""
    async with anyio.create_task_group() as group:
        for _ in range(count):
            group.start_soon(call)


# ---- sharing ----


async def test_a_process_stays_warm(tmp_path: Path) -> None:
    """One request after another goes to the same process."""
    async with odd_pool(tmp_path) as pool:
        assert pool.statistics().processes == 0
        assert len({await pool.request("pid") for _ in range(20)}) == 1
        statistics = pool.statistics()
        assert (statistics.processes, statistics.idle, statistics.started) == (1, 1, 1)


async def test_every_answer_belongs_to_its_request(tmp_path: Path) -> None:
    """Of many requests at once each gets its own answer, from no more than four processes."""
    answers: dict[int, Any] = {}
    numbers = iter(range(300))

    async def work() -> None:
        for number in numbers:
            answers[number] = await pool.request("echo", [number])

    async with odd_pool(tmp_path) as pool:
        await together(work, 32)
        assert pool.statistics().started == 4
    assert answers == {number: [number] for number in range(300)}


async def test_requests_are_spread_and_bounded(tmp_path: Path) -> None:
    """New processes come before sharing, the load is even, and what is too much waits."""
    async with odd_pool(
        tmp_path, max_size=2, requests_per_process=2, command={"grace": 0.1}
    ) as pool:
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(pool.request, "hold")
            await until(lambda: loads(pool) == [2, 2])
            statistics = pool.statistics()
            assert (statistics.processes, statistics.tasks_waiting) == (2, 1)
            assert repr(pool) == "<ToolPool 'odd' 2/2 processes, 4 in flight, 1 waiting>"
            group.cancel_scope.cancel()
        assert pool.statistics().in_flight == 0


def loads(pool: ToolPool) -> list[int]:
    return [share.lease.resource.load for share in pool._shares if share.lease is not None]


async def test_the_urgent_go_first(tmp_path: Path) -> None:
    """Who waits for room is served by priority."""
    order: list[str] = []

    async def ask(name: str, priority: Priority) -> None:
        await pool.request("echo", priority=priority)
        order.append(name)

    async with (
        odd_pool(tmp_path, max_size=1, requests_per_process=1) as pool,
        anyio.create_task_group() as group,
        pool.lease(),
    ):
        for name, priority in (("low", Priority.LOW), ("high", Priority.HIGH)):
            group.start_soon(ask, name, priority)
            await anyio.wait_all_tasks_blocked()
    assert order == ["high", "low"]


async def test_a_lease_stays_with_one_process(tmp_path: Path) -> None:
    """The requests of a lease go to one process, which others share meanwhile."""
    async with odd_pool(tmp_path, max_size=1) as pool, pool.lease() as process:
        pids = {process.pid, await process.request("pid"), await pool.request("pid")}
        assert len(pids) == 1
        assert pool.statistics().in_flight == 1


async def test_idle_processes_are_ended(tmp_path: Path) -> None:
    """A process that has had nothing to do for the idle time is ended, and a new one comes."""
    async with odd_pool(tmp_path, idle_timeout=0.05) as pool:
        first = await pool.request("pid")
        await until(lambda: pool.statistics().ended == 1)
        assert not is_running(first)
        assert await pool.request("pid") != first


async def test_processes_can_be_kept_ready(tmp_path: Path) -> None:
    """With ``min_idle`` processes are there before anybody asks."""
    async with odd_pool(tmp_path, min_idle=1) as pool:
        await until(lambda: pool.statistics().idle == 1)
        await pool.request("echo")
        assert pool.statistics().started <= 2


# ---- faults ----


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("garbage", ToolProtocolError),
        ("wrong id", ToolProtocolError),
        ("giant", ToolProtocolError),
        ("flood", ToolProtocolError),
        ("close", ToolLostError),
        ("half", ToolLostError),
        ("kill", ToolLostError),
        ("hold", ToolTimeoutError),
        ("deaf", ToolTimeoutError),
    ],
)
async def test_a_fault_costs_one_process(
    method: str, kind: type[ToolError], tmp_path: Path
) -> None:
    """Each kind of fault is its own error, requests elsewhere go on, and the next one works."""
    before = children()
    command = {"message_limit": 1_000_000, "stderr_limit": 1_000_000, "grace": 0.05}
    async with odd_pool(tmp_path, max_size=2, command=command) as pool:
        async with pool.lease() as other:
            timeout = 0.05 if kind is ToolTimeoutError else 20
            with pytest.raises(kind):
                await pool.request(method, timeout=timeout)
            assert await other.request("echo", [1]) == [1]
            assert other.is_running
            assert await pool.request("pid") != other.pid
        statistics = pool.statistics()
        assert (statistics.started, statistics.ended) == (3, 1)
        assert statistics.in_flight == 0
    assert children() == before


async def test_a_kill_costs_the_requests_of_one_process(tmp_path: Path) -> None:
    """After kill -9 its requests fail at once, the others' do not, and it is replaced."""
    failed = 0
    held: list[object] = []

    async def hold() -> None:
        nonlocal failed
        try:
            held.append(await pool.request("hold", timeout=None))
        except ToolLostError:
            failed += 1

    async with odd_pool(tmp_path, max_size=2, requests_per_process=3) as pool:
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(hold)
            await until(lambda: loads(pool) == [2, 2])
            first, second = [share.lease.resource for share in pool._shares if share.lease]
            assert first.pid is not None
            os.kill(first.pid, signal.SIGKILL)
            await until(lambda: failed == 2)
            assert await pool.request("pid") not in {first.pid, second.pid}
            await second.request("release")
        assert (failed, len(held)) == (2, 2)


async def test_a_process_that_died_idle_is_replaced_unnoticed(tmp_path: Path) -> None:
    """Nobody gets an error because of a process that died while it had nothing to do."""
    async with odd_pool(tmp_path) as pool:
        async with pool.lease() as process:
            pid = process.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await process.wait_ended()
        assert await pool.request("pid") != pid


async def test_a_stuck_process_is_retired(tmp_path: Path) -> None:
    """Who does not settle gets no new requests, and is replaced when the others are done with it."""
    asked: list[int] = []

    async def ask() -> None:
        asked.append(await pool.request("pid"))

    async with odd_pool(tmp_path, max_size=1, command={"grace": 0.05}) as pool:
        async with anyio.create_task_group() as group, pool.lease() as stuck:
            with pytest.raises(ToolTimeoutError):
                await pool.request("hold", timeout=0.01)
            await until(lambda: stuck.is_stuck)
            group.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
            assert await stuck.request("echo", [1], timeout=20) == [1]
            assert asked == []  # there is room for one process only
        assert asked != [stuck.pid]
        assert pool.statistics().ended == 1


async def test_a_stuck_process_does_not_idle(tmp_path: Path) -> None:
    """Who is stuck is ended when nobody uses it any more, not when somebody asks."""
    async with odd_pool(tmp_path, max_size=1, command={"grace": 0.05}) as pool:
        async with pool.lease() as stuck:
            with pytest.raises(ToolTimeoutError):
                await pool.request("hold", timeout=0.01)
            await until(lambda: stuck.is_stuck)
        await until(lambda: pool.statistics().ended == 1)


async def test_nobody_waits_for_the_place_of_a_stuck_process(tmp_path: Path) -> None:
    """While a stuck process keeps its place, requests share what else there is."""
    async with (
        odd_pool(tmp_path, max_size=2, command={"grace": 0.05}) as pool,
        pool.lease() as stuck,
        pool.lease() as other,
    ):
        with pytest.raises(ToolTimeoutError):
            await stuck.request("hold", timeout=0.01)
        await until(lambda: stuck.is_stuck)
        for _ in range(3):
            assert await pool.request("pid") == other.pid


@pytest.mark.parametrize("style", [CancelStyle.LANGUAGE_SERVER, CancelStyle.CONTEXT_PROTOCOL])
async def test_cancelling_does_not_cost_a_process(style: CancelStyle, tmp_path: Path) -> None:
    """A server that understands cancellations stays, however many there are."""
    command = {"cancel_style": style, "grace": 30.0}
    async with odd_pool(tmp_path, max_size=1, command=command) as pool:
        pid = await pool.request("pid")
        for _ in range(10):
            async with anyio.create_task_group() as group:
                group.start_soon(pool.request, "hold")
                await until(lambda: loads(pool) == [1])
                group.cancel_scope.cancel()
        assert await pool.request("pid") == pid


# ---- start ----


async def test_a_handshake_comes_first(tmp_path: Path) -> None:
    """Each process is initialized once, before anybody else asks it."""
    greeted: list[int | None] = []

    async def greet(process: ToolProcess) -> None:
        await process.notify("hello")
        greeted.append(process.pid)

    async with (
        odd_pool(tmp_path, max_size=2, initialize=greet) as pool,
        pool.lease() as first,
        pool.lease() as second,
    ):
        for process in (first, second):
            assert await process.request("seen") == [["hello", None]]
        assert greeted == [first.pid, second.pid]
        assert len(set(greeted)) == 2


async def test_a_start_that_fails_fails_all_who_wait_for_it(tmp_path: Path) -> None:
    """Everybody who shares the start gets the reason, and the next one tries again."""
    attempts = 0
    errors: list[ToolLostError] = []

    async def greet(process: ToolProcess) -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            await until(lambda: pool.statistics().in_flight == 5)
            await process.request("die", {"code": 6})

    async def ask() -> None:
        try:
            await pool.request("echo")
        except ToolLostError as exc:
            errors.append(exc)

    async with odd_pool(tmp_path, max_size=1, initialize=greet) as pool:
        await together(ask, 5)
        assert len(set(map(id, errors))) == 5  # a traceback belongs to one task
        assert {str(error) for error in errors} == {str(errors[0])}
        assert "exit status 6" in str(errors[0])
        assert attempts == 1
        assert await pool.request("echo", [1]) == [1]
        assert pool.statistics().start_failures == 1


async def test_a_start_takes_bounded_time(tmp_path: Path) -> None:
    """A handshake that hangs is an error, and its process is ended."""
    before = children()

    async def greet(process: ToolProcess) -> None:
        await process.request("hold", timeout=None)

    async with odd_pool(tmp_path, initialize=greet, start_timeout=0.2) as pool:
        with pytest.raises(ToolStartError, match="was not ready within"):
            await pool.request("echo")
        assert children() == before


async def test_an_error_of_the_handshake_comes_out_as_it_is(tmp_path: Path) -> None:
    """What ``initialize`` raises is raised by the request, not in a group."""

    async def greet(_: ToolProcess) -> None:
        await anyio.lowlevel.checkpoint()
        raise LookupError("no greeting")

    async with odd_pool(tmp_path, initialize=greet) as pool:
        for _ in range(2):
            with pytest.raises(LookupError, match="no greeting"):
                await pool.request("echo")


async def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    """A missing program is a clear error of each request, and the pool can be left."""
    command = ToolCommand(argv=("no-such-program-anywhere",), directory=tmp_path)
    async with ToolPool(command) as pool:
        for _ in range(10):
            with pytest.raises(ToolStartError, match="no-such-program-anywhere"):
                await pool.request("echo")
        assert pool.statistics().start_failures == 10


async def test_who_starts_may_be_cancelled(tmp_path: Path) -> None:
    """When the request for which a process is started is cancelled, those who wait for it go on."""
    is_greeting = anyio.Event()
    go_on = anyio.Event()

    async def greet(_: ToolProcess) -> None:
        is_greeting.set()
        await go_on.wait()

    answers: list[object] = []

    async def ask() -> None:
        answers.append(await pool.request("echo", [1]))

    async with odd_pool(tmp_path, max_size=1, initialize=greet) as pool:
        async with anyio.create_task_group() as group:
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as starter:
                    starter.start_soon(ask)
                    await is_greeting.wait()
                    for _ in range(3):
                        group.start_soon(ask)
                    await anyio.wait_all_tasks_blocked()
                    scope.cancel()
            go_on.set()
        assert answers == [[1]] * 3
        assert pool.statistics().start_failures == 1


# ---- the end ----


async def test_leaving_fails_what_is_in_flight(tmp_path: Path) -> None:
    """Requests in flight and those who wait are told, and no process is left."""
    before = children()
    outcomes: list[type[BaseException]] = []

    async def hold() -> None:
        try:
            await pool.request("hold", timeout=None)
        except (anyio.ClosedResourceError, CapacityError) as exc:
            outcomes.append(type(exc))

    async with (
        anyio.create_task_group() as group,
        odd_pool(tmp_path, max_size=1, requests_per_process=2) as pool,
    ):
        grandchild = await pool.request("spawn", {})
        for _ in range(3):
            group.start_soon(hold)
            await anyio.wait_all_tasks_blocked()
        assert pool.statistics().in_flight == 2
    assert sorted(kind.__name__ for kind in outcomes) == [
        "CapacityError",
        "ClosedResourceError",
        "ClosedResourceError",
    ]
    assert children() == before
    await until(lambda: not is_running(grandchild))
    with pytest.raises(CapacityError, match="are closed"):
        await pool.request("echo")


async def test_cancellation_leaves_nothing(tmp_path: Path) -> None:
    """A pool that is cancelled with stubborn processes at work ends them all."""
    before = children()
    with anyio.CancelScope() as scope:
        async with (
            odd_pool(tmp_path, "--stubborn", command={"grace": 0.05}) as pool,
            anyio.create_task_group() as group,
        ):
            for _ in range(6):
                group.start_soon(pool.request, "hold")
            await until(lambda: sum(loads(pool)) == 6)
            scope.cancel()
    assert scope.cancelled_caught
    assert children() == before


async def test_a_pool_is_entered_once(tmp_path: Path) -> None:
    """Before the block nothing can be asked, and there is no second block."""
    pool = ToolPool(odd_command(tmp_path))
    with pytest.raises(RuntimeError, match="enter it with"):
        await pool.request("echo")
    async with pool:
        pass
    with pytest.raises(RuntimeError, match="entered once"):
        async with pool:
            raise AssertionError("unreachable")


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"requests_per_process": 0}, ValueError, "requests_per_process"),
        ({"max_size": 0}, ValueError, "max_size"),
        ({"idle_timeout": 0}, ValueError, "idle_timeout"),
        ({"start_timeout": 0}, ValueError, "start_timeout"),
        ({"initialize": 1}, TypeError, "initialize"),
        ({"on_request": 1}, TypeError, "on_request"),
        ({"on_notification": 1}, TypeError, "on_notification"),
    ],
)
def test_arguments_are_checked(options: Any, error: type[Exception], match: str) -> None:
    """A bad argument is refused when the pool is made, and named."""
    with pytest.raises(error, match=match):
        ToolPool(odd_command(Path("/")), **options)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts what /proc shows")
async def test_nothing_leaks(tmp_path: Path) -> None:
    """Descriptors, children, threads and tasks are as before after 300 calls that go wrong."""
    random = Random(7)
    ends: dict[str, int] = {}

    async def call(number: int) -> None:
        method = random.choice(["echo", "echo", "echo", "hold", "kill", "garbage", "spawn", "half"])
        patience = random.choice([inf, inf, 0, 0.001, 0.01, 0.1])
        with anyio.move_on_after(patience) as scope:
            try:
                await pool.request(method, {}, timeout=0.05 if method == "hold" else 20.0)
                outcome = "answered"
            except ToolError as exc:
                outcome = type(exc).__name__
            ends[outcome] = ends.get(outcome, 0) + 1
        ends["cancelled"] = ends.get("cancelled", 0) + scope.cancelled_caught

    async def work(numbers: list[int]) -> None:
        for number in numbers:
            await call(number)

    async with odd_pool(tmp_path):  # what is set up once is no leak
        pass
    before = counts()
    with anyio.fail_after(60):
        async with odd_pool(tmp_path, command={"grace": 0.1}) as pool:
            async with anyio.create_task_group() as group:
                for start in range(12):
                    group.start_soon(work, list(range(start, 300, 12)))
            assert await pool.request("echo", [1]) == [1]
            assert pool.statistics().in_flight == 0
    await until(lambda: counts() == before)
    assert {"answered", "cancelled", "ToolLostError", "ToolProtocolError"} <= set(ends)
