"""One agent per role: a short text file as its prompt, and the rules of what it may do.

The rules are written for OpenCode, where the last rule that matches wins and the built-in rules
come first. A rule ``allow`` for everything therefore opens again what the server would have asked
about (questions, directories outside the workspace, ``.env`` files), so these are denied *after*
it. No rule says ``ask``: an agent of a mission waits for a person only where the mission's own
``[permissions]`` say so, and then not for ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Literal, final

from orchestra import Agent, PermissionRule
from orchestra.opencode.mission.plan import Role

__all__ = ("NEVER_OPEN", "ROLE_AGENTS", "add_rules", "close_off")


def _rule(action: Literal["allow", "deny"], permission: str, pattern: str = "*") -> PermissionRule:
    return PermissionRule(permission=permission, pattern=pattern, action=action)


_NO_SECRETS = (
    _rule("deny", "read", "*.env"),
    _rule("deny", "read", "*.env.*"),
    _rule("allow", "read", "*.env.example"),
)
_NOBODY_TO_ASK = tuple(
    _rule("deny", permission)
    for permission in ("task", "question", "external_directory", "doom_loop")
)
NEVER_OPEN: Mapping[str, str] = {
    "task": "'deny', since no agent of a mission starts others",
    "question": "'deny', since nobody answers an agent's questions",
}
"""What no rule of a file may open, with what is expected instead."""
_READ_ONLY = (
    _rule("deny", "*"),
    *(_rule("allow", permission) for permission in ("read", "glob", "grep", "list")),
    *_NO_SECRETS,
)

_PERMISSIONS: Mapping[Role, tuple[PermissionRule, ...]] = {
    Role.COMMANDER: (
        _rule("allow", "*"),
        _rule("deny", "edit"),
        *_NOBODY_TO_ASK,
        *_NO_SECRETS,
    ),
    Role.PLANNER: (*_READ_ONLY, _rule("allow", "todowrite")),
    Role.WORKER: (_rule("allow", "*"), *_NOBODY_TO_ASK, *_NO_SECRETS),
    Role.REVIEWER: (
        *_READ_ONLY,
        _rule("allow", "bash", "pytest *"),
        _rule("allow", "bash", "python -m pytest *"),
        _rule("allow", "bash", "git diff *"),
    ),
}


def close_off(rules: tuple[PermissionRule, ...]) -> tuple[PermissionRule, ...]:
    """Return rules after which nothing is open that a wildcard among them has opened by the way.

    No agent of a mission starts others or asks questions, whatever the rules say. What is outside
    of the workspace, repeated calls, and ``.env`` files are denied unless a rule is about them.

    Args:
        rules: Rules that somebody has written.
    """
    named = {rule.permission for rule in rules}
    is_env_named = any(rule.permission == "read" and ".env" in rule.pattern for rule in rules)
    return (
        *(rule for rule in rules if rule.permission not in NEVER_OPEN),
        *(_rule("deny", name) for name in NEVER_OPEN),
        *(_rule("deny", name) for name in ("external_directory", "doom_loop") if name not in named),
        *(() if is_env_named else _NO_SECRETS),
    )


def add_rules(agent: Agent, rules: tuple[PermissionRule, ...]) -> tuple[PermissionRule, ...]:
    """Return what an agent may do when rules of a mission come after its own.

    A wildcard among them opens no more than it would in an agent's own rules.

    Args:
        agent: The agent.
        rules: The mission's rules for its role.
    """
    is_wide = any(
        rule.permission in NEVER_OPEN or not {*"*?"}.isdisjoint(rule.permission) for rule in rules
    )
    return (*agent.permissions, *(close_off(rules) if is_wide else rules))


@final
class _RoleAgents(Mapping[Role, Agent]):
    """Reads an agent's prompt file when it is asked for, once."""

    def __init__(self) -> None:
        self._built: dict[Role, Agent] = {}

    def __getitem__(self, role: Role) -> Agent:
        agent = self._built.get(role)
        if agent is None:
            prompt = files(__package__).joinpath(f"{role.value}.txt").read_text("utf-8")
            agent = Agent(role.value, prompt=prompt, permissions=_PERMISSIONS[role])
            self._built[role] = agent
        return agent

    def __iter__(self) -> Iterator[Role]:
        return iter(_PERMISSIONS)

    def __len__(self) -> int:
        return len(_PERMISSIONS)

    def __repr__(self) -> str:
        return f"<ROLE_AGENTS {', '.join(role.value for role in _PERMISSIONS)}>"


ROLE_AGENTS: Mapping[Role, Agent] = _RoleAgents()
"""The agent of each role, as this package ships it; a prompt file is read when first asked for.

To change one: ``run_mission(..., agents={Role.WORKER: attrs.evolve(ROLE_AGENTS[Role.WORKER],
model="provider/model")})``.
"""
