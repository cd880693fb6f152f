"""An exhaustive explorer of small concurrent programs under the C11 memory model.

Every interleaving and every value that a load may return is tried, and states seen before are not
entered again. The machine is the view-based one of Kang et al. (POPL 2017) without promises, which
is RC11 (Lahav et al., PLDI 2017) apart from what follows:

* Memory is a list of *messages* for each location, in modification order; a message carries the
  view that an acquiring reader takes over. Every write goes to the end of its list, which is exact
  for locations with one writer and for those changed by read-modify-write only.
* Release sequences are those of C++20: a read-modify-write continues one, a later store does not.
* A sequentially consistent access counts as acquire-release, which allows more than the standard.
* No load sees a store that comes later in a global order (no load buffering), as in RC11.

A thread is a list of operations; an operation is a generator that yields requests and returns the
thread's next local state and an outcome. Generators cannot be copied, so an operation in progress
is kept as the list of answers it has had, and is run again from its start.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Location: TypeAlias = Hashable
View: TypeAlias = tuple[tuple[Location, int], ...]  # sorted by repr: location -> index of message
Message: TypeAlias = tuple[Hashable, View]
Memory: TypeAlias = tuple[tuple[Location, tuple[Message, ...]], ...]
Request: TypeAlias = tuple[Any, ...]
Operation: TypeAlias = Callable[[Any], Generator[Request, Any, tuple[Any, Hashable]]]

ACQUIRING = {"acquire", "acq_rel", "seq_cst"}
RELEASING = {"release", "acq_rel", "seq_cst"}


def load(location: Location, order: str) -> Request:
    """Answered with a value that the location had."""
    return ("load", location, order)


def store(location: Location, value: Hashable, order: str) -> Request:
    """Answered with None."""
    return ("store", location, value, order)


def cas(location: Location, expected: Hashable, desired: Hashable, order: str) -> Request:
    """A strong compare-and-swap, relaxed on failure; answered with whether it succeeded."""
    return ("cas", location, expected, desired, order)


def add(location: Location, number: int, order: str) -> Request:
    """Answered with the value before."""
    return ("add", location, number, order)


def fence(order: str) -> Request:
    """Answered with None."""
    return ("fence", order)


def sleep_while(location: Location, value: Hashable) -> Request:
    """A wait under a mutex, possible only when the location's last value is another one."""
    return ("sleep", location, value)


def write_plain(location: Location, value: Hashable) -> Request:
    """A write that is not atomic."""
    return ("write_plain", location, value)


def read_plain(location: Location) -> Request:
    """A read that is not atomic; it is a data race unless it must see the last write."""
    return ("read_plain", location)


@dataclass(frozen=True)
class _Thread:
    step: int = 0
    local: Hashable = None
    answers: tuple[Hashable, ...] = ()
    outcomes: tuple[Hashable, ...] = ()
    now: View = ()  # what it has seen
    at_acquire: View = ()  # what an acquire fence would add
    at_release: View = ()  # what a release fence has published


@dataclass(frozen=True)
class _State:
    memory: Memory
    threads: tuple[_Thread, ...]
    fences: View = ()  # what sequentially consistent fences have seen


@dataclass
class Exploration:
    """What was found.

    Attributes:
        outcomes: For each way to end: every thread's outcomes, and the last values in memory.
        stuck: The same for states in which somebody sleeps for ever.
        races: The locations of data races.
        states: How many states were visited.
    """

    outcomes: set[tuple[tuple[tuple[Hashable, ...], ...], tuple[tuple[Location, Hashable], ...]]]
    stuck: set[tuple[tuple[tuple[Hashable, ...], ...], tuple[tuple[Location, Hashable], ...]]]
    races: set[Location]
    states: int = 0

    @property
    def results(self) -> set[tuple[tuple[Hashable, ...], ...]]:
        """Every thread's outcomes, without the memory."""
        return {threads for threads, _ in self.outcomes}


def _join(first: View, second: View) -> View:
    if first == second or not second:
        return first
    if not first:
        return second
    merged = dict(first)
    for location, index in second:
        if merged.get(location, 0) < index:
            merged[location] = index
    return tuple(sorted(merged.items(), key=repr))


