from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream
from anyio.from_thread import start_blocking_portal
from attrs import define, field, frozen

from orchestra.abc import Agent, PermissionRule
from orchestra.opencode.agents import ROLE_AGENTS
from orchestra.opencode.backend import OpenCodeBackend
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


def delegate(request: ModelRequest) -> str | ToolCall:
    """Have the agent that the prompt names do the work."""
    if request.step > 0:
        return "delegated"
    task = {"description": "work", "prompt": "do it", "subagent_type": request.prompt}
    return ToolCall("task", task)


def plan_a_task(request: ModelRequest) -> str:
    """Plan one task, under an id that no earlier plan had."""
    return json.dumps({"tasks": [{"id": f"t{request.number}", "title": "Do it"}]})


RULES = (
    Rule(agent="planner-of-one", answer=plan_a_task),
    Rule(agent="refuser", answer='{"verdict": "reject", "reasons": ["nothing was done"]}'),
    Rule(
        agent="delegator",
        answer=[
            ToolCall("task", {"description": "work", "prompt": "do it", "subagent_type": "echo"}),
            "Everything is done and ticked.",
        ],
    ),
    Rule(
        agent="waiter",
        answer=[
            ToolCall("task", {"description": "work", "prompt": "do it", "subagent_type": "slow"}),
            "It came back.",
        ],
    ),
    Rule(
        agent="pair",
        answer=[
            Reply(
                calls=(
                    ToolCall("bash", {"command": "echo first", "description": "Allowed"}),
                    ToolCall("webfetch", {"url": "http://127.0.0.1:9/", "format": "text"}),
                )
            ),
            "Both are settled.",
        ],
    ),
    Rule(agent="echo", answer=answer_by_prompt),
    Rule(agent="slow", answer=Hang("some text, then nothing", times=None)),
    Rule(agent="fail", answer=Failure(400, "the model cannot do that", times=None)),
    Rule(
        agent="tool",
        answer=[ToolCall("bash", {"command": "echo hi", "description": "Say hi"}), "It said hi."],
    ),
    Rule(agent="ask", answer=answer_after_ask),
    Rule(agent="empty", answer=""),
    Rule(agent="limited", answer=[Failure(429, "slow down", retry_after=0.2), "at last"]),
    Rule(agent="parked", answer=Failure(429, "much slower", retry_after=300, times=None)),
    Rule(agent="cut", answer=Reply("cut off here", finish="length")),
    Rule(
        agent="noise",
        answer=[
            ToolCall("bash", {"command": r"printf 'a\377\376b'", "description": "Noise"}),
            "Ok.",
        ],
    ),
    Rule(agent="boss", answer=delegate),
    Rule(
        agent="noter",
        answer=[
            ToolCall(
                "todowrite",
                {"todos": [{"content": "the secret", "status": "pending", "priority": "high"}]},
            ),
            "Noted.",
        ],
    ),
)

AGENTS = (
    *ROLE_AGENTS.values(),
    *(Agent(name, prompt=f"You are the {name}.") for name in ("echo", "slow", "fail", "tool")),
    Agent(
        "ask",
        prompt="You are the ask.",
        permissions=(PermissionRule(permission="bash", action="ask"),),
    ),
    *(
        Agent(name, prompt=f"You are the {name}.")
        for name in ("empty", "limited", "parked", "cut", "noise", "boss", "noter")
    ),
    *(
        Agent(name, prompt=f"You are the {name}.")
        for name in ("planner-of-one", "refuser", "delegator", "waiter")
    ),
    Agent(
        "pair",
        prompt="You are the pair.",
        permissions=(PermissionRule(permission="webfetch", action="ask"),),
    ),
)


