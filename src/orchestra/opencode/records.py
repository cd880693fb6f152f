"""What is remembered of a workspace's missions: which there were, what each did, and if it is true."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
from attrs import frozen

from orchestra import MVCCStore, SQLiteStore
from orchestra.errors import ConfigurationError
from orchestra.opencode.mission.ledger import MISSION, PLAN, TASK
from orchestra.opencode.mission.ownership import explain_absence
from orchestra.opencode.mission.report_files import REPORT_FOLDER
from orchestra.opencode.mission.saved import RUNNING

__all__ = (
    "MISSION",
    "RECORDS",
    "RecordedMission",
    "RecordedStep",
    "VerifiedMission",
    "find_absence",
    "find_mission",
    "list_missions",
    "list_steps",
    "verify_records",
)

RECORDS = "missions.db"
"""The store with the missions of a workspace, in its ``.orchestra`` folder."""

_BATCH = 1_000


@frozen(kw_only=True)
class RecordedMission:
    """One mission.

    Attributes:
        id: Its id.
        started_at: When it started, ISO 8601 in UTC.
        state: How it ended, or ``running``: it has not ended, or was killed.
        tasks: How many tasks its plan had.
        goal: What it was for.
        absence: That nobody carries it on although it has not ended; else empty.
    """

    id: str
    started_at: str
    state: str
    tasks: int
    goal: str
    absence: str = ""

    def __str__(self) -> str:
        goal = " ".join(self.goal.split())[:60]
        line = f"{self.id}  {self.started_at}  {self.state:<11}  {self.tasks:>4} tasks  {goal}"
        return f"{line}\n  {self.absence}" if self.absence else line


@frozen(kw_only=True)
class RecordedStep:
    """One commit of a mission.

    Attributes:
        revision: Its number, from 1.
        time: When, ISO 8601 in UTC.
        author: Who: the mission, or the file that somebody edited.
        changes: What became of what: ``t1 working (round 1)``.
    """

    revision: int
    time: str
    author: str
    changes: tuple[str, ...]

    def __str__(self) -> str:
        changes = ", ".join(self.changes[:8])
        more = f", and {len(self.changes) - 8} more" if len(self.changes) > 8 else ""
        return f"{self.revision:>5}  {self.time}  {self.author:<12}  {changes}{more}"


@frozen(kw_only=True)
class VerifiedMission:
    """What checking a mission's history has shown.

    Attributes:
        id: The mission.
        revisions: How many commits it has.
        digest: The digest of the last record: keep it elsewhere, and a history that was rewritten
            as a whole is found too.
        fault: What is wrong; empty when nothing is.
    """

    id: str
    revisions: int
    digest: str
    fault: str

    def __str__(self) -> str:
        if self.fault:
            return f"{self.id}  BROKEN: {self.fault}"
        return f"{self.id}  whole, {self.revisions} revisions, digest {self.digest}"


@asynccontextmanager
async def _open(directory: Path) -> AsyncIterator[MVCCStore]:
    path = directory / REPORT_FOLDER / RECORDS
    if not await anyio.Path(path).is_file():
        raise ConfigurationError(
            f"no mission is remembered in {str(directory)!r}; run one there, or name another "
            "workspace with --dir"
        )
    async with SQLiteStore(path, read_only=True) as store:
        yield store


async def _names(store: MVCCStore) -> list[str]:
    return [name for name in await store.namespaces() if name.startswith("mission_")]


async def list_missions(directory: Path) -> list[RecordedMission]:
    """Return a workspace's missions, in the order of their start.

    Args:
        directory: The workspace.

    Raises:
        ConfigurationError: No mission is remembered there.
        StoreError: The records cannot be read.
    """
    found = []
    async with _open(directory) as store:
        for name in await _names(store):
            space = store.namespace(name)
            async with space.snapshot() as snap:
                about = await snap.get(MISSION)
                plan = await snap.get(PLAN) or []
            if about is not None:
                mission = RecordedMission(
                    id=name,
                    started_at=about["started_at"],
                    state=about["state"],
                    tasks=len(plan),
                    goal=about["goal"],
                    absence=await find_absence(store, name, about),
                )
                first = await space.journal(0, limit=1)  # many may start in one second
                found.append((mission.started_at, [record.time for record in first], mission))
    return [mission for *_, mission in sorted(found, key=lambda each: each[:2])]


async def find_absence(store: MVCCStore, mission: str, about: Mapping[str, Any]) -> str:
    """Say that nobody carries on a mission which has not ended; empty: somebody does, or it has.

    Args:
        store: The workspace's records.
        mission: The mission's id.
        about: What is recorded under ``mission`` of it.
    """
    if about["state"] != RUNNING or "directory" not in about:
        return ""
    return await explain_absence(store, Path(about["directory"]), mission)


async def find_mission(directory: Path, reference: str) -> str:
    """Return the id of the mission that is meant.

    Args:
        directory: The workspace.
        reference: The mission's id, the beginning of it, or ``last``.

    Raises:
        ConfigurationError: No mission is remembered there, or it is not clear which is meant.
        StoreError: The records cannot be read.
    """
    missions = [mission.id for mission in await list_missions(directory)]
    if reference == "last" and missions:
        return missions[-1]
    found = [name for name in missions if name.startswith((reference, f"mission_{reference}"))]
    if len(found) == 1:
        return found[0]
    why = "more than one mission begins" if found else "no mission begins"
    raise ConfigurationError(
        f"{why} with {reference!r}; 'orchestra history' lists those of this workspace"
    )


async def list_steps(directory: Path, reference: str) -> list[RecordedStep]:
    """Return what a mission did, commit by commit.

    Args:
        directory: The workspace.
        reference: The mission's id, the beginning of it, or ``last``.

    Raises:
        ConfigurationError: No mission is remembered there, or it is not clear which is meant.
        StoreError: The records cannot be read.
    """
    name = await find_mission(directory, reference)
    steps: list[RecordedStep] = []
    async with _open(directory) as store:
        space = store.namespace(name)
        last = 0
        while records := await space.journal(last, limit=_BATCH):
            for record in records:
                async with space.snapshot(record.revision) as snap:
                    told = [
                        _tell(change.key, await snap.get(change.key)) for change in record.changes
                    ]
                steps.append(
                    RecordedStep(
                        revision=record.revision,
                        time=datetime.fromtimestamp(record.time, UTC).isoformat(
                            timespec="milliseconds"
                        ),
                        author=record.author,
                        changes=tuple(filter(None, told)),
                    )
                )
            last = records[-1].revision
    return steps


def _tell(key: str, value: object) -> str:
    """Say what a key's new value means; nothing for what only TODO.md is made of."""
    if key == MISSION and isinstance(value, dict):
        return f"mission {value['state']}"
    if key == PLAN and isinstance(value, list):
        return f"plan of {len(value)} tasks"
    if key.startswith(TASK) and isinstance(value, dict):
        return f"{key.removeprefix(TASK)} {value['state']} (round {value['round']})"
    return ""


async def verify_records(directory: Path) -> list[VerifiedMission]:
    """Check every mission's history and every value in it.

    Args:
        directory: The workspace.

    Raises:
        ConfigurationError: No mission is remembered there.
        StoreError: The records cannot be read.
    """
    found = []
    async with _open(directory) as store:
        for name in await _names(store):
            result = await store.namespace(name).verify()
            found.append(
                VerifiedMission(
                    id=name,
                    revisions=result.revision,
                    digest=result.digest,
                    fault="" if result else result.fault,
                )
            )
    return found
