"""Making the embedded backend's agents from what a mission file names; this runs foreign code."""

from __future__ import annotations

from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import NoReturn, cast

from orchestra import CommandAgent, EmbeddedAgent
from orchestra.errors import ConfigurationError
from orchestra.opencode.mission.file import AgentCommand, MissionFile

__all__ = ("load_agents",)


class _UncachedLoader(SourceFileLoader):
    """Leaves no ``__pycache__`` beside the mission file, which may well be the workspace."""

    def path_stats(self, path: str) -> NoReturn:
        """Refuse, which turns the bytecode cache off.

        Args:
            path: The source file.
        """
        raise OSError(f"{path} is not cached")


def load_agents(mission: MissionFile) -> dict[str, EmbeddedAgent | CommandAgent]:
    """Make the embedded backend's agents; this runs the Python files that the mission names.

    A file is run once, however many functions of it are agents.

    Args:
        mission: A mission for the embedded backend.

    Raises:
        ConfigurationError: A file raises, or lacks the function; one line per fault.
    """
    agents: dict[str, EmbeddedAgent | CommandAgent] = {}
    modules: dict[Path, ModuleType] = {}
    problems = []
    for name, entry in mission.agents.items():
        if isinstance(entry, AgentCommand):
            agents[name] = CommandAgent(entry.argv, timeout=entry.timeout)
            continue
        where = f"{mission.path}: agents.{name}.call"
        if entry.path not in modules:
            try:
                modules[entry.path] = _load(entry.path, len(modules))
            except Exception as error:  # noqa: BLE001  (somebody else's code may raise anything)
                raised = f"{type(error).__name__}: {error}".splitlines()[0]
                problems.append(f"{where}: {entry.path.name} raised {raised}")
                continue
        function = getattr(modules[entry.path], entry.function, None)
        if callable(function):
            agents[name] = cast("EmbeddedAgent", function)
        else:
            problems.append(
                f"{where}: expected a function {entry.function!r} in {entry.path.name}, "
                "but there is none"
            )
    if problems:
        raise ConfigurationError(*problems)
    return agents


def _load(path: Path, number: int) -> ModuleType:
    name = f"orchestra_mission_agents_{number}"
    loader = _UncachedLoader(name, str(path))
    spec = spec_from_loader(name, loader)
    assert spec is not None  # noqa: S101  (a loader was given)
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module
