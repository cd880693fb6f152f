from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import anyio
import pytest
from attrs import frozen
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from orchestra._core.ownership import Node, NodeState
from orchestra.ownership import ResourceTracker, TrackedResource
from orchestra.testing import settle, virtual_time_options


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Time is virtual: what is said about seconds is exact."""
    return request.param, virtual_time_options(request.param)


class Diary:
    """Makes closers that write down when they begin and end."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def closer(
        self, name: str, seconds: float = 0.0, error: BaseException | None = None
    ) -> Callable[[], Awaitable[None]]:
        async def close() -> None:
            self.words.append(f"{name} begins")
            await anyio.sleep(seconds)
            if error is not None:
                raise error
            self.words.append(f"{name} ends")

        return close


@contextmanager
def failing(count: int) -> Iterator[list[BaseException]]:
    """Expect so many errors, and give them afterwards."""
    errors: list[BaseException] = []
    try:
        yield errors
    except BaseExceptionGroup as group:
        errors.extend(group.exceptions)
    assert len(errors) == count


def family(tracker: ResourceTracker, diary: Diary) -> dict[str, TrackedResource]:
    """A mission with two sessions, one of which has a process and a timer; each takes a second."""
    mission = tracker.track("mission", "m", diary.closer("m", 1))
    one = tracker.track("session", "s1", diary.closer("s1", 1), owner=mission)
    two = tracker.track("session", "s2", diary.closer("s2", 1), owner=mission)
    process = tracker.track("process", "p", diary.closer("p", 1), owner=one)
    timer = tracker.track("timer", "t", diary.closer("t", 1), owner=one)
    return {"m": mission, "s1": one, "s2": two, "p": process, "t": timer}


# ---- one release ----


async def test_an_owner_ends_after_what_it_owns() -> None:
    """Children end first, siblings side by side, and the whole subtree is gone."""
    diary = Diary()
    tracker = ResourceTracker()
    all_of = family(tracker, diary)
    start = anyio.current_time()
    await all_of["m"].release()
    assert anyio.current_time() - start == 3  # three generations
    order = {word: number for number, word in enumerate(diary.words)}
    assert order["s1 begins"] > max(order["p ends"], order["t ends"])
    assert order["m begins"] > max(order["s1 ends"], order["s2 ends"])
    assert all(each.is_released for each in all_of.values())
    assert tracker.report() == ()


async def test_a_child_ends_alone() -> None:
    """Releasing a child leaves its owner and its siblings open."""
    diary = Diary()
    tracker = ResourceTracker()
    all_of = family(tracker, diary)
    await all_of["p"].release()
    assert diary.words == ["p begins", "p ends"]
    assert tracker.statistics().open == 4
    await all_of["m"].release()
    assert Counter(diary.words) == Counter(
        f"{name} {what}" for name in all_of for what in ("begins", "ends")
    )


async def test_a_second_release_does_nothing() -> None:
    """What has ended is not ended again."""
    diary = Diary()
    resource = ResourceTracker().track("session", "s", diary.closer("s"))
    await resource.release()
    await resource.release()
    assert diary.words == ["s begins", "s ends"]


async def test_a_plain_function_is_called_in_the_event_loop() -> None:
    """A timer's cancel() is no coroutine function and must be called where the loop is."""
    scope = anyio.CancelScope()
    tracker = ResourceTracker()
    tracker.track("timer", "t", scope.cancel)
    tracker.track("session", "s", lambda: anyio.sleep(1))
    start = anyio.current_time()
    await tracker.aclose()
    assert scope.cancel_called
    assert anyio.current_time() - start == 1


async def test_errors_come_together_and_stop_nobody() -> None:
    """Every closer is called; what failed is in one group, also what took too long."""
    diary = Diary()
    tracker = ResourceTracker()
    owner = tracker.track("mission", "m", diary.closer("m"))
    tracker.track("session", "bad", diary.closer("bad", 0, OSError("x")), owner=owner)
    tracker.track("session", "slow", anyio.sleep_forever, owner=owner, timeout=2.0)
    start = anyio.current_time()
    with failing(2) as errors:
        await owner.release()
    assert anyio.current_time() - start == 2
    assert [type(error) for error in errors] == [OSError, TimeoutError]
    assert "session 'slow' was cancelled after 2.0 s" in str(errors[1])
    assert diary.words[-1] == "m ends"
    await owner.release()  # the errors were told
    counts = tracker.statistics().kinds["session"]
    assert (counts.open, counts.released, counts.failed) == (0, 2, 2)


