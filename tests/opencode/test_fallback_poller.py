"""Turns whose event stream is down: they are brought to their end by looking."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from orchestra.events import Finished, FinishReason, SessionEvent, TextReceived
from orchestra.opencode.backend import OpenCodeBackend
from orchestra.opencode.client import wire
from orchestra.opencode.client.looking import FallbackPoller, Snapshot, TurnTiming
from orchestra.opencode.client.stream import StreamTiming
from orchestra.opencode.client.turn import TurnMachine

if TYPE_CHECKING:
    from tests.opencode.conftest import Answer, FakeServer

SESSION, PROMPT = "ses_1", "msg_prompt"
BUSY = wire.StatusInfo(type="busy")
FAST = TurnTiming(
    start=0.2, start_limit=1.0, settle=0.02, settle_limit=0.1, poll=0.03, longest_poll=0.1
)
STREAM = StreamTiming(silence=60.0, window=0.1, first_delay=0.01, longest_delay=0.05)


def look(
    text: str = "", *, finish: str | None = None, status: wire.StatusInfo | None = None
) -> Snapshot:
    """What a look shows: the prompt and one answer."""
    user = wire.Message(info=wire.MessageInfo(id=PROMPT, role="user", session_id=SESSION))
    info = wire.MessageInfo(
        id="msg_a",
        role="assistant",
        session_id=SESSION,
        parent_id=PROMPT,
        finish=finish,
        time=wire.Timing(created=1.0, completed=2.0 if finish else None),
    )
    part = wire.Part(id="prt_1", type="text", text=text, message_id="msg_a", session_id=SESSION)
    answer = wire.Message(info=info, parts=(part,))
    return Snapshot(status=status, messages=(user, answer), is_whole=True)


class Play:
    """A turn that began at 0 with a stream that is down; looks come when the machine asks."""

    def __init__(self) -> None:
        self.machine = TurnMachine(
            session_id=SESSION, prompt_id=PROMPT, now=0.0, known_prompts=set()
        )
        self.machine.stream_broke(now=0.0)
        self.looks: list[float] = []
        self.told: list[SessionEvent] = []

    def run(self, server: Callable[[float], Snapshot | None], until: float) -> None:
        """Look as often as the machine wants to; None: the look fails."""
        machine = self.machine
        while machine.look_at <= until and not machine.is_finished:
            now = machine.look_at
            self.looks.append(now)
            machine.begin_look()
            if (seen := server(now)) is None:
                machine.look_failed(now=now + 0.5)
            else:
                self.told += machine.resolve(seen, now=now, wall=0.0)

    @property
    def end(self) -> Finished:
        assert isinstance(self.told[-1], Finished)
        return self.told[-1]


def test_a_busy_session_is_read_ever_more_slowly_and_at_once_again_when_it_moves() -> None:
    """Reads are 0.5 s apart at first and at most 5 s; whatever changes brings them back to 0.5 s."""
    play = Play()
    play.run(lambda _: look("so far", status=BUSY), until=60.0)
    gaps = [later - now for now, later in zip(play.looks, play.looks[1:], strict=False)]
    assert gaps[0] == pytest.approx(0.5)
    assert gaps == sorted(gaps)
    assert gaps[-1] == pytest.approx(5.0)
    assert len(play.looks) < 20
    moved = play.machine.look_at
    play.run(lambda _: look("so far, and on", status=BUSY), until=moved)
    assert play.machine.look_at - moved == pytest.approx(0.5)
    assert "".join(one.text for one in play.told if isinstance(one, TextReceived)) == (
        "so far, and on"
    )


def test_an_end_is_believed_when_three_reads_in_a_row_show_it() -> None:
    """One or two reads of an end are not enough, and the third shows all messages."""
    play = Play()
    play.run(lambda _: look("done", finish="stop"), until=0.6)
    assert len(play.looks) == 2
    assert not play.machine.is_finished
    assert play.machine.needs_whole
    play.run(lambda _: look("done", finish="stop"), until=5.0)
    assert len(play.looks) == 3
    assert play.looks[-1] == pytest.approx(1.0)
    assert (play.end.reason, play.end.text) == (FinishReason.DONE, "done")


def test_an_end_that_is_taken_back_was_none() -> None:
    """A session that seems over twice and then works again (a compaction) is not finished."""
    play = Play()

    def server(now: float) -> Snapshot:
        if now < 0.9:
            return look("done", finish="stop")
        return look("going on", status=BUSY) if now < 8 else look("real end", finish="stop")

    play.run(server, until=7.0)
    assert not play.machine.is_finished
    play.run(server, until=20.0)
    assert play.end.reason is FinishReason.DONE


def test_absence_from_the_status_map_is_unknown() -> None:
    """A session that is listed nowhere and whose answer is open is not finished, however often."""
    play = Play()
    play.run(lambda _: look("half an ans"), until=30.0)
    assert len(play.looks) >= 3
    assert not play.machine.is_finished
    play.run(lambda _: look("half an answer", finish="stop"), until=60.0)
    assert (play.end.reason, play.end.text) == (FinishReason.DONE, "half an answer")


def test_what_stays_unknown_ends_after_a_minute_as_interrupted() -> None:
    """Nothing hangs: a turn of which nobody can say anything is given up, and not as done."""
    play = Play()
    play.run(lambda _: look("half an ans"), until=120.0)
    assert play.end.reason is FinishReason.INTERRUPTED
    assert 60.0 <= play.looks[-1] <= 70.0


def test_a_read_that_failed_is_none() -> None:
    """An unreadable answer between equal ones starts the row anew, and never counts as an end."""
    play = Play()
    is_failing = iter([False, False, True, False, False, True, False, False, False])

    def server(_now: float) -> Snapshot | None:
        return None if next(is_failing) else look("done", finish="stop")

    play.run(server, until=60.0)
    assert next(is_failing, None) is None
    assert play.end.reason is FinishReason.DONE
    unreadable = Play()
    unreadable.run(lambda _: None, until=100.0)
    assert not unreadable.machine.is_finished


def test_it_rests_while_events_come_in() -> None:
    """With a stream that works nothing is read by the clock, also after it was mended."""
    play = Play()
    play.run(lambda _: look("so far", status=BUSY), until=3.0)
    play.machine.stream_mended(now=3.0)
    play.run(lambda _: look("so far", status=BUSY), until=3.0)
    assert not play.machine.is_polling
    assert play.machine.look_at >= 3.0 + play.machine.timing.quiet
    play.machine.feed(wire.SessionIdle(session_id=SESSION), now=4.0, wall=0.0)
    play.run(lambda _: look("so far", finish="stop"), until=4.0)
    assert play.end.reason is FinishReason.DONE


SEEN = st.sampled_from(
    [look("a", status=BUSY), look("b", status=BUSY), look("b"), look("b", finish="stop"), None]
)


@given(st.lists(SEEN, max_size=30))
def test_whatever_is_read_the_rates_and_the_row_hold(reads: list[Snapshot | None]) -> None:
    """No read comes sooner than 0.5 s or later than 5 s, and three equal ends are always needed."""
    play = Play()
    shown = iter(reads)
    for seen in shown:
        before = play.machine.look_at
        play.run(lambda _, seen=seen: seen, until=before)  # type: ignore[misc]  # a default argument
        if play.machine.is_finished:
            break
        assert 0.5 <= round(play.machine.look_at - before, 6) <= 5.0
    if play.machine.is_finished:
        done = reads[: len(play.looks)]
        assert all(one is not None and one.messages[-1].info.finish for one in done[-3:])
        assert next(shown, None) is None or len(done) < len(reads)


def test_the_poller_says_what_it_does() -> None:
    """Its representation tells whether and how often it looks."""
    poller = FallbackPoller(TurnTiming())
    assert repr(poller) == "<FallbackPoller off>"
    poller.start(0.0)
    poller.start(9.0)
    assert poller.due_at == 0.5
    assert "every 0.5 s, 0 equal reads" in repr(poller)
    poller.stop()
    assert poller.due_at == inf


# --- on a server ---


@pytest.fixture
def answers(fake_server: FakeServer) -> type[Answer]:
    """How the fake server's faults are written."""
    import sys

    found: type[Answer] = sys.modules[type(fake_server).__module__].Answer
    return found


