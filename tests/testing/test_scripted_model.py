from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.abc
import httpx2
import pytest

from orchestra.testing import (
    CutStream,
    Failure,
    Hang,
    InvalidChunk,
    ModelRequest,
    Reply,
    Rule,
    ScriptedModel,
    ToolCall,
    Usage,
)

WORKER = "You are the Worker on one task.\nDo it."
ANSWERED = ({"role": "assistant", "content": "one"}, {"role": "tool", "content": "ok"})


@asynccontextmanager
async def serving(*rules: Rule, **options: Any) -> AsyncIterator[tuple[ScriptedModel, Client]]:
    """A running model and a client of it."""
    with anyio.fail_after(30):
        async with (
            ScriptedModel(*rules, **options) as model,
            httpx2.AsyncClient(base_url=model.url, trust_env=False, timeout=20) as http,
        ):
            yield model, Client(http)


class Client:
    """A chat-completions client that says little and parses everything."""

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self.http = http

    def body(
        self,
        prompt: str = "go",
        *after: dict[str, Any],
        system: str = WORKER,
        before: tuple[dict[str, Any], ...] = (),
        **more: Any,
    ) -> dict[str, Any]:
        messages = [
            {"role": "system", "content": system},
            *before,
            {"role": "user", "content": [{"type": "text", "text": prompt}]},
            *after,
        ]
        defaults = {"model": "m1", "stream": True, "stream_options": {"include_usage": True}}
        return {**defaults, "messages": messages, **more}

    async def ask(
        self, *args: Any, headers: dict[str, str] | None = None, **more: Any
    ) -> httpx2.Response:
        body = self.body(*args, **more)
        return await self.http.post("chat/completions", json=body, headers=headers)

    async def text(self, *args: Any, **more: Any) -> str:
        response = await self.ask(*args, **more)
        assert response.status_code == 200, response.text
        deltas = [c["choices"][0]["delta"] for c in chunks(response.text) if c["choices"]]
        return "".join(delta.get("content", "") for delta in deltas)


def chunks(stream: str) -> list[dict[str, Any]]:
    """The decoded chunks; the stream must be well formed and end with [DONE]."""
    events = stream.strip().split("\n\n")
    assert all(event.startswith("data: ") for event in events)
    assert events[-1] == "data: [DONE]"
    return [json.loads(event[6:]) for event in events[:-1]]


def post(body: dict[str, Any]) -> bytes:
    """A whole request, as bytes."""
    content = json.dumps(body).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
    return head % len(content) + content


async def read_into(received: list[bytes], response: httpx2.Response) -> None:
    """Read a response to its end, and keep what came even if that fails."""
    async for data in response.aiter_raw():
        received.append(data)  # noqa: PERF401 - a comprehension loses all at the error


async def until_idle(model: ScriptedModel) -> None:
    """Wait until no request is being answered (the server has no event for it)."""
    while model.statistics().in_flight:  # noqa: ASYNC110
        await anyio.sleep(0.002)


async def connect(model: ScriptedModel) -> anyio.abc.SocketStream:
    """A raw connection to the model."""
    return await anyio.connect_tcp("127.0.0.1", int(model.url.split(":")[2].partition("/")[0]))


# answers


async def test_text_is_streamed_with_role_finish_and_usage() -> None:
    """A streamed text comes in several pieces, then the finish reason, then the usage."""
    text = "word " * 100
    reply = Reply(text, usage=Usage(input=7, output=3, cached=2))
    async with serving(Rule(answer=reply)) as (_, client):
        response = await client.ask()
    assert response.headers["content-type"] == "text/event-stream"
    first, *pieces, finish, usage = chunks(response.text)
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert len(pieces) == 8
    assert "".join(p["choices"][0]["delta"]["content"] for p in pieces) == text
    assert finish["choices"][0]["finish_reason"] == "stop"
    assert usage["choices"] == []
    assert usage["usage"]["prompt_tokens"] == 7
    assert usage["usage"]["completion_tokens"] == 3
    assert usage["usage"]["prompt_tokens_details"]["cached_tokens"] == 2


