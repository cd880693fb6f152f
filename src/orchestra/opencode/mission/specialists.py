"""Agents besides those of the roles, which a plan may name for a task; pure."""

from __future__ import annotations

from attrs import field, frozen, validators

from orchestra import Agent

__all__ = ("Specialist",)


@frozen(kw_only=True)
class Specialist:
    """An agent that a task of the plan may name; it takes the worker's place there.

    Attributes:
        agent: The agent.
        description: What it is good for, in a line; the planner reads it.
    """

    agent: Agent
    description: str = field(validator=validators.min_len(1))
