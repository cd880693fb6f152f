"""`MemoryStore`: the MVCC store without a disk, for tests, simulations and short-lived state."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random
from typing import final

import anyio
import anyio.lowlevel

from orchestra._core.chain import body_digest, find_fault, genesis, link_digest, write_changes
from orchestra._core.mvcc import VersionedMap
from orchestra.errors import ConflictError
from orchestra.revisions import Contention, Footprint, Link, Logged, Stored, Verification
from orchestra.storage import Codec
from orchestra.stores.engine import Body, Pin, StoreEngine
from orchestra.stores.store import EngineStore

__all__ = ("MemoryStore",)


class _Space:
    """One namespace: its versions, the pins on them, its chain, and who waits for a change."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.versions = VersionedMap()
        self.pins: dict[Pin, None] = {}
        self.ids: dict[str, int | None] = {}
        self.links: list[Link] = []
        self.changed: anyio.Event | None = None

    def sealed(self, until: int | None = None) -> list[Link]:
        """Return the chain, after appending the commits that are not in it yet.

        What is in this process's memory cannot be altered behind its back, so commits do not pay
        for digests: the first one who looks does.
        """
        digest = self.links[-1].digest if self.links else genesis(self.name)
        last = len(self.links)
        for logged in self.versions.log(last)[: None if until is None else max(0, until - last)]:
            changes = write_changes(list(_digests(logged)))
            digest = link_digest(
                digest, logged.revision, logged.time, logged.author, logged.id, changes
            )
            self.links.append(Link(*logged[:4], changes, digest))
        return self.links


def _digest(stored: Stored) -> str | None:
    return body_digest(*stored.body) if isinstance(stored.body, Body) else None


def _digests(logged: Logged) -> Iterator[tuple[str, str | None, int]]:
    for key, stored in logged.changes.items():
        yield key, _digest(stored), stored.previous