async def test_usage_is_streamed_only_when_asked_for() -> None:
    """Without stream_options.include_usage no chunk has a usage."""
    async with serving(Rule(answer="hi")) as (_, client):
        response = await client.ask(stream_options=None)
    assert not any("usage" in chunk for chunk in chunks(response.text))


async def test_plain_answer_is_one_object() -> None:
    """A request that is not streamed gets text, calls, finish reason and usage in one object."""
    reply = Reply("hi", calls=(ToolCall("read", {"path": "a"}), ToolCall("bash", {})))
    async with serving(Rule(answer=reply)) as (_, client):
        answer = (await client.ask(stream=False)).json()
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "hi"
    read, bash = choice["message"]["tool_calls"]
    assert read["function"] == {"name": "read", "arguments": '{"path": "a"}'}
    assert bash["function"] == {"name": "bash", "arguments": "{}"}
    assert read["id"] != bash["id"]
    assert answer["usage"]["total_tokens"] == 110


@pytest.mark.parametrize("arguments", ["", '{"path": ', '{"path": "' + "x" * 100 + '"}'])
async def test_tool_arguments_arrive_as_written(arguments: str) -> None:
    """Argument text is streamed unchanged, malformed or not, for each call under its index."""
    calls = (ToolCall("read", arguments), ToolCall("bash", {"command": "ls"}))
    async with serving(Rule(answer=Reply(calls=calls))) as (_, client):
        response = await client.ask()
    got: dict[int, str] = {0: "", 1: ""}
    names: dict[int, str] = {}
    for chunk in chunks(response.text):
        for choice in chunk["choices"]:
            for call in choice["delta"].get("tool_calls", ()):
                got[call["index"]] += call["function"]["arguments"]
                if "name" in call["function"]:
                    names[call["index"]] = call["function"]["name"]
    assert got == {0: arguments, 1: '{"command": "ls"}'}
    assert names == {0: "read", 1: "bash"}


@pytest.mark.parametrize("finish", ["length", "content_filter", "stop"])
async def test_finish_reason_can_be_chosen(finish: Any) -> None:
    """The finish reason of the reply is the one on the wire."""
    async with serving(Rule(answer=Reply("cut", finish=finish))) as (_, client):
        response = await client.ask()
    reasons = [c["choices"][0]["finish_reason"] for c in chunks(response.text) if c["choices"]]
    assert reasons[-1] == finish


async def test_stream_can_end_cleanly_without_a_finish_reason() -> None:
    """finish="missing" ends the stream in order, with no finish reason in it."""
    async with serving(Rule(answer=Reply("half", finish="missing"))) as (_, client):
        response = await client.ask()
    assert all(c["choices"][0]["finish_reason"] is None for c in chunks(response.text))


async def test_models_are_listed() -> None:
    """GET /models names the model."""
    async with serving() as (_, client):
        listing = (await client.http.get("models")).json()
    assert [model["id"] for model in listing["data"]] == ["m1"]


# which step


async def test_step_is_read_from_the_request() -> None:
    """The step follows the answers in the conversation, not the number of calls."""
    async with serving(Rule(answer=["first", "second"])) as (_, client):
        assert await client.text("go", *ANSWERED) == "second"
        assert await client.text("go") == "first"
        assert await client.text("go") == "first"
        earlier = ({"role": "user", "content": "before"}, *ANSWERED)
        assert await client.text("go", before=earlier) == "first"


async def test_step_beyond_the_script_is_refused() -> None:
    """A script that has ended answers 400, says what is missing, and keeps the request."""
    async with serving(Rule(answer="only", name="short")) as (model, client):
        response = await client.ask("the prompt", *ANSWERED)
    assert response.status_code == 400
    assert "answer 2" in response.json()["error"]["message"]
    (unmatched,) = model.unmatched
    assert "rule short has 1" in unmatched.reason
    assert unmatched.request.prompt == "the prompt"


