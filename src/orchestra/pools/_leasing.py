"""What a resource pool hands out: the lease of one resource, and the report of who has what."""

from __future__ import annotations

import sys
from types import CodeType, FrameType, TracebackType
from typing import TYPE_CHECKING, Final, Generic, TypeVar, final

from anyio import CancelScope, WouldBlock
from attrs import frozen

from orchestra._core.pool import Entry
from orchestra._core.waiters import Priority
from orchestra.events import ResourceEnd

if TYPE_CHECKING:
    from orchestra.pools._stock import Stock

__all__ = ("PoolHolder", "PoolLease")

T = TypeVar("T")


@final
@frozen(kw_only=True)
class PoolHolder(Generic[T]):
    """Who has a resource of a pool.

    Attributes:
        resource: The resource.
        owner: What the holder called itself; empty if it did not say.
        held_for: For how many seconds it has had it.
        place: Where it was leased: file and line.
    """

    resource: T
    owner: str
    held_for: float
    place: str


@final
class PoolLease(Generic[T]):
    """The right to use one resource; comes from `ResourcePool` only.

    As a block it is entered once and gives the resource. From ``ResourcePool.acquire`` it comes
    acquired, and is to be ended. It ends once, by any task: with `release` or `invalidate`;
    whatever comes after the first does nothing. Ending it is never a checkpoint: what has to be
    awaited is done by the pool's own tasks.

    Attributes:
        owner: What the holder calls itself.
        priority: How urgent it is.
    """

    __slots__ = (
        "_code",
        "_entry",
        "_instruction",
        "_is_used",
        "_lifetime",
        "_scope",
        "_stock",
        "owner",
        "priority",
    )

    owner: str
    priority: Priority
    _entry: Entry[T] | None

    def __init__(
        self, stock: Stock[T], priority: Priority, owner: str, lifetime: float | None = None
    ) -> None:
        frame: FrameType = sys._getframe(2)  # noqa: SLF001 - a whole stack would cost far more
        while "orchestra." in frame.f_globals.get("__name__", "") and frame.f_back is not None:
            frame = frame.f_back
        # Not the frame, which would keep its variables alive; and the line is looked up when asked.
        self._code: CodeType = frame.f_code
        self._instruction: int = frame.f_lasti
        self._stock: Final = stock
        self._entry = None
        self._is_used = False
        self._lifetime: Final = lifetime
        self.owner = owner
        self.priority = priority

    @property
    def resource(self) -> T:
        """The resource.

        Raises:
            RuntimeError: The lease has not begun or is over.
        """
        if self._entry is None:
            raise RuntimeError(
                f"{self!r} has no resource; use the resource between begin and end of its lease"
            )
        return self._entry.resource

    @property
    def is_held(self) -> bool:
        """Whether the resource is the holder's."""
        return self._entry is not None

    @property
    def place(self) -> str:
        """The file and the line where it was asked for."""
        lines = self._code.co_lines()
        line = next((line for begin, end, line in lines if begin <= self._instruction < end), None)
        return f"{self._code.co_filename}:{line}"

    @property
    def held_for(self) -> float:
        """For how many seconds it has been held; 0.0 when it is not."""
        return 0.0 if self._entry is None else self._stock.clock() - self._entry.leased_at

    def release(self) -> None:
        """Give the resource back, to be reset and used again."""
        entry = self._entry
        if entry is not None:
            self._entry = None
            self._stock.take_back(entry)

    def invalidate(self) -> None:
        """Give the resource back as of no use any more: it is destroyed."""
        self._lose(ResourceEnd.INVALIDATED)

    def _lose(self, cause: ResourceEnd) -> None:
        entry = self._entry
        if entry is not None:
            self._entry = None
            self._stock.discard(entry, cause)

    async def __aenter__(self) -> T:
        if self._is_used:
            raise RuntimeError("a lease is entered once; ask the pool for another one")
        self._is_used = True
        stock = self._stock
        entry = stock.take_at_once()
        if entry is None:
            entry = await stock.take(self.priority)
        entry.uses += 1
        entry.holder = self
        self._entry = entry
        if self._lifetime is not None:
            self._scope = CancelScope()
            self._scope.__enter__()
            stock.keeper().watch(self._scope, self._lifetime)
        return entry.resource

    def _begin_nowait(self) -> None:
        self._is_used = True
        entry = self._stock.take_nowait(self.priority)
        if entry is None:
            raise WouldBlock
        entry.uses += 1
        entry.holder = self
        self._entry = entry

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if self._lifetime is None:
            if exc is None:
                self.release()
            else:
                self._break_off()
            return False
        self._stock.keeper().forget(self._scope, self._lifetime)
        try:
            self._scope.__exit__(exc_type, exc, traceback)
        finally:
            self.release() if exc is None else self._break_off()
        if self._scope.cancelled_caught:
            raise TimeoutError(
                f"the lease of a resource of {self._stock.name!r} lasted longer than "
                f"{self._lifetime:g} s and its holder was cancelled; give it a longer lifetime or "
                f"less to do"
            )
        return False

    def _break_off(self) -> None:
        # Whoever is cancelled in the middle of a request leaves half an answer behind, and the next
        # holder would take it for its own (as in CVE-2023-28858).
        if self._stock.can_reset:
            self.release()
        else:
            self._lose(ResourceEnd.INTERRUPTED)

    def __repr__(self) -> str:
        state = "held" if self.is_held else "over" if self._is_used else "not begun"
        owner = f" by {self.owner!r}" if self.owner else ""
        return f"<PoolLease of {self._stock.name!r}{owner}, from {self.place}, {state}>"
