"""A backend whose capacity changes, and a client that looks for it with a limit rule.

The backend works on ``capacity`` requests at a time, keeps up to half as many again waiting, and
refuses the rest 50 ms after they came. The client always has something to send, and sends as much
at a time as its limit says. Simulated time, no event loop: only the rule decides.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from heapq import heappop, heappush
from random import Random
from typing import Literal, TypeAlias

from attrs import field, frozen

from orchestra import Limit, LimitRule

Tail: TypeAlias = Literal["light", "heavy"]

PHASES = ((20, 300.0), (8, 300.0), (20, 300.0))
"""Capacity and seconds. A request takes one second on average, so capacity is requests per second."""

REFUSAL_SECONDS = 0.05


@frozen
class Phase:
    """What came of one phase.

    Attributes:
        throughput: The part of the capacity that was at work; 1.0 is what an ideal client reaches
            with the same requests.
        refused: Requests refused, as a share of those sent.
    """

    throughput: float
    refused: float


@frozen
class _Request:
    epoch: int
    seconds: float


@frozen(order=True)
class _Event:
    at: float
    number: int
    is_done: bool = field(order=False)
    request: _Request = field(order=False)


def _durations(tail: Tail, random: Random) -> Iterator[float]:
    """Seconds of work, 1.0 on average; heavy: one in a hundred takes more than ten times as long."""
    sigma = 1.5
    while True:
        if tail == "light":
            yield random.uniform(0.5, 1.5)
        else:
            yield random.lognormvariate(-(sigma**2) / 2, sigma)


class _Run:
    def __init__(self, rule: LimitRule, tail: Tail, seed: int) -> None:
        self.state = rule.start(Limit(10, maximum=50, rule=rule))
        self.durations = _durations(tail, Random(seed))
        self.capacity = 0
        self.now = 0.0
        self.in_use = 0
        self.working = 0
        self.queue: deque[_Request] = deque()
        self.events: list[_Event] = []
        self.number = 0
        self.done = 0
        self.refused = 0
        self.busy = 0.0

    def phase(self, capacity: int, seconds: float) -> Phase:
        """Run on for a while with another capacity."""
        self.capacity = capacity
        self.done = self.refused = 0
        self.busy = 0.0
        end = self.now + seconds
        self.work()
        self.send()
        while self.events[0].at < end:
            event = heappop(self.events)
            self.advance(event.at)
            self.finish(event)
            self.send()
        self.advance(end)
        return Phase(
            throughput=self.busy / (capacity * seconds),
            refused=self.refused / (self.done + self.refused),
        )

    def advance(self, now: float) -> None:
        """Let time pass."""
        self.busy += min(self.working, self.capacity) * (now - self.now)
        self.now = now

    def send(self) -> None:
        """Send as much as the limit allows."""
        while self.in_use < self.state.limit:
            self.in_use += 1
            request = _Request(self.state.epoch, next(self.durations))
            if self.working + len(self.queue) >= 1.5 * self.capacity:
                self.later(REFUSAL_SECONDS, request, is_done=False)
            else:
                self.queue.append(request)
                self.work()

    def work(self) -> None:
        """Begin what waits, as far as there is capacity."""
        while self.queue and self.working < self.capacity:
            self.working += 1
            request = self.queue.popleft()
            self.later(request.seconds, request, is_done=True)

    def finish(self, event: _Event) -> None:
        """Answer a request."""
        if event.is_done:
            self.done += 1
            self.working -= 1
            self.work()
            self.state.succeeded(epoch=event.request.epoch, in_use=self.in_use)
        else:
            self.refused += 1
            self.state.dropped(epoch=event.request.epoch)
        self.in_use -= 1

    def later(self, seconds: float, request: _Request, *, is_done: bool) -> None:
        """Note when a request is answered."""
        self.number += 1
        heappush(self.events, _Event(self.now + seconds, self.number, is_done, request))


def simulate(rule: LimitRule, *, tail: Tail, seed: int) -> list[Phase]:
    """Run all phases one after the other.

    Args:
        rule: Moves the limit, from 10 between 1 and 50.
        tail: How the work of a request is distributed.
        seed: Decides how much work each request is.
    """
    run = _Run(rule, tail, seed)
    return [run.phase(capacity, seconds) for capacity, seconds in PHASES]
