"""Who may run a mission in a workspace: one process, proved by a lease in the store.

Owners are numbered. Who becomes the owner takes the next number, in one compare-and-set; every
write of a mission checks that its owner's number is still the newest in the mission's namespace,
in the same transaction. So an owner that was believed dead and wakes up can write nothing, and
since prompts are written down before they are sent, it can send nothing either.

An owner is dead when its process is gone, which can be seen on the same machine only (same boot,
same process namespace; a number that was given to another process since counts as gone), or when
it has not renewed its lease for a whole lifetime.
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, final

import anyio
import anyio.to_thread
from attrs import asdict, field, frozen

from orchestra import MVCCStore, Transaction
from orchestra.errors import ConflictError, LeaseLostError, StoreError, WorkspaceOwnedError
from orchestra.opencode.mission.keys import OWNER

__all__ = ("Owner", "Ownership", "explain_absence", "find_owner", "last_owner")

_LOG = logging.getLogger(__name__)

_LIFETIME = 45.0
"""Seconds without a renewal after which an owner counts as dead."""
_TRIES = 20
_RELEASE_LIMIT = 5.0
_CURRENT = "current"


def _machine() -> str:
    """Name what process ids belong to; empty where that cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115
    except OSError:
        return "" if os.name == "nt" else socket.gethostname()


