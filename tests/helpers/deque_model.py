"""The algorithms of csrc/chase_lev.h and csrc/eventcount.h as programs for the explorer.

The memory orders are read from the C source. Each function here mirrors the C function of its name
request by request; ``test_weak_memory.py`` compares the sequence of order macros with the source.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Hashable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from attrs import evolve, frozen
from weak_memory import (
    Location,
    Operation,
    Request,
    add,
    cas,
    fence,
    load,
    read_plain,
    sleep_while,
    store,
    write_plain,
)

CSRC = Path(__file__).parents[2] / "csrc"
EMPTY = "empty"
LOST = "lost"
Steps: TypeAlias = Generator[Request, Any, tuple[Any, Hashable]]


def orders_of(header: str) -> dict[str, str]:
    """The default memory orders of a header: macro to order."""
    text = (CSRC / header).read_text(encoding="utf-8")
    found = re.findall(r"#ifndef (\w+)\n#define \1 memory_order_(\w+)\n#endif", text)
    return dict(found)


@frozen(kw_only=True)
class Owner:
    """The owner's private knowledge; `bottom` and the array are its own writes."""

    bottom: int = 0
    cached_top: int = 0
    array: int = 0


def initial(start: int = 0) -> dict[Location, Hashable]:
    """The memory of an empty deque whose indices begin at `start`."""
    return {"top": start, "bottom": start, "array": 0}


