"""Is what concurrent clients saw what one after the other could have seen?

A history is a list of operations, each with the moments of its call and of its return. It is
*linearizable* (M. Herlihy and J. Wing, 1990) when every operation can be given one moment between
those two so that a sequential model, going through the operations in that order, returns what the
clients got. Tasks, threads or processes may be the clients; what is tested may be anything.

::

    model = SequentialModel(initial=None, apply=lambda owner, name, me: (
        (me, True) if owner is None else (owner, False)))
    history = History()
    ...
    won = await history.call("worker 1", "claim", "worker 1", key=task, do=claim)
    ...
    check_linearizable(history, model)

The search is that of J. Wing and C. Gong, "Testing and verifying concurrent objects", 1993, which
tries orders depth first, with the memory of G. Lowe, "Testing for linearizability", 2017: a set of
operations that has led to a state once is not tried again. Histories are checked key by key, since
what is linearizable for each object is so for all of them together.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator
from itertools import count
from typing import Any, TypeAlias, TypeVar, final

from attrs import field, frozen

__all__ = (
    "History",
    "NotLinearizableError",
    "Operation",
    "SequentialModel",
    "check_linearizable",
)

T = TypeVar("T")

Apply: TypeAlias = Callable[[Any, str, Any], tuple[Hashable, Any]]
"""``apply(state, name, argument)`` returns the next state and what the operation returns."""


class NotLinearizableError(AssertionError):
    """No order explains what the clients saw; the message shows the operations."""


@frozen(kw_only=True)
class Operation:
    """One operation of one client.

    Attributes:
        client: Who called.
        name: What was called.
        argument: With what.
        result: What it returned; meaningless while ``returned`` is None.
        key: Which object it was about; histories are checked object by object.
        called: When it was called; any numbers will do that order calls and returns, such as
            ``time.monotonic_ns()``, which processes on one machine share.
        returned: When it returned; None: never, so it may have happened or not.
    """

    client: Hashable
    name: str
    argument: Any = None
    result: Any = None
    key: Hashable = None
    called: int
    returned: int | None = None

    def __str__(self) -> str:
        about = "" if self.key is None else f"{self.key!r}, "
        end = f"-> {self.result!r}" if self.returned is not None else "has not returned"
        return f"{self.client}: {self.name}({about}{self.argument!r}) {end}"


@frozen(kw_only=True)
class SequentialModel:
    """What an object does when its operations come one after the other.

    Attributes:
        initial: The first state.
        apply: Returns, for a state and an operation, the next state and the result. States are
            hashable and never changed. It must not raise.
    """

    initial: Hashable
    apply: Apply = field()


@final
class History:
    """Records operations as they are called and return. Tasks and threads may share one."""

    def __init__(self) -> None:
        self._moments: Iterator[int] = count()
        self._operations: dict[int, Operation] = {}

    def __len__(self) -> int:
        return len(self._operations)

    def __iter__(self) -> Iterator[Operation]:
        return iter([operation for _, operation in sorted(self._operations.items())])

    def begin(
        self, client: Hashable, name: str, argument: Any = None, *, key: Hashable = None
    ) -> int:
        """Note that an operation is called now; return its ticket.

        Args:
            client: Who calls.
            name: What is called.
            argument: With what.
            key: Which object it is about.
        """
        ticket = next(self._moments)
        self._operations[ticket] = Operation(
            client=client, name=name, argument=argument, key=key, called=ticket
        )
        return ticket

    def end(self, ticket: int, result: Any = None) -> None:
        """Note that the operation returns now.

        Args:
            ticket: What `begin` returned.
            result: What it returned.
        """
        begun = self._operations[ticket]
        self._operations[ticket] = Operation(
            client=begun.client,
            name=begun.name,
            argument=begun.argument,
            key=begun.key,
            called=ticket,
            result=result,
            returned=next(self._moments),
        )

    def drop(self, ticket: int) -> None:
        """Forget an operation that is known to have had no effect, such as one refused.

        Args:
            ticket: What `begin` returned.
        """
        del self._operations[ticket]

    async def call(
        self,
        client: Hashable,
        name: str,
        argument: Any = None,
        *,
        key: Hashable = None,
        do: Callable[[], Awaitable[T]],
    ) -> T:
        """Record an async call. One that raises stays without a return: it may have happened.

        Args:
            client: Who calls.
            name: What is called.
            argument: With what.
            key: Which object it is about.
            do: Does it.
        """
        ticket = self.begin(client, name, argument, key=key)
        result = await do()
        self.end(ticket, result)
        return result

    def __repr__(self) -> str:
        is_open = sum(operation.returned is None for operation in self._operations.values())
        return f"<History operations={len(self)} open={is_open}>"


def check_linearizable(
    operations: Iterable[Operation], model: SequentialModel, *, limit: int = 1_000_000
) -> None:
    """Raise unless some order of the operations explains all results.

    Args:
        operations: A `History`, or operations that were collected in another way.
        model: What one object does.
        limit: How many steps the search for one key may take.

    Raises:
        NotLinearizableError: There is no such order.
        RuntimeError: The search took more steps than the limit, so it is not known.
    """
    by_key: dict[Hashable, list[Operation]] = {}
    for operation in operations:
        by_key.setdefault(operation.key, []).append(operation)
    for key, found in by_key.items():
        longest = _search(found, model, limit)
        if longest is not None:
            raise NotLinearizableError(_explain(key, found, longest))


class _Event:
    """A call or a return in the list that the search takes operations out of and puts back."""

    __slots__ = ("match", "next", "operation", "previous")

    def __init__(self, operation: int, match: _Event | None) -> None:
        self.operation = operation
        self.match = match  # a call's return; None for a return
        self.previous: _Event = self
        self.next: _Event | None = None

    def lift(self) -> None:
        """Take the call and its return out of the list."""
        for event in (self, self.match):
            if event is not None:
                event.previous.next = event.next
                if event.next is not None:
                    event.next.previous = event.previous

    def unlift(self) -> None:
        """Put them back where they were."""
        for event in (self.match, self):
            if event is not None:
                event.previous.next = event
                if event.next is not None:
                    event.next.previous = event


def _events(operations: list[Operation]) -> _Event:
    """Return the head of the list of calls and returns in their order."""
    last = 1 + max(max(o.called, o.returned or 0) for o in operations)
    entries: list[tuple[int, int, _Event]] = []
    for number, operation in enumerate(operations):
        back = _Event(number, None)
        # Whatever has not returned may take place after everything else, where nobody sees it.
        returned = last + number if operation.returned is None else operation.returned
        entries.append((operation.called, 0, _Event(number, back)))
        entries.append((returned, 1, back))
    head = tail = _Event(-1, None)
    for _, _, event in sorted(entries, key=lambda entry: entry[:2]):
        tail.next = event
        event.previous = tail
        tail = event
    return head


def _search(operations: list[Operation], model: SequentialModel, limit: int) -> list[int] | None:
    """Return None when an order exists; otherwise the longest beginning of one that was found."""
    head = _events(operations)
    state: Hashable = model.initial
    taken = 0
    seen = {(taken, state)}
    done: list[tuple[_Event, Hashable]] = []
    longest: list[int] = []
    event = head.next
    steps = 0
    while head.next is not None:
        steps += 1
        if steps > limit:
            raise RuntimeError(
                f"not decided after {limit} steps: record a shorter history, or raise the limit"
            )
        if event is not None and event.match is not None:
            operation = operations[event.operation]
            after, result = model.apply(state, operation.name, operation.argument)
            is_right = operation.returned is None or result == operation.result
            mark = (taken | 1 << event.operation, after)
            if is_right and mark not in seen:
                seen.add(mark)
                done.append((event, state))
                taken, state = mark
                event.lift()
                event = head.next
                if len(done) > len(longest):
                    longest = [begun.operation for begun, _ in done]
            else:
                event = event.next
            continue
        # A return whose operation has not been given its moment: go back and try another order.
        if not done:
            return longest
        event, state = done.pop()
        taken ^= 1 << event.operation
        event.unlift()
        event = event.next
    return None


def _explain(key: Hashable, operations: list[Operation], longest: list[int]) -> str:
    about = "" if key is None else f" on {key!r}"
    order = {number: place for place, number in enumerate(longest, 1)}
    moments = sorted({m for o in operations for m in (o.called, o.returned) if m is not None})
    place = {moment: number for number, moment in enumerate(moments)}
    head = (
        f"no order of these {len(operations)} operations{about} explains their results; "
        f"the longest explained beginning takes the {len(longest)} that are numbered:"
    )
    lines = [head]
    for number, operation in enumerate(operations):
        end = "" if operation.returned is None else place[operation.returned]
        span = f"[{place[operation.called]}, {end}]"
        lines.append(f"  {order.get(number, '-'):>3} {span:>10} {operation}")
    return "\n".join(lines)
