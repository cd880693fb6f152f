"""Ending a mission from another process: by its owner, or in its place when that is provably gone."""

from __future__ import annotations

import os
from collections.abc import Collection
from getpass import getuser
from pathlib import Path
from typing import Any, Final

import anyio
from attrs import evolve, frozen

from orchestra import Agent, MVCCStore, SessionBackend, SQLiteStore, Transaction
from orchestra.errors import ConfigurationError, OrchestraError, SessionLostError
from orchestra.opencode.mission.file import read_mission_file
from orchestra.opencode.mission.ownership import Owner, last_owner
from orchestra.opencode.mission.report_files import REPORT_FOLDER
from orchestra.opencode.mission.saved import SavedMission, load_mission
from orchestra.opencode.people.cancelling import (
    QUIET,
    Quiescence,
    confirm_quiet,
    is_unseen,
    read_quiet,
    wish_cancel,
    write_quiet,
)
from orchestra.opencode.records import MISSION, RECORDS, find_mission
from orchestra.opencode.resume import end_leftovers

__all__ = ("CancelOutcome", "cancel_mission", "close_sessions", "who")

_LOOK: Final = 0.1
_QUIET_LIMIT: Final = 10.0


@frozen(kw_only=True)
class CancelOutcome:
    """What became of the wish to end a mission.

    Attributes:
        mission: The mission's id.
        state: How it ended.
        quiescence: What still runs; None: nobody has told in time.
        note: Who does not answer, or what was done in the place of who is gone; may be empty.
    """

    mission: str
    state: str
    quiescence: Quiescence | None
    note: str = ""

    @property
    def is_quiet(self) -> bool:
        """Whether nothing of it is known to run any more."""
        return self.quiescence is not None and self.quiescence.is_quiet

    def __str__(self) -> str:
        if self.quiescence is None:
            return f"{self.mission} {self.state}: {self.note}"
        notes = "; ".join(filter(None, (self.note, self.quiescence.why)))
        return f"{self.mission} {self.state}: {self.quiescence}" + (f" ({notes})" if notes else "")


async def cancel_mission(
    directory: Path, reference: str, url: str | None = None, wait: float = 60.0
) -> CancelOutcome:
    """End a mission from outside, and wait until its sessions are known to be idle. A checkpoint.

    A mission whose process is provably gone is ended here: its sessions on the server are aborted,
    and what it had started on this machine is ended. What was not found idle before is looked at
    again.

    Args:
        directory: The workspace.
        reference: The mission's id, the beginning of it, or ``last``.
        url: The server it runs on, when its orchestrator is gone.
        wait: Seconds to wait for its orchestrator.

    Raises:
        ConfigurationError: There is no such mission.
        StoreError: The records cannot be read or written.
    """
    mission = await find_mission(directory, reference)
    async with SQLiteStore(directory / REPORT_FOLDER / RECORDS, durability="process") as records:
        store = records.namespace(mission).using(author=f"person {who()}")
        saved = await load_mission(records, mission)
        if saved.state == "running":
            await wish_cancel(store, f"cancelled by {who()}")
        with anyio.move_on_after(wait):
            await _wait_quiet(records, store, saved)
        quiet = await store.get(QUIET)
        if quiet is not None and read_quiet(quiet).is_quiet:
            return await _told(store, mission, read_quiet(quiet))
        if await _is_left(records, saved) or (url is not None and await is_unseen(store)):
            return await _end_abandoned(records, store, saved, url)
        if quiet is not None:
            return await _told(store, mission, read_quiet(quiet))
        note = _no_word(await last_owner(records, saved.directory), wait)
        return await _told(store, mission, None, note)


async def _wait_quiet(records: MVCCStore, store: MVCCStore, saved: SavedMission) -> None:
    while True:
        if await store.get(QUIET) is not None or await _is_left(records, saved):
            return
        await anyio.sleep(_LOOK)


async def _is_left(records: MVCCStore, saved: SavedMission) -> bool:
    """Whether nobody runs the mission any more, as far as that can be proved."""
    owner = await last_owner(records, saved.directory)
    return owner.mission != saved.id or owner.is_gone


async def _told(
    store: MVCCStore, mission: str, quiescence: Quiescence | None, note: str = ""
) -> CancelOutcome:
    state = (await store.get(MISSION))["state"]
    return CancelOutcome(mission=mission, state=state, quiescence=quiescence, note=note)


def _no_word(owner: Owner, wait: float) -> str:
    text = (
        f"process {owner.pid} on {owner.host}, which runs it since {owner.since}, has not said within "
        f"{wait:g} s that its sessions are idle; "
    )
    if owner.is_here:
        return f"{text}ask again"
    return f"{text}ask again there, or name its server with --url if that process is gone"


