"""A whole mission in one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from orchestra import Agent, HookRegistry, MVCCStore, SessionBackend
from orchestra.opencode.mission.events import MissionEvent
from orchestra.opencode.mission.plan import MissionSettings, Plan, Role
from orchestra.opencode.mission.report import MissionReport
from orchestra.opencode.mission.runner import Mission
from orchestra.opencode.mission.saved import load_mission
from orchestra.opencode.people.questions import Person

__all__ = ("resume_mission", "run_mission")


async def run_mission(
    goal: str,
    *,
    backend: SessionBackend,
    directory: Path | str = ".",
    plan: Plan | None = None,
    agents: Mapping[Role, Agent] | None = None,
    settings: MissionSettings | None = None,
    listener: Callable[[MissionEvent], object] | None = None,
    store: MVCCStore | None = None,
    hooks: HookRegistry | None = None,
    approve: Person | None = None,
) -> MissionReport:
    """Run a mission to its end. Always a checkpoint.

    Args:
        goal: What the mission is for.
        backend: Where the agents run. One that is not open is entered, and left afterwards.
        directory: The workspace.
        plan: A ready plan; None: commander and planner make one.
        agents: Agents that replace a role's own.
        settings: The rules of the run.
        listener: Called with each event, at once; one that raises is logged and dropped.
        store: Where the mission's state is written; an open one. None: in memory.
        hooks: Steps of yours at the mission's hook points.
        approve: Asked about the plan when ``settings.must_approve`` is set.

    Returns:
        The report, however the mission ended.

    Raises:
        HookOrderError: The hooks and the mission's own steps fit into no order.
        ValueError: The goal is empty, a hook has the name of a step of the mission, or nobody can
            be asked about the plan although somebody must.
        NotADirectoryError: The workspace does not exist.
        OrchestraError: The backend cannot be entered.
    """
    async with Mission(
        goal,
        backend=backend,
        directory=directory,
        plan=plan,
        agents=agents,
        settings=settings,
        listener=listener,
        store=store,
        hooks=hooks,
        approve=approve,
    ) as mission:
        return await mission.wait_finished()


async def resume_mission(
    mission_id: str,
    *,
    backend: SessionBackend,
    store: MVCCStore,
    plan: Plan | None = None,
    agents: Mapping[Role, Agent] | None = None,
    settings: MissionSettings | None = None,
    listener: Callable[[MissionEvent], object] | None = None,
    hooks: HookRegistry | None = None,
    approve: Person | None = None,
) -> MissionReport:
    """Go on with a mission that was killed or interrupted, to its end. Always a checkpoint.

    What was accepted is not done again, unless what it was made of, or what it left in the
    workspace, is another one by now. Turns that still run in the backend are followed.

    Args:
        mission_id: The mission.
        backend: The same place as before. One that is not open is entered, and left afterwards.
        store: Where the mission is recorded; an open one.
        plan: Takes the place of the plan that it was given.
        agents: Take the place of those of before.
        settings: Take the place of those of before.
        listener: Called with each event, at once; one that raises is logged and dropped.
        hooks: Steps of yours at the mission's hook points; they are not recorded.
        approve: Asked about the plan, when somebody must be.

    Returns:
        The report, however the mission ended.

    Raises:
        MissionError: No such mission is recorded, or it has come to its end.
        WorkspaceOwnedError: Somebody else runs a mission in the workspace.
        StoreError: The records cannot be read.
        OrchestraError: The backend cannot be entered.
    """
    saved = await load_mission(store, mission_id)
    async with Mission(
        saved.goal,
        backend=backend,
        plan=plan,
        agents=agents,
        settings=settings,
        listener=listener,
        store=store,
        hooks=hooks,
        approve=approve,
        saved=saved,
    ) as mission:
        return await mission.wait_finished()
