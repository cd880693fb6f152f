from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra.opencode.client.sse import EventReader, EventTooLargeError

LINES = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=8)


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[bytes], list[bytes]]:
    """Events, and a stream of them, cut anywhere, with every kind of line end."""
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    events = draw(st.lists(st.lists(LINES, min_size=1, max_size=3), max_size=4))
    text = draw(st.sampled_from(["", "\N{BYTE ORDER MARK}"]))
    for event in events:
        for line in event:
            text += draw(st.sampled_from(["", f": a comment{end}", f"id: 7{end}", f"x{end}"]))
            text += (
                f"data: {line}{end}"
                if draw(st.booleans()) or line[:1] == " "
                else (f"data:{line}{end}")
            )
        text += end
    data = text.encode()
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=6)))
    chunks = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True) if a < b]
    return ["\n".join(event).encode() for event in events], chunks


@given(streams())
def test_events_are_read_however_they_are_cut(case: tuple[list[bytes], list[bytes]]) -> None:
    """The same events come out, wherever the stream is cut and however its lines end."""
    events, chunks = case
    reader = EventReader(10_000)
    assert [event for chunk in chunks for event in reader.feed(chunk)] == events


def test_what_is_no_data_is_not_told() -> None:
    """Comments, other fields and empty events bring nothing."""
    reader = EventReader(100)
    assert reader.feed(b": ping\n\nevent: x\nid: 1\n\ndata\n\n\n") == [b""]
    assert reader.feed(b"data: half") == []
    assert reader.feed(b"\n\n") == [b"half"]


@pytest.mark.parametrize("piece", [b"x" * 10, b"data: 1234\n"])
def test_an_event_without_an_end_is_bounded(piece: bytes) -> None:
    """A line, or an event of many lines, that does not end is an error, not all our memory."""
    reader = EventReader(100)
    for _ in range(100 // len(piece)):
        assert reader.feed(piece) == []
    with pytest.raises(EventTooLargeError, match="100 bytes"):
        reader.feed(piece)


def test_many_events_are_no_large_one() -> None:
    """What has been given out does not count towards the bound."""
    reader = EventReader(100)
    for _ in range(50):
        assert reader.feed(b"data: 0123456789\n\ndata: 01") == [b"0123456789"]
        assert reader.feed(b"23\n\n") == [b"0123"]