@frozen(kw_only=True)
class DequeModel:
    """The deque's functions under given orders.

    Attributes:
        orders: Macro to order.
        capacity: Of the first array; the next one has twice that.
        has_payload: Whether items point to memory that is not atomic.
        mutant: A wrong variant: "slot read late" (by the thief, after its CAS), "top stored" (by the
            thief, instead of a CAS), "off by one" (`pop_many` compares `top` by > instead of >=),
            "half stolen" (several items with one CAS), "two unfenced" (the pop without a fence, for
            two items too).
    """

    orders: Mapping[str, str]
    capacity: int = 2
    has_payload: bool = False
    mutant: str = ""

    def _slot(self, array: int, index: int) -> Location:
        return ("slot", array, index % (self.capacity << array))

    def push(self, item: Hashable) -> Operation:
        """wsd_push."""
        return self.push_many([item])

    def push_many(self, items: list[Hashable]) -> Operation:
        """wsd_push_many, with wsd_reserve and wsd_grow."""

        def steps(own: Owner) -> Steps:
            if len(items) > (self.capacity << own.array) - (own.bottom - own.cached_top):
                top = yield load("top", self.orders["WSD_PUSH_TOP"])
                own = evolve(own, cached_top=top)
                array = own.array
                while len(items) > (self.capacity << array) - (own.bottom - top):
                    array += 1
                if array != own.array:
                    for index in range(top, own.bottom):
                        item = yield load(self._slot(own.array, index), "relaxed")
                        yield store(self._slot(array, index), item, "relaxed")
                    yield store("array", array, self.orders["WSD_GROW_ARRAY"])
                    own = evolve(own, array=array)
            if self.has_payload:
                for item in items:
                    yield write_plain(("payload", item), item)
            for offset, item in enumerate(items):
                slot = self._slot(own.array, own.bottom + offset)
                yield store(slot, item, self.orders["WSD_PUSH_SLOT"])
            own = evolve(own, bottom=own.bottom + len(items))
            yield store("bottom", own.bottom, self.orders["WSD_PUSH_BOTTOM"])
            return own, None

        return steps

    def _use(self, items: list[Hashable]) -> Generator[Request, Any, None]:
        if self.has_payload:
            for item in items:
                yield read_plain(("payload", item))

    def pop(self) -> Operation:
        """wsd_pop."""
        return self.pop_many(1)

    def pop_many(self, count: int) -> Operation:
        """wsd_pop_many, with wsd_pop_last; the outcome is the tuple of items."""

        def steps(own: Owner) -> Steps:
            size = own.bottom - own.cached_top
            wanted = min(count, size)
            if wanted <= 0:
                return own, ()
            if size == 1 or (self.mutant == "two unfenced" and size == 2):
                return (yield from self._pop_last(own))
            bottom, target = own.bottom, own.bottom - wanted
            items = []
            for index in range(bottom - 1, target - 1, -1):
                item = yield load(self._slot(own.array, index), "relaxed")
                items.append(item)
            yield store("bottom", target, self.orders["WSD_POP_BOTTOM"])
            yield fence(self.orders["WSD_POP_FENCE"])
            top = yield load("top", self.orders["WSD_POP_TOP"])
            if top <= target if self.mutant == "off by one" else top < target:
                yield from self._use(items)
                return evolve(own, bottom=target, cached_top=top), tuple(items)
            has_top = False
            if top < bottom:
                has_top = yield cas("top", top, top + 1, self.orders["WSD_POP_CAS"])
            rest = top + 1 if top < bottom else bottom
            yield store("bottom", rest, self.orders["WSD_POP_BOTTOM"])
            items = items[: bottom - rest + has_top]
            yield from self._use(items)
            return evolve(own, bottom=rest, cached_top=rest), tuple(items)

        return steps

    def _pop_last(self, own: Owner) -> Steps:
        top = yield load("top", self.orders["WSD_POP_TOP"])
        own = evolve(own, cached_top=own.bottom)
        if top == own.bottom:
            return own, ()
        item = yield load(self._slot(own.array, top), "relaxed")
        if not (yield cas("top", top, own.bottom, self.orders["WSD_POP_CAS"])):
            return own, ()
        yield from self._use([item])
        return own, (item,)

    def steal_once(self) -> Operation:
        """wsd_steal_once; the outcome is the item, EMPTY or LOST."""

        def steps(local: Hashable) -> Steps:
            top = yield load("top", self.orders["WSD_STEAL_TOP"])
            yield fence(self.orders["WSD_STEAL_FENCE"])
            bottom = yield load("bottom", self.orders["WSD_STEAL_BOTTOM"])
            if top >= bottom:
                return local, EMPTY
            array = yield load("array", self.orders["WSD_STEAL_ARRAY"])
            count = max(1, (bottom - top) // 2) if self.mutant == "half stolen" else 1
            items = []
            if self.mutant != "slot read late":
                for index in range(top, top + count):
                    slot = self._slot(array, index)
                    items.append((yield load(slot, self.orders["WSD_STEAL_SLOT"])))
            if self.mutant == "top stored":
                yield store("top", top + count, self.orders["WSD_STEAL_CAS"])
            elif not (yield cas("top", top, top + count, self.orders["WSD_STEAL_CAS"])):
                return local, LOST
            if self.mutant == "slot read late":
                slot = self._slot(array, top)
                items.append((yield load(slot, self.orders["WSD_STEAL_SLOT"])))
            yield from self._use(items)
            return local, tuple(items) if self.mutant == "half stolen" else items[0]

        return steps

    def steal(self) -> Operation:
        """wsd_steal; the outcome is the item or EMPTY."""
        once = self.steal_once()

        def steps(local: Hashable) -> Steps:
            outcome: Hashable = LOST
            while outcome == LOST:
                local, outcome = yield from once(local)
            return local, outcome

        return steps

    def rest(self, memory: Mapping[Location, Hashable]) -> list[Hashable]:
        """The items left in a memory at rest."""
        top, bottom, array = memory["top"], memory["bottom"], memory["array"]
        assert isinstance(top, int)
        assert isinstance(bottom, int)
        assert isinstance(array, int)
        return [memory.get(self._slot(array, index)) for index in range(top, bottom)]


@frozen(kw_only=True)
class ParkingModel:
    """Workers that look for work, and sleep by csrc/eventcount.h when there is none.

    Attributes:
        orders: Macro to order.
        without: A part that is left out: "second look" (before sleeping), "passing on" (by the last
            searcher, who looks for more and wakes the next).
    """

    orders: Mapping[str, str]
    without: str = ""

    def _notify(self) -> Generator[Request, Any, None]:
        yield fence(self.orders["EVC_NOTIFY_FENCE"])
        if (yield load("searching", self.orders["EVC_NOTIFY_SEARCHING"])) != 0:
            return
        if (yield load("waiters", self.orders["EVC_NOTIFY_WAITERS"])) == 0:
            return
        yield add("epoch", 1, self.orders["EVC_NOTIFY_EPOCH"])

    def notify(self) -> Operation:
        """evc_notify."""

        def steps(local: Hashable) -> Steps:
            yield from self._notify()
            return local, None

        return steps

    def publish(self) -> Operation:
        """Add one piece of work, then evc_notify."""

        def steps(local: Hashable) -> Steps:
            yield add("work", 1, "relaxed")
            yield from self._notify()
            return local, None

        return steps

    @staticmethod
    def _take() -> Generator[Request, Any, bool]:
        while (amount := (yield load("work", "relaxed"))) > 0:
            if (yield cas("work", amount, amount - 1, "relaxed")):
                return True
        return False

    def _end_search(self) -> Generator[Request, Any, bool]:
        before = yield add("searching", -1, self.orders["EVC_SEARCH_COUNT"])
        yield fence(self.orders["EVC_SEARCH_FENCE"])
        return bool(before == 1)

    def work(self, rounds: int = 3) -> list[Operation]:
        """A worker until it has one piece of work; each round is an operation, to forget more."""

        def steps(has_worked: object) -> Steps:
            if has_worked:
                return True, None
            yield add("searching", 1, self.orders["EVC_SEARCH_COUNT"])
            if (yield from self._search()):
                return True, None
            yield add("waiters", 1, self.orders["EVC_PREPARE_WAITERS"])
            yield fence(self.orders["EVC_PREPARE_FENCE"])
            key = yield load("epoch", self.orders["EVC_PREPARE_EPOCH"])
            if self.without == "second look" or (yield load("work", "relaxed")) == 0:
                yield sleep_while("epoch", key)
            yield add("waiters", -1, "relaxed")
            return False, None

        return [steps] * rounds

    def _search(self) -> Generator[Request, Any, bool]:
        has_found = yield from self._take()
        is_last = yield from self._end_search()
        if (
            has_found
            and is_last
            and self.without != "passing on"
            and (yield load("work", "relaxed")) > 0
        ):
            yield from self._notify()
        return has_found

    def search(self) -> Operation:
        """A worker that is counted as searching already, until it has found or not."""

        def steps(local: Hashable) -> Steps:
            return local, (yield from self._search())

        return steps

    @staticmethod
    def sleep() -> Operation:
        """A worker that is counted as waiting and asleep already."""

        def steps(local: Hashable) -> Steps:
            yield sleep_while("epoch", 0)
            return local, None

        return steps


PARKING: dict[Location, Hashable] = {"work": 0, "searching": 0, "waiters": 0, "epoch": 0}

MacroSource: TypeAlias = Callable[[str], list[str]]


def macros_in(header: str, function: str) -> list[str]:
    """The order macros in the body of a C function, as they come."""
    text = (CSRC / header).read_text(encoding="utf-8")
    body = re.search(
        rf"^[^\n#]*\b{function}\([^;]*?\)\n\{{\n(.*?)^\}}", text, re.DOTALL | re.MULTILINE
    )
    assert body is not None, f"{function} is not in {header}"
    code = re.sub(r"/\*.*?\*/", "", body[1], flags=re.DOTALL)
    return re.findall(r"\b(?:WSD|EVC)_(?:PUSH|GROW|POP|STEAL|PREPARE|NOTIFY|SEARCH)_[A-Z]+\b", code)
