from __future__ import annotations

import json
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestra.abc import Agent, PermissionRule
from orchestra.errors import ConfigurationError
from orchestra.opencode.client.config import (
    BASE_AGENT,
    WARMING_PROVIDER,
    merge,
    permission_list,
    permission_object,
    server_config,
)

NAMES = ["bash", "edit", "read", "mcp_a", "mcp_b", "*", "mcp_*"]
PATTERNS = ["*", "git *", "git push *", "rm *"]
ACTIONS: tuple[Literal["allow", "deny", "ask"], ...] = ("allow", "deny", "ask")

RULES = st.lists(
    st.builds(
        PermissionRule,
        permission=st.sampled_from(NAMES),
        pattern=st.sampled_from(PATTERNS),
        action=st.sampled_from(ACTIONS),
    ),
    max_size=8,
)


def decide(rules: Sequence[tuple[str, str, str]], permission: str, subject: str) -> str:
    """The server's rule: the last match wins."""
    found = "none"
    for name, pattern, action in rules:
        if fnmatchcase(permission, name) and fnmatchcase(subject, pattern):
            found = action
    return found


@settings(deadline=None)
@given(RULES)
def test_rules_keep_their_meaning_in_both_forms(rules: list[PermissionRule]) -> None:
    """As a list and, where it can be written so, as an object, every request is decided alike."""
    plain = [(rule.permission, rule.pattern, rule.action) for rule in rules]
    listed = [
        (rule["permission"], rule["pattern"], rule["action"]) for rule in permission_list(rules)
    ]
    assert listed == plain
    try:
        written = json.loads(json.dumps(permission_object(rules)))
    except ConfigurationError:
        return
    flat = [
        (name, pattern, action)
        for name, patterns in written.items()
        for pattern, action in ({"*": patterns} if isinstance(patterns, str) else patterns).items()
    ]
    for permission in ("bash", "edit", "read", "mcp_a", "mcp_b", "other"):
        for subject in ("git push x", "git log", "rm x", "ls"):
            assert decide(flat, permission, subject) == decide(plain, permission, subject)


def test_rules_that_an_object_cannot_hold_are_refused() -> None:
    """An object has each name once; a wildcard between two rules for one name decides."""
    rules = [PermissionRule(permission=name, action="ask") for name in ("bash", "*", "bash")]
    with pytest.raises(ConfigurationError, match=r"'bash'.*side by side"):
        permission_object(rules)
    apart = [PermissionRule(permission=name) for name in ("bash", "edit", "bash")]
    assert list(permission_object(apart)) == ["bash", "edit"]


def test_agents_become_configuration_and_the_callers_wins() -> None:
    """Prompt, model and rules arrive; what the caller configures is merged on top."""
    agent = Agent(
        "worker",
        prompt="You are the worker.",
        model="p/m2",
        permissions=(PermissionRule(permission="bash", action="deny"),),
    )
    extra = {"agent": {"worker": {"steps": 9}}, "snapshot": True, "plugin": ["x"]}
    config = server_config([agent], model="p/m", extra=extra)
    assert config["model"] == "p/m"
    assert config["snapshot"] is True
    assert config["share"] == "disabled"
    assert config["agent"]["worker"] == {
        "mode": "all",
        "description": "The worker",
        "prompt": "You are the worker.",
        "model": "p/m2",
        "permission": {"bash": "deny"},
        "steps": 9,
    }
    assert BASE_AGENT in config["agent"]
    plain = server_config([Agent("plain")], model=None, extra=None)
    assert "model" not in plain
    assert plain["agent"]["plain"].keys() == {"mode", "description"}


def test_merging_changes_neither_side() -> None:
    """Nested objects are merged into a new one; anything else replaces."""
    base: dict[str, object] = {"a": {"b": 1, "c": [1]}, "d": 1}
    extra: dict[str, object] = {"a": {"c": [2]}, "d": {"e": 1}}
    assert merge(base, extra) == {"a": {"b": 1, "c": [2]}, "d": {"e": 1}}
    assert base == {"a": {"b": 1, "c": [1]}, "d": 1}


def test_the_provider_for_prewarming_does_not_get_in_the_way() -> None:
    """It is there beside the caller's, allowed, and absent where it could become the default."""
    mine = {"provider": {"mine": {"name": "Mine"}}, "enabled_providers": ["mine"]}
    config = server_config([], model="mine/m", extra=mine)
    assert list(config["provider"]) == ["mine", WARMING_PROVIDER]
    assert config["enabled_providers"] == ["mine", WARMING_PROVIDER]
    assert config["model"] == "mine/m"
    assert "enabled_providers" not in server_config([], model="mine/m", extra=None)
    assert server_config([], model=None, extra=mine)["provider"] == mine["provider"]
    assert mine["enabled_providers"] == ["mine"]