@frozen(kw_only=True)
class RealServer:
    """A real OpenCode server behind which a scripted model answers.

    Attributes:
        url: Where the server is.
        password: Its password.
        model: Runs in another thread: read from it only.
        config: The configuration that leads to the model.
        scripts: What the agents of the mission's roles answer, by role; what is said, by default.
    """

    url: str
    password: str
    model: ScriptedModel
    config: Mapping[str, Any]
    scripts: dict[str, Callable[[ModelRequest], str | ToolCall | Hang | Reply]]

    def backend(self, **options: Any) -> OpenCodeBackend:
        """A backend that is attached to the server."""
        return OpenCodeBackend(self.url, password=self.password, **{"model": MODEL, **options})


@pytest.fixture(scope="session")
def real_server() -> Iterator[RealServer]:
    """One server for all tests of both event loops, since starting one takes seconds."""
    scripts: dict[str, Callable[[ModelRequest], str | ToolCall | Hang | Reply]] = {}

    def answer_as_scripted(request: ModelRequest) -> str | ToolCall | Reply | Hang:
        return scripts.get(request.agent, answer_by_prompt)(request)

    rules = [Rule(agent=role.value, answer=answer_as_scripted) for role in ROLE_AGENTS]
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(ScriptedModel(*rules, *RULES)) as model,
    ):
        config = model.opencode_config()
        owner = OpenCodeBackend(agents=AGENTS, config=config, model=MODEL)
        with portal.wrap_async_context_manager(owner):
            assert owner.url is not None
            assert owner._server is not None
            yield RealServer(
                url=owner.url,
                password=owner._server.password,
                model=model,
                config=config,
                scripts=scripts,
            )


# --- a server that misbehaves on demand ---