# ---- several releases ----


async def test_two_releases_of_the_same_end_it_once() -> None:
    """The others wait until it is over; exactly one caller gets the errors."""
    diary = Diary()
    tracker = ResourceTracker()
    resource = tracker.track("session", "s", diary.closer("s", 2, OSError("x")))
    start = anyio.current_time()

    told: list[int] = []

    async def release() -> None:
        try:
            await resource.release()
        except ExceptionGroup as group:
            told.append(len(group.exceptions))
        assert anyio.current_time() - start == 2

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(release)
    assert told == [1]
    assert diary.words.count("s begins") == 1


async def test_an_owner_waits_for_a_child_that_somebody_else_ends() -> None:
    """An owner that is released while its child is being ended begins after it, and ends it not."""
    diary = Diary()
    tracker = ResourceTracker()
    all_of = family(tracker, diary)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(all_of["s1"].release)
        await settle()
        tasks.start_soon(all_of["m"].release)
        tasks.start_soon(all_of["p"].release)
        tasks.start_soon(tracker.aclose)
    counts = Counter(diary.words)
    assert set(counts.values()) == {1}
    assert len(counts) == 10
    assert diary.words.index("m begins") > diary.words.index("s1 ends")


async def test_cancelled_before_it_begins_it_is_ended_all_the_same() -> None:
    """A release in a cancelled scope ends everything, and the cancellation comes afterwards."""
    diary = Diary()
    tracker = ResourceTracker()
    all_of = family(tracker, diary)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await all_of["m"].release()
    assert scope.cancelled_caught
    assert diary.words[-1] == "m ends"


async def test_cancelled_while_it_ends_something_it_goes_on() -> None:
    """What has begun is finished within its bounds, by the caller that was cancelled."""
    diary = Diary()
    tracker = ResourceTracker()
    all_of = family(tracker, diary)
    start = anyio.current_time()
    with anyio.move_on_after(0.5) as scope:
        await all_of["m"].release()
    assert scope.cancelled_caught
    assert anyio.current_time() - start == 3
    assert diary.words[-1] == "m ends"


async def test_cancelled_while_it_waits_for_somebody_elses_end() -> None:
    """Who only waits leaves at once and harms nobody; the next one waits on."""
    diary = Diary()
    tracker = ResourceTracker()
    resource = tracker.track("session", "s", diary.closer("s", 4))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(resource.release)
        await settle()
        start = anyio.current_time()
        with anyio.move_on_after(1) as scope:
            await resource.release()
        assert scope.cancelled_caught
        assert anyio.current_time() - start == 1
        await resource.release()
        assert anyio.current_time() - start == 4
    assert diary.words == ["s begins", "s ends"]


async def test_native_cancellation_does_not_stop_what_has_begun() -> None:
    """A task that asyncio cancels, which respects no scope, still ends what it has claimed."""
    import asyncio

    if anyio.get_cancelled_exc_class() is not asyncio.CancelledError:
        return
    diary = Diary()
    tracker = ResourceTracker()
    all_of = family(tracker, diary)
    task = asyncio.ensure_future(all_of["m"].release())
    await anyio.sleep(0.5)
    task.cancel()
    await all_of["m"].release()
    assert diary.words[-1] == "m ends"
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_errors_are_not_lost_when_cancelled() -> None:
    """The errors of closers come out rather than the cancellation."""
    tracker = ResourceTracker()
    tracker.track("session", "s", Diary().closer("s", 0, OSError("x")))
    with failing(1), anyio.CancelScope() as scope:
        scope.cancel()
        await tracker.aclose()


async def test_a_closer_may_release_its_own_resource() -> None:
    """An object that gives its handle back when closed does not wait for itself."""
    tracker = ResourceTracker()
    handles: list[TrackedResource] = []
    calls: list[str] = []

    async def close() -> None:
        calls.append("close")
        await handles[0].release()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(handles[0].release)

    handles.append(tracker.track("session", "s", close))
    await handles[0].release()
    assert calls == ["close"]