async def test_fault_is_counted_in_its_turn() -> None:
    """A fault stands before its reply, comes `times` times, and once more in another session."""
    rule = Rule(answer=[Failure(429, times=2), "first", Failure(503), "second"])
    async with serving(rule) as (_, client):
        for session in ("ses_1", "ses_2"):
            headers = {"x-session-id": session}
            first = [(await client.ask(headers=headers)).status_code for _ in range(3)]
            more = [(await client.ask("go", *ANSWERED, headers=headers)) for _ in range(2)]
            assert first == [429, 429, 200]
            assert [response.status_code for response in more] == [503, 200]


async def test_fault_without_limit_stays() -> None:
    """times=None plays the fault for ever."""
    async with serving(Rule(answer=[Failure(500, times=None), "never"])) as (_, client):
        assert {(await client.ask()).status_code for _ in range(4)} == {500}


# which rule


async def test_first_matching_rule_answers() -> None:
    """Agent, prompt, system text, offered tool and a condition each select; order decides."""
    rules = [
        Rule(agent="reviewer", answer="by agent"),
        Rule(prompt="task-3", answer="by substring"),
        Rule(prompt=re.compile(r"task-\d\d$"), answer="by pattern"),
        Rule(prompt=lambda text: len(text) > 50, answer="by length"),
        Rule(system="house style", answer="by system"),
        Rule(tool="write", answer="by tool"),
        Rule(when=lambda request: request.session_id == "ses_9", answer="by condition"),
        Rule(answer="fallback"),
    ]
    write = {"type": "function", "function": {"name": "write", "parameters": {}}}
    async with serving(*rules) as (_, client):
        reviewer = "Here we go.\n\n# you are the Reviewer of one task."
        assert await client.text("task-3", system=reviewer) == "by agent"
        assert await client.text("do task-3 now") == "by substring"
        assert await client.text("do task-12") == "by pattern"
        assert await client.text("x" * 51) == "by length"
        assert await client.text(system="mind the house style") == "by system"
        assert await client.text(tools=[write]) == "by tool"
        assert await client.text(headers={"x-session-id": "ses_9"}) == "by condition"
        assert await client.text() == "fallback"


async def test_rule_is_used_in_so_many_turns() -> None:
    """`times` counts turns: the turn that began with the rule ends with it, the next one moves on."""
    reject = Rule(times=1, answer=[Failure(500), ToolCall("read"), "no"])
    async with serving(reject, Rule(answer=["yes", "yes 2"])) as (_, client):
        one, two = {"x-session-id": "ses_1"}, {"x-session-id": "ses_2"}
        assert (await client.ask("review", headers=one)).status_code == 500
        assert await client.text("review", headers=two) == "yes"
        assert await client.text("review", headers=one) == ""
        assert await client.text("review", *ANSWERED, headers=one) == "no"
        again = ({"role": "user", "content": "review"}, *ANSWERED)
        assert await client.text("review", before=again, headers=one) == "yes"


async def test_function_answers_from_the_request() -> None:
    """A function is called with the request, is awaited if need be, and may return any step."""

    def answer(request: ModelRequest) -> str | Failure:
        return Failure(418) if "tea" in request.prompt else f"{request.agent}: {request.prompt}"

    async def slow(request: ModelRequest) -> Reply:
        await anyio.lowlevel.checkpoint()
        return Reply(f"step {request.step}")

    rules = [Rule(agent="worker", answer=answer), Rule(agent="planner", answer=slow)]
    async with serving(*rules) as (_, client):
        assert await client.text("hello") == "worker: hello"
        assert (await client.ask("tea")).status_code == 418
        planner = "You are the Planner."
        assert await client.text(system=planner) == "step 0"
        assert await client.text("go", *ANSWERED, system=planner) == "step 1"


