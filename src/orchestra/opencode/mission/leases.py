"""Who may change which file, in the store: leases with a fence that only grows.

``lease/<path>`` says which task holds a file and under which *fence*: the revision that the store
had when the attempt took its files. Whoever comes with an older fence (an attempt that was given
up and woke later, a mission whose place another process has taken) is refused.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import final

from orchestra import MVCCStore, Transaction

__all__ = ("ACCEPTED", "LEASE", "Leases", "allow")

LEASE = "lease/"
ACCEPTED = "accepted/"


async def allow(_: Transaction) -> None:
    """Let every transaction be committed: there is no other owner."""


@final
class Leases:
    """The file leases of a mission.

    A task without declared files has one lease all the same, on its own name, so that its earlier
    attempts are fenced off too. So do those who race for a task (``task#1``, ...): each works in a copy
    of its own, and must not fence the others off; the files are held by the task that they race for.

    Args:
        store: The mission's namespace.
        check: Called with each transaction; raises when the mission has another owner.
    """

    def __init__(
        self, store: MVCCStore, check: Callable[[Transaction], Awaitable[None]] = allow
    ) -> None:
        self._store = store.using(author="leases")
        self._check = check

    async def take(self, task_id: str, files: Sequence[str]) -> int:
        """Take a task's files for the attempt that begins, all or none. A checkpoint.

        Args:
            task_id: The task.
            files: What it may write.

        Returns:
            The attempt's fence; greater than that of every earlier attempt at any of the files.

        Raises:
            StoreError: Nothing was taken.
        """

        async def take(tx: Transaction) -> int:
            await self._check(tx)
            held = [await tx.get(key) for key in _keys(task_id, files)]
            fence: int = max([tx.read_revision or 0, *(each["fence"] for each in held if each)]) + 1
            for key in _keys(task_id, files):
                tx.put(key, {"task": task_id, "fence": fence})
            if await tx.get(ACCEPTED + task_id) is not None:
                tx.delete(ACCEPTED + task_id)  # what this attempt makes is not taken over yet
            return fence

        return await self._store.transact(take)

    async def check(self, task_id: str, files: Sequence[str], fence: int) -> str:
        """Return why an attempt may take over nothing any more; empty: it may. A checkpoint.

        Args:
            task_id: The task.
            files: What it took.
            fence: The attempt's.
        """
        async with self._store.snapshot() as snap:
            for key in _keys(task_id, files):
                held = await snap.get(key)
                if held is None or (held["task"], held["fence"]) != (task_id, fence):
                    return _refusal(key, held)
        return ""

    async def accept(self, task_id: str, files: Sequence[str], fence: int, tree: str) -> str:
        """Write that a task's change is taken over, and give its files back. A checkpoint.

        Args:
            task_id: The task.
            files: What it took.
            fence: The attempt's.
            tree: Digest of what is taken over.

        Returns:
            Why it must not be, in which case nothing is written; empty: it was.

        Raises:
            StoreError: Nothing was written.
        """

        async def accept(tx: Transaction) -> str:
            await self._check(tx)
            for key in _keys(task_id, files):
                held = await tx.get(key)
                if held is None or (held["task"], held["fence"]) != (task_id, fence):
                    return _refusal(key, held)
            for key in _keys(task_id, files):
                tx.put(key, {"task": "", "fence": fence})
            tx.put(ACCEPTED + task_id, {"fence": fence, "tree": tree})
            return ""

        return await self._store.transact(accept)

    async def accepted(self, task_id: str) -> str:
        """Return what of a task was taken over, since its last attempt began. A checkpoint.

        Args:
            task_id: The task.

        Returns:
            The digest that `accept` was given; empty: nothing was.
        """
        plain = await self._store.get(ACCEPTED + task_id)
        return "" if plain is None else str(plain["tree"])

    async def release(self, task_id: str, files: Sequence[str], fence: int) -> None:
        """Give a task's files back, unless somebody else has them by now. A checkpoint.

        Args:
            task_id: The task.
            files: What it took.
            fence: The attempt's.

        Raises:
            StoreError: They were not given back.
        """

        async def release(tx: Transaction) -> None:
            await self._check(tx)
            for key in _keys(task_id, files):
                if await tx.get(key) == {"task": task_id, "fence": fence}:
                    tx.put(key, {"task": "", "fence": fence})

        await self._store.transact(release)

    def __repr__(self) -> str:
        return f"<Leases of {self._store.name!r}>"


def _keys(task_id: str, files: Sequence[str]) -> list[str]:
    shared = () if "#" in task_id else files
    return [f"{LEASE}{path}" for path in shared] or [f"{LEASE}/{task_id}"]


def _refusal(key: str, held: dict[str, object] | None) -> str:
    path = key.removeprefix(LEASE)
    what = f"the lease on {path}" if not path.startswith("/") else "this task's attempt"
    who = f"; {held['task']!r} has it since" if held and held["task"] else ""
    return f"{what} has moved on{who}: this change comes from an earlier attempt"