def _at(view: View, location: Location) -> int:
    for known, index in view:
        if known == location:
            return index
    return 0


@dataclass
class _Machine:
    programs: list[list[Operation]]
    _requests: dict[Hashable, tuple[str, Any]] = field(default_factory=dict)

    def request(self, number: int, thread: _Thread) -> tuple[str, Any]:
        """What the thread wants next: ("request", it), ("return", (local, outcome)), ("end",)."""
        if thread.step == len(self.programs[number]):
            return ("end", None)
        key = (number, thread.step, thread.local, thread.answers)
        if key not in self._requests:
            operation = self.programs[number][thread.step](thread.local)
            try:
                wanted = next(operation)
                for answer in thread.answers:
                    wanted = operation.send(answer)
            except StopIteration as end:
                self._requests[key] = ("return", end.value)
            else:
                self._requests[key] = ("request", wanted)
        return self._requests[key]

    def settle(self, state: _State, number: int) -> _State:
        """Finish operations that want nothing more."""
        while True:
            thread = state.threads[number]
            kind, value = self.request(number, thread)
            if kind != "return":
                return state
            local, outcome = value
            thread = _Thread(
                step=thread.step + 1,
                local=local,
                outcomes=(*thread.outcomes, outcome),
                now=thread.now,
                at_acquire=thread.at_acquire,
                at_release=thread.at_release,
            )
            state = _with_thread(state, number, thread)


def _with_thread(state: _State, number: int, thread: _Thread) -> _State:
    threads = (*state.threads[:number], thread, *state.threads[number + 1 :])
    return _State(state.memory, threads, state.fences)


def _messages(memory: Memory, location: Location) -> tuple[Message, ...]:
    for known, messages in memory:
        if known == location:
            return messages
    return ((None, ()),)  # never written


def _append(memory: Memory, location: Location, message: Message) -> Memory:
    table = dict(memory)
    table[location] = (*_messages(memory, location), message)
    return tuple(sorted(table.items(), key=repr))


def _answered(
    thread: _Thread, answer: Hashable, *, now: View, at_acquire: View, at_release: View
) -> _Thread:
    return _Thread(
        thread.step,
        thread.local,
        (*thread.answers, answer),
        thread.outcomes,
        now,
        at_acquire,
        at_release,
    )


def _seen(thread: _Thread, location: Location, index: int, view: View, order: str) -> _Thread:
    """The thread after it has read a message, before it is answered."""
    here = ((location, index),)
    now = _join(thread.now, here)
    at_acquire = _join(_join(thread.at_acquire, view), here)
    if order in ACQUIRING:
        now = _join(now, view)
    return _Thread(
        thread.step,
        thread.local,
        thread.answers,
        thread.outcomes,
        now,
        _join(at_acquire, now),
        thread.at_release,
    )


def _written(
    state: _State, thread: _Thread, location: Location, value: Hashable, order: str, base: View
) -> tuple[Memory, _Thread]:
    """Memory and thread after a write whose message also carries `base`."""
    here = ((location, len(_messages(state.memory, location))),)
    now = _join(thread.now, here)
    published = now if order in RELEASING else _join(thread.at_release, here)
    memory = _append(state.memory, location, (value, _join(published, base)))
    thread = _Thread(
        thread.step,
        thread.local,
        thread.answers,
        thread.outcomes,
        now,
        _join(thread.at_acquire, here),
        thread.at_release,
    )
    return memory, thread