async def test_a_closer_that_releases_its_owner() -> None:
    """It returns at once if the owner is ending anyway, and is an error if it would wait."""
    tracker = ResourceTracker()
    owners: list[TrackedResource] = []

    async def close() -> None:
        await owners[-1].release()

    owners.append(tracker.track("mission", "m", Diary().closer("m")))
    tracker.track("session", "s", close, owner=owners[0])
    await owners[0].release()
    owners.append(tracker.track("mission", "m", Diary().closer("m")))
    session = tracker.track("session", "s", close, owner=owners[1])
    with failing(1) as errors:
        await session.release()
    assert "would wait for itself" in str(errors[0])
    await owners[1].release()


# ---- owners and owned ----


async def test_nothing_new_for_an_owner_that_ends() -> None:
    """From the claim on an owner owns nothing new, and who opened it is told to close it."""
    diary = Diary()
    tracker = ResourceTracker()
    owner = tracker.track("mission", "m", diary.closer("m", 1))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(owner.release)
        await settle()
        with pytest.raises(anyio.ClosedResourceError, match="close session 's' yourself"):
            tracker.track("session", "s", diary.closer("s"), owner=owner)
        free = tracker.track("session", "free", diary.closer("free"))
    with pytest.raises(anyio.ClosedResourceError, match="mission 'm' is being released or has"):
        tracker.track("session", "s", diary.closer("s"), owner=owner)
    await tracker.aclose()
    assert free.is_released
    with pytest.raises(anyio.ClosedResourceError, match="tracker 'all'"):
        tracker.track("session", "s", diary.closer("s"))


async def test_forgetting_gives_the_children_to_the_owner() -> None:
    """What ended by itself is not closed; what it owned is ended with its owner."""
    diary = Diary()
    tracker = ResourceTracker()
    all_of = family(tracker, diary)
    assert all_of["s1"].forget()
    assert not all_of["s1"].forget()
    owners = {line.name: line.owner for line in tracker.report()}
    assert owners == {"m": None, "s2": "m", "p": "m", "t": "m"}
    await all_of["s1"].release()
    assert diary.words == []
    await all_of["m"].release()
    assert "s1 begins" not in diary.words
    assert diary.words[-1] == "m ends"
    assert {"p ends", "t ends"} < set(diary.words)
    assert not all_of["m"].forget()
    assert tracker.statistics().kinds["session"].forgotten == 1


async def test_blocks_release_at_their_end() -> None:
    """A resource and a tracker are context managers; no error hides another one."""
    diary = Diary()
    async with ResourceTracker() as tracker:
        async with tracker.track("session", "s", diary.closer("s")) as resource:
            assert not resource.is_released
        assert resource.is_released
        tracker.track("process", "p", diary.closer("p"))
    assert diary.words == ["s begins", "s ends", "p begins", "p ends"]
    mine, theirs = LookupError("mine"), OSError("theirs")
    with failing(2) as errors:
        async with ResourceTracker() as tracker:
            tracker.track("process", "p", diary.closer("p", 0, theirs))
            raise mine
    assert errors == [mine, theirs]
    with pytest.raises(LookupError):
        async with ResourceTracker():
            raise mine


async def test_the_report_says_who_owns_what() -> None:
    """Owners stand before what they own, with ages; ending ones are marked."""
    now = 100.0
    diary = Diary()
    tracker = ResourceTracker(clock=lambda: now)
    all_of = family(tracker, diary)
    now = 102.5
    assert [str(line) for line in tracker.report()] == [
        "mission m (2.5 s)",
        "  session s1 (2.5 s)",
        "    process p (2.5 s)",
        "    timer t (2.5 s)",
        "  session s2 (2.5 s)",
    ]
    assert repr(tracker) == "<ResourceTracker live: 1 mission, 2 session, 1 process, 1 timer open>"
    assert repr(all_of["s1"]) == "<TrackedResource session 's1' live, owns 2>"
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(all_of["s1"].release)
        await settle()
        assert [line.name for line in tracker.report() if line.is_ending] == ["s1", "p", "t"]
        counts = tracker.statistics().kinds["session"]
        assert (counts.open, counts.ending) == (2, 1)
    await tracker.aclose()
    assert repr(tracker) == "<ResourceTracker ended: nothing open>"


