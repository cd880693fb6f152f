"""The mission file: a whole mission as one TOML document that is checked before anything starts."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePath
from typing import Any, Literal, TypeAlias, cast

import attrs
from attrs import field, frozen

from orchestra import Agent
from orchestra.errors import ConfigurationError
from orchestra.opencode.agents import ROLE_AGENTS
from orchestra.opencode.mission.file_limits import read_budget, read_fallbacks, read_providers
from orchestra.opencode.mission.file_people import read_people
from orchestra.opencode.mission.isolation import ISOLATIONS, Isolation, IsolationKind
from orchestra.opencode.mission.memory.rules import MemorySettings
from orchestra.opencode.mission.plan import GateSettings, MissionSettings, Plan, Role, TaskSpec
from orchestra.opencode.mission.prompt_limits import MAX_SYSTEM
from orchestra.opencode.mission.tables import Table, describe

__all__ = (
    "AgentCall",
    "AgentCommand",
    "BackendKind",
    "MissionFile",
    "RoleChoice",
    "parse_mission",
    "parse_model",
    "parse_url",
    "read_mission_file",
)

BackendKind: TypeAlias = Literal["embedded", "opencode"]

_BACKENDS = ("embedded", "opencode")
_TASK_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ADDRESS = re.compile(r"https?://[^\s/]")
_MOST_AT_ONCE = 10_000
_MOST_ROUNDS = 100


@frozen
class AgentCommand:
    """An agent that is an external command: prompt on stdin, answer on stdout.

    Attributes:
        argv: The command line; ``{here}`` in a word has become the mission file's folder.
        timeout: Seconds that one prompt may take.
    """

    argv: tuple[str, ...]
    timeout: float


@frozen
class AgentCall:
    """An agent that is a Python function in a file.

    Attributes:
        path: The file.
        function: The function's name.
    """

    path: Path
    function: str


@frozen
class RoleChoice:
    """Who plays a role.

    Attributes:
        agent: The backend's agent; empty: the one that is named like the role.
        model: The model, as ``provider/model``; None: the backend's default.
    """

    agent: str = ""
    model: str | None = None


@frozen(kw_only=True)
class MissionFile:
    """What a mission file says; from `read_mission_file`.

    Attributes:
        path: The file itself.
        goal: What is asked for.
        directory: The workspace, when the file names one.
        template: The folder whose copy is the workspace, when the file names one.
        settings: The rules of the run.
        plan: The ready plan, when the file holds tasks.
        backend: Where the agents run.
        url: The server to attach to; None: start one.
        model: The model of every role that does not name its own; None: the backend's default.
        config: Further OpenCode configuration for a server of our own.
        project_config: Whether a server of our own reads the project's own configuration.
        notify: Whether people are told when the mission is over.
        agents: The agents of the embedded backend.
        roles: Who plays which role.
        agents_file: Further agents, and changes to those of roles; None: none.
    """

    path: Path
    goal: str
    directory: Path | None = None
    template: Path | None = None
    settings: MissionSettings = field(factory=MissionSettings)
    plan: Plan | None = None
    backend: BackendKind = "embedded"
    url: str | None = None
    model: str | None = None
    config: Mapping[str, Any] = field(factory=dict)
    project_config: bool = False
    notify: bool = False
    agents: Mapping[str, AgentCommand | AgentCall] = field(factory=dict)
    roles: Mapping[Role, RoleChoice] = field(factory=dict)
    agents_file: Path | None = None

    def role_agents(self) -> dict[Role, Agent]:
        """Return whom `run_mission` shall talk to, for each role.

        A role that names an agent gets that agent as its backend knows it; any other role gets
        the one that this package ships.
        """
        agents = {}
        for role in Role:
            choice = self.roles.get(role, RoleChoice())
            model = choice.model or self.model
            if choice.agent:
                agents[role] = Agent(choice.agent, model=model)
            else:
                agents[role] = attrs.evolve(ROLE_AGENTS[role], model=model)
        return agents


def read_mission_file(path: Path, *, backend: BackendKind | None = None) -> MissionFile:
    """Read and check a mission file. Nothing that it names is run or loaded.

    Args:
        path: The file.
        backend: Takes the place of the file's own ``backend.kind``.

    Raises:
        ConfigurationError: The file cannot be read or is wrong; one line per fault.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"{path}: expected UTF-8 text, but byte {error.start} is not; save it as UTF-8"
        ) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigurationError(
            f"{path}: the mission file cannot be read ({reason}); check its name"
        ) from None
    return parse_mission(text, path, backend=backend)


