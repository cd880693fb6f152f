"""The hook registry: what hooks may return, what their errors do, and what is counted."""

from __future__ import annotations

import functools
import logging
import pickle
from collections.abc import Callable
from typing import Any, Literal

import anyio
import pytest

from orchestra import (
    Block,
    HookPhase,
    HookPoint,
    HookRegistry,
    HookStatistics,
    Modify,
    SyncHookPoint,
)
from orchestra.errors import BlockedError, HookError, HookOrderError, OrchestraError

PROMPT = HookPoint[str]("prompt")
TOLD = SyncHookPoint[str]("told")
REPORT = SyncHookPoint[str]("report", can_block=False)


def adding(letter: str) -> Callable[[str], Modify[str]]:
    return lambda value: Modify(value + letter)


def counted(registry: HookRegistry, name: str) -> HookStatistics:
    (found,) = (hook for hook in registry.statistics().hooks if hook.name == name)
    return found


def failing(times: int, calls: list[str]) -> Callable[[str], None]:
    def hook(value: str) -> None:
        calls.append(value)
        if len(calls) <= times:
            raise OSError("no route")

    return hook


async def run(registry: HookRegistry, how: str, value: str) -> str:
    """Run the hooks of the sync or of the async point."""
    return registry.call(TOLD, value) if how == "call" else await registry.run(PROMPT, value)


def add(registry: HookRegistry, how: str, fn: Callable[[str], Any], **options: Any) -> None:
    registry.register(TOLD if how == "call" else PROMPT, fn, **options)


both = pytest.mark.parametrize("how", ["call", "run"])


@both
async def test_each_hook_gets_what_the_last_one_left(how: str) -> None:
    """Values go through the hooks in their order; the caller gets what the last one left."""
    registry = HookRegistry()
    assert await run(registry, how, "-") == "-"
    add(registry, how, adding("c"), name="c", phase=HookPhase.LATE)
    add(registry, how, lambda _: None, name="n")
    add(registry, how, adding("b"), name="b", after=["a"])
    add(registry, how, adding("a"), name="a")
    assert await run(registry, how, "-") == "-abc"


@both
async def test_a_block_stops_everything(how: str) -> None:
    """A blocked value goes no further, and the caller gets an error with point, hook and reason."""
    registry = HookRegistry()
    seen: list[str] = []
    add(registry, how, lambda value: Block("no shouting") if value.isupper() else None, name="tone")
    add(registry, how, seen.append, name="after")
    assert await run(registry, how, "low") == "low"
    with pytest.raises(BlockedError, match="not let this pass: no shouting") as e:
        await run(registry, how, "LOUD")
    assert (e.value.hook, e.value.reason, seen) == ("tone", "no shouting", ["low"])
    assert (counted(registry, "tone").calls, counted(registry, "tone").blocked) == (2, 1)
    assert counted(registry, "after").calls == 1


@both
async def test_an_error_stops_by_default(how: str) -> None:
    """What a hook raises ends the run as a HookError that names the hook, with the cause."""
    registry = HookRegistry()
    calls: list[str] = []
    seen: list[str] = []
    add(registry, how, failing(9, calls), name="bad")
    add(registry, how, seen.append, name="after")
    with pytest.raises(HookError, match="raised; mend it") as info:
        await run(registry, how, "x")
    assert isinstance(info.value.__cause__, OSError)
    assert (info.value.hook, calls, seen) == ("bad", ["x"], [])
    assert (counted(registry, "bad").calls, counted(registry, "bad").errors) == (1, 1)
    assert counted(registry, "after").calls == 0


@both
async def test_an_error_may_be_passed_over(how: str, caplog: pytest.LogCaptureFixture) -> None:
    """With ``continue`` an error is logged and counted, and the value goes on as it was."""
    registry = HookRegistry()
    calls: list[str] = []
    add(registry, how, failing(9, calls), name="bad", on_error="continue")
    add(registry, how, adding("!"), name="after")
    with caplog.at_level(logging.WARNING, logger="orchestra"):
        assert await run(registry, how, "x") == "x!"
    assert "'bad'" in caplog.text
    assert "no route" in caplog.text
    assert counted(registry, "bad").errors == 1


@both
@pytest.mark.parametrize(("times", "passes"), [(2, True), (3, False)])
async def test_a_hook_may_be_tried_again(how: str, times: int, passes: bool) -> None:  # noqa: FBT001
    """A hook is called up to ``attempts`` times for one value; then its policy decides."""
    registry = HookRegistry()
    calls: list[str] = []
    add(registry, how, failing(times, calls), name="shaky", attempts=3)
    if passes:
        assert await run(registry, how, "x") == "x"
    else:
        with pytest.raises(HookError, match="raised 3 times"):
            await run(registry, how, "x")
    assert calls == ["x"] * 3
    assert (counted(registry, "shaky").calls, counted(registry, "shaky").errors) == (1, times)