def test_bad_arguments_are_refused() -> None:
    """Wrong types, times and owners are errors, and nothing is tracked."""
    tracker = ResourceTracker()
    with pytest.raises(TypeError, match="kind must be a str"):
        tracker.track(1, "x", print)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="name must be a str"):
        tracker.track("session", None, print)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="close must be callable"):
        tracker.track("session", "s", None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="timeout must be above 0"):
        tracker.track("session", "s", print, timeout=0)
    other = ResourceTracker().track("session", "other", print)
    with pytest.raises(ValueError, match="of another tracker"):
        tracker.track("session", "s", print, owner=other)
    assert tracker.statistics().open == 0


# ---- the rules by themselves ----


class Forest(RuleBasedStateMachine):
    """Claims, ends and drops in any order, against a model that knows only owners and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self.owner: dict[Node, Node | None] = {}
        self.claims = Counter[Node]()
        self.ended: set[Node] = set()
        self.dropped: set[Node] = set()

    def pick(self, number: int) -> Node:
        return self.nodes[number % len(self.nodes)]

    def below(self, node: Node) -> set[Node]:
        found = {node}
        while more := {n for n in self.nodes if self.owner[n] in found} - found:
            found |= more
        return found - self.ended - self.dropped

    @rule(number=st.integers(0, 30), is_root=st.booleans())
    def add(self, number: int, *, is_root: bool) -> None:
        owner = None if is_root or not self.nodes else self.pick(number)
        try:
            node = Node(owner)
        except ValueError:
            assert owner in self.ended | self.dropped | set(self.claims)
            return
        assert owner is None or not (owner in self.dropped or self.claims[owner])
        self.nodes.append(node)
        self.owner[node] = owner

    @precondition(lambda self: self.nodes)
    @rule(number=st.integers(0, 30))
    def claim(self, number: int) -> None:
        node = self.pick(number)
        expected = {n for n in self.below(node) if not self.claims[n]}
        if node in self.ended | self.dropped:
            expected = set()
        claimed = node.claim()
        assert set(claimed) == expected
        self.claims.update(claimed)
        for position, each in enumerate(claimed):
            assert not set(claimed[:position]) & set(each.owners())

    @precondition(lambda self: self.nodes)
    @rule(number=st.integers(0, 30))
    def end(self, number: int) -> None:
        node = self.pick(number)
        is_ready = self.claims[node] == 1 and node not in self.ended and self.below(node) == {node}
        try:
            node.end()
        except ValueError:
            assert not is_ready
        else:
            assert is_ready
            self.ended.add(node)

    @precondition(lambda self: self.nodes)
    @rule(number=st.integers(0, 30))
    def drop(self, number: int) -> None:
        node = self.pick(number)
        is_live = not self.claims[node] and node not in self.dropped
        try:
            node.drop()
        except ValueError:
            assert not is_live
            return
        assert is_live
        self.dropped.add(node)
        for child, owner in list(self.owner.items()):
            if owner is node and child not in self.ended:
                self.owner[child] = self.owner[node]

    @invariant()
    def everything_is_claimed_at_most_once(self) -> None:
        assert all(count == 1 for count in self.claims.values())

    @invariant()
    def states_agree(self) -> None:
        for node in self.nodes:
            if node in self.ended | self.dropped:
                assert node.state is NodeState.ENDED
            else:
                assert node.state is (NodeState.CLAIMED if self.claims[node] else NodeState.LIVE)
                assert set(node.walk()) == self.below(node)


TestForest = Forest.TestCase
TestForest.settings = settings(max_examples=40, stateful_step_count=30)


# ---- any interleaving ----


@frozen
class Step:
    """One thing that happens.

    Attributes:
        what: track, release, cancel, finish, fail, forget or wait.
        which: A resource, a release or a closer, counted from the first that there is.
        at_once: Whether the next thing happens before any task runs again.
    """

    what: str
    which: int = 0
    at_once: bool = False


steps = st.lists(
    st.builds(
        Step,
        st.sampled_from(
            ["track", "track", "track", "release", "release", "cancel", "finish", "fail", "forget"]
        ),
        st.integers(0, 9),
        st.booleans(),
    ),
    min_size=5,
    max_size=40,
)


class Play:
    """Performs steps on a tracker whose closers end when a step says so."""

    def __init__(self) -> None:
        self.tracker = ResourceTracker()
        self.resources: list[TrackedResource] = []
        self.parents: dict[int, int | None] = {}
        self.open_closers: dict[int, tuple[anyio.Event, list[BaseException]]] = {}
        self.began: Counter[int] = Counter()
        self.ended: Counter[int] = Counter()
        self.forgotten: set[int] = set()
        self.released: set[int] = set()
        self.scopes: list[anyio.CancelScope] = []
        self.errors = 0
        self.planned = 0

    async def close(self, number: int) -> None:
        for child, parent in self.parents.items():
            if parent == number and child not in self.forgotten:
                assert self.ended[child] == 1, f"{number} begins before its child {child} has ended"
        self.began[number] += 1
        event, errors = anyio.Event(), list[BaseException]()
        self.open_closers[number] = event, errors
        await event.wait()
        self.ended[number] += 1
        if errors:
            raise errors[0]

    async def release(self, number: int, scope: anyio.CancelScope) -> None:
        if not self.resources[number].is_released:  # it may have been forgotten just before
            self.released |= self.subtree(number)
        with scope:
            try:
                await self.resources[number].release()
            except BaseExceptionGroup as group:
                self.errors += len(group.exceptions)
            assert self.resources[number].is_released

    def subtree(self, number: int) -> set[int]:
        below = {child for child, parent in self.parents.items() if parent == number}
        return {number}.union(*map(self.subtree, below))

    def perform(self, step: Step, tasks: anyio.abc.TaskGroup) -> None:
        count = len(self.resources)
        if step.what == "track" or not count:
            above = step.which % (count + 1) - 1
            owner = self.resources[above] if above >= 0 else None
            try:
                resource = self.tracker.track(
                    "thing", str(count), partial(self.close, count), owner=owner, timeout=1e6
                )
            except anyio.ClosedResourceError:
                assert owner is not None
                return
            self.resources.append(resource)
            self.parents[count] = None if owner is None else above
        elif step.what == "release":
            number = step.which % count
            scope = anyio.CancelScope()
            self.scopes.append(scope)
            tasks.start_soon(self.release, number, scope)
        elif step.what == "cancel" and self.scopes:
            self.scopes[step.which % len(self.scopes)].cancel()
        elif step.what in ("finish", "fail") and self.open_closers:
            number = list(self.open_closers)[step.which % len(self.open_closers)]
            self.end_one(number, fails=step.what == "fail")
        elif step.what == "forget":
            number = step.which % count
            if self.resources[number].forget():
                assert not self.began[number]
                self.forgotten.add(number)
                for child, parent in self.parents.items():
                    if parent == number:
                        self.parents[child] = self.parents[number]

    def end_one(self, number: int, *, fails: bool) -> None:
        event, errors = self.open_closers.pop(number)
        if fails:
            errors.append(OSError(number))
            self.planned += 1
        event.set()

    async def run(self, script: list[Step]) -> None:
        async with anyio.create_task_group() as tasks:
            for step in script:
                self.perform(step, tasks)
                if not step.at_once:
                    await settle()
                assert all(count == 1 for count in self.began.values())
            await settle()
            while self.open_closers:
                self.end_one(next(iter(self.open_closers)), fails=False)
                await settle()
        for number, resource in enumerate(self.resources):
            if number in self.released and number not in self.forgotten:
                assert resource.is_released, "a release was lost"
            is_closed = resource.is_released and number not in self.forgotten
            assert self.began[number] == self.ended[number] == is_closed
        assert self.errors == self.planned, "an error was lost, or told twice"
        statistics = self.tracker.statistics()
        left = sum(not resource.is_released for resource in self.resources)
        assert statistics.open == left == len(self.tracker.report())


@given(script=steps)
@settings(max_examples=100)
async def test_everything_ends_exactly_once_under_any_interleaving(script: list[Step]) -> None:
    """Releases, cancellations, failures and departures in any order: once, and children first."""
    await Play().run(script)