class _MemoryEngine(StoreEngine):
    """Namespaces in dictionaries. Between two checkpoints nothing else runs, so no locks."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._spaces: dict[str, _Space] = {}

    def _space(self, name: str) -> _Space:
        space = self._spaces.get(name)
        if space is None:
            space = self._spaces[name] = _Space(name)
        return space

    async def open(self) -> None:
        await anyio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        for space in self._spaces.values():
            _tell(space)

    def pin(self, namespace: str) -> Pin:
        pin = Pin(namespace)
        self._space(namespace).pins[pin] = None
        return pin

    def unpin(self, pin: Pin) -> None:
        self._space(pin.namespace).pins.pop(pin, None)

    def _settled(self, pin: Pin) -> tuple[VersionedMap, int]:
        versions = self._spaces[pin.namespace].versions
        if pin.revision is None:
            pin.revision = versions.revision
        return versions, pin.revision

    async def settle(self, pin: Pin, revision: int | None) -> int:
        await anyio.lowlevel.checkpoint()
        versions = self._spaces[pin.namespace].versions
        if revision is not None:
            versions.check(revision)
        pin.revision = versions.revision if revision is None else revision
        return pin.revision

    async def read(self, pin: Pin, key: str) -> Stored | None:
        await anyio.lowlevel.checkpoint_if_cancelled()
        versions, revision = self._settled(pin)
        return versions.read(key, revision)

    async def scan(self, pin: Pin, prefix: str) -> Sequence[tuple[str, Stored]]:
        await anyio.lowlevel.checkpoint_if_cancelled()
        versions, revision = self._settled(pin)
        return versions.scan(prefix, revision)

    async def commit(
        self,
        namespace: str,
        footprint: Footprint,
        *,
        author: str,
        transaction_id: str,
        is_new: bool,  # noqa: ARG002  (a look into a dictionary costs nothing)
        note: Callable[[int], object],
    ) -> int:
        await anyio.lowlevel.checkpoint()
        # From here on nothing waits, so there is nothing that could be cancelled.
        space = self._space(namespace)
        if transaction_id in space.ids:
            settled = space.ids[transaction_id]
            if settled is not None:
                note(settled)
                return settled
            raise ConflictError((), footprint.read_revision or 0, space.versions.revision)
        revision = space.versions.commit(
            footprint, now=self._clock(), author=author, id=transaction_id
        )
        if revision:
            note(revision)
            space.ids[transaction_id] = revision
            if space.changed is not None:
                _tell(space)
        return revision

    async def outcome(self, namespace: str, transaction_id: str) -> int | None:
        await anyio.lowlevel.checkpoint()
        return self._space(namespace).ids.setdefault(transaction_id, None)

    async def log(self, namespace: str, after: int, limit: int) -> Sequence[Logged]:
        await anyio.lowlevel.checkpoint_if_cancelled()
        versions = self._space(namespace).versions
        versions.check(after)
        return versions.log(after, limit)

    async def wait(self, namespace: str, after: int) -> None:
        await anyio.lowlevel.checkpoint()
        space = self._space(namespace)
        if space.versions.revision <= after:
            if space.changed is None:
                space.changed = anyio.Event()
            await space.changed.wait()

    async def compact(self, namespace: str, revision: int | None) -> int:
        await anyio.lowlevel.checkpoint()
        space = self._space(namespace)
        versions = space.versions
        wanted = versions.revision if revision is None else revision
        if wanted > versions.revision:
            versions.check(wanted)
        pinned = [pin.revision for pin in space.pins if pin.revision is not None]
        floor = max(versions.floor, min([wanted, *pinned]))
        space.sealed(floor)
        versions.compact(floor)
        return floor

    async def drop(self, namespace: str) -> bool:
        await anyio.lowlevel.checkpoint()
        space = self._space(namespace)
        if space.pins:
            return False
        del self._spaces[namespace]
        if space.changed is not None:
            space.changed.set()
        return True

    async def versions(self, namespace: str, key: str) -> Sequence[Stored]:
        await anyio.lowlevel.checkpoint()
        return self._space(namespace).versions.versions(key)

    async def links(self, namespace: str, after: int, limit: int) -> Sequence[Link]:
        await anyio.lowlevel.checkpoint()
        return self._space(namespace).sealed()[after : after + limit]

    async def verify(self, namespace: str, anchors: Mapping[int, str]) -> Verification:
        await anyio.lowlevel.checkpoint()
        space = self._space(namespace)
        links = space.sealed()
        last = space.versions.revision
        fault = find_fault(namespace, links, anchors=anchors, last=last)
        return Verification(
            revision=last,
            digest=(links[-1].digest if links else genesis(namespace)).hex(),
            fault=fault[1] if fault else "",
            fault_revision=fault[0] if fault else None,
        )

    async def namespaces(self) -> Sequence[str]:
        await anyio.lowlevel.checkpoint()
        return sorted(name for name, space in self._spaces.items() if space.versions.revision)

    def __repr__(self) -> str:
        return f"<memory namespaces={len(self._spaces)}>"


def _tell(space: _Space) -> None:
    if space.changed is not None:
        space.changed.set()
        space.changed = None


@final
class MemoryStore(EngineStore):
    """An `MVCCStore` in this process's memory; what it holds is gone when it is left.

    It keeps the same contract as `SQLiteStore`, encoding of values included, so that what works
    on it works on a file. It belongs to one event loop.

    Args:
        codecs: For each prefix the codec of its keys' values; the longest prefix counts. Keys
            without one hold plain JSON values.
        contention: How ``transact`` behaves when it meets others.
        clock: Returns seconds since the epoch, for the history.
        random: Makes ids and jitter; None: seeded by the operating system.
    """

    def __init__(
        self,
        *,
        codecs: Mapping[str, Codec] | None = None,
        contention: Contention | None = None,
        clock: Callable[[], float] = time.time,
        random: Random | None = None,
    ) -> None:
        super().__init__(_MemoryEngine(clock), codecs=codecs, contention=contention, random=random)