def parse_mission(text: str, path: Path, *, backend: BackendKind | None = None) -> MissionFile:
    """Check the text of a mission file; files and folders that it names must exist.

    Args:
        text: The TOML document.
        path: Where it is from: its folder is what relative paths start at.
        backend: Takes the place of the file's own ``backend.kind``.

    Raises:
        ConfigurationError: It is wrong; one line per fault.
    """
    try:
        document = tomllib.loads(text)
    except RecursionError:
        raise ConfigurationError(f"{path}: not TOML that can be read: nested too deeply") from None
    except ValueError as error:
        raise ConfigurationError(f"{path}: not TOML: {error}") from None
    root = Table(document, source=str(path))
    mission = _read(root, path, backend)
    if root.problems:
        raise ConfigurationError(*root.problems)
    return mission


def _read(root: Table, path: Path, override: BackendKind | None) -> MissionFile:
    folder = path.parent
    goal = root.text("goal", is_required=True)
    agents_file = root.text("agents_file")

    workspace = root.table("workspace")
    directory = _folder(workspace, "directory", folder)
    template = _folder(workspace, "template", folder)
    if "directory" in workspace and "template" in workspace:
        workspace.problem("", "expected either 'directory' or 'template', got both")
    defaults = MissionSettings()
    isolation = _isolation(workspace, defaults.isolation, folder)
    workspace.close()

    limits = root.table("limits")
    limit = {
        role.value: limits.integer(
            role.value, defaults.limits[role.value], minimum=1, maximum=_MOST_AT_ONCE
        )
        for role in Role
    }
    limits.close()

    tasks = _tasks(root)
    acceptance = root.table("acceptance")
    commands = acceptance.commands("commands")
    allow = acceptance.commands("allow")
    acceptance.close()
    named = [line for task in tasks for line in task.acceptance]

    memory = root.table("memory")
    remembering = MemorySettings(
        is_on=memory.boolean("enabled", default=defaults.memory.is_on),
        characters=memory.integer(
            "characters", defaults.memory.characters, minimum=0, maximum=MAX_SYSTEM
        ),
    )
    memory.close()

    people = read_people(root)
    rules = root.table("rules")
    fallbacks = read_fallbacks(root, parse_model)
    settings = MissionSettings(
        limits=limit,
        # Wrong names are problems by now, and the settings would not take them.
        fallbacks={} if root.problems else fallbacks,
        providers=read_providers(root),
        budget=read_budget(root),
        loop=attrs.evolve(
            defaults.loop,
            rounds=rules.integer(
                "max_rounds", defaults.loop.rounds, minimum=1, maximum=_MOST_ROUNDS
            ),
            iterations=rules.integer(
                "max_iterations", defaults.loop.iterations, minimum=1, maximum=_MOST_ROUNDS
            ),
        ),
        gates=_gates(root, defaults.gates),
        isolation=isolation,
        acceptance=commands,
        allow=tuple(dict.fromkeys((*commands, *named, *allow))),
        command_timeout=rules.seconds("command_timeout", defaults.command_timeout),
        turn_timeout=rules.seconds("turn_timeout", defaults.turn_timeout),
        deadline=rules.seconds("deadline", 0.0) or None,
        retry_delay=rules.seconds("retry_delay", defaults.retry_delay),
        todo_file=_todo_file(rules, defaults.todo_file),
        memory=remembering,
        has_evidence=rules.boolean("evidence", default=defaults.has_evidence),
        must_approve=people.must_approve,
        people=people.settings,
    )
    rules.close()

    place = root.table("backend")
    kind = cast("BackendKind", override or place.choice("kind", _BACKENDS) or "embedded")
    place.take("kind", "a backend")
    url = _parsed(place, "url", parse_url)
    model = _parsed(place, "model", parse_model)
    config = _config(place)
    project_config = place.boolean("project_config", default=False)
    if url and ("config" in place or "project_config" in place):
        place.problem(
            "", "expected 'url', or 'config' and 'project_config' for a server of our own"
        )
    place.close()

    agent_tables = root.table("agents")
    agents = _agents(agent_tables, folder)
    names = root.table("roles")
    role_tables = {role: names.table(role.value) for role in Role}
    names.close()
    roles = {role: _choice(table) for role, table in role_tables.items()}
    if kind == "embedded":
        working = (Role.WORKER, Role.REVIEWER) if "tasks" in root else tuple(Role)
        for role in working:
            _check_role(role, roles[role].agent, role_tables[role], agent_tables)
    root.close()
    return MissionFile(
        path=path,
        goal=goal,
        directory=directory,
        template=template,
        settings=settings,
        plan=Plan(tasks) if tasks and not root.problems else None,
        backend=kind,
        url=url,
        model=model,
        config=config,
        project_config=project_config,
        notify=people.notify,
        agents=agents,
        roles=roles,
        agents_file=folder / agents_file if agents_file else None,
    )


