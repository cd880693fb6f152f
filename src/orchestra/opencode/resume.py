"""``orchestra resume``: which mission, what it was started with, and what its process left behind."""

from __future__ import annotations

import time
from pathlib import Path

import anyio.to_thread

from orchestra import MVCCStore, SQLiteStore
from orchestra.errors import ConfigurationError
from orchestra.opencode.job import Job, prepare
from orchestra.opencode.mission.ownership import find_owner
from orchestra.opencode.mission.report_files import REPORT_FOLDER
from orchestra.opencode.mission.saved import SavedMission, load_mission, unfinished_missions
from orchestra.opencode.notes import leftover_marker, recall
from orchestra.opencode.reaper import can_find, find_processes, kill
from orchestra.opencode.records import RECORDS, find_mission

__all__ = ("end_leftovers", "find_saved", "prepare_resume")

_REAP_LIMIT = 5.0
_REAP_PAUSE = 0.02


async def find_saved(directory: Path, reference: str | None) -> SavedMission:
    """Return the mission to go on with.

    Args:
        directory: The workspace.
        reference: The mission's id, or the beginning of it; None: the last unfinished one.

    Raises:
        ConfigurationError: There is none, or it has ended.
        StoreError: The records cannot be read.
    """
    path = directory / REPORT_FOLDER / RECORDS
    if not await anyio.Path(path).is_file():
        raise ConfigurationError(
            f"no mission is remembered in {str(directory)!r}; name another workspace with --dir"
        )
    name = None if reference is None else await find_mission(directory, reference)
    async with SQLiteStore(path, read_only=True) as store:
        saved = await load_mission(store, name or await _last(store))
    if saved.is_over:
        raise ConfigurationError(
            f"mission {saved.id} has ended as {saved.state}; start another with 'orchestra run'"
        )
    return saved


async def _last(store: MVCCStore) -> str:
    names = await unfinished_missions(store)
    if not names:
        raise ConfigurationError(
            "every mission of this workspace has come to its end; 'orchestra history' lists them"
        )
    return names[-1]


async def prepare_resume(
    directory: Path, reference: str | None, *, url: str | None, password: str | None
) -> Job:
    """Check everything that can be checked before a mission goes on.

    What the server of a killed process has left running is ended: it would go on writing into the
    workspace. It is known by a mark that no other process has.

    Args:
        directory: The workspace.
        reference: As for `find_saved`.
        url: Where the server is now; None: where it was.
        password: The server's password.

    Raises:
        ConfigurationError: Something is wrong; one line per fault.
        StoreError: The records cannot be read.
    """
    saved = await find_saved(directory, reference)
    job = prepare(recall(saved, url=url, password=password), saved)
    async with SQLiteStore(saved.directory / REPORT_FOLDER / RECORDS, read_only=True) as store:
        owner = await find_owner(store, saved.directory)
    if owner is None:
        await end_leftovers(saved)
    return job


async def end_leftovers(saved: SavedMission) -> tuple[int, ...] | None:
    """End what a killed process has left running: its server, its commands. A checkpoint.

    Args:
        saved: The mission; nobody must own it any more.

    Returns:
        The numbers of the processes that did not end; None: this system does not tell of any.
    """
    if not can_find() or not saved.launch.get("run"):
        return None
    return await anyio.to_thread.run_sync(_reap, leftover_marker(saved.launch))


def _reap(marker: str) -> tuple[int, ...]:
    deadline = time.monotonic() + _REAP_LIMIT
    while left := find_processes(marker):
        for process in left:
            kill(process)
        if time.monotonic() > deadline:
            return tuple(sorted(process.pid for process in left))
        time.sleep(_REAP_PAUSE)
    return ()
