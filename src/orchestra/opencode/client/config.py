"""Our agents and rules in the terms of OpenCode's configuration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orchestra.abc import Agent, PermissionRule
from orchestra.errors import ConfigurationError

__all__ = (
    "BASE_AGENT",
    "WARMING_MODEL",
    "WARMING_PROVIDER",
    "merge",
    "permission_list",
    "permission_object",
    "server_config",
)

BASE_AGENT = "orchestra"
"""The agent behind those that a server of our own was not told of when it was started."""

WARMING_PROVIDER = "orchestra-prewarm"
"""A provider that nobody can reach. A prompt to its model makes the server load all that a prompt
needs, up to the call of the model, which fails at once and costs nothing."""

WARMING_MODEL = "none"
_UNREACHABLE = "http://127.0.0.1:1/"

_BASE_PROMPT = "Work on your own in the working directory; nobody can answer questions."


def permission_list(rules: Iterable[PermissionRule]) -> list[dict[str, str]]:
    """Rules as a session takes them.

    Args:
        rules: The rules; the last match wins, there as here.
    """
    return [
        {"permission": rule.permission, "pattern": rule.pattern, "action": rule.action}
        for rule in rules
    ]


def permission_object(rules: Sequence[PermissionRule]) -> dict[str, str | dict[str, str]]:
    """Rules as an agent's configuration takes them: an object whose order counts.

    Args:
        rules: The rules; the last match wins, there as here.

    Raises:
        ConfigurationError: The order cannot be kept, since the rules for one permission stand on
            both sides of a wildcard.
    """
    places: dict[str, dict[str, str]] = {}
    last = ""
    for rule in rules:
        name = rule.permission
        if name in places and name != last:
            # Rules of distinct plain names never meet, so they may be gathered.
            later = list(places)[list(places).index(name) + 1 :]
            if any("*" in other or "?" in other for other in [name, *later]):
                raise ConfigurationError(
                    f"the rules for permission {name!r} stand on both sides of a wildcard; "
                    "put them side by side"
                )
        patterns = places.setdefault(name, {})
        patterns.pop(rule.pattern, None)
        patterns[rule.pattern] = rule.action
        last = name
    # Some permissions know no patterns and take a bare action only.
    return {
        name: patterns["*"] if list(patterns) == ["*"] else patterns
        for name, patterns in places.items()
    }


def server_config(
    agents: Iterable[Agent], *, model: str | None, extra: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The configuration of a server of our own.

    Args:
        agents: The agents that it shall know.
        model: The default model, ``provider/model``.
        extra: What else shall be configured; wins.
    """
    config: dict[str, Any] = {
        # A snapshot of the work tree around every step makes runs wait for each other.
        "snapshot": False,
        "autoupdate": False,
        "share": "disabled",
        # A long run outlives its context; the price is a model call when it is compacted.
        "compaction": {"auto": True},
        "agent": {
            BASE_AGENT: {"mode": "all", "description": "Works alone", "prompt": _BASE_PROMPT}
        },
    }
    if model is not None:
        config["model"] = model
    for agent in agents:
        entry: dict[str, Any] = {"mode": "all", "description": f"The {agent.name}"}
        if agent.prompt:
            entry["prompt"] = agent.prompt
        if agent.model is not None:
            entry["model"] = agent.model
        if agent.permissions:
            entry["permission"] = permission_object(agent.permissions)
        config["agent"][agent.name] = entry
    merged = merge(config, extra or {})
    # Without a default model the server would take one of the providers that it finds here.
    return _with_warming(merged) if merged.get("model") else merged


def _with_warming(config: dict[str, Any]) -> dict[str, Any]:
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "Nobody, for prewarming",
        "options": {"baseURL": _UNREACHABLE, "apiKey": "none"},
        "models": {WARMING_MODEL: {"name": WARMING_MODEL}},
    }
    changed = merge(config, {"provider": {WARMING_PROVIDER: provider}})
    if (enabled := config.get("enabled_providers")) is not None:
        changed["enabled_providers"] = [*enabled, WARMING_PROVIDER]
    return changed


def merge(base: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested objects; anything but an object replaces what was there.

    Args:
        base: The one.
        extra: The other, which wins.
    """
    merged = dict(base)
    for name, value in extra.items():
        old = merged.get(name)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[name] = merge(old, value) if both else value  # type: ignore[arg-type] # `both`
    return merged
