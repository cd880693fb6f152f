from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestra.opencode.client import wire

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
KINDS = st.sampled_from(sorted(wire._EVENTS)) | st.text()


def encode(value: Any) -> bytes:
    """JSON as a server sends it."""
    return json.dumps(value).encode()


def test_what_the_real_server_sends_is_read() -> None:
    """An event with keys that do not concern us is read all the same."""
    event = wire.decode_event(
        encode(
            {
                "id": "evt_1",
                "type": "message.updated",
                "properties": {
                    "sessionID": "ses_1",
                    "info": {
                        "id": "msg_2",
                        "parentID": "msg_1",
                        "role": "assistant",
                        "sessionID": "ses_1",
                        "time": {"created": 1795181760683, "completed": 1795181762882},
                        "finish": "stop",
                        "path": {"cwd": "/", "root": "/"},
                        "something": ["new"],
                    },
                },
            }
        )
    )
    assert isinstance(event, wire.MessageUpdated)
    assert (event.session_id, event.info.parent_id) == ("ses_1", "msg_1")
    assert event.info.is_completed


def test_an_unknown_kind_of_event_is_nothing() -> None:
    """New events of newer servers are skipped, whatever they hold."""
    assert wire.decode_event(b'{"type": "plugin.added", "properties": {"id": [1, 2]}}') is None
    assert wire.decode_event(b'{"type": "server.heartbeat"}') is None


@settings(deadline=None)
@given(KINDS, VALUES)
def test_no_event_crashes_the_reader(kind: str, properties: Any) -> None:
    """Whatever stands in an event, it is read, skipped, or called malformed."""
    with suppress(wire.MalformedError):
        wire.decode_event(encode({"type": kind, "properties": properties}))


@settings(deadline=None)
@given(st.binary(max_size=40))
def test_no_bytes_crash_the_reader(data: bytes) -> None:
    """Garbage is malformed, nothing worse."""
    with suppress(wire.MalformedError):
        wire.decode_event(data)


def test_text_that_is_not_text_is_mended() -> None:
    """Half surrogates and invalid UTF-8 in a tool's output become replacement characters."""
    part = {"id": "p", "type": "text", "text": "@"}
    data = encode({"type": "message.part.updated", "properties": {"part": part}})
    for broken in (b"a\\ud83db", b"a\xffb"):
        event = wire.decode_event(data.replace(b"@", broken))
        assert isinstance(event, wire.PartUpdated)
        text = event.part.text or ""
        assert text[0] + text[-1] == "ab"
        text.encode()


def test_deep_nesting_is_malformed() -> None:
    """An event that is too deep to read is skipped like any other that is."""
    data = b'{"type": "session.created", "properties": {"info": ' + b"[" * 10**5 + b"]" * 10**5
    with pytest.raises(wire.MalformedError):
        wire.decode_event(data + b"}}")


def test_parts_of_unknown_shape_do_not_hide_the_others() -> None:
    """A list of messages is read as far as it can be."""
    parts = [{"type": 7}, {"id": "p", "type": "text", "text": "hi"}, "what?"]
    (message,) = wire.decode_messages(
        encode([{"info": {"id": "m", "role": "assistant"}, "parts": parts}])
    )
    assert [part.text for part in message.parts] == ["hi"]
    with pytest.raises(wire.MalformedError):
        wire.decode_messages(encode({"name": "NotFoundError"}))


def test_ids_rise_and_differ() -> None:
    """Ids sort in the order in which they were made, also when the clock stands or goes back."""
    times = iter([1795181760.683, 1795181760.683, 1795181760.0, 1795181761.0])
    make = wire.IdMaker(lambda: next(times))
    ids = [make("msg") for _ in range(4)]
    assert ids == sorted(ids)
    assert all(len(made) == 30 and made.startswith("msg_") for made in ids)
    fixed = wire.IdMaker(lambda: 1795181760.566, choose=lambda alphabet: alphabet[0])
    # The real server made msg_1f92bd036001... in that millisecond.
    assert fixed("msg") == "msg_1f92bd036000" + "0" * 14
