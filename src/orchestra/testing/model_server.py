"""A scripted model behind the HTTP API that model providers share.

With it a mission runs against the real OpenCode server without tokens and without a network.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from inspect import isawaitable
from typing import Any, Self, final

import anyio
from anyio.abc import SocketAttribute, SocketStream
from attrs import frozen

from orchestra.testing.model_script import (
    DEFAULT_RULES,
    ModelRequest,
    Playbook,
    Rule,
    ScriptError,
    Text,
    agent_of,
    parse_request,
    text_matches,
)

try:
    from orchestra.testing._http import Request, Response, serve_connection
    from orchestra.testing.model_wire import error_response, json_response, render
except ModuleNotFoundError as _missing:
    raise ImportError("ScriptedModel needs h11: pip install 'orchestra[testing]'") from _missing

__all__ = ("ScriptedModel", "ScriptedModelStatistics", "UnmatchedRequest")

_LOG = logging.getLogger(__name__)


@frozen(kw_only=True)
class UnmatchedRequest:
    """A request that the script had no answer for.

    Attributes:
        request: The request.
        reason: What was missing; the client was told the same, with status 400.
    """

    request: ModelRequest
    reason: str


@frozen(kw_only=True)
class ScriptedModelStatistics:
    """A snapshot of a `ScriptedModel`.

    Attributes:
        requests: Chat-completions requests so far, the unmatched ones included.
        unmatched: Requests that the script had no answer for.
        in_flight: Requests being answered now.
        max_in_flight: The most that were answered at the same time.
    """

    requests: int
    unmatched: int
    in_flight: int
    max_in_flight: int


@final
class ScriptedModel(anyio.AsyncContextManagerMixin):
    """An OpenAI-compatible model server, in process, that answers by rules.

    It listens on the loopback interface, at a free port, and speaks ``POST /v1/chat/completions``
    (streamed and not) and ``GET /v1/models``. Which step of a script is next is read from the
    request itself, by counting the answers after the last user message. So repeated requests
    and parallel sessions never confuse it; only faults and ``Rule.times`` are counted here::

        rules = [
            Rule(agent="planner", answer='{"tasks": []}'),
            Rule(agent="worker", prompt="task-3", answer=[
                Failure(429, retry_after=1),
                ToolCall("write", {"filePath": "a.py", "content": ""}),
                "Done.",
            ]),
        ]
        async with ScriptedModel(*rules) as model:
            ...  # point a client at model.url
            assert len(model.calls(agent="worker")) == 3

    A request that no rule answers gets status 400, which clients do not retry, and is kept in
    `unmatched`. OpenCode's own title and compaction calls are answered unless a rule does.

    Args:
        rules: The rules in order; the first that matches answers.
        identify: Reads the agent's name from the system text.
        max_body: The largest request body, in bytes.
        max_records: How many requests are kept; the oldest are dropped first.
    """

    def __init__(
        self,
        *rules: Rule,
        identify: Callable[[str], str] = agent_of,
        max_body: int = 16 * 1024 * 1024,
        max_records: int = 2000,
    ) -> None:
        for name, value in (("max_body", max_body), ("max_records", max_records)):
            if value < 1:
                raise ValueError(f"{name} is {value}, but must be at least 1")
        self._playbook = Playbook((*rules, *DEFAULT_RULES))
        self._identify = identify
        self._max_body = max_body
        self._requests: deque[ModelRequest] = deque(maxlen=max_records)
        self._unmatched: deque[UnmatchedRequest] = deque(maxlen=max_records)
        self._count = 0
        self._unmatched_count = 0
        self._in_flight = 0
        self._max_in_flight = 0
        self._arrival = anyio.Event()
        self._port = 0
        self._started = 0.0

    def __repr__(self) -> str:
        place = self.url if self._port else "not listening"
        return f"<ScriptedModel {place}, {self._count} requests>"

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        if self._port:
            raise RuntimeError("this ScriptedModel has been entered already; create another")
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
        failure: Exception | None = None
        async with listener, anyio.create_task_group() as tasks:
            self._port = listener.extra(SocketAttribute.local_port)  # noqa: S610 - not Django's
            self._started = anyio.current_time()
            tasks.start_soon(listener.serve, self._serve)
            try:
                yield self
            except Exception as exc:  # noqa: BLE001 - raised again below, outside the task group
                failure = exc
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure

    @property
    def url(self) -> str:
        """The base URL, ``http://127.0.0.1:<port>/v1``."""
        if not self._port:
            raise RuntimeError("this ScriptedModel is not listening; use it with 'async with'")
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def requests(self) -> tuple[ModelRequest, ...]:
        """The requests in the order of arrival; at most ``max_records``, the newest."""
        return tuple(self._requests)

    @property
    def unmatched(self) -> tuple[UnmatchedRequest, ...]:
        """The requests that the script had no answer for."""
        return tuple(self._unmatched)

    def calls(
        self, *, agent: str | None = None, prompt: Text | None = None
    ) -> tuple[ModelRequest, ...]:
        """The recorded requests of an agent, or about a prompt.

        Args:
            agent: The agent's name.
            prompt: What the last user message must match, as in a `Rule`.
        """
        return tuple(
            request
            for request in self._requests
            if (agent is None or agent == request.agent)
            and (prompt is None or text_matches(prompt, request.prompt))
        )

    async def wait_called(
        self, count: int = 1, *, agent: str | None = None, prompt: Text | None = None
    ) -> tuple[ModelRequest, ...]:
        """Wait until so many matching requests have arrived, and return them. A checkpoint.

        Args:
            count: How many.
            agent: The agent's name.
            prompt: What the last user message must match, as in a `Rule`.
        """
        await anyio.lowlevel.checkpoint()
        while len(found := self.calls(agent=agent, prompt=prompt)) < count:
            await self._arrival.wait()
        return found

    def statistics(self) -> ScriptedModelStatistics:
        """A snapshot of the counters."""
        return ScriptedModelStatistics(
            requests=self._count,
            unmatched=self._unmatched_count,
            in_flight=self._in_flight,
            max_in_flight=self._max_in_flight,
        )

    def opencode_config(
        self,
        *,
        header_timeout: float = 30.0,
        chunk_timeout: float = 60.0,
        context: int = 100_000,
        output: int = 4096,
    ) -> dict[str, Any]:
        """The part of an OpenCode configuration that makes this model its only one.

        The model is ``scripted/m1``; merge the result with the agents and the rest.

        Args:
            header_timeout: Seconds that OpenCode waits for the response headers.
            chunk_timeout: Seconds that it waits for the next piece of a stream.
            context: The context window to declare, in tokens.
            output: The output limit to declare, in tokens.
        """
        options = {
            "baseURL": self.url,
            "apiKey": "scripted",
            "headerTimeout": round(header_timeout * 1000),
            "chunkTimeout": round(chunk_timeout * 1000),
        }
        model = {
            "name": "m1",
            "limit": {"context": context, "output": output},
            "cost": {"input": 1, "output": 2},
        }
        provider = {
            "npm": "@ai-sdk/openai-compatible",
            "name": "Scripted",
            "options": options,
            "models": {"m1": model},
        }
        return {
            "provider": {"scripted": provider},
            "enabled_providers": ["scripted"],
            "model": "scripted/m1",
            "small_model": "scripted/m1",
        }

    async def _serve(self, stream: SocketStream) -> None:
        await serve_connection(stream, self._handle, max_body=self._max_body)

    @asynccontextmanager
    async def _handle(self, request: Request) -> AsyncGenerator[Response]:
        route = (request.method, request.path.rstrip("/"))
        if route == ("GET", "/v1/models"):
            yield json_response({"object": "list", "data": [{"id": "m1", "object": "model"}]})
        elif route != ("POST", "/v1/chat/completions"):
            known = "use POST /v1/chat/completions or GET /v1/models"
            yield error_response(f"{request.method} {request.path} is unknown; {known}", 404)
        elif request.body is None:
            limit = f"the body is larger than {self._max_body} bytes; raise max_body"
            yield error_response(limit, 413)
        else:
            self._in_flight += 1
            self._max_in_flight = max(self._max_in_flight, self._in_flight)
            try:
                yield await self._complete(request.body, request.headers)
            finally:
                self._in_flight -= 1

    async def _complete(self, body: bytes, headers: Mapping[str, str]) -> Response:
        try:
            request = parse_request(
                json.loads(body),
                headers=headers,
                number=self._count,
                time=anyio.current_time() - self._started,
                identify=self._identify,
            )
        except (ValueError, RecursionError) as exc:
            return error_response(f"{exc}; send a chat-completions request", 400)
        self._count += 1
        self._requests.append(request)
        self._arrival.set()
        self._arrival = anyio.Event()
        try:
            index, rule = self._playbook.rule_for(request)
            script = rule.answer(request) if callable(rule.answer) else rule.answer
            if isawaitable(script):
                script = await script
            return render(self._playbook.step_for(request, index, script), request)
        except ScriptError as exc:
            reason = str(exc)
        except Exception as exc:  # noqa: BLE001 - a faulty script must not look like a dead server
            _LOG.exception("the script failed")
            reason = f"the script raised {exc!r}; mend the rule"
        self._unmatched_count += 1
        self._unmatched.append(UnmatchedRequest(request=request, reason=reason))
        return error_response(reason, 400)
