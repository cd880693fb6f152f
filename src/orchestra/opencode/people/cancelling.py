"""Cancelling a mission from outside, and the proof that nothing of it runs any more.

Whoever wants a mission to end writes ``cancel`` into its namespace of the store; its owner sees that,
stops the mission, waits until its sessions are idle and writes ``quiet``: how many sessions there
were, and which of them are not known to be idle.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Final

import anyio
from attrs import frozen

from orchestra import MVCCStore, SessionBackend, Transaction
from orchestra.errors import OrchestraError, StoreError
from orchestra.opencode.mission.leases import allow

__all__ = (
    "CANCEL",
    "QUIET",
    "CancelWish",
    "Quiescence",
    "confirm_quiet",
    "is_unseen",
    "last_wish",
    "read_quiet",
    "wait_cancel",
    "wish_cancel",
    "write_quiet",
)

CANCEL: Final = "cancel"
QUIET: Final = "quiet"

_LOOK_INTERVAL = 0.5
_FIRST_WAIT = 0.05
_LONGEST_WAIT = 0.5


@frozen(kw_only=True)
class Quiescence:
    """Whether anything of a mission still runs.

    Attributes:
        sessions: How many sessions it has had.
        busy: The ids of those that are not known to be idle; empty: the whole tree is.
        why: Why they are not known to be; empty when they are busy.
    """

    sessions: int
    busy: tuple[str, ...] = ()
    why: str = ""

    @property
    def is_quiet(self) -> bool:
        """Whether every session is known to be idle."""
        return not self.busy

    def __str__(self) -> str:
        count = "1 session" if self.sessions == 1 else f"{self.sessions} sessions"
        if self.is_quiet:
            return f"{count}, all idle" if self.sessions else "nothing of it runs"
        return f"{count}, not known to be idle: {', '.join(self.busy)}"


@frozen(kw_only=True)
class CancelWish:
    """Somebody wants a mission to end.

    Attributes:
        reason: Why; goes into the report.
        number: Which wish it is, so that an old one is not taken for a new one.
    """

    reason: str
    number: int


async def wish_cancel(store: MVCCStore, reason: str) -> CancelWish:
    """Write down that a mission shall end. A checkpoint.

    Args:
        store: The mission's namespace.
        reason: Why.

    Raises:
        StoreError: It cannot be written.
    """

    async def write(tx: Transaction) -> CancelWish:
        before = await tx.get(CANCEL) or {"number": 0}
        wish = CancelWish(reason=reason, number=before["number"] + 1)
        tx.put(CANCEL, {"reason": wish.reason, "number": wish.number, "is_seen": False})
        tx.delete(QUIET)
        return wish

    return await store.transact(write)


async def wait_cancel(
    store: MVCCStore, *, since: int, check: Callable[[Transaction], Awaitable[None]] = allow
) -> CancelWish:
    """Wait until somebody wants the mission to end, and say that it was seen. A checkpoint.

    Args:
        store: The mission's namespace.
        since: The number of the last wish that does not count any more.
        check: Called with each transaction; raises when the mission has another owner.

    Raises:
        StoreError: The store cannot be read or written.
    """

    async def look(tx: Transaction) -> CancelWish | None:
        await check(tx)
        plain = await tx.get(CANCEL)
        if plain is None or plain["number"] <= since:
            return None
        if not plain["is_seen"]:
            tx.put(CANCEL, {**plain, "is_seen": True})
        return CancelWish(reason=plain["reason"], number=plain["number"])

    while True:
        plain = await store.get(CANCEL)
        if plain is not None and plain["number"] > since:
            wish = await store.transact(look)
            if wish is not None:
                return wish
        await anyio.sleep(_LOOK_INTERVAL)


async def confirm_quiet(
    backend: SessionBackend, session_ids: Collection[str], *, limit: float
) -> Quiescence:
    """Ask the backend until none of these sessions is busy any more. A checkpoint.

    Args:
        backend: Where they were opened.
        session_ids: `Session.id` of each, also of those that were closed; their whole trees count.
        limit: Seconds after which those that are left are listed.
    """
    busy, why = frozenset(session_ids), "there was no time to ask"
    wait = _FIRST_WAIT
    with anyio.move_on_after(limit):
        while busy:
            try:
                busy, why = await backend.find_busy(session_ids), ""
            except OrchestraError as exc:
                why = str(exc)
            except (OSError, anyio.ClosedResourceError) as exc:
                why = str(exc) or "the backend was left"
            if busy:
                await anyio.sleep(wait)
                wait = min(wait * 2, _LONGEST_WAIT)
    return Quiescence(sessions=len(session_ids), busy=tuple(sorted(busy)), why=why if busy else "")


async def write_quiet(
    store: MVCCStore,
    quiescence: Quiescence,
    *,
    check: Callable[[Transaction], Awaitable[None]] = allow,
) -> None:
    """Write down what was found. A checkpoint.

    Args:
        store: The mission's namespace.
        quiescence: The finding.
        check: Called with the transaction; raises when the mission has another owner.

    Raises:
        StoreError: It cannot be written.
    """
    plain = {
        "sessions": quiescence.sessions,
        "busy": list(quiescence.busy),
        "why": quiescence.why,
    }

    async def write(tx: Transaction) -> None:
        await check(tx)
        tx.put(QUIET, plain)

    await store.transact(write)


def read_quiet(plain: Mapping[str, Any]) -> Quiescence:
    """Return what `write_quiet` has written.

    Args:
        plain: The value of ``quiet``.
    """
    return Quiescence(sessions=plain["sessions"], busy=tuple(plain["busy"]), why=plain["why"])


async def is_unseen(store: MVCCStore) -> bool:
    """Whether a wish is there that no owner has seen. A checkpoint.

    Args:
        store: The mission's namespace.

    Raises:
        StoreError: The store cannot be read.
    """
    plain = await store.get(CANCEL)
    return plain is not None and not plain["is_seen"]


async def last_wish(store: MVCCStore) -> int:
    """Return the number of the last wish; what came before a mission was started does not count.

    Args:
        store: The mission's namespace.
    """
    try:
        plain = await store.get(CANCEL)
    except StoreError:
        return 0
    return 0 if plain is None else int(plain["number"])