def _isolation(table: Table, default: Isolation, base: Path) -> Isolation:
    kind = table.choice("isolation", ISOLATIONS)
    folder = table.text("worktrees")
    return Isolation(
        kind=cast("IsolationKind", kind or default.kind),
        folder=base / Path(folder).expanduser() if folder else None,
        patience=table.seconds("merge_patience", default.patience),
    )


def _folder(table: Table, key: str, base: Path) -> Path | None:
    name = table.text(key)
    if not name:
        return None
    path = base / name
    if not os.path.isdir(path):  # noqa: PTH112  (never raises, also not for absurd names)
        table.wrong(key, f"an existing folder (relative to {str(base)!r})")
        return None
    return path


def _gates(root: Table, defaults: GateSettings) -> GateSettings:
    table = root.table("gates")
    servers = table.table("diagnostics")
    diagnostics = {}
    for suffix in servers:
        if not suffix.startswith(".") or suffix != suffix.lower():
            servers.problem(suffix, "expected a suffix in small letters, such as '.py'")
        diagnostics[suffix] = servers.command(suffix)
    at_once = table.integer(
        "commands_at_once", defaults.commands_at_once, minimum=1, maximum=_MOST_AT_ONCE
    )
    unparsed = table.texts("unparsed") if "unparsed" in table else defaults.unparsed
    table.close()
    return GateSettings(
        diagnostics={suffix: argv for suffix, argv in diagnostics.items() if argv},
        unparsed=unparsed,
        commands_at_once=at_once,
    )


def _todo_file(rules: Table, default: str | None) -> str | None:
    name = rules.text("todo_file", default or "", is_filled=False)
    if name and not _is_inside(name):
        rules.wrong("todo_file", "a path inside the workspace, or '' for no file")
    return name or None


def _is_inside(name: str) -> bool:
    """Whether a path, read as relative, cannot lead out of the folder it starts at."""
    path = PurePath(name)
    return not path.is_absolute() and ".." not in path.parts and "\0" not in name


def parse_url(url: str) -> str:
    """Check a server's address.

    Args:
        url: What somebody wrote.

    Raises:
        ConfigurationError: It is not one.
    """
    if not _ADDRESS.match(url):
        expected = "a server's address such as 'http://127.0.0.1:4096'"
        raise ConfigurationError(f"url: expected {expected}, got {describe(url)}")
    return url


def parse_model(model: str) -> str:
    """Check the name of a model.

    Args:
        model: What somebody wrote.

    Raises:
        ConfigurationError: It is not ``provider/model``.
    """
    provider, _, name = model.partition("/")
    if not (provider.strip() and name.strip()):
        raise ConfigurationError(f"model: expected 'provider/model', got {describe(model)}")
    return model


def _parsed(table: Table, key: str, parse: Callable[[str], str]) -> str | None:
    text = table.text(key)
    try:
        return parse(text) if text else None
    except ConfigurationError as error:
        table.problem(key, str(error).removeprefix(f"{key}: "))
        return None


