"""Leases: the right to do something alone, kept in the store itself.

A lease is two keys: one that is written when the lease changes hands, whose revision is the
fencing number, and one that the holder writes again and again as its pulse. Whoever waits measures
with its own monotonic clock how long both have not changed, so that no two clocks are ever
compared. That is the rule of the DynamoDB lock client; fencing is from M. Burrows, "The Chubby
lock service", 2006.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import anyio

from orchestra.background import background_tasks
from orchestra.errors import ConflictError, LeaseLostError, StoreError
from orchestra.revisions import StoreLease
from orchestra.stores._transaction import lease_key, read_own

if TYPE_CHECKING:
    from orchestra.stores.store import EngineStore

__all__ = ("hold_lease",)

_GRACE: Final = 5.0
"""Seconds that giving a lease back may take; after that it runs out by itself."""


def _pulse_key(name: str) -> str:
    return f"\x01pulse/{name}"


@asynccontextmanager
async def hold_lease(
    store: EngineStore, name: str, owner: str, lifetime: float
) -> AsyncIterator[StoreLease]:
    """Wait for a lease and hold it; see `MVCCStore.lease`."""
    if not lifetime > 0:
        raise ValueError(f"lifetime is {lifetime!r}, it must be positive")
    lease = await _take(store, name, owner, lifetime)
    is_lost = False

    async def keep() -> None:
        nonlocal is_lost
        is_lost = await _keep(store, lease, lifetime)
        scope.cancel()

    try:
        async with background_tasks() as group:
            with anyio.CancelScope() as scope:
                group.start_soon(keep)
                yield lease
    finally:
        with anyio.move_on_after(_GRACE, shield=True):
            await _give_back(store, lease)
    if is_lost:
        raise LeaseLostError(lease.name, lease.fence)


async def _take(store: EngineStore, name: str, owner: str, lifetime: float) -> StoreLease:
    seen: tuple[int, int] | None = None
    deadline = 0.0
    while True:
        async with store.transaction(author=owner) as tx:
            holder = await tx.read(lease_key(name))
            pulse = await tx.read(_pulse_key(name))
        mark = (holder.revision if holder else 0, pulse.revision if pulse else 0)
        if holder is not None and mark != seen:
            seen = mark
            deadline = anyio.current_time() + read_own(holder)["lifetime"]
        if holder is None or anyio.current_time() >= deadline:
            try:
                fence = await _grab(store, name, owner, lifetime, mark)
            except ConflictError:
                continue
            return StoreLease(name=name, owner=owner, fence=fence)
        with anyio.CancelScope(deadline=deadline):
            async with store.watch("\x01", since=tx.read_revision) as commits:
                async for commit in commits:
                    if any(c.key in {lease_key(name), _pulse_key(name)} for c in commit.changes):
                        break


async def _grab(
    store: EngineStore, name: str, owner: str, lifetime: float, mark: tuple[int, int]
) -> int:
    """Write the lease if nobody else has meanwhile; return the fencing number."""
    async with store.transaction(author=owner) as tx:
        for key, revision in zip((lease_key(name), _pulse_key(name)), mark, strict=True):
            stored = await tx.read(key)
            if (stored.revision if stored else 0) != revision:
                raise ConflictError((key,), revision, stored.revision if stored else 0)
        tx.write(lease_key(name), {"owner": owner, "lifetime": lifetime})
        tx.write(_pulse_key(name), 0)
    if tx.revision is None:
        raise AssertionError("unreachable")
    return tx.revision


async def _keep(store: EngineStore, lease: StoreLease, lifetime: float) -> bool:
    """Renew the lease for ever; return True when it was lost."""
    pulse = 0
    renewed = anyio.current_time()
    while True:
        await anyio.sleep(lifetime / 3)
        pulse += 1
        begun = anyio.current_time()
        scope = anyio.CancelScope(deadline=renewed + lifetime)
        try:
            with scope:
                async with store.transaction(author=lease.owner) as tx:
                    await tx.require(lease)
                    tx.write(_pulse_key(lease.name), pulse)
                renewed = begun
        except LeaseLostError:
            return True
        except StoreError:
            # Busy, full, unknown: others wait a whole lifetime, so there is time to try again.
            pass
        if scope.cancelled_caught or anyio.current_time() >= renewed + lifetime:
            return True


async def _give_back(store: EngineStore, lease: StoreLease) -> None:
    try:
        async with store.transaction(author=lease.owner) as tx:
            await tx.require(lease)
            tx.write(lease_key(lease.name), None)
            tx.write(_pulse_key(lease.name), None)
    except StoreError:
        # Lost already, or nothing can be written now: it runs out by itself.
        pass
