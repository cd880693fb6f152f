"""Feeds of a mission's events: order, end, bounds."""

from __future__ import annotations

import gc
import weakref

import anyio

from orchestra.opencode.mission.events import (
    EventsDropped,
    MissionEvent,
    MissionFinished,
    WarningRaised,
)
from orchestra.opencode.mission.report import MissionOutcome, MissionReport
from orchestra.opencode.mission.subscriptions import Subscriptions

LAST = MissionFinished(
    at=9.0,
    report=MissionReport(
        goal="g", outcome=MissionOutcome.ACCEPTED, reason="r", backend="b", directory="."
    ),
)


def event(number: int) -> WarningRaised:
    return WarningRaised(at=float(number), message=str(number))


async def test_each_feed_has_what_comes_after_it_was_opened() -> None:
    """Events come in order, to every feed that was open, and the feed ends after the last one."""
    subscriptions = Subscriptions()
    subscriptions.publish(event(0))
    first = subscriptions.open()
    subscriptions.publish(event(1))
    second = subscriptions.open()
    subscriptions.publish(event(2))
    subscriptions.publish(LAST)
    assert [event async for event in first] == [event(1), event(2), LAST]
    assert [event async for event in second] == [event(2), LAST]


async def test_a_waiting_reader_is_woken() -> None:
    """A reader that came before the event gets it."""
    subscriptions = Subscriptions()
    feed = subscriptions.open()
    got: list[MissionEvent] = []

    async def read() -> None:
        got.extend([event async for event in feed])

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            subscriptions.publish(event(1))
            await anyio.wait_all_tasks_blocked()
            assert got == []
            subscriptions.publish(LAST)
    assert got == [event(1), LAST]


async def test_two_tasks_may_read_one_feed() -> None:
    """Of two tasks that wait at one feed neither is forgotten."""
    subscriptions = Subscriptions()
    feed = subscriptions.open()
    got: list[MissionEvent] = []

    async def read() -> None:
        got.append(await anext(feed))

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            group.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            subscriptions.publish(event(1))
            await anyio.wait_all_tasks_blocked()
            assert got == [event(1)]
            subscriptions.publish(event(2))
    assert got == [event(1), event(2)]


async def test_a_cancelled_reader_loses_nothing() -> None:
    """A reader that gave up waiting finds the next event when it comes back."""
    subscriptions = Subscriptions()
    feed = subscriptions.open()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await anext(feed)
    assert scope.cancelled_caught

    async def read() -> None:
        await anext(feed)

    async with anyio.create_task_group() as group:
        group.start_soon(read)
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
        subscriptions.publish(event(1))
    assert await anext(feed) == event(1)


async def test_a_slow_reader_loses_the_oldest_and_is_told() -> None:
    """A feed is bounded: the oldest events go, and their number is told before what is left."""
    subscriptions = Subscriptions(capacity=3)
    feed = subscriptions.open()
    for number in range(1, 6):
        subscriptions.publish(event(number))
    assert await anext(feed) == EventsDropped(at=3.0, count=2)
    assert await anext(feed) == event(3)
    subscriptions.publish(event(6))
    subscriptions.publish(LAST)
    assert [event async for event in feed] == [
        EventsDropped(at=5.0, count=1),
        event(5),
        event(6),
        LAST,
    ]


async def test_a_feed_of_an_ended_mission_has_its_end() -> None:
    """Who comes after the end gets the report, and then the end."""
    subscriptions = Subscriptions()
    subscriptions.publish(LAST)
    assert [event async for event in subscriptions.open()] == [LAST]


async def test_a_feed_of_a_mission_that_broke_off_ends() -> None:
    """Without a last event the feeds end too, those from before and those from after."""
    subscriptions = Subscriptions()
    before = subscriptions.open()
    subscriptions.publish(event(1))
    subscriptions.end()
    subscriptions.publish(event(2))
    assert [event async for event in before] == [event(1)]
    assert [event async for event in subscriptions.open()] == []


async def test_a_feed_that_is_dropped_is_not_kept() -> None:
    """A feed that nobody reads any more costs nothing."""
    subscriptions = Subscriptions()
    feed = weakref.ref(subscriptions.open())
    gc.collect()
    assert feed() is None
    subscriptions.publish(event(1))


async def test_a_full_feed_lets_others_run() -> None:
    """However much is buffered, a reader comes to a checkpoint now and then."""
    subscriptions = Subscriptions()
    feed = subscriptions.open()
    for number in range(1_000):
        subscriptions.publish(event(number))
    with anyio.CancelScope() as scope:
        await anext(feed)
        scope.cancel()
        for _ in range(100):
            await anext(feed)
    assert scope.cancelled_caught
