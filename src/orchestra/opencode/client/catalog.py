"""What a directory of the server has to offer: agents and models."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, final

from attrs import evolve

from orchestra.abc import Agent, Rates
from orchestra.errors import AgentNotFoundError, ModelNotFoundError
from orchestra.opencode.client import wire
from orchestra.opencode.client.config import (
    BASE_AGENT,
    WARMING_MODEL,
    WARMING_PROVIDER,
    permission_list,
)
from orchestra.opencode.client.http import HttpClient

__all__ = ("Catalog",)

_SHOWN = 20


@final
class Catalog:
    """The agents and models of one directory, fetched when first needed.

    Args:
        http: The server.
        directory: The directory.
    """

    def __init__(self, http: HttpClient, directory: str) -> None:
        self._http = http
        self._directory = directory
        self._agents: dict[str, wire.AgentInfo] = {}
        self._missing: set[str] = set()
        self._models: set[str] = set()
        self._prices: dict[str, Rates] = {}
        self._config = wire.ConfigInfo()
        self.warming_model: dict[str, str] | None = None
        """The model that nobody can reach, as a prompt names it; None: the server has none."""

    def __repr__(self) -> str:
        return f"<Catalog {self._directory}, {len(self._agents)} agents>"

    async def fetch(self) -> None:
        """Fetch it now, so that nobody has to wait for it later."""
        await self._find_agent(BASE_AGENT)
        await self._fetch_models()

    async def prepare(
        self, agent: Agent, configured: Agent | None, default_model: str | None
    ) -> tuple[dict[str, Any], list[dict[str, str]]]:
        """Work out how to talk to an agent.

        Args:
            agent: Whom to talk to.
            configured: The agent of that name with which the server was started.
            default_model: The model for agents that name none.

        Returns:
            What every prompt's body has in common, and the session's permission rules.

        Raises:
            AgentNotFoundError: There is no such agent, and no prompt to make one of.
            ModelNotFoundError: There is no such model.
        """
        known = await self._find_agent(agent.name, is_needed=not agent.prompt)
        if known is None and not agent.prompt:
            raise AgentNotFoundError(
                f"the server has no agent {agent.name!r} in {self._directory}; "
                f"it has {_listed(self._agents)}"
            )
        base = known or self._agents.get(BASE_AGENT)
        name = base.name if base is not None else self._config.default_agent or "build"
        template: dict[str, Any] = {"agent": name}
        model = await self._find_model(agent, default_model, known)
        if model is not None:
            provider, _, model_id = model.partition("/")
            template["model"] = {"providerID": provider, "modelID": model_id}
        plain = evolve(agent, subagent_depth=None)  # that is for us to see to, not for the server
        if configured is not None and plain in {
            evolve(configured, subagent_depth=None),
            Agent(agent.name),
        }:
            return template, []
        # What the server has as the agent's prompt already is not sent once more.
        told = (known.prompt if known is not None else None) or ""
        if system := agent.prompt.removeprefix(told):
            template["system"] = system.lstrip()
        return template, permission_list(agent.permissions)

    async def _find_agent(self, name: str, *, is_needed: bool = False) -> wire.AgentInfo | None:
        # An agent of ours that the server lacks is not asked for again with each session.
        if name not in self._agents and (is_needed or name not in self._missing):
            agents = await self._http.agents(self._directory)
            self._agents = {agent.name: agent for agent in agents if not agent.hidden}
            self._config = await self._http.config(self._directory)
            self._missing = {*self._missing, name} - self._agents.keys()
        return self._agents.get(name)

    async def _find_model(
        self, agent: Agent, default: str | None, known: wire.AgentInfo | None
    ) -> str | None:
        wanted = agent.model or default
        if wanted is None:
            if known is not None and known.model is not None:
                return str(known.model)
            return self._config.model
        if wanted not in self._models:
            await self._fetch_models()
        if wanted not in self._models:
            raise ModelNotFoundError(
                f"the server has no model {wanted!r} in {self._directory}; "
                f"it has {_listed(self._models)}"
            )
        return wanted

    async def _fetch_models(self) -> None:
        listed = await self._http.providers(self._directory)
        models = {provider.id: provider.models for provider in listed.providers}
        if WARMING_MODEL in models.pop(WARMING_PROVIDER, ()):
            self.warming_model = {"providerID": WARMING_PROVIDER, "modelID": WARMING_MODEL}
        self._models = {f"{name}/{model}" for name, found in models.items() for model in found}
        priced = {
            f"{name}/{model}": _rates(info)
            for name, found in models.items()
            for model, info in found.items()
        }
        self._prices = {model: rates for model, rates in priced.items() if rates is not None}

    async def prices(self) -> dict[str, Rates]:
        """Return what the models cost; those whose price the server does not know are left out."""
        if not self._models:
            await self._fetch_models()
        return dict(self._prices)


def _rates(info: object) -> Rates | None:
    """Read a model's price; a server that knows none says that it costs nothing."""
    cost = info.get("cost") if isinstance(info, Mapping) else None
    if not isinstance(cost, Mapping):
        return None
    cache = cost.get("cache")
    cache = cache if isinstance(cache, Mapping) else {}
    found = {
        "input": _rate(cost.get("input")),
        "output": _rate(cost.get("output")),
        "cache_read": _rate(cache.get("read")),
        "cache_write": _rate(cache.get("write")),
    }
    if not (found["input"] or found["output"]):
        return None
    rates = Rates(input=found["input"], output=found["output"])
    # Nothing for what is cached is no price either: then it costs as much as input.
    if found["cache_read"]:
        rates["cache_read"] = found["cache_read"]
    if found["cache_write"]:
        rates["cache_write"] = found["cache_write"]
    return rates


def _rate(value: object) -> float:
    is_price = isinstance(value, int | float) and math.isfinite(value) and value > 0
    return float(value) if is_price and isinstance(value, int | float) else 0.0


def _listed(names: Iterable[str]) -> str:
    shown = sorted(names)
    more = len(shown) - _SHOWN
    return (", ".join(shown[:_SHOWN]) or "none") + (f" and {more} more" if more > 0 else "")