# --- in the owner's place ---


async def _end_abandoned(
    records: MVCCStore, store: MVCCStore, saved: SavedMission, url: str | None
) -> CancelOutcome:
    """End a mission that nobody runs any more."""
    about = await store.get(MISSION)
    owner = await last_owner(records, saved.directory)
    findings = [await _end_processes(saved, owner)]
    if about["backend"] != "embedded":
        url = url or _server_of(saved)
        if url is not None:
            findings.append(await _abort_on_server(saved, url))
        elif not saved.launch.get("run"):
            why = "name the server it ran on with --url"
            findings.append(Quiescence(sessions=1, busy=("its sessions",), why=why))
    quiescence = Quiescence(
        sessions=sum(each.sessions for each in findings),
        busy=tuple(name for each in findings for name in each.busy),
        why="; ".join(each.why for each in findings if each.why),
    )

    async def close(tx: Transaction) -> None:
        now: dict[str, Any] = dict(await tx.get(MISSION))
        if now["state"] == "running":
            now |= {"state": "interrupted", "reason": "cancelled after its orchestrator was gone"}
            tx.put(MISSION, now)

    await store.transact(close)
    await write_quiet(store, quiescence)
    who = f" (process {owner.pid} on {owner.host}, since {owner.since})"
    whose = who if owner.mission == saved.id else ""
    note = f"its orchestrator{whose} is gone, and what that had left here was looked for"
    return await _told(store, saved.id, quiescence, note)


async def _end_processes(saved: SavedMission, owner: Owner) -> Quiescence:
    """End what the owner has left on this machine; what cannot be seen from here is said."""
    if owner.mission == saved.id and not owner.is_here:
        why = f"it ran on {owner.host or 'a machine that is not known'}: cancel it there"
        return Quiescence(sessions=0, busy=("its processes",), why=why)
    left = await end_leftovers(saved)
    if left is None and saved.launch.get("run"):
        why = "this system does not tell which processes are left; look for them"
        return Quiescence(sessions=0, busy=("its processes",), why=why)
    busy = tuple(f"process {pid}" for pid in left or ())
    return Quiescence(sessions=0, busy=busy, why="they do not end" if busy else "")


def _server_of(saved: SavedMission) -> str | None:
    """Return the server that a mission was attached to; None: it had one of its own.

    Raises:
        ConfigurationError: The mission file that would tell cannot be read any more.
    """
    url: str | None = saved.launch.get("url")
    path = saved.launch.get("mission", "")
    if url is None and os.path.isfile(path):  # noqa: PTH113  (never raises)
        url = read_mission_file(Path(path), backend="opencode").url
    return url


async def _abort_on_server(saved: SavedMission, url: str) -> Quiescence:
    try:
        from orchestra.opencode.backend import OpenCodeBackend  # noqa: PLC0415  (an extra)
    except ImportError as error:
        raise ConfigurationError(str(error)) from error
    password = os.environ.get("OPENCODE_SERVER_PASSWORD") or None
    places = {saved.directory, *(Path(each.directory) for each in saved.attempts.values())}
    async with OpenCodeBackend(url, password=password) as backend:
        return await close_sessions(backend, saved.id, places)


async def close_sessions(
    backend: SessionBackend, mission: str, directories: Collection[Path]
) -> Quiescence:
    """Abort and close every session of a mission that the backend still has. A checkpoint.

    Args:
        backend: Where they are; entered.
        mission: The mission's id.
        directories: Where its agents worked.
    """
    nobody = Agent("orchestra", prompt="Nobody talks in this session any more.")
    found: dict[str, Path] = {}
    failures: dict[str, str] = {}

    async def close(session_id: str, directory: Path) -> None:
        try:
            session = await backend.reopen(session_id, nobody, directory=directory)
            await session.aclose()
        except SessionLostError:
            pass  # somebody else has closed it
        except OrchestraError as exc:
            failures[session_id] = str(exc)

    async with anyio.create_task_group() as group:
        for directory in directories:
            if not await anyio.Path(directory).is_dir():
                continue  # a task's own copy of the workspace, which is gone
            for session_id in await backend.find_sessions(
                {"mission": mission}, directory=directory
            ):
                found[session_id] = directory
                group.start_soon(close, session_id, directory)
    quiescence = await confirm_quiet(backend, found, limit=_QUIET_LIMIT)
    if failures and quiescence.is_quiet:
        why = "they could not be closed: " + "; ".join(sorted(set(failures.values())))
        return evolve(quiescence, busy=tuple(failures), why=why)
    return quiescence


def who() -> str:
    """Return who sits at this command line, for the history."""
    try:
        return getuser()
    except (OSError, KeyError, ImportError):  # no such user, as in many containers
        return "command line"
