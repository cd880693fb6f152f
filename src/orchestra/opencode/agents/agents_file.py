"""The agents file: changes to the roles' agents, and specialists that a plan may name.

It says what agents may do, so it is as good as code: it is read only when the user of the workspace
has named it, never because it is there.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import attrs
from attrs import field, frozen

from orchestra import Agent, PermissionRule
from orchestra.errors import ConfigurationError
from orchestra.opencode.agents.roles import NEVER_OPEN, ROLE_AGENTS, close_off
from orchestra.opencode.mission.file import parse_model
from orchestra.opencode.mission.plan import Role
from orchestra.opencode.mission.specialists import Specialist
from orchestra.opencode.mission.tables import Table

__all__ = ("AgentEntry", "AgentsFile", "find_agents_file", "parse_agents", "read_agents_file")

FOLDER = ".orchestra"
NAMES = ("agents.toml", "agents.json")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ROLES = {role.value: role for role in Role}
_TAKEN = ("orchestra",)
_MAX_PROMPT = 64 * 1024
_ACTIONS = ("allow", "deny", "ask")


@frozen(kw_only=True)
class AgentEntry:
    """What the file says of one agent; None: nothing.

    Attributes:
        name: The agent, or the role whose agent it changes.
        description: What it is good for.
        prompt: Its standing instructions.
        model: ``provider/model``.
        permissions: What it may do, closed off at the end.
    """

    name: str
    description: str = ""
    prompt: str | None = None
    model: str | None = None
    permissions: tuple[PermissionRule, ...] | None = None

    def apply(self, agent: Agent) -> Agent:
        """Return an agent with what the entry says of it.

        Args:
            agent: The agent as it was.
        """
        changes = {
            name: value
            for name in ("prompt", "model", "permissions")
            if (value := getattr(self, name)) is not None
        }
        return attrs.evolve(agent, **changes)


@frozen(kw_only=True)
class AgentsFile:
    """What an agents file says; from `read_agents_file`.

    Attributes:
        path: The file.
        roles: The changes to the agents of roles.
        specialists: The other agents.
    """

    path: Path
    roles: Mapping[Role, AgentEntry] = field(factory=dict)
    specialists: tuple[Specialist, ...] = ()

    def role_agents(self, agents: Mapping[Role, Agent]) -> dict[Role, Agent]:
        """Return the agents of all roles, changed as the file says.

        Args:
            agents: As they were.
        """
        return {
            role: self.roles[role].apply(agent) if role in self.roles else agent
            for role, agent in agents.items()
        }


def find_agents_file(workspace: Path) -> Path | None:
    """Return the agents file of a workspace, ``.orchestra/agents.toml`` or ``agents.json``.

    Args:
        workspace: The workspace.

    Raises:
        ConfigurationError: There are both.
    """
    found = [path for name in NAMES if (path := workspace / FOLDER / name).is_file()]
    if len(found) > 1:
        raise ConfigurationError(f"{found[0]} and {found[1]} are both there; keep one of them")
    return found[0] if found else None


def read_agents_file(path: Path) -> AgentsFile:
    """Read and check an agents file: TOML, or JSON if it is called so.

    Args:
        path: The file.

    Raises:
        ConfigurationError: It cannot be read or is wrong; one line per fault.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise ConfigurationError(
            f"{path}: the agents file cannot be read ({reason}); check its name"
        ) from None
    return parse_agents(text, path)


def parse_agents(text: str, path: Path) -> AgentsFile:
    """Check the text of an agents file; files that it names must exist.

    Args:
        text: The document.
        path: Where it is from: its folder is what relative paths start at.

    Raises:
        ConfigurationError: It is wrong; one line per fault.
    """
    kind = "JSON" if path.suffix == ".json" else "TOML"
    try:
        document = _parse_json(text) if kind == "JSON" else tomllib.loads(text)
    except RecursionError:
        message = f"{path}: not {kind} that can be read: nested too deeply"
        raise ConfigurationError(message) from None
    except ValueError as error:
        raise ConfigurationError(f"{path}: not {kind}: {error}") from None
    if not isinstance(document, dict):
        raise ConfigurationError(f"{path}: expected an object with one key for each agent")
    root = Table(document, source=path.name)
    entries = [entry for name in root if (entry := _entry(root, name, path.parent)) is not None]
    if root.problems:
        raise ConfigurationError(*root.problems)
    return AgentsFile(
        path=path,
        roles={_ROLES[entry.name]: entry for entry in entries if entry.name in _ROLES},
        specialists=tuple(_specialist(entry) for entry in entries if entry.name not in _ROLES),
    )


