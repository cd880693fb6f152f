"""Reading back what was written of a mission, for going on with it or for telling about it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen

from orchestra import Agent, MVCCStore
from orchestra.errors import MissionError
from orchestra.events import Usage
from orchestra.opencode.mission.content import Result
from orchestra.opencode.mission.keys import (
    ATTEMPT,
    EVIDENCE,
    INPUT,
    MISSION,
    PART,
    PLAN,
    PROPOSAL,
    RESULT,
    SETUP,
    SPENT,
    STATE,
    TASK,
    TOTALS,
    WAITS,
    WHY,
)
from orchestra.opencode.mission.machine import MissionRecord
from orchestra.opencode.mission.plain import spec_from_plain
from orchestra.opencode.mission.plain_settings import from_plain
from orchestra.opencode.mission.plan import MissionSettings, Plan, Role, TaskSpec
from orchestra.opencode.mission.spending import Spending

__all__ = ("Attempt", "SavedMission", "load_mission", "unfinished_missions")

RUNNING = "running"


@frozen
class Attempt:
    """A prompt that was sent, or was about to be.

    Attributes:
        session: The id of its session.
        prompt: Its own id.
        directory: Where the session was opened.
    """

    session: str
    prompt: str
    directory: str


@frozen(kw_only=True)
class SavedMission:
    """What was written of a mission; from `load_mission`.

    Attributes:
        id: The mission.
        goal: What it is for.
        directory: The workspace.
        state: ``running`` when nobody has noted an end; else how it ended.
        is_over: Whether there is nothing to go on with: it was neither killed nor interrupted, and
            its backend did not go away.
        started_at: When it began, ISO 8601 in UTC.
        settings: The rules of its run, but for what a store cannot hold.
        agents: The agent of each role.
        launch: What whoever started it has noted, for starting it again.
        given: The plan that it was given; None: it makes its own.
        record: The machine's part; None: it was ended before its first step was written.
        plans: The number of each task's plan.
        attempts: The prompts of sessions that were not closed, by the key of what was asked.
        results: What was accepted, by task.
        inputs: The digest of each of a task's files before anybody worked on it, by task.
        why: Why tasks ran once more, by task.
        usage: What its turns have consumed.
        spent: What its turns have cost, as it was written.
        waits: What its tasks have waited for, as it was written.
    """

    id: str
    goal: str
    directory: Path
    state: str
    is_over: bool
    started_at: str
    settings: MissionSettings = field(factory=MissionSettings)
    agents: Mapping[Role, Agent] = field(factory=dict)
    launch: Mapping[str, Any] = field(factory=dict)
    given: Plan | None = None
    record: MissionRecord | None = None
    plans: Mapping[str, int] = field(factory=dict)
    attempts: Mapping[str, Attempt] = field(factory=dict)
    results: Mapping[str, Result] = field(factory=dict)
    inputs: Mapping[str, Mapping[str, str]] = field(factory=dict)
    why: Mapping[str, str] = field(factory=dict)
    usage: Usage = field(factory=Usage)
    spent: Mapping[str, Any] = field(factory=dict)
    waits: Mapping[str, Any] = field(factory=dict)

    def repay(self, spending: Spending) -> None:
        """Let a mission's spending begin with what was paid.

        Args:
            spending: Its spending, of which nothing was used.
        """
        for part, name in self.record.parts if self.record is not None else ():
            spending.add_part(part.id, name)
        spending.restore(self.spent)


async def load_mission(store: MVCCStore, mission_id: str) -> SavedMission:
    """Read what was written of a mission, at one revision. A checkpoint.

    Args:
        store: Where it was recorded.
        mission_id: The mission.

    Raises:
        MissionError: No such mission is recorded.
        StoreError: The store cannot be read.
    """
    async with store.namespace(mission_id).snapshot() as snap:
        everything = await snap.range()
    about = everything.get(MISSION)
    if about is None:
        raise MissionError(f"no mission {mission_id} is recorded; look at 'orchestra history'")
    setup = everything.get(SETUP) or {}

    def under(prefix: str) -> dict[str, Any]:
        return {
            key.removeprefix(prefix): value
            for key, value in everything.items()
            if key.startswith(prefix)
        }

    return SavedMission(
        id=mission_id,
        goal=about["goal"],
        directory=Path(about["directory"]),
        state=about["state"],
        is_over=about["is_over"],
        started_at=about["started_at"],
        settings=from_plain(MissionSettings, setup.get("settings", {})),
        agents={
            Role(role): from_plain(Agent, plain) for role, plain in setup.get("agents", {}).items()
        },
        launch=setup.get("launch", {}),
        given=_plan(setup.get("plan") or ()),
        record=_record(everything, under),
        plans={each["id"]: each["plan"] for each in everything.get(PLAN) or ()},
        attempts={key: Attempt(**plain) for key, plain in under(ATTEMPT).items()},
        results={key: Result.from_plain(plain) for key, plain in under(RESULT).items()},
        inputs=under(INPUT),
        why=under(WHY),
        usage=Usage(**(everything.get(TOTALS) or {})),
        spent=under(SPENT),
        waits=under(WAITS),
    )


def _plan(plain: Any) -> Plan | None:
    return Plan(tuple(map(spec_from_plain, plain))) if plain else None


def _record(everything: Mapping[str, Any], under: Any) -> MissionRecord | None:
    state = everything.get(STATE)
    if state is None:
        return None
    planned = everything.get(PLAN) or []
    newest = max((each["plan"] for each in planned), default=0)
    present = [each for each in planned if each["plan"] == newest]
    if state["phase"] == "approval":
        present = everything.get(PROPOSAL) or []
    parts: list[tuple[TaskSpec, str]] = [
        (spec_from_plain(plain), plain["parent"]) for plain in under(PART).values()
    ]
    evidence = under(EVIDENCE)
    return MissionRecord(
        state=state,
        plan=tuple(map(spec_from_plain, present)),
        specs=tuple(map(spec_from_plain, planned)),
        parts=tuple(parts),
        tasks={
            name: {**plain, "evidence": evidence.get(name, "")}
            for name, plain in under(TASK).items()
        },
    )


async def unfinished_missions(store: MVCCStore) -> tuple[str, ...]:
    """Return the missions that can be gone on with, the last one to be started last.

    Args:
        store: Where missions are recorded.
    """
    found = []
    for name in await store.namespaces():
        if name.startswith("mission_"):
            space = store.namespace(name)
            about = await space.get(MISSION)
            if about is not None and not about["is_over"]:
                first = await space.journal(0, limit=1)
                found.append((about["started_at"], [each.time for each in first], name))
    return tuple(name for *_, name in sorted(found))
