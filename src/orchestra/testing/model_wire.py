"""How a step of a script looks on the wire of the chat-completions API. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, TypeAlias

from orchestra.testing._http import Response
from orchestra.testing.model_script import ModelRequest
from orchestra.testing.model_steps import CutStream, Failure, Fault, Hang, Reply, ToolCall, Usage

_Object: TypeAlias = dict[str, Any]

_PIECES = 8
_JSON = (("content-type", "application/json"),)
_STREAM = (("content-type", "text/event-stream"), ("cache-control", "no-cache"))


def json_response(value: object, status: int = 200) -> Response:
    """A response with a JSON body.

    Args:
        value: The body.
        status: The HTTP status.
    """
    body = json.dumps(value).encode()
    length = ("content-length", str(len(body)))
    return Response(status=status, headers=(*_JSON, length), pieces=(body,))


def error_response(message: str, status: int) -> Response:
    """A response in the API's form of an error.

    Args:
        message: What is wrong and what to do.
        status: The HTTP status.
    """
    return json_response({"error": {"message": message, "type": "scripted_model"}}, status)


def render(step: Reply | Fault, request: ModelRequest) -> Response:
    """The response that a step of a script makes.

    Args:
        step: The step.
        request: The request that it answers.
    """
    if isinstance(step, Failure):
        return _failure(step)
    if isinstance(step, Reply):
        if request.is_streamed:
            pieces = (*_stream(step, request), b"data: [DONE]\n\n")
            return Response(headers=_STREAM, pieces=pieces, delay=step.delay, pause=step.pause)
        return Response(headers=_JSON, pieces=_whole(step, request), delay=step.delay)
    if isinstance(step, Hang) and step.text is None:
        return Response(ending="never")
    if isinstance(step, Hang | CutStream):
        pieces = tuple(_text(step.text or "", request)) if request.is_streamed else (b'{"id": ',)
        headers = _STREAM if request.is_streamed else _JSON
        if isinstance(step, CutStream):
            return Response(headers=headers, pieces=pieces, ending="cut")
        return Response(headers=headers, pieces=pieces, ending="silent")
    if request.is_streamed:
        return Response(headers=_STREAM, pieces=(_event(step.data),))
    return Response(headers=_JSON, pieces=(step.data.encode(),))


def _failure(step: Failure) -> Response:
    response = error_response(step.message, step.status)
    if step.body is not None:
        body = step.body.encode()
        response = Response(status=step.status, headers=_JSON, pieces=(body,))
    if step.retry_after is None:
        return response
    if step.retry_after == int(step.retry_after):
        wait = ("retry-after", str(int(step.retry_after)))
    else:
        wait = ("retry-after-ms", str(round(step.retry_after * 1000)))
    headers = (*response.headers, wait)
    return Response(status=response.status, headers=headers, pieces=response.pieces)


def _stream(step: Reply, request: ModelRequest) -> Iterator[bytes]:
    yield from _text(step.text, request)
    for index, call in enumerate(step.calls):
        whole = _tool_call(call, request, index)
        begin, *rest = _split(whole["function"]["arguments"], 2) or [""]
        function = {"name": call.name, "arguments": begin}
        yield _chunk(request, {"tool_calls": [{**whole, "index": index, "function": function}]})
        for piece in rest:
            more = {"index": index, "function": {"arguments": piece}}
            yield _chunk(request, {"tool_calls": [more]})
    if (finish := _finish(step)) is None:
        return
    yield _chunk(request, {}, finish)
    options = request.body.get("stream_options")
    if isinstance(options, dict) and options.get("include_usage"):
        final = {**_envelope(request, "chat.completion.chunk"), "choices": []}
        yield _event(json.dumps({**final, "usage": _usage(step.usage)}))


def _text(text: str, request: ModelRequest) -> Iterator[bytes]:
    yield _chunk(request, {"role": "assistant", "content": ""})
    for piece in _split(text):
        yield _chunk(request, {"content": piece})


def _whole(step: Reply, request: ModelRequest) -> tuple[bytes, ...]:
    message: _Object = {"role": "assistant", "content": step.text}
    if step.calls:
        message["tool_calls"] = [_tool_call(c, request, i) for i, c in enumerate(step.calls)]
    answer = _envelope(request, "chat.completion")
    answer["choices"] = [{"index": 0, "message": message, "finish_reason": _finish(step)}]
    answer["usage"] = _usage(step.usage)
    return (json.dumps(answer).encode(),)


def _chunk(request: ModelRequest, delta: _Object, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    envelope = _envelope(request, "chat.completion.chunk")
    return _event(json.dumps({**envelope, "choices": [choice]}))


def _event(data: str) -> bytes:
    return f"data: {data}\n\n".encode()


def _envelope(request: ModelRequest, kind: str) -> _Object:
    identity = f"chatcmpl-{request.number}"
    return {"id": identity, "object": kind, "created": 0, "model": request.model}


def _tool_call(call: ToolCall, request: ModelRequest, index: int) -> _Object:
    arguments = call.arguments
    text = arguments if isinstance(arguments, str) else json.dumps(dict(arguments))
    function = {"name": call.name, "arguments": text}
    return {"id": f"call_{request.number}_{index}", "type": "function", "function": function}


def _usage(usage: Usage) -> _Object:
    return {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.input + usage.output,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
    }


def _finish(step: Reply) -> str | None:
    if step.finish == "auto":
        return "tool_calls" if step.calls else "stop"
    return None if step.finish == "missing" else step.finish


def _split(text: str, pieces: int = _PIECES) -> list[str]:
    size = max(16, -(-len(text) // pieces))
    return [text[start : start + size] for start in range(0, len(text), size)]