def attach(server: FakeServer, **options: Any) -> OpenCodeBackend:
    """A backend that polls quickly."""
    return OpenCodeBackend(server.url, **{"stream_timing": STREAM, "turn_timing": FAST, **options})


async def test_turns_end_by_polling_when_the_stream_never_comes(
    fake_server: FakeServer, tmp_path: Path, answers: type[Answer]
) -> None:
    """On a server that opens no stream at all sessions open, turns end, requests are answered."""
    fake_server.faults["GET /event"] = [answers(status=0)] * 10_000
    fake_server.is_answering = False
    async with attach(fake_server) as backend, backend.lease("echo", directory=tmp_path) as session:
        for number in range(2):
            ends: list[Finished] = []

            async def run(ends: list[Finished] = ends) -> None:
                ends.append(await session.prompt("go"))

            with anyio.fail_after(20):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(run)
                    path = "POST /session/ses_0/prompt_async"
                    request = (await fake_server.wait_seen(path, number + 1))[-1]
                    asked = {"id": f"per_{number}", "sessionID": "ses_0", "permission": "bash"}
                    fake_server.permissions = [{**asked, "patterns": ["x"]}]
                    await fake_server.wait_seen(f"POST /permission/per_{number}/reply")
                    fake_server.store("ses_0", request.body["messageID"], f"end {number}")
                    fake_server.statuses.clear()
            (end,) = ends
            assert (end.reason, end.text) == (FinishReason.DONE, f"end {number}")
        assert "missed" in repr(session._workspace.stream)  # type: ignore[attr-defined]


async def test_turns_end_by_polling_when_the_stream_breaks_for_good(
    fake_server: FakeServer, tmp_path: Path, answers: type[Answer]
) -> None:
    """A server that answers is not lost when its stream is; a stream that is back ends the polling."""
    fake_server.is_answering = False
    timing = evolve(FAST, poll=0.05, longest_poll=0.05)
    ends: list[Finished] = []
    async with (
        attach(fake_server, turn_timing=timing) as backend,
        backend.lease("echo", directory=tmp_path) as session,
    ):

        async def run() -> None:
            ends.append(await session.prompt("go"))

        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run)
                (request,) = await fake_server.wait_seen("POST /session/ses_0/prompt_async")
                streams = len(fake_server.seen("GET /event"))
                fake_server.faults["GET /event"] = [answers(status=0)] * 10_000
                await fake_server.cut()
                await fake_server.wait_seen("GET /global/health", 2)  # longer than the window
                await fake_server.wait_seen("GET /session/status", 5)
                fake_server.faults.clear()
                await fake_server.wait_seen("GET /event", streams + 1)
                while not (stream := session._workspace.stream).is_connected:  # type: ignore[attr-defined]
                    await stream._changed.wait()
                assert not session.turn._machine.is_polling  # type: ignore[attr-defined]
                fake_server.store("ses_0", request.body["messageID"], "at last")
                await fake_server.settle("ses_0")
    assert (ends[0].reason, ends[0].text) == (FinishReason.DONE, "at last")