async def test_function_that_raises_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    """An error in a rule's function is a 400 that names it, and the server goes on."""

    def broken(request: ModelRequest) -> str:
        raise LookupError(request.prompt)

    async with serving(Rule(prompt="bad", answer=broken), Rule(answer="good")) as (model, client):
        response = await client.ask("bad")
        assert await client.text("fine") == "good"
    assert response.status_code == 400
    assert "LookupError('bad')" in model.unmatched[0].reason
    assert "LookupError" in caplog.text


async def test_function_that_returns_nonsense_is_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A function that returns no step is a 400 as well."""
    answer: Any = lambda _: [42]  # noqa: E731 - the type checker must not see the mistake
    async with serving(Rule(answer=answer)) as (model, client):
        assert (await client.ask()).status_code == 400
    assert "42" in model.unmatched[0].reason


async def test_unmatched_request_is_refused_by_name() -> None:
    """Without a rule the answer is a 400 that names agent and prompt."""
    async with serving(Rule(agent="planner", answer="x")) as (model, client):
        response = await client.ask("write parser.py, please")
    assert response.status_code == 400
    message = response.json()["error"]["message"]
    assert "'worker'" in message
    assert "write parser.py" in message
    assert model.unmatched[0].reason == message
    assert model.statistics().unmatched == 1


async def test_helper_agents_of_opencode_have_answers() -> None:
    """Title and compaction calls are answered by default, and a rule goes before the default."""
    title = "You are a title generator. You output ONLY a thread title."
    compaction = "You are a context summarization agent."
    async with serving(Rule(agent="compaction", answer="mine")) as (model, client):
        assert await client.text(system=title)
        assert await client.text(system=compaction) == "mine"
    assert [request.agent for request in model.requests] == ["title", "compaction"]


async def test_identification_can_be_replaced() -> None:
    """A function of one's own reads the agent from the system text."""
    rule = Rule(agent="a1", answer="found")
    async with serving(rule, identify=lambda s: s.partition(":")[0]) as (_, client):
        assert await client.text(system="a1: be brief") == "found"


# faults


@pytest.mark.parametrize(
    ("seconds", "header"), [(3600, ("retry-after", "3600")), (0.3, ("retry-after-ms", "300"))]
)
async def test_rate_limit_says_when_to_come_back(seconds: float, header: tuple[str, str]) -> None:
    """Whole seconds are sent as retry-after, fractions as retry-after-ms."""
    rule = Rule(answer=[Failure(429, "slow down", retry_after=seconds), "ok"])
    async with serving(rule) as (_, client):
        response = await client.ask()
    assert response.status_code == 429
    assert header in response.headers.items()
    assert response.json()["error"]["message"] == "slow down"


async def test_failure_may_have_any_body() -> None:
    """A failure's body is sent as it is, and the connection stays usable."""
    async with serving(Rule(answer=[Failure(500, body="<html>"), "ok"])) as (_, client):
        response = await client.ask()
        assert (response.status_code, response.text) == (500, "<html>")
        assert await client.text() == "ok"


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_cut_stream_breaks_inside_a_chunk(*, is_streamed: bool) -> None:
    """The client sees the connection break; the repeated request gets the next step."""
    async with serving(Rule(answer=[CutStream("I will"), "whole"])) as (model, client):
        body = client.body(stream=is_streamed)
        async with client.http.stream("POST", "chat/completions", json=body) as response:
            assert response.status_code == 200
            received: list[bytes] = []
            with pytest.raises(httpx2.RemoteProtocolError):
                await read_into(received, response)
        assert not is_streamed or b"I will" in b"".join(received)
        assert await client.text() == "whole"
        await until_idle(model)


