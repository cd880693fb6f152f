"""A mission's workplaces: in the workspace, or apart from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import final

import anyio

from orchestra import MVCCStore, Transaction, WorkStealingPool
from orchestra.opencode.mission.attribution import Seat
from orchestra.opencode.mission.copies import Copies
from orchestra.opencode.mission.isolation import Isolation
from orchestra.opencode.mission.leases import Leases, allow
from orchestra.opencode.mission.repository import open_repository
from orchestra.opencode.mission.shared import SharedWorkplace
from orchestra.opencode.mission.workplaces import Change, Workplace, WorkplaceError, Workplaces
from orchestra.opencode.mission.workspace import MAX_LISTED, Workspace
from orchestra.opencode.mission.worktrees import Worktrees, default_home
from orchestra.opencode.mission.write_sets import normal_path

__all__ = ("Places",)


@final
class Places(Workplaces):
    """The workplaces of one mission.

    Args:
        directory: The workspace.
        store: The mission's namespace.
        mission_id: The mission.
        isolation: Where workers work.
        skipped: Paths, relative to the workspace, that do not count.
        is_watched: Whether the whole workspace is looked at.
        told: Called with a task whose change waits for those of earlier ones, and with these.
        check: Called with each transaction; raises when the mission has another owner.
    """

    def __init__(
        self,
        directory: Path,
        store: MVCCStore,
        *,
        mission_id: str,
        isolation: Isolation,
        skipped: Sequence[str] = (),
        is_watched: bool = True,
        told: Callable[[str, Sequence[str]], object] = lambda _task, _earlier: None,
        check: Callable[[Transaction], Awaitable[None]] = allow,
    ) -> None:
        self._directory = directory
        self._mission_id = mission_id
        self._isolation = isolation
        self._skipped = skipped
        self._told = told
        self._is_apart = isolation.kind == "worktree"
        self._pool = WorkStealingPool(name="orchestra-places")
        self._leases = Leases(store, check)
        self._workspace = Workspace(
            directory,
            self._pool,
            skipped=skipped,
            is_watched=is_watched,
            is_shared=not self._is_apart,
        )
        self._mission = Seat("", ())
        self._places: dict[str, Workplace] = {}
        self._recalled: Mapping[str, Mapping[str, str]] = {}
        self._stack = AsyncExitStack()
        self._worktrees: Worktrees | None = None
        self._copies = Copies(self._workspace, self._leases, self._pool, skipped, store, check)
        self._lock = anyio.Lock()
        self._is_git = True

    @property
    def warnings(self) -> list[str]:
        """See `Workplaces.warnings`."""
        return self._workspace.warnings

    async def begin(self) -> None:
        """See `Workplaces.begin`."""
        await self._stack.enter_async_context(self._pool)
        await self._workspace.begin()
        await self._copies.begin()
        if self._is_apart and await self._find_worktrees() is None:
            raise WorkplaceError(
                f"{self._directory} is not in a git repository, so there are no worktrees; "
                "make one with 'git init', or leave the isolation out"
            )

    def recall(self, before: Mapping[str, Mapping[str, str]]) -> None:
        """See `Workplaces.recall`."""
        self._recalled = before

    async def _find_worktrees(self) -> Worktrees | None:
        """Return the worktrees, made ready when they are first wanted; None: there is no git."""
        async with self._lock:
            if self._worktrees is not None or not self._is_git:
                return self._worktrees
            repository = await open_repository(self._directory, skipped=self._skipped)
            if repository is None:
                self._is_git = False
                return None
            worktrees = Worktrees(
                repository,
                self._workspace,
                self._leases,
                mission_id=self._mission_id,
                home=self._isolation.folder or default_home(),
                patience=self._isolation.patience,
                warn=self.warnings.append,
                told=self._told,
            )
            await worktrees.begin()
            self._worktrees = worktrees
            return worktrees

    async def open(
        self,
        task_id: str,
        files: Sequence[str],
        *,
        is_apart: bool = False,
        position: float = 0,
        parts: Sequence[str] = (),
        is_resumed: bool = False,
    ) -> Workplace:
        """See `Workplaces.open`."""
        names = tuple(dict.fromkeys(normal_path(path) for path in files))
        if outside := [path for path in names if path.startswith(("..", "/"))]:
            raise WorkplaceError(f"{outside[0]} is not in the workspace, so nobody can write it")
        place: Workplace
        if not (is_apart or self._is_apart):
            place = await self._open_shared(task_id, names, parts)
        elif (worktrees := await self._find_worktrees()) is not None:
            place = await worktrees.open(
                task_id, names, position, is_racing=is_apart, parts=parts, is_resumed=is_resumed
            )
        else:
            place = await self._copies.open(task_id, names)
        self._places[task_id] = place
        return place

    async def _open_shared(
        self, task_id: str, files: tuple[str, ...], parts: Sequence[str]
    ) -> Workplace:
        await self._workspace.stamp(files)  # what came before the lease is not its holder's
        fence = await self._leases.take(task_id, files)
        seat = self._workspace.seats.get(task_id)
        if seat is None:
            seat = Seat(task_id, files)
            self._workspace.gather(seat, parts)
            await self._workspace.recall(seat, self._recalled.get(task_id, {}))
        elif seat.working:
            # An earlier attempt has not ended: what it still does is not this attempt's.
            self._workspace.seats.leave(seat)
            seat = seat.renew()
        seat.fence = fence
        seat.edited.clear()
        self._workspace.seats.enter(seat)
        await self._workspace.settle_strays(files)
        return SharedWorkplace(self._workspace, seat, self._leases, fence)

    async def is_taken(self, task_id: str, files: Sequence[str], tree: str) -> bool:
        """See `Workplaces.is_taken`.

        In the workspace itself taking over changes nothing, so it is simply done again there.
        """
        is_racing = "#" in task_id
        if not (is_racing or self._is_apart) or await self._leases.accepted(task_id) != tree:
            return False
        names = tuple(normal_path(path) for path in files)
        if (worktrees := await self._find_worktrees()) is not None:
            await worktrees.finish(task_id, names, tree)
        return True

    def find(self, task_id: str) -> Workplace | None:
        """See `Workplaces.find`."""
        place = self._places.get(task_id)
        return None if place is None or place.is_left else place

    async def leave(self, task_id: str, *, split_at: float | None = None) -> None:
        """See `Workplaces.leave`."""
        if self._worktrees is not None:
            self._worktrees.split(task_id, split_at)
        if (place := self.find(task_id)) is not None:
            await place.discard()

    def at_work(self) -> AbstractAsyncContextManager[None]:
        """See `Workplaces.at_work`."""
        return self._workspace.at_work(self._mission)

    async def whole(self) -> Change:
        """See `Workplaces.whole`."""
        tree, before = await self._workspace.whole()
        return Change(
            tree=tree,
            directory=self._directory,
            changed=tuple(sorted(before))[:MAX_LISTED],
            strays=tuple(path for paths in self._workspace.strays.values() for path in paths)[
                :MAX_LISTED
            ],
            diff=await self._workspace.diff(before),
        )

    async def before(self, path: str) -> bytes | None:
        """See `Workplaces.before`."""
        return await self._workspace.contents(self._workspace.first(path))

    def abandon(self) -> None:
        """See `Workplaces.abandon`."""
        if self._worktrees is not None:
            self._worktrees.abandon()
        self._copies.abandon()

    async def aclose(self) -> None:
        """See `Workplaces.aclose`."""
        with anyio.CancelScope(shield=True):
            if self._worktrees is not None:
                await self._worktrees.aclose()
            await self._copies.aclose()
            await self._stack.aclose()
            self._workspace.close()

    def __repr__(self) -> str:
        return f"<Places {len(self._places)} {self._workspace!r}>"