async def test_an_async_hook_is_tried_again() -> None:
    """The repetition of an async hook is awaited like its first call."""
    calls: list[str] = []

    async def shaky(value: str) -> Modify[str]:
        await anyio.lowlevel.checkpoint()
        calls.append(value)
        if len(calls) < 3:
            raise OSError("no route")
        return Modify("done")

    registry = HookRegistry()
    registry.register(PROMPT, shaky, name="shaky", attempts=3)
    assert await registry.run(PROMPT, "x") == "done"
    assert calls == ["x"] * 3


async def test_async_hooks_are_awaited_in_order() -> None:
    """Coroutine functions, partials of them and functions that return awaitables mix with others."""

    async def slow(letter: str, value: str) -> Modify[str]:
        await anyio.lowlevel.checkpoint()
        return Modify(value + letter)

    registry = HookRegistry()
    registry.register(PROMPT, functools.partial(slow, "a"), name="partial")
    registry.register(PROMPT, adding("b"), name="plain")
    registry.register(PROMPT, lambda value: slow("c", value), name="lambda")
    assert await registry.run(PROMPT, "-") == "-abc"


async def test_cancellation_is_no_error_of_a_hook() -> None:
    """A run that is cancelled in a hook ends there, uncounted as an error and not repeated."""
    registry = HookRegistry()
    seen: list[str] = []
    calls: list[str] = []
    started = anyio.Event()

    async def hang(value: str) -> None:
        calls.append(value)
        started.set()
        await anyio.sleep_forever()

    registry.register(PROMPT, hang, name="hang", on_error="continue", attempts=3)
    registry.register(PROMPT, seen.append, name="after")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(registry.run, PROMPT, "x")
        await started.wait()
        tasks.cancel_scope.cancel()
    assert (calls, seen) == (["x"], [])
    assert (counted(registry, "hang").calls, counted(registry, "hang").errors) == (1, 0)
    assert counted(registry, "after").calls == 0


@both
@pytest.mark.parametrize("wrong", [True, "text", 0])
async def test_a_wrong_result_is_an_error_of_the_hook(how: str, wrong: object) -> None:
    """What is neither Block, Modify nor None is treated as if the hook had raised."""
    registry = HookRegistry()
    add(registry, how, lambda _: wrong, name="wrong")
    with pytest.raises(HookError) as info:
        await run(registry, how, "x")
    assert isinstance(info.value.__cause__, TypeError)
    assert f"must return Block, Modify or None, not {wrong!r}" in str(info.value.__cause__)
    assert counted(registry, "wrong").errors == 1


def test_what_cannot_be_blocked_is_not() -> None:
    """At a point without blocking a Block is an error of the hook."""
    registry = HookRegistry()
    registry.register(REPORT, lambda _: Block("never"), name="wrong", on_error="continue")
    registry.register(REPORT, adding("!"), name="right")
    assert registry.call(REPORT, "x") == "x!"
    assert counted(registry, "wrong").errors == 1


def test_a_sync_point_takes_no_async_hook() -> None:
    """A coroutine function is refused at registration, one in disguise when it is called."""
    registry = HookRegistry()

    async def slow(value: str) -> None:
        raise AssertionError("unreachable")

    with pytest.raises(TypeError, match="hook 'slow' is async, and 'told' cannot wait"):
        registry.register(TOLD, slow, name="slow")

    def disguised(value: str) -> Any:
        return slow(value)

    registry.register(TOLD, disguised, name="disguised")
    with pytest.raises(HookError):
        registry.call(TOLD, "x")


def test_registration_is_all_or_nothing() -> None:
    """A hook that is refused leaves the order, the others and their counts as they were."""
    registry = HookRegistry()
    registry.register(TOLD, adding("a"), name="a", before=["b"])
    registry.call(TOLD, "-")
    with pytest.raises(HookOrderError):
        registry.register(TOLD, adding("b"), name="b", before=["a"])
    with pytest.raises(ValueError, match="has a hook 'a' already"):
        registry.register(TOLD, adding("a"), name="a")
    assert registry.order(TOLD) == ("a",)
    assert registry.call(TOLD, "-") == "-a"
    assert counted(registry, "a").calls == 2


def test_a_wish_counts_once_its_hook_is_there() -> None:
    """A name that is not registered is passed over, and obeyed from when it is."""
    registry = HookRegistry()
    registry.register(TOLD, adding("a"), name="a", after=["b"])
    assert registry.call(TOLD, "-") == "-a"
    registry.register(TOLD, adding("b"), name="b")
    assert registry.order(TOLD) == ("b", "a")
    assert registry.call(TOLD, "-") == "-ba"


def test_unregistering() -> None:
    """A removed hook is not called any more; one that is not there is an error that says so."""
    registry = HookRegistry()
    registry.register(TOLD, adding("a"), name="a")
    registry.register(TOLD, adding("b"), name="b")
    registry.unregister(TOLD, "a")
    assert registry.call(TOLD, "-") == "-b"
    with pytest.raises(LookupError, match="has no hook 'a'"):
        registry.unregister(TOLD, "a")