def _config(place: Table) -> Mapping[str, Any]:
    """Read what is passed on to OpenCode as it stands, which takes JSON."""
    expected = "a table of OpenCode configuration"
    value = place.take("config", expected)
    if value is None:
        return {}
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        expected = f"{expected} (without dates and infinite numbers)"
        value = None
    if not isinstance(value, dict):
        place.wrong("config", expected)
        return {}
    return value


def _tasks(root: Table) -> tuple[TaskSpec, ...]:
    if "tasks" not in root:
        root.take("tasks", "an array of tables")
        return ()
    tables = root.tables("tasks")
    if not tables:
        root.problem("tasks", "expected at least one task; leave it out to have the goal planned")
    specs = tuple(_task(table) for table in tables)
    homes: dict[str, Table] = {}
    for table, spec in zip(tables, specs, strict=True):
        if spec.id and homes.setdefault(spec.id, table) is not table:
            table.wrong("id", "an id that no other task has")
    for table, spec in zip(tables, specs, strict=True):
        for position, name in enumerate(spec.depends):
            if name not in homes:
                expected = f"expected the id of a task, got {describe(name)}"
                table.problem("depends", expected, index=position)
    graph: dict[str, set[str]] = {}
    for spec in specs:
        graph.setdefault(spec.id, set()).update(homes.keys() & spec.depends)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle = error.args[1][::-1]  # as written: each task before those it waits for
        homes[circle[0]].problem("depends", f"expected no circle, got {' -> '.join(circle)}")
    return specs


def _task(table: Table) -> TaskSpec:
    files = table.texts("files")
    for index, name in enumerate(files):
        if not _is_inside(name):
            expected = f"a path inside the workspace, got {describe(name)}"
            table.problem("files", f"expected {expected}", index=index)
    spec = TaskSpec(
        id=_task_id(table),
        title=table.text("title", is_required=True),
        instructions=table.text("instructions", is_filled=False),
        files=files,
        depends=table.texts("depends"),
        acceptance=table.commands("acceptance"),
        agent=table.text("agent"),
    )
    table.close()
    return spec


def _task_id(table: Table) -> str:
    name = table.text("id", is_required=True)
    if name and not _TASK_ID.fullmatch(name):
        table.wrong("id", "1 to 64 letters, digits, '.', '_' or '-'")
    return name


def _agents(names: Table, folder: Path) -> dict[str, AgentCommand | AgentCall]:
    agents: dict[str, AgentCommand | AgentCall] = {}
    for name in names:
        faults = len(names.problems)
        table = names.table(name)
        if len(names.problems) > faults:
            continue
        if ("command" in table) == ("call" in table):
            found = "both" if "call" in table else "neither"
            table.problem("", f"expected either 'command' or 'call', got {found}")
        command = table.command("command")
        timeout = table.seconds("timeout", 1800.0)
        call = _call(table, folder)
        if command:
            here = os.path.abspath(folder)  # noqa: PTH100  (lexical, as it was written)
            argv = tuple(word.replace("{here}", here) for word in command)
            agents[name] = AgentCommand(argv, timeout)
        elif call is not None:
            agents[name] = call
            if "timeout" in table:
                table.problem("timeout", "expected beside 'command' only; see rules.turn_timeout")
        table.close()
    return agents


def _call(table: Table, folder: Path) -> AgentCall | None:
    target = table.text("call")
    if not target:
        return None
    name, _, function = target.rpartition(":")
    path = folder / name
    if not name.endswith(".py") or not function.isidentifier():
        table.wrong("call", "'file.py:function'")
    elif not os.path.isfile(path):  # noqa: PTH113  (never raises, also not for absurd names)
        table.wrong("call", f"an existing file (relative to {str(folder)!r})")
    else:
        return AgentCall(path, function)
    return None


def _choice(table: Table) -> RoleChoice:
    choice = RoleChoice(agent=table.text("agent"), model=_parsed(table, "model", parse_model))
    table.close()
    return choice


def _check_role(role: Role, choice: str, table: Table, defined: Table) -> None:
    """The embedded backend has no agents of its own: each role that will work must have one."""
    if choice and choice not in defined:
        table.wrong("agent", "the name of an [agents.NAME] table")
    elif not choice and role.value not in defined and "agent" not in table:
        defined.problem(
            role.value,
            "expected a table with 'command' or 'call', since the embedded backend has no agents "
            "of its own, but it is missing",
        )
