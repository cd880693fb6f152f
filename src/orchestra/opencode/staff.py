"""Who works on a mission of the command line: the roles' agents and the specialists."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs
from attrs import frozen

from orchestra import Agent
from orchestra.errors import ConfigurationError
from orchestra.opencode.agents.agents_file import AgentsFile, find_agents_file, read_agents_file
from orchestra.opencode.mission.file import MissionFile
from orchestra.opencode.mission.plan import Role
from orchestra.opencode.mission.specialists import Specialist

__all__ = ("Staff", "find_staff")


@frozen(kw_only=True)
class Staff:
    """Who works on a mission.

    Attributes:
        agents: The agent of each role.
        specialists: Agents that a task may name.
    """

    agents: Mapping[Role, Agent]
    specialists: tuple[Specialist, ...] = ()

    @property
    def configured(self) -> list[Agent]:
        """The agents that a server of our own is told of."""
        agents = [*self.agents.values(), *(each.agent for each in self.specialists)]
        return list({agent.name: agent for agent in agents if agent.prompt}.values())


def find_staff(mission: MissionFile, workspace: Path, *, reads_project: bool) -> Staff:
    """Return who works on a mission.

    Args:
        mission: What the mission file says; it may name an agents file.
        workspace: Where the agents file of the project is looked for, if it is.
        reads_project: Whether the project's own agents file is read.

    Raises:
        ConfigurationError: An agents file is wrong, missing, or does not go with the mission file.
    """
    path = mission.agents_file
    if reads_project:
        if path is not None:
            raise ConfigurationError(
                f"--project-agents: {mission.path} names an agents file already; "
                "leave one of them out"
            )
        path = find_agents_file(workspace)
        if path is None:
            raise ConfigurationError(
                f"--project-agents: there is no .orchestra/agents.toml or agents.json in "
                f"{str(workspace)!r}; write one, or leave the option out"
            )
    agents = mission.role_agents()
    if path is None:
        staff = Staff(agents=agents)
    else:
        file = read_agents_file(path)
        staff = Staff(agents=_cast(agents, file), specialists=file.specialists)
    _check(staff, mission)
    return staff


def _cast(agents: Mapping[Role, Agent], file: AgentsFile) -> Mapping[Role, Agent]:
    """Give each role its agent: a specialist that the mission file names for it, or its own."""
    known = {each.agent.name: each.agent for each in file.specialists}
    named = {
        role: attrs.evolve(known[agent.name], model=agent.model or known[agent.name].model)
        if agent.name in known
        else agent
        for role, agent in agents.items()
    }
    return file.role_agents(named)


def _check(staff: Staff, mission: MissionFile) -> None:
    names = [each.agent.name for each in staff.specialists]
    problems = []
    for index, task in enumerate(mission.plan.tasks if mission.plan is not None else ()):
        if task.agent and task.agent not in names:
            problems.append(
                f"{mission.path}: tasks[{index}].agent: expected an agent of the agents file "
                f"({', '.join(names) or 'there is none'}), got {task.agent!r}"
            )
    if mission.backend == "embedded":
        problems += [
            f"{mission.path}: agents.{name}: expected a table with 'command' or 'call', since the "
            "embedded backend has no agents of its own, but it is missing"
            for name in names
            if name not in mission.agents
        ]
    if problems:
        raise ConfigurationError(*problems)
