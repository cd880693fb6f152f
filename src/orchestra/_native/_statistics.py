from __future__ import annotations

from typing import Literal

from attrs import frozen


@frozen(kw_only=True)
class DequeStatistics:
    """What a `WorkStealingDeque` holds at one moment.

    Attributes:
        implementation: ``native`` (the C extension) or ``fallback`` (``collections.deque``).
        size: Items inside; a guess while other threads work on it.
        capacity: Items for which there is room without growing; None for the fallback.
        arrays: Arrays held, the outgrown ones included; None for the fallback.
        owner: The identity of the owning thread.
    """

    __module__ = "orchestra.stealing"

    implementation: Literal["native", "fallback"]
    size: int
    capacity: int | None
    arrays: int | None
    owner: int