async def test_hang_sends_no_headers() -> None:
    """A hanging request is in flight, gets nothing, and ends when its client goes away."""
    async with serving(Rule(answer=[Hang(), "late"])) as (model, client):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.ask)
            await model.wait_called()
            with anyio.move_on_after(0.05):
                await until_idle(model)
            assert model.statistics().in_flight == 1
            tasks.cancel_scope.cancel()
        await until_idle(model)
        assert await client.text() == "late"


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_hang_in_the_middle_of_a_stream(*, is_streamed: bool) -> None:
    """Headers and the first text come, then nothing, until the client goes away."""
    async with serving(Rule(answer=Hang("thinking"))) as (model, client):
        body = client.body(stream=is_streamed)
        async with client.http.stream("POST", "chat/completions", json=body) as response:
            received: list[bytes] = []
            with anyio.move_on_after(0.1) as scope:
                await read_into(received, response)
            assert scope.cancelled_caught
            assert received
            assert not is_streamed or b"thinking" in b"".join(received)
        await until_idle(model)


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_invalid_chunk_is_not_json(*, is_streamed: bool) -> None:
    """The invalid data arrives as it is, in a response that is complete."""
    async with serving(Rule(answer=InvalidChunk("{oops"))) as (_, client):
        response = await client.ask(stream=is_streamed)
    assert response.status_code == 200
    assert response.text == ("data: {oops\n\n" if is_streamed else "{oops")


async def test_delay_and_pause_hold_the_answer_back() -> None:
    """The delay comes before the headers and the pause between the pieces."""
    async with serving(Rule(answer=Reply("x", delay=0.05, pause=0.02))) as (_, client):
        start = anyio.current_time()
        async with client.http.stream("POST", "chat/completions", json=client.body()) as response:
            headers = anyio.current_time() - start
            assert "x" in (await response.aread()).decode()
        whole = anyio.current_time() - start
    assert headers >= 0.05
    assert whole >= headers + 3 * 0.02


# requests


async def test_requests_are_recorded_in_order() -> None:
    """What was asked is kept: agent, prompt, tools, headers, model and order."""
    write = {"type": "function", "function": {"name": "write", "parameters": {}}}
    async with serving(Rule(answer="ok")) as (model, client):
        await client.ask("one", tools=[write], headers={"X-Session-Id": "ses_1"})
        await client.ask("two", system="You are the Planner of a mission.", model="m2")
    one, two = model.requests
    assert (one.agent, one.prompt, one.tools) == ("worker", "one", ("write",))
    assert (one.session_id, one.headers["x-session-id"]) == ("ses_1", "ses_1")
    assert (two.agent, two.model, two.number) == ("planner", "m2", 1)
    assert two.time >= one.time
    assert one.messages[0]["role"] == "system"
    assert model.calls(agent="planner") == (two,)
    assert model.calls(prompt=re.compile("^o")) == (one,)
    assert model.calls(agent="worker", prompt="two") == ()
    assert "2 requests" in repr(model)


async def test_parts_that_are_not_text_are_left_out() -> None:
    """A prompt is the text of the last user message; images and the like are not in it."""
    image = {"type": "image_url", "image_url": {"url": "data:"}}
    parts = [{"type": "text", "text": "look"}, image, {"text": 5}, {"type": "text", "text": "here"}]
    async with serving(Rule(answer="ok")) as (model, client):
        await client.ask(messages=[{"role": "user", "content": parts}])
    assert model.requests[0].prompt == "look\nhere"


async def test_record_is_bounded() -> None:
    """Only the newest requests are kept; the count goes on."""
    async with serving(Rule(answer="ok"), max_records=2) as (model, client):
        for prompt in "abcd":
            await client.ask(prompt)
    assert [request.prompt for request in model.requests] == ["c", "d"]
    assert model.statistics().requests == 4


async def test_parallel_requests_are_counted() -> None:
    """max_in_flight is the most that were answered at the same time."""
    everyone = anyio.Event()

    async def answer(_request: ModelRequest) -> str:
        await everyone.wait()
        return "ok"

    async with serving(Rule(answer=answer)) as (model, client):
        async with anyio.create_task_group() as tasks:
            for number in range(5):
                tasks.start_soon(client.ask, f"task {number}")
            assert len(await model.wait_called(5, agent="worker")) == 5
            assert model.statistics().in_flight == 5
            everyone.set()
        await until_idle(model)
        statistics = model.statistics()
    assert (statistics.in_flight, statistics.max_in_flight) == (0, 5)


