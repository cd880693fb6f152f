"""JSON-RPC without I/O: framing, ids, answers, and what the other side may do wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestra._core.jsonrpc import (
    METHOD_NOT_FOUND,
    PARSE_ERROR,
    Answer,
    Framer,
    Framing,
    LateAnswer,
    Message,
    Notification,
    Peer,
    Refusal,
    Request,
    ViolationError,
)

LINES, COUNTED = Framing.LINES, Framing.CONTENT_LENGTH
framings = pytest.mark.parametrize("framing", list(Framing), ids=lambda framing: framing.value)

few = settings(max_examples=50)  # of each framing
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


def peer(framing: Framing = LINES, limit: int = 1000) -> Peer:
    return Peer(framing, limit=limit)


def receive(receiver: Peer, *messages: object) -> list[Message]:
    """What a line-delimited peer makes of messages that need not be right."""
    text = "".join(json.dumps(message) + "\n" for message in messages)
    return list(receiver.receive(text.encode()))


def rpc(**members: object) -> dict[str, object]:
    return {"jsonrpc": "2.0", **members}


def bodies(framer: Framer) -> list[bytes]:
    found = []
    while (body := framer.next()) is not None:
        found.append(body)
    return found


# ---- framing ----


@framings
@few
@given(data=st.data())
def test_any_cut_of_the_stream_gives_the_same_messages(
    framing: Framing, data: st.DataObject
) -> None:
    """However the stream is cut into pieces, what was framed comes out, in order."""
    sent = data.draw(st.lists(json_values.map(lambda value: json.dumps(value).encode())))
    framer = Framer(framing, limit=1_000_000)
    stream = b"".join(map(framer.frame, sent))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    got = []
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        framer.feed(stream[begin:end])
        got += bodies(framer)
    assert got == sent


@framings
@few
@given(garbage=st.lists(st.binary(max_size=200), max_size=20))
def test_garbage_is_a_violation_or_nothing(framing: Framing, garbage: list[bytes]) -> None:
    """No bytes whatever raise anything else, hang, or are kept beyond the limit."""
    receiver = peer(framing, limit=500)
    for piece in garbage:
        try:
            for message in receiver.receive(piece):
                assert isinstance(message, Request | Notification)
        except ViolationError as exc:
            if exc.is_fatal:
                return


@framings
def test_a_message_of_just_the_limit_passes(framing: Framing) -> None:
    """The limit itself is allowed, one byte more is a fatal violation."""
    framer = Framer(framing, limit=10)
    framer.feed(framer.frame(b"x" * 10))
    assert framer.next() == b"x" * 10
    framer.feed(framer.frame(b"x" * 11))
    with pytest.raises(ViolationError, match="11 bytes or more where 10 are allowed") as caught:
        framer.next()
    assert caught.value.is_fatal


def test_a_giant_line_is_found_out_before_it_ends() -> None:
    """A line that never ends is refused as soon as it is longer than the limit."""
    framer = Framer(LINES, limit=100)
    framer.feed(b"x" * 100)
    assert framer.next() is None
    framer.feed(b"x")
    with pytest.raises(ViolationError, match="101 bytes"):
        framer.next()


def test_a_giant_length_is_found_out_before_the_message() -> None:
    """A length above the limit is refused when the header is read, and never waited for."""
    framer = Framer(COUNTED, limit=100)
    framer.feed(b"Content-Length: 101\r\n")
    with pytest.raises(ViolationError, match="101 bytes"):
        framer.next()


def test_lines_may_be_blank_and_end_as_on_windows() -> None:
    """Blank lines mean nothing, and a carriage return is no part of a line."""
    framer = Framer(LINES, limit=100)
    framer.feed(b"\n\r\n1\r\n  \n2\n")
    assert bodies(framer) == [b"1", b"2"]


def test_headers_may_have_any_case_and_company() -> None:
    """Header names are of any case, and other headers are passed over."""
    framer = Framer(COUNTED, limit=100)
    framer.feed(
        b"content-length:2\r\nContent-Type: application/vscode-jsonrpc; charset=utf-8\r\n\r\n{}"
    )
    assert bodies(framer) == [b"{}"]


@pytest.mark.parametrize(
    "header",
    [
        b"Starting the server ...\n",
        b"INFO: ready\n",
        b"\r\n",
        b"Content-Type: x\r\n\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: +1\r\n",
        b"Content-Length: 1_0\r\n",
        b"Content-Length: \xc2\xb2\r\n",
        b"Content-Length:\r\n",
        b"Content-Length: " + b"9" * 4000 + b"\r\n",
        b"Content-Length: 1\r\nContent-Length: 2\r\n",
        b"x" * 5000,
        b"a: b\r\n" * 1000,
    ],
)
def test_what_is_no_header_is_found_out_at_once(header: bytes) -> None:
    """A header that cannot become right is a fatal violation as soon as it is seen."""
    framer = Framer(COUNTED, limit=100)
    framer.feed(header)
    with pytest.raises(ViolationError) as caught:
        framer.next()
    assert caught.value.is_fatal


# ---- messages ----


@framings
@few
@given(value=json_values)
def test_what_is_asked_is_answered(framing: Framing, value: Any) -> None:
    """Any value survives the way there as params, and the way back as a result."""
    client, server = peer(framing, 1_000_000), peer(framing, 1_000_000)
    request_id, data = client.request("echo", [value])
    (request,) = server.receive(data)
    assert request == Request(request_id, "echo", [value])
    (answer,) = client.receive(server.answer(request_id, value))
    assert answer == Answer(request_id, value)
    assert client.pending == set()


def test_answers_find_their_requests_in_any_order() -> None:
    """Ids differ, and each answer has the id of its own request."""
    client = peer()
    ids = [client.request("m")[0] for _ in range(5)]
    assert len(set(ids)) == 5
    for request_id in reversed(ids):
        assert receive(client, rpc(id=request_id, result=request_id)) == [
            Answer(request_id, request_id)
        ]


def test_an_error_is_a_refusal() -> None:
    """An answer with an error gives its code, message and data."""
    client, server = peer(), peer()
    request_id, _ = client.request("m")
    data = server.refuse(request_id, METHOD_NOT_FOUND, "no m", {"a": 1})
    assert list(client.receive(data)) == [Refusal(request_id, METHOD_NOT_FOUND, "no m", {"a": 1})]


def test_null_members_are_as_good_as_none() -> None:
    """Servers that send result and error, one of them null, are understood."""
    client = peer()
    first, second = client.request("m")[0], client.request("m")[0]
    assert receive(
        client,
        rpc(id=first, result=1, error=None),
        rpc(id=second, result=None, error={"code": 7, "message": "no"}),
    ) == [Answer(first, 1), Refusal(second, 7, "no", None)]


def test_a_result_may_be_null() -> None:
    """The result null is an answer."""
    client = peer()
    request_id, _ = client.request("m")
    assert receive(client, rpc(id=request_id, result=None)) == [Answer(request_id, None)]


def test_the_server_may_ask_and_tell() -> None:
    """Requests of the other side keep their own id, number or text; notifications have none."""
    assert receive(
        peer(),
        rpc(method="a", id="x", params=[1]),
        rpc(method="b", id=3),
        rpc(method="c", params={"d": 1}),
    ) == [Request("x", "a", [1]), Request(3, "b", None), Notification("c", {"d": 1})]


@framings
def test_params_that_are_none_are_left_out(framing: Framing) -> None:
    """No member is sent for params that are None."""
    _, data = peer(framing).request("m")
    assert b"params" not in data
    assert b"params" not in peer(framing).notify("m")


@pytest.mark.parametrize("value", [{1, 2}, object(), float("nan"), float("inf")])
def test_what_json_cannot_express_is_refused(value: object) -> None:
    """It raises what json raises, and no id is used up and nothing is pending."""
    client = peer()
    with pytest.raises((TypeError, ValueError)):
        client.request("m", [value])
    assert client.pending == set()


def test_texts_that_are_no_texts_can_be_sent() -> None:
    """Half a surrogate pair, and every kind of line break, stay inside their line."""
    text = "\ud800\n\r\u2028\x85"
    _, data = peer().request("m", [text])
    assert data.count(b"\n") == 1
    (request,) = peer().receive(data)
    assert isinstance(request, Request)
    assert request.params == [text]


@pytest.mark.parametrize(
    ("line", "fact"),
    [
        (b"Traceback (most recent call last):", "which is not JSON"),
        (b'{"jsonrpc": "2.0", "id": 1, "result": NaN}', "which is not JSON"),
        (b'{"jsonrpc": "2.0", "id": 1, "result": 1', "which is not JSON"),
        (b"\xff\xfe", "which is not JSON"),
        (b"[" * 400_000, "which is not JSON"),
        (b"1" * 5_000, "which is not JSON"),
        (b"[]", "a batch"),
        (b"3", "not a JSON-RPC 2.0 message"),
        (b"{}", "not a JSON-RPC 2.0 message"),
        (b'{"jsonrpc": "1.0", "id": 1, "result": 1}', "not a JSON-RPC 2.0 message"),
        (b'{"jsonrpc": "2.0", "method": 1}', "not a JSON-RPC 2.0 message"),
        (b'{"jsonrpc": "2.0", "method": "m", "params": 1}', "not a JSON-RPC 2.0 message"),
        (b'{"jsonrpc": "2.0", "method": "m", "id": null}', "neither number nor text"),
        (b'{"jsonrpc": "2.0", "method": "m", "id": true}', "neither number nor text"),
        (b'{"jsonrpc": "2.0", "id": 1}', "no request and no answer"),
        (b'{"jsonrpc": "2.0", "id": 2, "result": 1}', "the id 2, which nobody waits for"),
        (b'{"jsonrpc": "2.0", "id": "1", "result": 1}', "the id '1', which nobody waits for"),
        (b'{"jsonrpc": "2.0", "id": 1.0, "result": 1}', "the id 1.0, which nobody waits for"),
        (b'{"jsonrpc": "2.0", "id": true, "result": 1}', "the id True, which nobody waits for"),
        (b'{"jsonrpc": "2.0", "id": [1], "result": 1}', "the id [1], which nobody waits for"),
        (b'{"jsonrpc": "2.0", "id": null, "result": 1}', "the id None, which nobody waits for"),
        (b'{"jsonrpc": "2.0", "result": 1}', "the id None, which nobody waits for"),
        (b'{"jsonrpc": "2.0", "id": 1, "error": "bad"}', "whose error has no code"),
        (b'{"jsonrpc": "2.0", "id": 1, "error": {"code": "x"}}', "whose error has no code"),
        (
            b'{"jsonrpc": "2.0", "id": null, "error": {"code": -32700, "message": "what?"}}',
            "could not read a message: 'what?'",
        ),
    ],
)
def test_each_fault_is_a_violation_that_says_which(line: bytes, fact: str) -> None:
    """A fault is named in words, leaves the request pending, and the next message is read."""
    client = peer(limit=1_000_000)
    request_id, _ = client.request("m")
    assert request_id == 1
    with pytest.raises(ViolationError) as caught:
        list(client.receive(line + b"\n"))
    assert fact in str(caught.value)
    assert len(str(caught.value)) < 300
    assert not caught.value.is_fatal
    assert receive(client, rpc(id=1, result="ok")) == [Answer(1, "ok")]


def test_what_stands_before_a_fault_counts() -> None:
    """Messages of the same piece that come before a fault are given before it is raised."""
    client = peer()
    request_id, _ = client.request("m")
    stream = client.receive(b'{"jsonrpc":"2.0","id":1,"result":5}\noops\n')
    assert next(stream) == Answer(request_id, 5)
    with pytest.raises(ViolationError) as caught:
        next(stream)
    assert caught.value.code == PARSE_ERROR


def test_an_answer_comes_once() -> None:
    """The second answer to a request is one that nobody waits for."""
    client = peer()
    request_id, _ = client.request("m")
    assert receive(client, rpc(id=request_id, result=1))
    with pytest.raises(ViolationError, match="which nobody waits for"):
        receive(client, rpc(id=request_id, result=1))


def test_an_abandoned_request_may_be_answered_late_once() -> None:
    """The answer to an abandoned request, an error too, is late once, then unexpected."""
    client = peer()
    first, second = client.request("m")[0], client.request("m")[0]
    assert client.abandon(first)
    assert client.abandon(second)
    assert not client.abandon(first)
    assert receive(client, rpc(id=first, result=1)) == [LateAnswer(first)]
    assert receive(client, rpc(id=second, error={"code": 1, "message": ""})) == [LateAnswer(second)]
    with pytest.raises(ViolationError, match="which nobody waits for"):
        receive(client, rpc(id=first, result=1))


def test_an_answered_request_cannot_be_abandoned() -> None:
    """Abandoning what was answered changes nothing and says so."""
    client = peer()
    request_id, _ = client.request("m")
    receive(client, rpc(id=request_id, result=1))
    assert not client.abandon(request_id)


def test_abandoned_requests_are_forgotten_in_the_end() -> None:
    """A server that never answers what was abandoned cannot make us remember without bound."""
    client = peer()
    for _ in range(5_000):
        client.abandon(client.request("m")[0])
    assert len(client._abandoned) <= 1024
    assert receive(client, rpc(id=5_000, result=1)) == [LateAnswer(5_000)]