def _birth(pid: int) -> str:
    """Return when a process was started, in a form of its own; empty where that cannot be told.

    Raises:
        ProcessLookupError: There is no such process.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        os.kill(pid, 0)
        return ""
    except OSError:
        return ""
    state, *rest = text.rpartition(") ")[2].split()
    if state in {"Z", "X"}:
        raise ProcessLookupError
    return rest[18]


@frozen(kw_only=True)
class Owner:
    """Who runs a mission in a workspace.

    Attributes:
        generation: Its number; the next one gets the next.
        mission: The mission; empty: nobody runs one.
        host: The machine's name, for people.
        machine: What the process id belongs to.
        pid: The process.
        birth: When that was started, in a form of its own.
        since: Since when it is the owner, ISO 8601 in UTC.
    """

    generation: int = 0
    mission: str = ""
    host: str = ""
    machine: str = field(default="", repr=False)
    pid: int = 0
    birth: str = field(default="", repr=False)
    since: str = ""

    @property
    def is_here(self) -> bool:
        """Whether it ran on this machine, so that its process can be looked for."""
        return bool(self.machine) and self.machine == _machine()

    @property
    def is_gone(self) -> bool:
        """Whether its process has provably ended."""
        if not self.is_here:
            return False
        try:
            return _birth(self.pid) != self.birth
        except ProcessLookupError:
            return True
        except OSError:
            return False


def _namespace(store: MVCCStore, directory: Path) -> MVCCStore:
    digest = hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
    return store.namespace(f"workspace_{digest}")


async def find_owner(store: MVCCStore, directory: Path) -> Owner | None:
    """Return who runs a mission in a workspace; None: nobody that is alive, as far as can be seen.

    Args:
        store: Where missions are recorded.
        directory: The workspace, resolved.
    """
    owner = await last_owner(store, directory)
    return None if not owner.mission or owner.is_gone else owner


async def last_owner(store: MVCCStore, directory: Path) -> Owner:
    """Return who ran a mission in a workspace last, whether alive or not.

    Args:
        store: Where missions are recorded.
        directory: The workspace, resolved.
    """
    plain = await _namespace(store, directory).get(_CURRENT)
    return Owner() if plain is None else Owner(**plain)


async def explain_absence(store: MVCCStore, directory: Path, mission: str) -> str:
    """Say that nobody carries on a mission which has not ended. A checkpoint.

    Args:
        store: Where missions are recorded.
        directory: The workspace, resolved.
        mission: The mission's id.

    Returns:
        A sentence; empty: somebody does, as far as can be seen.
    """
    owner = await last_owner(store, directory)
    on = f"'orchestra resume {mission}' goes on"
    if owner.mission != mission:
        return f"nobody carries it on; {on}"
    who = f"its owner (process {owner.pid} on {owner.host}, since {owner.since})"
    if owner.is_gone:
        return f"{who} is no longer there; {on}"
    space = _namespace(store, directory)
    last = await space.journal(await space.revision() - 1, limit=1)
    away = time.time() - last[0].time if last else 0.0
    if away > _LIFETIME:
        return f"{who} has not renewed its lease for {away:.0f} s; {on}"
    return ""


@final
class Ownership:
    """The right to run a mission in a workspace.

    Args:
        store: Where missions are recorded.
        directory: The workspace, resolved.
        mission_id: The mission.
        lifetime: Seconds without a renewal after which it counts as dead.
    """

    def __init__(
        self, store: MVCCStore, directory: Path, mission_id: str, *, lifetime: float = _LIFETIME
    ) -> None:
        self._store = store
        self._space = _namespace(store, directory)
        self._directory = directory
        self._mission = mission_id
        self._lifetime = lifetime
        self._revision = 0
        self.generation: int = 0
        self.is_lost: bool = False
        self._is_followed = anyio.Event()

    async def claim(self) -> None:
        """Become the owner, or say who is. A checkpoint.

        Raises:
            WorkspaceOwnedError: Somebody else is, and lives.
            StoreError: It cannot be written.
        """
        for _ in range(_TRIES):
            async with self._space.snapshot() as snap:
                entry = await snap.entry(_CURRENT)
            owner = Owner() if entry is None else Owner(**entry.value)
            if owner.mission and not owner.is_gone and not await self._has_expired(owner):
                raise WorkspaceOwnedError(
                    f"the workspace {self._directory} belongs to mission {owner.mission}, which "
                    f"process {owner.pid} on {owner.host} runs since {owner.since}; wait for its "
                    "end, or end it"
                )
            generation = owner.generation + 1
            if owner.mission:
                await self._store.namespace(owner.mission).transact(_fence_off, generation)
            before = entry.revision if entry else 0
            try:
                # Cut short it may be written all the same, and nobody would take it back.
                with anyio.CancelScope(shield=True):
                    self._revision = await self._space.put_if(
                        _CURRENT, self._describe(generation), revision=before
                    )
            except ConflictError:
                continue
            self.generation = generation
            return
        raise WorkspaceOwnedError(
            f"too many want to run a mission in the workspace {self._directory} at once; try again"
        )

    def _describe(self, generation: int) -> Mapping[str, Any]:
        owner = Owner(
            generation=generation,
            mission=self._mission,
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            birth=_birth(os.getpid()),
            since=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        return asdict(owner)

    async def _has_expired(self, owner: Owner) -> bool:
        """Whether an owner does not renew its lease any more.

        By the clocks on the wall is only decided whether it is worth waiting for that.
        """
        last = await self._space.journal(await self._space.revision() - 1, limit=1)
        if last and 0 <= time.time() - last[0].time < self._lifetime:
            return False
        with anyio.move_on_after(1.5 * self._lifetime):
            async with self._space.lease(_lease_name(owner.generation)):
                return True
        return False

    async def keep(self, lost: Callable[[str], None]) -> None:
        """Renew the lease until it is somebody else's; to be run beside the mission.

        Args:
            lost: Called with a sentence when it is somebody else's.
        """
        try:
            async with self._space.lease(
                _lease_name(self.generation), owner=self._mission, lifetime=self._lifetime
            ):
                await self._is_followed.wait()
        except StoreError as exc:
            _LOG.warning("mission %s does not own its workspace any more: %s", self._mission, exc)
            self._lose()
        lost(await self.explain_loss())

    def _lose(self) -> None:
        self.is_lost = True
        self._is_followed.set()

    async def explain_loss(self) -> str:
        """Say who is the owner since this one is not any more. A checkpoint."""
        away = (
            f"this process was taken for dead, since it did not renew its lease for "
            f"{self._lifetime:g} s"
        )
        try:
            plain = await self._space.get(_CURRENT)
        except StoreError as exc:
            return f"{away}, and who carries mission {self._mission} on is not known: {exc}"
        owner = Owner(**plain) if plain is not None else Owner()
        if not owner.mission:
            return f"{away}, and mission {self._mission} was carried on by another that has ended"
        if owner.generation == self.generation:
            return f"the lease on the workspace {self._directory} was lost; go on with 'orchestra resume'"
        return (
            f"{away}, and the workspace {self._directory} belongs to mission {owner.mission}, which "
            f"process {owner.pid} on {owner.host} runs since {owner.since}; look at that one"
        )

    async def enter(self, tx: Transaction) -> None:
        """Write this owner's number into the mission's namespace, before anything else.

        Args:
            tx: A transaction of that namespace.

        Raises:
            LeaseLostError: There is a newer owner.
        """
        plain = await tx.get(OWNER)
        if plain is not None and plain["generation"] > self.generation:
            self._lose()
            raise LeaseLostError(OWNER, self.generation)
        tx.put(OWNER, {"generation": self.generation})

    async def check(self, tx: Transaction) -> None:
        """Let a transaction be committed only while this is the owner.

        Args:
            tx: A transaction of the mission's namespace.

        Raises:
            LeaseLostError: There is a newer owner.
        """
        plain = await tx.get(OWNER)
        if self.is_lost or plain is None or plain["generation"] != self.generation:
            self._lose()
            raise LeaseLostError(OWNER, self.generation)

    async def release(self) -> None:
        """Say that nobody runs a mission here any more. Shielded and bounded; a checkpoint."""
        if not self.generation or self.is_lost:
            return
        with anyio.move_on_after(_RELEASE_LIMIT, shield=True):
            try:
                await self._space.put_if(
                    _CURRENT, asdict(Owner(generation=self.generation)), revision=self._revision
                )
            except StoreError as exc:  # the next one sees that this process is gone
                _LOG.info("the end of mission %s could not be noted: %s", self._mission, exc)

    def __repr__(self) -> str:
        state = "lost" if self.is_lost else "held" if self.generation else "not claimed"
        return f"<Ownership of {self._directory} {state}, number {self.generation}>"


def _lease_name(generation: int) -> str:
    return f"owner/{generation}"


async def _fence_off(tx: Transaction, generation: int) -> None:
    """Refuse what earlier owners of a mission may still write."""
    plain = await tx.get(OWNER)
    if plain is not None and plain["generation"] < generation:
        tx.put(OWNER, {"generation": generation})
