"""Snapshots and transactions over an engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Final, Self, final

import anyio.lowlevel

from orchestra.errors import AmbiguousCommitError, ConflictError, LeaseLostError, SchemaError
from orchestra.revisions import Entry, Footprint, Stored, StoreLease
from orchestra.storage import Codec, Merge, Snapshot, Transaction
from orchestra.stores._lines import Lines, Place
from orchestra.stores.codecs import JSONCodec
from orchestra.stores.engine import Body, Pin, StoreEngine

__all__ = (
    "FIRST_KEY",
    "Codecs",
    "Counters",
    "EngineSnapshot",
    "EngineTransaction",
    "check_key",
    "lease_key",
    "read_own",
)

FIRST_KEY: Final = " "
"""Keys begin with this character or a later one; earlier ones are for the store's own use."""


_OWN: Final = JSONCodec()


def read_own(stored: Stored) -> Any:
    """Return the value of one of the store's own keys."""
    return _OWN.decode(stored.body.data, 1) if isinstance(stored.body, Body) else None


def check_key(key: str) -> str:
    """Return the key if it is one.

    Raises:
        TypeError: It is not text.
        ValueError: It is empty, begins with a control character, or is not encodable.
    """
    if not isinstance(key, str):
        raise TypeError(f"a key is text, not {type(key).__name__}")
    if key < FIRST_KEY:
        raise ValueError(f"{key!r} is no key: it is empty or begins with a control character")
    if not key.isascii():
        key.encode()  # UnicodeEncodeError is a ValueError that names the character
    return key


def lease_key(name: str) -> str:
    """Return the key under which a lease is kept, out of the sight of `range` and `watch`."""
    return f"\x01lease/{name}"


@final
class Codecs:
    """Finds the codec of a key."""

    __slots__ = ("_by_prefix", "_default")

    def __init__(self, by_prefix: Mapping[str, Codec]) -> None:
        self._default: Codec = by_prefix.get("", JSONCodec())
        self._by_prefix = sorted(
            ((prefix, codec) for prefix, codec in by_prefix.items() if prefix),
            key=lambda pair: -len(pair[0]),
        )

    def find(self, key: str) -> Codec:
        """Return the codec with the longest prefix of the key."""
        if key < FIRST_KEY:
            return _OWN
        for prefix, codec in self._by_prefix:
            if key.startswith(prefix):
                return codec
        return self._default

    def encode(self, key: str, value: Any) -> Body:
        """Return what is stored for a value."""
        codec = self.find(key)
        return Body(codec.version, codec.encode(value))

    def decode(self, key: str, body: object) -> Any:
        """Return the value of what is stored.

        Raises:
            SchemaError: It was written by a newer program, or is not of its codec's form.
        """
        if not isinstance(body, Body):
            raise SchemaError(f"the engine returned {body!r} for {key!r}, which it cannot store")
        codec = self.find(key)
        if body.schema > codec.version:
            raise SchemaError(
                f"{key!r} was written in version {body.schema} of its form and this program knows "
                f"version {codec.version}; use a newer program"
            )
        return codec.decode(body.data, body.schema)

    def entry(self, key: str, stored: Stored) -> Entry:
        """Return a version with its value."""
        return Entry(
            key=key,
            value=self.decode(key, stored.body),
            revision=stored.revision,
            created=stored.created,
            version=stored.version,
        )


class Counters:
    """What `EngineStore.statistics` tells, as it is counted."""

    __slots__ = (
        "ambiguous",
        "commits",
        "conflicts",
        "merges",
        "pins",
        "revision",
        "tickets",
        "watches",
    )

    def __init__(self) -> None:
        for name in self.__slots__:
            setattr(self, name, 0)

    def count_commit(self, revision: int) -> None:
        """Count a commit that made a revision."""
        self.commits += 1
        self.revision = max(self.revision, revision)

    revision: int
    pins: int
    watches: int
    commits: int
    conflicts: int
    ambiguous: int
    merges: int
    tickets: int


