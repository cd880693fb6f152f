"""A mission's workplaces: in the workspace, or apart from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import final

from orchestra import MVCCStore, WorkStealingPool
from orchestra.opencode.mission.attribution import Seat, normal
from orchestra.opencode.mission.leases import Leases
from orchestra.opencode.mission.shared import SharedWorkplace
from orchestra.opencode.mission.workplaces import Change, Workplace, WorkplaceError, Workplaces
from orchestra.opencode.mission.workspace import MAX_LISTED, Workspace

__all__ = ("Places",)


@final
class Places(Workplaces):
    """The workplaces of one mission.

    Args:
        directory: The workspace.
        store: The mission's namespace.
        skipped: Paths, relative to the workspace, that do not count.
        is_watched: Whether the whole workspace is looked at.
    """

    def __init__(
        self,
        directory: Path,
        store: MVCCStore,
        *,
        skipped: Iterable[str] = (),
        is_watched: bool = True,
    ) -> None:
        self._directory = directory
        self._pool = WorkStealingPool(name="orchestra-places")
        self._leases = Leases(store)
        self._workspace = Workspace(directory, self._pool, skipped=skipped, is_watched=is_watched)
        self._mission = Seat("", ())
        self._places: dict[str, Workplace] = {}
        self._stack = AsyncExitStack()

    @property
    def warnings(self) -> list[str]:
        """See `Workplaces.warnings`."""
        return self._workspace.warnings

    async def begin(self) -> None:
        """See `Workplaces.begin`."""
        await self._stack.enter_async_context(self._pool)
        await self._workspace.begin()

    async def open(
        self, task_id: str, files: Sequence[str], *, is_apart: bool = False, position: int = 0
    ) -> Workplace:
        """See `Workplaces.open`."""
        del is_apart, position
        names = tuple(dict.fromkeys(normal(path) for path in files))
        if outside := [path for path in names if path.startswith(("..", "/"))]:
            raise WorkplaceError(f"{outside[0]} is not in the workspace, so nobody can write it")
        place = self._places[task_id] = await self._open_shared(task_id, names)
        return place

    async def _open_shared(self, task_id: str, files: tuple[str, ...]) -> Workplace:
        await self._workspace.stamp(files)  # what came before the lease is not its holder's
        fence = await self._leases.take(task_id, files)
        seat = self._workspace.seats.get(task_id) or Seat(task_id, files)
        seat.fence = fence
        seat.edited.clear()
        self._workspace.seats.enter(seat)
        return SharedWorkplace(self._workspace, seat, self._leases, fence)

    def find(self, task_id: str) -> Workplace | None:
        """See `Workplaces.find`."""
        return self._places.get(task_id)

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

    async def aclose(self) -> None:
        """See `Workplaces.aclose`."""
        await self._stack.aclose()
        self._workspace.close()

    def __repr__(self) -> str:
        return f"<Places {len(self._places)} {self._workspace!r}>"
