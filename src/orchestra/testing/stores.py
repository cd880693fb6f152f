"""The contract suite of stores: what `orchestra.abc.MVCCStore` demands, as checks that run.

Each check works in a namespace of its own with plain JSON values, so the store under test must take
those.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeAlias

import anyio

from orchestra.storage import MVCCStore
from orchestra.testing import store_history as history
from orchestra.testing import store_transactions as transactions
from orchestra.testing.store_steps import refuses

__all__ = ("STORE_CHECKS", "check_store")

StoreCheck: TypeAlias = Callable[[MVCCStore], Awaitable[None]]
StoreFactory: TypeAlias = Callable[[], AbstractAsyncContextManager[MVCCStore]]


STORE_CHECKS: tuple[StoreCheck, ...] = (
    transactions.check_revisions,
    transactions.check_values,
    transactions.check_keys,
    transactions.check_own_writes,
    transactions.check_rollback,
    transactions.check_lost_update,
    transactions.check_write_skew,
    transactions.check_phantom,
    transactions.check_no_false_conflicts,
    transactions.check_deletion,
    transactions.check_put_if,
    transactions.check_transact,
    transactions.check_transact_gives_up,
    transactions.check_merge,
    transactions.check_outcome,
    transactions.check_cancellation,
    history.check_snapshots,
    history.check_watch,
    history.check_watch_waits,
    history.check_compaction,
    history.check_watch_overtaken,
    history.check_history,
    history.check_verify,
    history.check_leases,
    history.check_lease_is_given_back,
    history.check_namespaces,
    history.check_statistics,
)


async def _check_leaving(factory: StoreFactory) -> None:
    """A store works between entering and leaving, and not before or after."""
    async with factory() as store:
        await store.put("a", 1)
        async with store.snapshot() as snap:
            pass
    await refuses(anyio.ClosedResourceError, lambda: store.put("a", 2))
    await refuses(anyio.ClosedResourceError, lambda: snap.get("a"))
    await refuses(anyio.ClosedResourceError, store.verify)


async def check_store(factory: StoreFactory, *, timeout: float = 30.0) -> None:
    """Prove a store against the contract of ``orchestra.abc``. Run it on asyncio and on trio.

    ::

        @pytest.mark.anyio
        async def test_contract(tmp_path):
            await check_store(lambda: MyStore(tmp_path / "store"))

    Args:
        factory: Makes a store that has not been entered; what it holds may be new or used before.
        timeout: Seconds that one check may take.

    Raises:
        ExceptionGroup: One error for each check that failed, with the check's name as a note.
    """
    failures: list[Exception] = []

    async def run(check: Callable[..., Awaitable[None]], argument: object) -> None:
        try:
            with anyio.fail_after(timeout):
                await check(argument)
        except Exception as exc:  # noqa: BLE001  (reported below)
            exc.add_note(f"{check.__name__}: {check.__doc__}")
            failures.append(exc)

    async with factory() as store:
        taken = set(await store.namespaces())
        for check in STORE_CHECKS:
            name = check.__name__
            while any(used.startswith(name) for used in taken):
                name = f"again/{name}"
            await run(check, store.namespace(name))
    await run(_check_leaving, factory)
    if failures:
        raise ExceptionGroup("the store breaks its contract", failures)