# bad requests and the end


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"{}",
        b'{"messages": [1]}',
        b"\xff\xfe",
        b'{"messages": [], "tools": [1]}',
        pytest.param(b"[" * 100_000, id="nested"),
    ],
)
async def test_bad_body_is_refused(body: bytes) -> None:
    """A body that is not a chat-completions request gets a 400 and is no request."""
    async with serving(Rule(answer="ok")) as (model, client):
        response = await client.http.post("chat/completions", content=body)
        assert response.status_code == 400
        assert response.json()["error"]["message"]
        assert await client.text() == "ok"
    assert model.statistics().requests == 1


async def test_body_is_bounded() -> None:
    """A larger body than allowed gets a 413, also when it is much larger, and is not kept."""
    async with serving(Rule(answer="ok"), max_body=1000) as (model, client):
        for size in (1000, 4_000_000):
            response = await client.ask("x" * size)
            assert response.status_code == 413
            assert "1000 bytes" in response.json()["error"]["message"]
        assert await client.text() == "ok"
    assert len(model.requests) == 1


async def test_unknown_path_is_refused() -> None:
    """Any other path or method gets a 404 that says what there is."""
    async with serving() as (_, client):
        for response in (await client.http.get("nothing"), await client.http.put("models")):
            assert response.status_code == 404
            assert "/v1/chat/completions" in response.json()["error"]["message"]


async def test_what_is_not_http_is_refused() -> None:
    """Bytes that are not HTTP get a 400, and the connection is closed."""
    async with (
        serving() as (model, _),
        await connect(model) as raw,
    ):
        await raw.send(b"\x00\x01\r\n\r\n")
        received = b"".join([data async for data in raw])
    assert received.startswith(b"HTTP/1.1 400")


async def test_two_requests_sent_at_once_are_both_answered() -> None:
    """A second request that arrives during the first is answered after it."""
    request = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n"
    async with (
        serving() as (model, _),
        await connect(model) as raw,
    ):
        await raw.send(request * 2)
        received = b""
        while received.count(b'"m1"') < 2:
            received += await raw.receive()
    assert received.count(b"HTTP/1.1 200") == 2


