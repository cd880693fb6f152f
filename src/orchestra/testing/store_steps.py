"""What the checks of stores have in common."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from orchestra.errors import ConflictError
from orchestra.storage import Transaction

__all__ = ("add", "conflict", "expect", "refuses")


def expect(condition: object, message: str) -> None:
    """Fail unless the condition holds."""
    if not condition:
        raise AssertionError(message)


async def refuses(error: type[BaseException], act: Callable[[], Awaitable[object]]) -> None:
    """Expect an error of an async call."""
    try:
        await act()
    except error:
        return
    raise AssertionError(f"{error.__name__} was not raised")


@contextmanager
def conflict(key: str, message: str) -> Iterator[None]:
    """Expect the block's transaction to be refused because of a key."""
    try:
        yield
    except ConflictError as exc:
        expect(key in exc.keys, f"the conflict is about {exc.keys}, not {key!r}")
        expect(exc.read_revision < exc.revision, f"the conflict has wrong revisions: {exc}")
        return
    raise AssertionError(message)


async def add(tx: Transaction, key: str, amount: int = 1) -> int:
    """Add to a number."""
    total = int(await tx.get(key, 0)) + amount
    tx.put(key, total)
    return total
