from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal
from attrs import frozen

from orchestra.abc import Agent, PermissionRule
from orchestra.errors import ConfigurationError
from orchestra.opencode.backend import OpenCodeBackend
from orchestra.opencode.client.locate import locate_opencode
from orchestra.testing import (
    Failure,
    Hang,
    ModelRequest,
    Reply,
    Rule,
    ScriptedModel,
    ToolCall,
)

MODEL = "scripted/m1"


def answer_after_ask(request: ModelRequest) -> str | ToolCall:
    """Ask for a permission, then say what came of it."""
    if request.step == 0:
        return ToolCall("bash", {"command": "echo asked", "description": "Ask"})
    return "refused" if "reject" in str(request.messages[-1]["content"]) else "allowed"


def answer_by_prompt(request: ModelRequest) -> Reply:
    """Repeat what was said."""
    return Reply(request.prompt)


RULES = (
    Rule(agent="echo", answer=answer_by_prompt),
    Rule(agent="slow", answer=Hang("some text, then nothing", times=None)),
    Rule(agent="fail", answer=Failure(400, "the model cannot do that", times=None)),
    Rule(
        agent="tool",
        answer=[ToolCall("bash", {"command": "echo hi", "description": "Say hi"}), "It said hi."],
    ),
    Rule(agent="ask", answer=answer_after_ask),
    Rule(agent="empty", answer=""),
)

AGENTS = (
    *(Agent(name, prompt=f"You are the {name}.") for name in ("echo", "slow", "fail", "tool")),
    Agent(
        "ask",
        prompt="You are the ask.",
        permissions=(PermissionRule(permission="bash", action="ask"),),
    ),
    Agent("empty", prompt="You are the empty."),
)


def provider(model: ScriptedModel) -> dict[str, Any]:
    """OpenCode's configuration for the scripted model."""
    models = {"m1": {"name": "m1", "limit": {"context": 100_000, "output": 4_096},
                     "cost": {"input": 1, "output": 2}}}  # fmt: skip
    options = {"baseURL": model.url, "apiKey": "none"}
    return {
        "provider": {
            "scripted": {
                "npm": "@ai-sdk/openai-compatible",
                "name": "Scripted",
                "options": options,
                "models": models,
            }
        },
        "enabled_providers": ["scripted"],
        "small_model": MODEL,
    }


@frozen(kw_only=True)
class RealServer:
    """A real OpenCode server behind which a scripted model answers.

    Attributes:
        url: Where the server is.
        password: Its password.
        model: Runs in another thread: read from it only.
        config: The configuration that leads to the model.
    """

    url: str
    password: str
    model: ScriptedModel
    config: Mapping[str, Any]

    def backend(self, **options: Any) -> OpenCodeBackend:
        """A backend that is attached to the server."""
        return OpenCodeBackend(self.url, password=self.password, **{"model": MODEL, **options})


@pytest.fixture(scope="session")
def real_server() -> Iterator[RealServer]:
    """One server for all tests of both event loops, since starting one takes seconds."""
    try:
        locate_opencode()
    except ConfigurationError as exc:
        pytest.skip(str(exc))
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(ScriptedModel(*RULES)) as model,
    ):
        config = provider(model)
        owner = OpenCodeBackend(agents=AGENTS, config=config, model=MODEL)
        with portal.wrap_async_context_manager(owner):
            assert owner.url is not None
            assert owner._server is not None
            yield RealServer(
                url=owner.url, password=owner._server.password, model=model, config=config
            )