@frozen(kw_only=True)
class Request:
    """What a client sent."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: Any


@frozen
class Answer:
    """What it gets. A status of 0 closes the connection without a word."""

    body: Any = None
    status: int = 200
    content_type: str = "application/json"

    def render(self) -> bytes:
        """The answer on the wire."""
        if self.body is None:
            return f"HTTP/1.1 {self.status} X\r\ncontent-length: 0\r\n\r\n".encode()
        is_json = self.content_type == "application/json" and not isinstance(self.body, bytes)
        data = json.dumps(self.body).encode() if is_json else self.body
        head = f"content-type: {self.content_type}\r\ncontent-length: {len(data)}"
        return f"HTTP/1.1 {self.status} X\r\n{head}\r\n\r\n".encode() + data


DROP = Answer(status=0)


@define(eq=False)
class FakeServer:
    """Just enough of OpenCode to hold a conversation, and every fault a test asks for.

    Attributes:
        faults: Answers by ``METHOD /path``, each given once, in order, in place of the right one.
        silent: Paths that are never answered.
        held: Paths whose answer waits for an event, after what was asked for has been done.
        is_answering: Whether a prompt is answered by itself with the text ``answer``.
        is_greeting: Whether a new event stream is opened with ``server.connected``.
    """

    port: int = 0
    requests: list[Request] = field(factory=list)
    faults: dict[str, list[Answer]] = field(factory=dict)
    silent: set[str] = field(factory=set)
    held: dict[str, anyio.Event] = field(factory=dict)
    messages: dict[str, list[dict[str, Any]]] = field(factory=dict)
    children: dict[str, list[dict[str, Any]]] = field(factory=dict)
    statuses: dict[str, Any] = field(factory=dict)
    permissions: list[dict[str, Any]] = field(factory=list)
    questions: list[dict[str, Any]] = field(factory=list)
    todos: list[dict[str, Any]] = field(factory=list)
    is_answering: bool = True
    is_greeting: bool = True
    streams: list[SocketStream] = field(factory=list)
    arrival: anyio.Event = field(factory=anyio.Event)
    sending: anyio.Lock = field(factory=anyio.Lock)

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    def seen(self, call: str) -> list[Request]:
        """The requests that were made to ``METHOD /path``; a path may end in ``*``."""
        method, _, path = call.partition(" ")
        return [
            request
            for request in self.requests
            if request.method == method
            and (request.path.startswith(path[:-1]) if path[-1] == "*" else request.path == path)
        ]

    async def wait_seen(self, call: str, count: int = 1) -> list[Request]:
        """Wait for so many such requests."""
        while len(found := self.seen(call)) < count:
            self.arrival = anyio.Event()
            await self.arrival.wait()
        return found

    async def send(self, kind: str, **properties: Any) -> None:
        """Send an event to every open stream."""
        event = {"id": "evt_1", "type": kind, "properties": properties}
        await self.send_raw(f"data: {json.dumps(event)}\n\n".encode())

    async def send_raw(self, data: bytes) -> None:
        """Send bytes to every open stream."""
        async with self.sending:
            for stream in tuple(self.streams):
                await stream.send(b"%x\r\n%s\r\n" % (len(data), data))

    async def cut(self) -> None:
        """Break every open stream, as a dying server does."""
        streams, self.streams = self.streams, []
        for stream in streams:
            await anyio.aclose_forcefully(stream)

    def store(self, session_id: str, prompt_id: str, text: str, **info: Any) -> None:
        """Store an answer."""
        number = len(self.messages[session_id])
        info = {"finish": "stop", "time": {"created": 1, "completed": 2}, **info}
        part = {"id": f"prt_{number}", "type": "text", "text": text}
        self.messages[session_id].append(
            {
                "info": {"id": f"msg_{number}", "role": "assistant", "sessionID": session_id,
                         "parentID": prompt_id, **info},
                "parts": [{**part, "messageID": f"msg_{number}", "sessionID": session_id}],
            }
        )  # fmt: skip

    async def settle(self, session_id: str) -> None:
        """Make a session idle, and say so."""
        self.statuses.pop(session_id, None)
        await self.send("session.status", sessionID=session_id, status={"type": "idle"})
        await self.send("session.idle", sessionID=session_id)

    # --- inside ---

    async def serve(self, client: SocketStream) -> None:
        """Answer one connection's requests, one after the other."""
        data = b""
        async with client:
            try:
                while True:
                    while b"\r\n\r\n" not in data:
                        data += await client.receive()
                    head, _, data = data.partition(b"\r\n\r\n")
                    first, *lines = head.decode().split("\r\n")
                    headers = {
                        name.lower(): value.strip()
                        for name, _, value in (line.partition(":") for line in lines)
                    }
                    length = int(headers.get("content-length", 0))
                    while len(data) < length:
                        data += await client.receive()
                    body, data = data[:length], data[length:]
                    method, target, _ = first.split(" ")
                    path, _, query = target.partition("?")
                    request = Request(
                        method=method,
                        path=path,
                        query=query,
                        headers=headers,
                        body=json.loads(body) if body else None,
                    )
                    if not await self._respond(client, request):
                        return
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                return

    async def _respond(self, client: SocketStream, request: Request) -> bool:
        call = f"{request.method} {request.path}"
        faults = self.faults.get(call, [])
        fault = faults.pop(0) if faults else None
        if request.path in self.silent:
            self._note(request)
            await anyio.sleep_forever()
        if request.path == "/event" and fault is None:
            await self._stream(client, request)
            return False
        # A dropped connection leaves the client in doubt: the server did what it was asked.
        is_dropped = fault == DROP
        answer = await self._answer(request) if fault is None or is_dropped else fault
        self._note(request)
        if request.path in self.held:
            await self.held[request.path].wait()
        if not is_dropped:
            await client.send(answer.render())
        return not is_dropped

    def _note(self, request: Request) -> None:
        self.requests.append(request)
        self.arrival.set()

    async def _stream(self, client: SocketStream, request: Request) -> None:
        head = "content-type: text/event-stream\r\ntransfer-encoding: chunked"
        await client.send(f"HTTP/1.1 200 OK\r\n{head}\r\n\r\n".encode())
        self.streams.append(client)
        if self.is_greeting:
            await self.send("server.connected")
        self._note(request)
        try:
            await client.receive()
        finally:
            if client in self.streams:
                self.streams.remove(client)

    async def _answer(  # noqa: C901, PLR0912 - one case for each call
        self, request: Request
    ) -> Answer:
        match [request.method, *request.path.strip("/").split("/")]:
            case ["GET", "global", "health"]:
                return Answer({"healthy": True, "version": "1.18.33"})
            case ["GET", "agent"]:
                return Answer([{"name": "echo"}, {"name": "title", "hidden": True}])
            case ["GET", "config"]:
                return Answer({"model": "p/m"})
            case ["GET", "config", "providers"]:
                return Answer({"providers": [{"id": "p", "models": {"m": {}}}], "default": {}})
            case ["GET", "permission"]:
                return Answer(self.permissions)
            case ["GET", "question"]:
                return Answer(self.questions)
            case ["GET", "session", "status"]:
                return Answer(self.statuses)
            case ["POST", "session"]:
                session_id = f"ses_{len(self.messages)}"
                self.messages[session_id] = []
                return Answer({"id": session_id, "directory": "/"})
            case ["GET", "session", session_id, "message"]:
                limit = request.query.partition("limit=")[2]
                messages = self.messages[session_id]
                return Answer(messages[-int(limit) :] if limit else messages)
            case ["DELETE", "session", session_id, "message", message_id]:
                messages = self.messages[session_id]
                messages[:] = [one for one in messages if one["info"]["id"] != message_id]
                return Answer(body=True)
            case ["GET", "session", _, "todo"]:
                return Answer(self.todos)
            case ["PATCH", "session", session_id]:
                return Answer({"id": session_id, "directory": "/"})
            case ["GET", "session", session_id, "children"]:
                return Answer(self.children.get(session_id, []))
            case ["POST", "session", session_id, "prompt_async"]:
                await self._prompt(session_id, request.body)
                return Answer(status=204)
            case ["POST", "session", session_id, "abort"]:
                await self._abort(session_id)
                return Answer(body=True)
            case ["POST", "permission" | "question", request_id, _]:
                self.permissions = [one for one in self.permissions if one["id"] != request_id]
                self.questions = [one for one in self.questions if one["id"] != request_id]
                return Answer(body=True)
            case ["DELETE", "session", session_id]:
                for found in self.children.values():
                    found[:] = [one for one in found if one["id"] != session_id]
                return Answer(body=True)
            case _:
                return Answer(b"<html>hello</html>", content_type="text/html")

    async def _prompt(self, session_id: str, body: Mapping[str, Any]) -> None:
        messages = self.messages[session_id]
        if any(message["info"]["id"] == body["messageID"] for message in messages):
            return  # as the real server: the same id is the same prompt
        info = {"id": body["messageID"], "role": "user", "time": {"created": 1}}
        messages.append({"info": info, "parts": []})
        self.statuses[session_id] = {"type": "busy"}
        await self.send("session.status", sessionID=session_id, status={"type": "busy"})
        if self.is_answering:
            self.store(session_id, body["messageID"], "answer")
            await self.settle(session_id)

    async def _abort(self, session_id: str) -> None:
        if session_id in self.statuses:
            prompt = self.messages[session_id][-1]["info"]["id"]
            error = {"name": "MessageAbortedError", "data": {"message": "Aborted"}}
            self.store(session_id, prompt, "", finish=None, error=error)
            await self.settle(session_id)


@pytest.fixture
async def fake_server() -> AsyncIterator[FakeServer]:
    """A fake server on a port of its own, on the event loop of the test."""
    server = FakeServer()
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        server.port = listener.extra(SocketAttribute.local_port)  # noqa: S610 - not Django
        tasks.start_soon(listener.serve, server.serve)
        yield server
        tasks.cancel_scope.cancel()