@final
class EngineSnapshot(Snapshot):
    """One revision; its pin is given back at the end of the block."""

    def __init__(
        self,
        engine: StoreEngine,
        codecs: Codecs,
        counters: Counters,
        namespace: str,
        revision: int | None,
    ) -> None:
        self._engine = engine
        self._codecs = codecs
        self._counters = counters
        self._namespace = namespace
        self._wanted = revision
        self._pin: Pin | None = None
        self._revision = -1

    @property
    def revision(self) -> int:
        return self._revision

    async def entry(self, key: str) -> Entry | None:
        stored = await self._engine.read(self._open_pin(), check_key(key))
        return None if stored is None else self._codecs.entry(key, stored)

    async def range(self, prefix: str = "") -> dict[str, Any]:
        found = await self._engine.scan(self._open_pin(), prefix)
        return decode_all(self._codecs, prefix, found)

    def _open_pin(self) -> Pin:
        if self._pin is None:
            raise anyio.ClosedResourceError
        return self._pin

    async def __aenter__(self) -> Self:
        if self._pin is not None:
            raise RuntimeError("a snapshot is entered once")
        self._pin = pin = self._engine.pin(self._namespace)
        self._counters.pins += 1
        try:
            self._revision = await self._engine.settle(pin, self._wanted)
        except BaseException:
            self._release()
            raise
        self._counters.revision = max(self._counters.revision, self._revision)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._release()

    def _release(self) -> None:
        if self._pin is not None:
            self._engine.unpin(self._pin)
            self._counters.pins -= 1
            self._pin = None

    def __repr__(self) -> str:
        state = "" if self._pin is not None else " closed"
        return f"<Snapshot {self._namespace!r} revision={self._revision}{state}>"


def decode_all(codecs: Codecs, prefix: str, found: Iterable[tuple[str, Stored]]) -> dict[str, Any]:
    """Return the values of what a scan found, without the store's own keys."""
    return {
        key: codecs.decode(key, stored.body) for key, stored in found if key >= FIRST_KEY or prefix
    }