def _successors(  # noqa: C901, PLR0912, PLR0915 - one branch for each kind of request
    machine: _Machine, state: _State, number: int, races: set[Location]
) -> Iterable[_State]:
    thread = state.threads[number]
    kind, request = machine.request(number, thread)
    if kind == "end":
        return

    def after(answer: Hashable, changed: _Thread, memory: Memory, fences: View) -> _State:
        changed = _answered(
            changed,
            answer,
            now=changed.now,
            at_acquire=changed.at_acquire,
            at_release=changed.at_release,
        )
        threads = (*state.threads[:number], changed, *state.threads[number + 1 :])
        return machine.settle(_State(memory, threads, fences), number)

    action = request[0]
    if action == "fence":
        order = request[1]
        now, fences = thread.now, state.fences
        if order in ACQUIRING:
            now = _join(now, thread.at_acquire)
        if order == "seq_cst":
            now = fences = _join(now, fences)
        released = now if order in RELEASING else thread.at_release
        acquired = _join(thread.at_acquire, now)
        changed = _answered(thread, None, now=now, at_acquire=acquired, at_release=released)
        threads = (*state.threads[:number], changed, *state.threads[number + 1 :])
        yield machine.settle(_State(state.memory, threads, fences), number)
        return

    location = request[1]
    messages = _messages(state.memory, location)
    last = len(messages) - 1
    if action == "load":
        for index in range(_at(thread.now, location), last + 1):
            value, view = messages[index]
            seen = _seen(thread, location, index, view, request[2])
            yield after(value, seen, state.memory, state.fences)
    elif action == "store":
        memory, changed = _written(state, thread, location, request[2], request[3], ())
        yield after(None, changed, memory, state.fences)
    elif action == "add":
        value, view = messages[last]
        seen = _seen(thread, location, last, view, request[3])
        assert isinstance(value, int)
        total = value + request[2]
        memory, changed = _written(state, seen, location, total, request[3], view)
        yield after(value, changed, memory, state.fences)
    elif action == "cas":
        _, _, expected, desired, order = request
        for index in range(_at(thread.now, location), last + 1):
            value, view = messages[index]
            if value != expected:
                seen = _seen(thread, location, index, view, "relaxed")
                yield after(False, seen, state.memory, state.fences)
            elif index == last:  # an older message already has its successor
                seen = _seen(thread, location, index, view, order)
                memory, changed = _written(state, seen, location, desired, order, view)
                yield after(True, changed, memory, state.fences)
    elif action == "sleep":
        value, view = messages[last]
        if value != request[2]:
            seen = _seen(thread, location, last, view, "acquire")
            yield after(value, seen, state.memory, state.fences)
    elif action == "write_plain":
        memory, changed = _written(state, thread, location, request[2], "relaxed", ())
        yield after(None, changed, memory, state.fences)
    elif action == "read_plain":
        if _at(thread.now, location) != last:
            races.add(location)
        seen = _seen(thread, location, last, (), "relaxed")
        yield after(messages[last][0], seen, state.memory, state.fences)
    else:
        raise AssertionError(request)


def explore(
    programs: Iterable[Iterable[Operation]],
    *,
    memory: Mapping[Location, Hashable],
    local: Iterable[Hashable] = (),
    limit: int = 500_000,
) -> Exploration:
    """Run the programs, one thread each, in every way there is.

    Args:
        programs: For each thread its operations.
        memory: What the locations hold at first; others hold None.
        local: The first local state of each thread; None where there is none.
        limit: How many states may be visited before giving up with an AssertionError.
    """
    lists = [list(program) for program in programs]
    locals_ = [*local, *[None] * len(lists)]
    machine = _Machine(lists)
    start = _State(
        tuple(sorted(((place, ((value, ()),)) for place, value in memory.items()), key=repr)),
        tuple(_Thread(local=locals_[number]) for number in range(len(lists))),
    )
    for number in range(len(lists)):
        start = machine.settle(start, number)
    found = Exploration(set(), set(), set())
    visited = {start}
    pending = [start]
    while pending:
        state = pending.pop()
        is_last = True
        for number in range(len(lists)):
            for successor in _successors(machine, state, number, found.races):
                is_last = False
                if successor not in visited:
                    visited.add(successor)
                    pending.append(successor)
        assert len(visited) <= limit, "too many states: make the scenario smaller"
        if is_last:
            ends = all(
                machine.request(number, thread)[0] == "end"
                for number, thread in enumerate(state.threads)
            )
            values = tuple((place, messages[-1][0]) for place, messages in state.memory)
            (found.outcomes if ends else found.stuck).add(
                (tuple(thread.outcomes for thread in state.threads), values)
            )
    found.states = len(visited)
    return found