def _parse_json(text: str) -> Any:
    """Return what a JSON text says, as strictly as TOML is: no key twice."""

    def make(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"the key {twice!r} is there twice in the same object")
        return made

    return json.loads(text, object_pairs_hook=make)


def _specialist(entry: AgentEntry) -> Specialist:
    """Make an agent of an entry; it may do what a worker may unless the entry says otherwise."""
    base = Agent(entry.name, permissions=ROLE_AGENTS[Role.WORKER].permissions)
    return Specialist(agent=entry.apply(base), description=entry.description)


def _entry(root: Table, name: str, folder: Path) -> AgentEntry | None:
    faults = len(root.problems)
    table = root.table(name)
    if len(root.problems) > faults:
        return None
    if not _NAME.fullmatch(name) or name in _TAKEN:
        table.problem("", "expected a name of 1 to 64 letters, digits, '.', '_' or '-', not taken")
    is_new = name not in _ROLES
    is_misspelt = is_new and name.lower() in _ROLES
    description = table.text("description", is_required=is_new and not is_misspelt)
    prompt = _prompt(table, folder)
    if is_misspelt:
        table.problem("", f"a role's agent is called {name.lower()!r}, in small letters")
    elif is_new and "prompt" not in table and "prompt_file" not in table:
        table.problem("", "expected 'prompt' or 'prompt_file', since this is no role's agent")
    entry = AgentEntry(
        name=name,
        description=description,
        prompt=prompt,
        model=_model(table),
        permissions=_permissions(table),
    )
    table.close()
    return entry


def _prompt(table: Table, folder: Path) -> str | None:
    prompt = table.text("prompt")
    file = table.text("prompt_file")
    if "prompt" in table and "prompt_file" in table:
        table.problem("", "expected either 'prompt' or 'prompt_file', got both")
        return None
    if file:
        try:
            prompt = (folder / file).read_bytes().decode("utf-8")
        except (OSError, ValueError):
            table.wrong("prompt_file", f"a text file (relative to {str(folder)!r})")
            return None
        if not prompt.strip():
            table.wrong("prompt_file", "a file that is not empty")
    if len(prompt.encode("utf-8", "replace")) > _MAX_PROMPT:
        key = "prompt_file" if file else "prompt"
        table.problem(key, f"expected at most {_MAX_PROMPT // 1024} KiB of text")
    return prompt or None


def _model(table: Table) -> str | None:
    model = table.text("model")
    try:
        return parse_model(model) if model else None
    except ConfigurationError as error:
        table.problem("model", str(error).removeprefix("model: "))
        return None


def _permissions(table: Table) -> tuple[PermissionRule, ...] | None:
    if "permissions" not in table:
        table.take("permissions", "an array of tables")
        return None
    rules = []
    for each in table.tables("permissions"):
        permission = each.text("permission", is_required=True)
        pattern = each.text("pattern", "*")
        action = each.choice("action", _ACTIONS, is_required=True)
        if permission in NEVER_OPEN and action in {"allow", "ask"}:
            each.wrong("action", NEVER_OPEN[permission])
        each.close()
        if permission and action is not None:
            word = cast('Literal["allow", "deny", "ask"]', action)
            rules.append(PermissionRule(permission=permission, pattern=pattern, action=word))
    closed = close_off(tuple(rules))
    if problem := _disorder(closed):
        table.problem("permissions", problem)
    return closed


def _disorder(rules: tuple[PermissionRule, ...]) -> str:
    """Return why a server could not keep the order of the rules; empty: it can."""
    try:
        from orchestra.opencode.client.config import permission_object  # noqa: PLC0415
    except ImportError:
        return ""  # without the extra there is no server
    try:
        permission_object(rules)
    except ConfigurationError as error:
        return str(error)
    return ""
