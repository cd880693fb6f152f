"""What is open and who owns it: end an owner, and everything it owns ends before it, once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import Final, final

import anyio
import anyio.lowlevel
from anyio import CancelScope
from attrs import frozen

from orchestra._core.checks import check_callable, finite
from orchestra._core.ownership import Node, NodeState
from orchestra._ending import EndingFunction, end

__all__ = (
    "KindStatistics",
    "OwnedResource",
    "ResourceTracker",
    "TrackedResource",
    "TrackerStatistics",
)

# The resources whose closers this code runs in. Whoever waits for one of them from there, or for
# what waits for it, waits for himself.
_closing: ContextVar[tuple[Node, ...]] = ContextVar("orchestra.ownership", default=())


@frozen(kw_only=True)
class OwnedResource:
    """A line of the report who owns what; as a string it is indented below its owner.

    Attributes:
        kind: What it is.
        name: Which one.
        owner: The name of its owner; None: it has none.
        depth: How many owners are above it.
        is_ending: Whether its end has begun.
        age: Seconds since it has been tracked.
    """

    kind: str
    name: str
    owner: str | None
    depth: int
    is_ending: bool
    age: float

    def __str__(self) -> str:
        state = ", ending" if self.is_ending else ""
        return f"{'  ' * self.depth}{self.kind} {self.name} ({self.age:.1f} s{state})"


@frozen(kw_only=True)
class KindStatistics:
    """The resources of one kind.

    Attributes:
        open: How many are open.
        ending: How many of those are being ended.
        released: How many have been ended.
        failed: How many of those raised, or did not end in time.
        forgotten: How many ended by themselves.
    """

    open: int
    ending: int
    released: int
    failed: int
    forgotten: int


@frozen(kw_only=True)
class TrackerStatistics:
    """The state of a tracker.

    Attributes:
        open: How many resources are open.
        kinds: The details, by kind.
    """

    open: int
    kinds: Mapping[str, KindStatistics]


@final
class TrackedResource:
    """Something open; comes from `ResourceTracker.track` only.

    ``async with tracker.track(...):`` releases it at the end of the block.

    Attributes:
        kind: What it is.
        name: Which one.
    """

    __slots__ = ("_close", "_node", "_over", "_since", "_timeout", "_tracker", "kind", "name")

    def __init__(
        self,
        tracker: ResourceTracker,
        node: Node,
        kind: str,
        name: str,
        close: EndingFunction | None,
        timeout: float,
        since: float,
    ) -> None:
        self._tracker = tracker
        self._node = node
        self._close = close
        self._timeout = timeout
        self._since = since
        self._over = anyio.Event()
        self.kind: Final = kind
        self.name: Final = name

    @property
    def is_released(self) -> bool:
        """Whether it has ended, with everything it owned."""
        return self._node.state is NodeState.ENDED

    async def release(self) -> None:
        """End it and everything it owns, children first, siblings side by side.

        Each is ended by exactly one caller, who gets its errors; another caller waits until it is
        over. What has begun is finished, bounded by the time-outs, also when the caller is
        cancelled. From inside the closer of the resource itself, or of one that it owns, it
        returns at once, since it is ending already.

        Always a checkpoint, at the end: also in a cancelled scope everything is ended.

        Raises:
            ExceptionGroup: Closers raised or took too long. They are not called again.
            RuntimeError: It was called from inside the closer of something it owns, and would have
                to wait for that.
        """
        await self._tracker._release(self)  # noqa: SLF001 - its other half

    def forget(self) -> bool:
        """Say that it has ended by itself. What it owns goes to its owner. Never blocks.

        Returns:
            Whether it is now sure not to be closed; False when its end has begun.
        """
        return self._tracker._forget(self)  # noqa: SLF001 - the same

    async def __aenter__(self) -> TrackedResource:
        await anyio.lowlevel.checkpoint()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await _leave(self, exc)

    def __repr__(self) -> str:
        children = len(self._node.children)
        return (
            f"<TrackedResource {self.kind} {self.name!r} {self._node.state.value}, owns {children}>"
        )


@final
class ResourceTracker:
    """Sessions, processes, watchers, timers: what is open, by owner, and ended with its owner.

    ::

        tracker = ResourceTracker()
        mission = tracker.track("mission", "m1", mission.aclose)
        session = tracker.track("session", "s1", session.aclose, owner=mission)
        tracker.track("timer", "t1", timer.cancel, owner=session)

        await mission.release()        # the timer, then the session, then the mission

    It knows what is open and calls what closes it; it opens nothing and holds no time limits of
    its own, apart from those of closers. Names are for people: two resources may have the same.

    ``async with tracker:`` or `aclose` ends everything. Then, and as soon as the end of an owner
    has begun, `track` refuses: what was opened for it is the caller's to close.

    A tracker belongs to one event loop and is not thread-safe.

    Args:
        clock: Gives monotonic seconds, for ages.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        check_callable("clock", clock)
        self._clock = clock
        self._resources: dict[Node, TrackedResource] = {}
        self._released = Counter[str]()
        self._failed = Counter[str]()
        self._forgotten = Counter[str]()
        # The owner of what has none.
        self._root = TrackedResource(self, Node(None), "tracker", "all", None, 1.0, clock())
        self._resources[self._root._node] = self._root  # noqa: SLF001 - its other half

    def track(
        self,
        kind: str,
        name: str,
        close: EndingFunction,
        *,
        owner: TrackedResource | None = None,
        timeout: float = 5.0,
    ) -> TrackedResource:
        """Remember something that was just opened. Never blocks.

        Args:
            kind: What it is: ``"session"``, ``"process"``, ``"watcher"``, ``"timer"``, ...
            name: Which one.
            close: Ends it; takes no arguments. A function that is not asynchronous is called in
                the event loop, as a timer's ``cancel`` must be, and may not block.
            owner: What it belongs to.
            timeout: After how many seconds ``close`` is cancelled.

        Raises:
            ClosedResourceError: The owner, or the tracker, is being ended: close it yourself.
            TypeError: ``close`` cannot be called, or a field has the wrong type.
            ValueError: ``timeout`` is not above 0, or the owner is another tracker's.
        """
        for field, value in (("kind", kind), ("name", name)):
            if not isinstance(value, str):
                raise TypeError(f"{field} must be a str, not {value!r}")
        check_callable("close", close)
        if finite("timeout", timeout) <= 0:
            raise ValueError(f"timeout must be above 0 seconds, not {timeout!r}")
        above = self._root if owner is None else owner
        if above._tracker is not self:  # noqa: SLF001 - its other half
            raise ValueError(f"{above!r} is of another tracker")
        try:
            node = Node(above._node)  # noqa: SLF001 - the same
        except ValueError:
            raise anyio.ClosedResourceError(
                f"{above.kind} {above.name!r} is being released or has been: close "
                f"{kind} {name!r} yourself"
            ) from None
        resource = TrackedResource(self, node, kind, name, close, timeout, self._clock())
        self._resources[node] = resource
        return resource

    async def aclose(self) -> None:
        """Release everything; see `TrackedResource.release`. May be called again."""
        await self._root.release()

    def report(self) -> tuple[OwnedResource, ...]:
        """Return who owns what, owners before what they own."""
        now = self._clock()
        lines = []
        for node in self._root._node.walk():  # noqa: SLF001 - its other half
            owners = list(node.owners())
            if not owners:
                continue
            resource = self._resources[node]
            lines.append(
                OwnedResource(
                    kind=resource.kind,
                    name=resource.name,
                    owner=self._resources[owners[0]].name if len(owners) > 1 else None,
                    depth=len(owners) - 1,
                    is_ending=node.state is not NodeState.LIVE,
                    age=now - resource._since,  # noqa: SLF001 - the same
                )
            )
        return tuple(lines)

    def statistics(self) -> TrackerStatistics:
        """Count what is open and what was."""
        lines = self.report()
        opened = Counter(line.kind for line in lines)
        ending = Counter(line.kind for line in lines if line.is_ending)
        kinds = sorted({*opened, *self._released, *self._forgotten})
        return TrackerStatistics(
            open=len(lines),
            kinds={
                kind: KindStatistics(
                    open=opened[kind],
                    ending=ending[kind],
                    released=self._released[kind],
                    failed=self._failed[kind],
                    forgotten=self._forgotten[kind],
                )
                for kind in kinds
            },
        )

    async def __aenter__(self) -> ResourceTracker:
        await anyio.lowlevel.checkpoint()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await _leave(self._root, exc)

    def __repr__(self) -> str:
        kinds = Counter(line.kind for line in self.report())
        details = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        return f"<ResourceTracker {self._root._node.state.value}: {details or 'nothing'} open>"  # noqa: SLF001

    # ---- the other half of a resource ----

    async def _release(self, resource: TrackedResource) -> None:
        node = resource._node  # noqa: SLF001 - its other half
        if any(node is inner or node in inner.owners() for inner in _closing.get()):
            if node.state is NodeState.LIVE:
                raise RuntimeError(
                    f"{resource.kind} {resource.name!r} cannot be released from inside the closer "
                    f"of something it owns, which would wait for itself: release it elsewhere"
                )
            await anyio.lowlevel.checkpoint()
            return
        errors: list[BaseException] = []
        claimed = node.claim()
        if claimed:
            with CancelScope(shield=True):
                async with anyio.create_task_group() as tasks:
                    for each in claimed:
                        tasks.start_soon(self._end, each, errors)
        else:
            await resource._over.wait()  # noqa: SLF001 - its other half
        if errors:
            try:
                raise BaseExceptionGroup(
                    f"{len(errors)} of {len(claimed)} resources did not end well", errors
                )
            finally:
                del errors  # no cycle through this frame
        await anyio.lowlevel.checkpoint()

    async def _end(self, node: Node, errors: list[BaseException]) -> None:
        resource = self._resources[node]
        # Once more, because the native cancellation of a task knows no scopes around the group.
        with CancelScope(shield=True):
            for child in [self._resources[child] for child in node.children]:
                await child._over.wait()  # noqa: SLF001 - its other half
            if resource._close is not None:  # noqa: SLF001 - the same
                await self._call(resource, resource._close, errors)  # noqa: SLF001 - the same
            node.end()
            del self._resources[node]
            resource._over.set()  # noqa: SLF001 - the same

    async def _call(
        self, resource: TrackedResource, close: EndingFunction, errors: list[BaseException]
    ) -> None:
        _closing.set((*_closing.get(), resource._node))  # noqa: SLF001 - its other half
        scope = CancelScope(deadline=anyio.current_time() + resource._timeout)  # noqa: SLF001
        name = f"{resource.kind} {resource.name!r}"
        ending = await end(close, name, scope, in_thread=False)
        self._released[resource.kind] += 1
        if ending.error is not None:
            self._failed[resource.kind] += 1
            errors.append(ending.error)

    def _forget(self, resource: TrackedResource) -> bool:
        node = resource._node  # noqa: SLF001 - its other half
        if node.state is not NodeState.LIVE or resource is self._root:
            return False
        node.drop()
        del self._resources[node]
        self._forgotten[resource.kind] += 1
        resource._over.set()  # noqa: SLF001 - its other half
        return True


async def _leave(resource: TrackedResource, exc: BaseException | None) -> None:
    """Release at the end of a block: no error hides another one."""
    try:
        await resource.release()
    except BaseExceptionGroup as group:
        if isinstance(exc, Exception | KeyboardInterrupt | SystemExit):
            raise group.derive([exc, *group.exceptions]) from None
        raise