def test_registering_while_hooks_run() -> None:
    """A hook that registers and removes others changes the next run, and the counts stay true."""
    registry = HookRegistry()

    def once(value: str) -> None:
        registry.unregister(TOLD, "once")
        registry.register(TOLD, adding("n"), name="new")

    registry.register(TOLD, once, name="once")
    registry.register(TOLD, lambda value: Block("no") if value == "x" else None, name="guard")
    registry.register(TOLD, adding("e"), name="end")
    with pytest.raises(BlockedError):
        registry.call(TOLD, "x")
    assert counted(registry, "end").calls == 0
    assert counted(registry, "new").calls == 0
    assert registry.call(TOLD, "-") == "-en"
    assert {hook.name: hook.calls for hook in registry.statistics().hooks} == {
        "guard": 2,
        "end": 1,
        "new": 1,
    }


def test_points_are_told_apart_by_identity() -> None:
    """Two points of one name have hooks of their own, and a registry knows only its own."""
    registry = HookRegistry()
    registry.register(TOLD, adding("a"), name="a")
    assert registry.call(SyncHookPoint[str]("told"), "-") == "-"
    assert HookRegistry().call(TOLD, "-") == "-"


def test_a_copy_is_on_its_own() -> None:
    """A copy has the same hooks in the same order, counts from nought, and changes alone."""
    registry = HookRegistry()
    registry.register(TOLD, adding("b"), name="b", after=["a"])
    registry.register(TOLD, adding("a"), name="a", attempts=2, on_error="continue")
    registry.call(TOLD, "-")
    copied = registry.copy()
    copied.register(TOLD, adding("c"), name="c")
    assert copied.call(TOLD, "-") == "-abc"
    assert registry.call(TOLD, "-") == "-ab"
    assert (counted(registry, "a").calls, counted(copied, "a").calls) == (2, 1)


@both
async def test_time_is_measured_and_scaled_up(how: str) -> None:
    """The seconds are what the measured runs took, scaled up to every call."""
    ticks = iter(float(number) for number in range(10_000))
    registry = HookRegistry(clock=lambda: next(ticks))
    add(registry, how, lambda _: None, name="a")
    await run(registry, how, "x")
    assert counted(registry, "a").seconds == 1.0  # the clock goes on by 1 at each look
    for _ in range(199):
        await run(registry, how, "x")
    assert counted(registry, "a").seconds == 200.0
    assert next(ticks) < 100


def test_repr_shows_the_order() -> None:
    """The repr names each point's hooks in the order in which they run."""
    registry = HookRegistry()
    assert repr(registry) == "<HookRegistry no hooks>"
    registry.register(TOLD, adding("a"), name="a")
    registry.register(TOLD, adding("b"), name="b", priority=1)
    registry.register(PROMPT, adding("c"), name="c")
    assert repr(registry) == "<HookRegistry told: b, a; prompt: c>"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"name": ""}, ValueError, "name must not be empty"),
        ({"name": 1}, TypeError, "name must be a text"),
        ({"before": "b"}, TypeError, "before must be a list of names"),
        ({"after": [1]}, TypeError, "after must be a text"),
        ({"phase": "early"}, TypeError, "phase must be a HookPhase"),
        ({"priority": "high"}, TypeError, "priority must be a number"),
        ({"on_error": "retry"}, ValueError, "on_error"),
        ({"attempts": 0}, ValueError, "attempts must be at least 1"),
        ({"fn": None}, TypeError, "fn must be callable"),
    ],
)
def test_wrong_arguments_are_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    """A hook with a wrong argument is refused when it is registered, with the argument's name."""
    registry = HookRegistry()
    given: dict[str, Any] = {"fn": print, "name": "a", **options}
    with pytest.raises(error, match=message):
        registry.register(TOLD, given.pop("fn"), **given)
    assert registry.order(TOLD) == ()


def test_empty_words_are_refused() -> None:
    """A point needs a name, a Block a reason, and a registry a clock that can be called."""
    with pytest.raises(ValueError, match="name"):
        HookPoint[str]("")
    with pytest.raises(ValueError, match="reason"):
        Block("")
    wrong: Any = 1
    with pytest.raises(TypeError, match="clock must be callable"):
        HookRegistry(clock=wrong)


@pytest.mark.parametrize(
    "error", [BlockedError("prompt", "tone", "no shouting"), HookError("prompt", "bad", 3)]
)
def test_errors_pickle(error: OrchestraError) -> None:
    """The errors survive a trip to another process with their words and fields."""
    copied = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (str(copied), vars(copied)) == (str(error), vars(error))


def test_types_are_followed() -> None:
    """A checker knows what a hook gets and what a run returns (see tests/typing for refusals)."""
    registry = HookRegistry()
    lengths = SyncHookPoint[int]("lengths")
    policy: Literal["continue", "stop"] = "stop"
    registry.register(lengths, lambda value: Modify(value + 1), name="more", on_error=policy)
    result: int = registry.call(lengths, 1)
    assert result == 2