@final
class EngineTransaction(Transaction):
    """Reads at its pin, keeps its writes to itself, and hands its footprint to the engine."""

    __slots__ = (
        "_author",
        "_codecs",
        "_counters",
        "_engine",
        "_id",
        "_is_new",
        "_lines",
        "_namespace",
        "_pin",
        "_place",
        "_revision",
        "footprint",
    )

    def __init__(
        self,
        engine: StoreEngine,
        codecs: Codecs,
        counters: Counters,
        namespace: str,
        *,
        author: str,
        transaction_id: str,
        is_new: bool,
        snapshot_isolation: bool,
        lines: Lines | None = None,
    ) -> None:
        self._engine = engine
        self._codecs = codecs
        self._counters = counters
        self._namespace = namespace
        self._author = author
        self._id = transaction_id
        self._is_new = is_new
        self._lines = lines
        self._place: Place | None = None
        self._pin: Pin | None = None
        self._revision: int | None = None
        self.footprint: Footprint = Footprint(validates_reads=not snapshot_isolation)

    @property
    def id(self) -> str:
        return self._id

    @property
    def read_revision(self) -> int | None:
        return self.footprint.read_revision

    @property
    def revision(self) -> int | None:
        return self._revision

    # --- reading ---

    async def entry(self, key: str) -> Entry | None:
        check_key(key)
        stored = await self.read(key)
        return None if stored is None else self._codecs.entry(key, stored)

    async def get(self, key: str, default: Any = None) -> Any:
        check_key(key)
        self._open_pin()
        writes = self.footprint.writes
        if key in writes:
            await anyio.lowlevel.checkpoint_if_cancelled()
            body = writes[key]
        else:
            stored = await self.read(key)
            body = None if stored is None else stored.body
        return default if body is None else self._codecs.decode(key, body)

    async def read(self, key: str) -> Stored | None:
        """Return the version that the transaction sees, its own writes included."""
        pin = self._open_pin()
        footprint = self.footprint
        if self._lines is not None and footprint.read_revision is None:
            await self._wait_in_line(key)
        stored = await self._engine.read(pin, key)
        footprint.read_revision = pin.revision
        footprint.keys.add(key)
        if key not in footprint.writes:
            return stored
        body = footprint.writes[key]
        if body is None:
            return None
        before = stored or Stored(0, 0, 0, 0, None)
        return Stored(0, before.created, before.version + 1, before.revision, body)

    async def range(self, prefix: str = "") -> dict[str, Any]:
        pin = self._open_pin()
        found: Iterable[tuple[str, Stored]] = await self._engine.scan(pin, prefix)
        footprint = self.footprint
        footprint.read_revision = pin.revision
        footprint.prefixes.append(prefix)
        if any(key.startswith(prefix) for key in footprint.writes):
            merged = dict(found)
            for key, body in footprint.writes.items():
                if body is None:
                    merged.pop(key, None)
                elif key.startswith(prefix):
                    merged[key] = Stored(0, 0, 0, 0, body)
            found = sorted(merged.items())
        return decode_all(self._codecs, prefix, found)

    async def require(self, lease: StoreLease) -> None:
        stored = await self.read(lease_key(lease.name))
        if stored is None or stored.revision != lease.fence:
            raise LeaseLostError(lease.name, lease.fence)

    async def _wait_in_line(self, key: str) -> None:
        """Queue up before the first read of a contended key: what is read later is then current."""
        if self._lines is not None and self._place is None and self._lines.is_contended(key):
            self._counters.tickets += 1
            self._place = await self._lines.join(key)

    # --- writing ---

    def put(self, key: str, value: Any) -> None:
        self._open_pin()
        self.footprint.writes[check_key(key)] = self._codecs.encode(key, value)

    def delete(self, key: str) -> None:
        self._open_pin()
        self.footprint.writes[check_key(key)] = None

    def write(self, key: str, value: Any) -> None:
        """Write one of the store's own keys; None deletes."""
        self._open_pin()
        self.footprint.writes[key] = None if value is None else Body(1, _OWN.encode(value))

    # --- beginning and ending ---

    def _open_pin(self) -> Pin:
        if self._pin is None:
            raise anyio.ClosedResourceError
        return self._pin

    def begin(self) -> None:
        """Take a pin. Whoever calls it calls `end` in any case."""
        if self._pin is not None or self._revision is not None:
            raise RuntimeError("a transaction is entered once")
        self._pin = self._engine.pin(self._namespace)
        self._counters.pins += 1

    def end(self) -> None:
        """Give back what the transaction holds. Idempotent."""
        if self._pin is not None:
            self._engine.unpin(self._pin)
            self._counters.pins -= 1
            self._pin = None
        if self._place is not None:
            self._place.leave()
            self._place = None

    async def commit(self) -> None:
        """Commit what was written. A checkpoint.

        Raises:
            ConflictError: Nothing was committed.
            AmbiguousCommitError: It is not known.
            StoreError: Nothing was committed.
        """
        if not self.footprint.writes:
            await anyio.lowlevel.checkpoint()
            return
        try:
            await self._engine.commit(
                self._namespace,
                self.footprint,
                author=self._author,
                transaction_id=self._id,
                is_new=self._is_new,
                note=self._settle,
            )
        except ConflictError:
            self._counters.conflicts += 1
            raise
        except AmbiguousCommitError:
            self._counters.ambiguous += 1
            raise

    def _settle(self, revision: int) -> None:
        self._revision = revision
        self._counters.count_commit(revision)

    async def find_outcome(self) -> bool:
        """After an unknown outcome: whether it was committed. If not, it will never be."""
        revision = await self._engine.outcome(self._namespace, self._id)
        if revision is not None:
            self._settle(revision)
        return revision is not None

    async def take_over(
        self, other: EngineTransaction, conflict: ConflictError, merge: Merge
    ) -> None:
        """Become another transaction that was refused, with the values in conflict merged.

        The conflict says that at its revision nothing but its keys had changed, so whatever else
        the other one has read still holds there: this one reads that very revision.

        Args:
            other: The transaction; not ended yet, since its snapshot is the base of the merge.
            conflict: Why it was refused; it wrote all of the keys.
            merge: The caller's function.

        Raises:
            CompactedError: The revision of the conflict is gone already.
            ConflictError: The merge function gave up.
        """
        pin, base_pin = self._open_pin(), other._open_pin()
        old, new = other.footprint, self.footprint
        new.keys, new.prefixes, new.writes = old.keys, old.prefixes, dict(old.writes)
        await self._engine.settle(pin, conflict.revision)
        new.read_revision = conflict.revision
        for key in conflict.keys:
            base = await self._engine.read(base_pin, key)
            theirs = await self._engine.read(pin, key)
            mine = old.writes[key]
            value = merge(
                key,
                None if base is None else self._codecs.decode(key, base.body),
                None if mine is None else self._codecs.decode(key, mine),
                None if theirs is None else self._codecs.decode(key, theirs.body),
            )
            new.writes[key] = None if value is None else self._codecs.encode(key, value)

    async def __aenter__(self) -> Self:
        self.begin()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if exc_type is None:
                await self.commit()
        finally:
            self.end()

    def __repr__(self) -> str:
        state = "" if self._pin is not None else " closed"
        if self._revision is not None:
            state = f" revision={self._revision}"
        return (
            f"<Transaction {self._id} read_revision={self.read_revision} "
            f"writes={len(self.footprint.writes)}{state}>"
        )
