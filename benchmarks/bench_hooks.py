"""Hooks: what ten of them cost beside a loop that calls them, and what looking for secrets costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from random import Random
from typing import Any

from attrs import field, frozen
from hypothesis import strategies as st

from benchmarks.frame import Benchmark, Measure, Row
from orchestra import HookPhase, HookPoint, HookRegistry, Modify, Redactor, SyncHookPoint

__all__ = ("BENCHMARKS", "PEERS")

PEERS = ("pluggy",)
pluggy: Any = import_module("pluggy")

SYNC = SyncHookPoint[int]("sync")
ASYNC = HookPoint[int]("async")


@frozen
class Values:
    """Values that go through a number of hooks, each of which lets them pass."""

    count: int
    hooks: int = 10
    seed: int = 0


ten = st.builds(Values, count=st.integers(2_000, 4_000), seed=st.integers(0, 2**32 - 1))


def hook() -> Callable[[int], None]:
    """Make a hook that has nothing to say."""

    def nothing(value: int) -> None:
        pass

    return nothing


def async_hook() -> Callable[[int], Any]:
    """Make one that is a coroutine function."""

    async def nothing(value: int) -> None:
        pass

    return nothing


def registry(values: Values, make: Callable[[], Callable[[int], Any]]) -> HookRegistry:
    """Register hooks in random phases, with random priorities."""
    random = Random(values.seed)
    hooks = HookRegistry()
    for number in range(values.hooks):
        point: Any = SYNC if make is hook else ASYNC
        hooks.register(
            point,
            make(),
            name=f"hook {number}",
            phase=random.choice(list(HookPhase)),
            priority=random.randrange(3),
        )
    return hooks


def call_ours(values: Values, measure: Measure) -> None:
    """The hooks of a point that cannot wait."""
    hooks = registry(values, hook)
    with measure(values.count):
        for value in range(values.count):
            hooks.call(SYNC, value)
    assert all(each.calls == values.count for each in hooks.statistics().hooks)


def call_plain(values: Values, measure: Measure) -> None:
    """A loop over callables."""
    hooks = tuple(hook() for _ in range(values.hooks))

    def call(value: int) -> None:
        for each in hooks:
            each(value)

    with measure(values.count):
        for value in range(values.count):
            call(value)


def call_pluggy(values: Values, measure: Measure) -> None:
    """The hooks of a pluggy manager."""
    specification = pluggy.HookspecMarker("benchmark")
    implementation = pluggy.HookimplMarker("benchmark")

    class Specification:
        @specification  # type: ignore[untyped-decorator]  # loaded without types
        def act(self, value: int) -> None:
            """The point."""

    manager = pluggy.PluginManager("benchmark")
    manager.add_hookspecs(Specification)
    for _ in range(values.hooks):

        class Plugin:
            @implementation  # type: ignore[untyped-decorator]  # loaded without types
            def act(self, value: int) -> None:
                """The hook."""

        manager.register(Plugin())
    with measure(values.count):
        for value in range(values.count):
            manager.hook.act(value=value)


async def run_ours(values: Values, measure: Measure) -> None:
    """The hooks of a point that may wait."""
    hooks = registry(values, async_hook)
    with measure(values.count):
        for value in range(values.count):
            await hooks.run(ASYNC, value)
    assert all(each.calls == values.count for each in hooks.statistics().hooks)


async def run_plain(values: Values, measure: Measure) -> None:
    """A loop over coroutine functions."""
    hooks = tuple(async_hook() for _ in range(values.hooks))

    async def run(value: int) -> None:
        for each in hooks:
            await each(value)

    with measure(values.count):
        for value in range(values.count):
            await run(value)


def register_ours(values: Values, measure: Measure) -> None:
    """Putting hooks in order, at each registration."""
    with measure(values.hooks):
        hooks = registry(values, hook)
    assert len(hooks.order(SYNC)) == values.hooks


def modify_ours(values: Values, measure: Measure) -> None:
    """Hooks each of which puts another value in place."""
    hooks = HookRegistry()
    for number in range(values.hooks):
        hooks.register(SYNC, lambda value: Modify(value + 1), name=f"hook {number}")
    with measure(values.count):
        results = [hooks.call(SYNC, value) for value in range(values.count)]
    assert results == [value + values.hooks for value in range(values.count)]


def modify_plain(values: Values, measure: Measure) -> None:
    """A loop that hands on what each function returns."""

    def more(value: int) -> int:
        return value + 1

    hooks = (more,) * values.hooks

    def call(value: int) -> int:
        for each in hooks:
            value = each(value)
        return value

    with measure(values.count):
        results = [call(value) for value in range(values.count)]
    assert results == [value + values.hooks for value in range(values.count)]


@frozen
class Text:
    """A text of a kind, which has one secret for every 64 KiB."""

    kind: str
    size: int
    seed: int
    text: str = field(init=False, repr=False, eq=False)

    @text.default
    def _draw(self) -> str:
        random = Random(self.seed)
        letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
        parts: list[str] = []
        size = 0
        while size < self.size:
            if self.kind == "lock file":
                digest = "".join(random.choices(f"{letters}+/", k=86))
                name = "".join(random.choices("abcdefgh-", k=12))
                part = json.dumps({name: {"version": "1.2.3", "integrity": f"sha512-{digest}=="}})
            else:
                words = ("".join(random.choices("abcdefghij", k=random.randrange(2, 9)))
                         for _ in range(10))  # fmt: skip
                part = " ".join(words)
            if size // 65_536 != (size + len(part)) // 65_536:
                part += " ghp_" + "".join(random.choices(letters, k=36))
            parts.append(part)
            size += len(part) + 1
        return "\n".join(parts)

    @property
    def secrets(self) -> int:
        """How many there are."""
        return self.text.count("ghp_")


def texts(kind: str) -> st.SearchStrategy[Text]:
    """Draw texts of about 256 KiB."""
    seeds = st.integers(0, 2**32 - 1)
    return st.builds(Text, kind=st.just(kind), size=st.just(262_144), seed=seeds)


REDACTOR = Redactor()


def redact_whole(text: Text, measure: Measure) -> None:
    """The whole text at once; the figure is for 1,000 characters."""
    with measure(len(text.text) // 1_000):
        redacted = REDACTOR.redact(text.text)
    assert redacted.count("[redacted:github-token]") == text.secrets
    assert redacted.count("[redacted:") == text.secrets


def redact_pieces(text: Text, measure: Measure) -> None:
    """The same in pieces of 24 characters."""
    pieces = [text.text[start : start + 24] for start in range(0, len(text.text), 24)]
    stream = REDACTOR.stream()
    with measure(len(text.text) // 1_000):
        out = [stream.feed(piece) for piece in pieces]
        out.append(stream.flush())
    assert "".join(out) == REDACTOR.redact(text.text)


BENCHMARKS: tuple[Benchmark[Any], ...] = (
    Benchmark(
        name="hooks-sync",
        title="Hooks: 10 that let a value pass, none of which may wait",
        workload=ten,
        rows=(
            Row(name="orchestra", run=call_ours),
            Row(name="loop over callables", run=call_plain, at_most=2.0),
            Row(name="pluggy", run=call_pluggy, at_most=0.5),
        ),
    ),
    Benchmark(
        name="hooks-async",
        title="Hooks: 10 coroutine functions that let a value pass",
        workload=ten,
        rows=(
            Row(name="orchestra", run=run_ours),
            Row(name="loop over coroutine functions", run=run_plain, at_most=2.0),
        ),
    ),
    Benchmark(
        name="hooks-modify",
        title="Hooks: 10 each of which changes the value",
        workload=ten,
        rows=(
            Row(name="orchestra", run=modify_ours),
            Row(name="loop that hands the value on", run=modify_plain),
        ),
        note=(
            "Here we lose: a changed value is wrapped, so that it can be told from a value that "
            "passes, and unwrapped again."
        ),
    ),
    Benchmark(
        name="hooks-register",
        title="Hooks: registering one of 10, with the whole order worked out",
        workload=ten,
        rows=(Row(name="orchestra", run=register_ours),),
    ),
    Benchmark(
        name="redaction-prose",
        title="Redaction: 1,000 characters of prose",
        workload=texts("prose"),
        rows=(
            Row(name="whole text", run=redact_whole),
            Row(name="pieces of 24 characters", run=redact_pieces),
        ),
        max_rounds=7,
    ),
    Benchmark(
        name="redaction-lock-file",
        title="Redaction: 1,000 characters of a lock file",
        workload=texts("lock file"),
        rows=(
            Row(name="whole text", run=redact_whole),
            Row(name="pieces of 24 characters", run=redact_pieces),
        ),
        max_rounds=7,
    ),
)