async def test_request_sent_during_another_is_answered_after_it() -> None:
    """What a client sends while its request is being answered is the start of the next one."""
    release = anyio.Event()

    async def answer(request: ModelRequest) -> str:
        await release.wait()
        return f"answer to {request.prompt}"

    async with serving(Rule(answer=answer)) as (model, client), await connect(model) as raw:
        await raw.send(post(client.body("one", stream=False)))
        await model.wait_called()
        await raw.send(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
        for _ in range(10):  # let the server take it while it is still busy with the first
            await anyio.sleep(0.005)
        release.set()
        received = b""
        while b'"object": "model"' not in received:
            received += await raw.receive()
    assert received.index(b"answer to one") < received.index(b'"object": "list"')


async def test_client_may_leave_during_a_large_answer() -> None:
    """A client that closes in the middle of megabytes costs its own connection only."""
    large = Rule(prompt="large", answer=Reply("x" * 8_000_000))
    async with serving(large, Rule(answer="ok")) as (model, client):
        for more in (b"", b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n"):
            async with await connect(model) as raw:
                await raw.send(post(client.body("large")))
                await raw.receive()
                await raw.send(more)
                await anyio.sleep(0.02)  # let the server take what there is more
            await until_idle(model)
        assert await client.text() == "ok"


async def test_waiting_client_is_told_to_continue() -> None:
    """A client that expects 100-continue is told so before it sends the body."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\n"
    async with (
        serving() as (model, _),
        await connect(model) as raw,
    ):
        await raw.send(head + b"content-length: 2\r\n\r\n")
        assert (await raw.receive()).startswith(b"HTTP/1.1 100")
        await raw.send(b"{}")
        assert (await raw.receive()).startswith(b"HTTP/1.1 400")


async def test_closing_ends_hanging_requests() -> None:
    """Leaving the block ends every request at once, also those that hang, and frees the port."""
    failures: list[Exception] = []

    async def ask(client: Client, prompt: str) -> None:
        try:
            await client.ask(prompt)
        except httpx2.TransportError as exc:
            failures.append(exc)

    rules = (Rule(prompt="a", answer=Hang()), Rule(prompt="b", answer=Hang("some")))
    with anyio.fail_after(30):
        async with (
            httpx2.AsyncClient(trust_env=False) as http,
            anyio.create_task_group() as tasks,
            ScriptedModel(*rules) as model,
        ):
            http.base_url = model.url
            tasks.start_soon(ask, Client(http), "a")
            tasks.start_soon(ask, Client(http), "b")
            await model.wait_called(2)
        assert len(failures) == 2
        assert model.statistics().in_flight == 0
        with pytest.raises(OSError, match=r"."):
            await connect(model)


async def test_error_in_the_block_comes_out_as_it_is() -> None:
    """An exception of the body is not wrapped in a group."""
    with pytest.raises(LookupError):
        async with ScriptedModel():
            raise LookupError


async def test_cancelled_block_closes_the_server() -> None:
    """Cancelling the block stops the server and goes on as cancellation."""
    with anyio.CancelScope() as scope:
        async with ScriptedModel(Rule(answer=Hang())) as model:
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert model.statistics().in_flight == 0


async def test_model_is_entered_once() -> None:
    """The URL needs a running server, and a server runs once."""
    model = ScriptedModel()
    with pytest.raises(RuntimeError, match="async with"):
        _ = model.url
    assert "not listening" in repr(model)
    async with model:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/v1", model.url)
    with pytest.raises(RuntimeError, match="create another"):
        async with model:
            pass


async def test_opencode_config_names_only_this_model() -> None:
    """The configuration has the URL, the timeouts in milliseconds, and no other provider."""
    async with ScriptedModel() as model:
        config = model.opencode_config(header_timeout=1.5, chunk_timeout=2.0)
        options = config["provider"]["scripted"]["options"]
        assert options["baseURL"] == model.url
        assert (options["headerTimeout"], options["chunkTimeout"]) == (1500, 2000)
        assert config["enabled_providers"] == ["scripted"]
        assert config["model"] == config["small_model"] == "scripted/m1"
        json.dumps(config)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Rule(answer=[]), r"answer is \[\]"),
        (lambda: Rule(answer=42), "answer is 42"),  # type: ignore[arg-type]  # the mistake under test
        (lambda: Rule(answer="x", times=0), "times is 0"),
        (lambda: Failure(200), "'status' must be >= 400"),
        (lambda: Failure(500, times=-1), "times is -1"),
        (lambda: Reply(delay=-1), "'delay' must be >= 0"),
        (lambda: Reply(finish="missing"), "finish='missing' is empty"),
        (lambda: Usage(input=-1), "'input' must be >= 0"),
        (lambda: ScriptedModel(max_body=0), "max_body is 0"),
    ],
)
def test_bad_configuration_is_refused_by_name(make: Any, word: str) -> None:
    """A wrong value raises at construction and names the field."""
    with pytest.raises((TypeError, ValueError), match=word):
        make()


def test_without_h11_the_extra_is_named() -> None:
    """Rules need nothing; the server says which extra it wants."""
    code = (
        "import sys; sys.modules['h11'] = None\n"
        "from orchestra.testing import Reply, Rule\n"
        "try:\n    from orchestra.testing import ScriptedModel\n"
        "except ImportError as exc:\n    print(exc)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'orchestra[testing]'" in run.stdout
