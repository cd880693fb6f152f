"""Resources for tests of pools: whoever makes, resets, validates and destroys them keeps watch."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import anyio.lowlevel
from attrs import define

from orchestra import ResourcePool

CALLS = ("create", "reset", "validate", "destroy")


class ToldError(OSError):
    """What a call raises that was told to fail."""


@define(eq=False)
class Thing:
    """A resource that knows what has been done with it."""

    number: int
    user: object = None
    resets: int = 0
    checks: int = 0
    is_fit: bool = True
    is_refused: bool = False
    is_destroyed: bool = False

    @contextmanager
    def used_by(self, user: object) -> Iterator[None]:
        """Use it, which nobody else may do meanwhile."""
        assert not self.is_destroyed
        assert self.user is None, f"{user} and {self.user} share {self}"
        self.user = user
        try:
            yield
        finally:
            self.user = None


class Workshop:
    """What a pool calls; each call can be made to wait or to fail.

    Attributes:
        present: How many things there are, those that are being made included.
        made: All things ever made.
        failing: How many of the next calls fail, by name.
        calls: How many calls began, by name.
    """

    def __init__(self, max_size: int = 1) -> None:
        self.max_size = max_size
        self.present = 0
        self.most = 0
        self.made: list[Thing] = []
        self.failing = Counter[str]()
        self.calls = Counter[str]()
        self._queues: dict[str, deque[anyio.Event]] = {}

    def pool(self, *calls: str, **options: Any) -> ResourcePool[Thing]:
        """Make a pool of these things; ``calls`` are those that it has besides create and destroy."""
        functions = {call: getattr(self, call) for call in calls}
        options = {"max_size": self.max_size, "destroy": self.destroy, **functions, **options}
        return ResourcePool(self.create, **options)

    @property
    def held(self) -> set[str]:
        """The calls that wait."""
        return set(self._queues)

    def hold(self, call: str) -> None:
        """From now on let each call of a kind wait until it is let go."""
        self._queues[call] = deque()

    def let_go(self, call: str) -> bool:
        """Let the oldest call that waits go on; tell whether there was one."""
        queue = self._queues.get(call)
        if not queue:
            return False
        queue.popleft().set()
        return True

    def open(self) -> None:
        """Let no call wait any more."""
        for queue in self._queues.values():
            for event in queue:
                event.set()
        self._queues.clear()

    async def _step(self, call: str) -> None:
        self.calls[call] += 1
        fails = self.failing[call] > 0
        self.failing[call] -= fails
        queue = self._queues.get(call)
        if queue is None:
            await anyio.lowlevel.checkpoint()
        else:
            event = anyio.Event()
            queue.append(event)
            try:
                await event.wait()
            finally:
                if event in queue:
                    queue.remove(event)
        if fails:
            raise ToldError(f"{call} fails as told")

    async def create(self) -> Thing:
        self.present += 1
        self.most = max(self.most, self.present)
        try:
            await self._step("create")
        except BaseException:
            self.present -= 1
            raise
        thing = Thing(len(self.made))
        self.made.append(thing)
        return thing

    async def reset(self, thing: Thing) -> None:
        with thing.used_by("reset"):
            await self._step("reset")
        thing.resets += 1

    async def validate(self, thing: Thing) -> bool:
        with thing.used_by("validate"):
            await self._step("validate")
        thing.checks += 1
        thing.is_refused |= not thing.is_fit
        return thing.is_fit

    async def destroy(self, thing: Thing) -> None:
        assert not thing.is_destroyed, f"{thing} is destroyed twice"
        thing.is_destroyed = True
        try:
            await self._step("destroy")
        finally:
            self.present -= 1

    def check_over(self) -> None:
        """Everything that was made has been destroyed, and there never was too much of it."""
        assert self.present == 0
        assert self.most <= self.max_size
        assert all(thing.is_destroyed for thing in self.made)
