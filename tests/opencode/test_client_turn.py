from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

import pytest
from attrs import field, frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestra.events import (
    Finished,
    FinishReason,
    RetryScheduled,
    SessionEvent,
    TextReceived,
    TodoChanged,
    ToolCalled,
    ToolStatus,
    Usage,
    UsageReported,
)
from orchestra.opencode.client import wire
from orchestra.opencode.client.turn import VAIN_STEPS, Snapshot, TurnMachine, TurnState

SESSION = "ses_1"
PROMPT = "msg_prompt"
BUSY = wire.StatusInfo(type="busy")


def make_machine(**options: Any) -> TurnMachine:
    """A machine whose prompt was sent at 0."""
    return TurnMachine(
        **{
            "session_id": SESSION,
            "prompt_id": PROMPT,
            "now": 0.0,
            "known_prompts": set(),
            **options,
        }
    )


def user(message_id: str = PROMPT) -> wire.Message:
    """A user message."""
    info = wire.MessageInfo(id=message_id, role="user", session_id=SESSION)
    return wire.Message(info=info)


def answer(
    message_id: str, *parts: wire.Part, finish: str | None = "stop", **options: Any
) -> wire.Message:
    """A message of the assistant."""
    completed = 2.0 if finish or options.get("error") else None
    info = wire.MessageInfo(
        id=message_id,
        role="assistant",
        session_id=SESSION,
        time=wire.Timing(created=1.0, completed=completed),
        finish=finish,
        **{"parent_id": PROMPT, **options},
    )
    return wire.Message(info=info, parts=parts)


def text(part_id: str, content: str, message_id: str = "msg_a") -> wire.Part:
    """A part with visible text."""
    return wire.Part(
        id=part_id, type="text", text=content, message_id=message_id, session_id=SESSION
    )


def tool(part_id: str, status: str, message_id: str = "msg_a", **state: Any) -> wire.Part:
    """A tool call."""
    return wire.Part(
        id=part_id,
        type="tool",
        tool="bash",
        call_id=f"call_{part_id}",
        state=wire.ToolState(status=status, **state),
        message_id=message_id,
        session_id=SESSION,
    )


def step(
    part_id: str, tokens: int, message_id: str = "msg_a", session_id: str = SESSION
) -> wire.Part:
    """The end of a model call."""
    return wire.Part(
        id=part_id,
        type="step-finish",
        tokens=wire.Tokens(input=tokens, output=1),
        cost=0.5,
        message_id=message_id,
        session_id=session_id,
    )


def idle(*messages: wire.Message) -> Snapshot:
    """A look that shows an idle session."""
    return Snapshot(status=None, messages=(user(), *messages), is_whole=True)


def feed(machine: TurnMachine, *events: wire.Event, now: float = 1.0) -> list[SessionEvent]:
    """Feed events; what was told."""
    return [told for event in events for told in machine.feed(event, now=now, wall=1000.0)]


def resolve(machine: TurnMachine, snapshot: Snapshot, now: float = 1.0) -> list[SessionEvent]:
    """Look once; what was told."""
    machine.begin_look()
    return machine.resolve(snapshot, now=now, wall=1000.0)


def end_of(told: Sequence[SessionEvent]) -> Finished:
    """The last event, which must be the end."""
    assert isinstance(told[-1], Finished), told
    return told[-1]


def failed(name: str, **data: Any) -> wire.ErrorInfo:
    """An error of a run."""
    return wire.ErrorInfo(name=name, data=data)


# --- a run that goes nowhere ---


def test_a_model_that_never_says_anything_is_noticed() -> None:
    """Empty model calls in a row are counted once each; a word or a tool call ends the row."""
    machine = make_machine()
    feed(machine, wire.SessionStatus(session_id=SESSION, status=BUSY))

    def empty_steps(first: int, count: int) -> None:
        for number in range(first, first + count):
            message = f"msg_{number:03}"
            info = answer(message, finish="unknown").info
            feed(machine, wire.MessageUpdated(session_id=SESSION, info=info))
            part = step(f"step_{number}", 1, message)
            feed(machine, wire.PartUpdated(part=part), wire.PartUpdated(part=part))

    empty_steps(0, VAIN_STEPS - 1)
    assert not machine.is_spinning
    feed(machine, wire.PartUpdated(part=tool("t", "running", f"msg_{VAIN_STEPS - 2:03}")))
    empty_steps(VAIN_STEPS, VAIN_STEPS - 1)
    assert not machine.is_spinning
    empty_steps(3 * VAIN_STEPS, 1)
    assert machine.is_spinning


# --- how a run ends ---


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (answer("msg_a", text("p", "hi")), FinishReason.DONE),
        (answer("msg_a"), FinishReason.DONE),
        (answer("msg_a", finish="tool-calls"), FinishReason.STOPPED),
        (answer("msg_a", finish="length"), FinishReason.LENGTH),
        (answer("msg_a", finish="content-filter"), FinishReason.BLOCKED),
        (answer("msg_a", finish="error"), FinishReason.FAILED),
        (answer("msg_a", finish="unknown"), FinishReason.INTERRUPTED),
        (answer("msg_a", text("p", "hi"), finish="other"), FinishReason.DONE),
        (answer("msg_a", finish=None, error=failed("MessageAbortedError")), FinishReason.ABORTED),
        (answer("msg_a", finish=None, error=failed("APIError")), FinishReason.FAILED),
        (answer("msg_a", finish=None, error=failed("ContextOverflowError")), FinishReason.FAILED),
        (answer("msg_a", finish=None, error=failed("ContentFilterError")), FinishReason.BLOCKED),
        (answer("msg_a", finish=None, error=failed("NeverHeardOfIt")), FinishReason.FAILED),
    ],
)
def test_the_last_message_of_an_idle_session_tells_how_the_run_ended(
    message: wire.Message, reason: FinishReason
) -> None:
    """Each end that the server was seen to leave behind has its reason; all but DONE say why."""
    end = end_of(resolve(make_machine(), idle(message)))
    assert end.reason is reason
    assert (end.error is None) == (reason is FinishReason.DONE)


def test_an_open_message_of_an_idle_session_gets_time_to_be_closed() -> None:
    """A failing run is idle before its message carries the error; one look is not enough."""
    machine = make_machine()
    is_open = answer("msg_a", finish=None)
    feed(machine, wire.SessionFailed(session_id=SESSION, error=failed("APIError")))
    assert resolve(machine, idle(is_open), now=1.0) == []
    assert machine.look_at == pytest.approx(1.25)
    error = failed("APIError", message="overloaded", statusCode=529, isRetryable=True)
    end = end_of(resolve(machine, idle(answer("msg_a", finish=None, error=error)), now=1.25))
    assert end.reason is FinishReason.FAILED
    assert end.error is not None
    assert (end.error.status, end.error.message) == (529, "overloaded")


@pytest.mark.parametrize(
    ("error", "is_aborted", "reason"),
    [
        (None, False, FinishReason.INTERRUPTED),
        (failed("APIError"), False, FinishReason.FAILED),
        (None, True, FinishReason.ABORTED),
    ],
)
def test_a_message_that_stays_open_ends_the_turn_after_a_while(
    error: wire.ErrorInfo | None,
    is_aborted: bool,  # noqa: FBT001 - a parameter of the test
    reason: FinishReason,
) -> None:
    """A server that died, or an abort while waiting for a retry, leaves the message open."""
    machine = make_machine()
    if error is not None:
        feed(machine, wire.SessionFailed(session_id=SESSION, error=error))
    if is_aborted:
        machine.abort(now=1.0)
    told: list[SessionEvent] = []
    looks = 0
    now = 1.0
    while not machine.is_finished:
        told = resolve(machine, idle(answer("msg_a", finish=None)), now=now)
        looks += 1
        now = machine.look_at
    assert end_of(told).reason is reason
    assert 2 < looks < 20


def test_an_unknown_agent_is_told_by_an_error_alone() -> None:
    """No busy, no idle, no message: the prompt was refused."""
    machine = make_machine()
    error = failed("UnknownError", message="Agent not found")
    feed(machine, wire.SessionFailed(session_id=SESSION, error=error))
    assert machine.look_at <= 1.0
    end = end_of(resolve(machine, idle()))
    assert end.reason is FinishReason.REFUSED
    assert end.error is not None
    assert not end.error.is_retryable


def test_an_error_that_is_not_the_end_does_not_end_the_turn() -> None:
    """After an overflow the server compacts the context and goes on, under another prompt."""
    machine = make_machine()
    feed(machine, wire.SessionFailed(session_id=SESSION, error=failed("ContextOverflowError")))
    summary = answer("msg_s", text("p_s", "We did this.", "msg_s"), summary=True)
    busy = Snapshot(status=BUSY, messages=(user(), summary), is_whole=True)
    assert not any(isinstance(event, Finished | TextReceived) for event in resolve(machine, busy))
    assert machine.state is TurnState.RUNNING
    last = answer("msg_b", text("p_b", "Done.", "msg_b"), parent_id="msg_continue")
    end = end_of(resolve(machine, idle(summary, user("msg_continue"), last), now=9.0))
    assert (end.reason, end.text) == (FinishReason.DONE, "Done.")


def test_what_ended_by_itself_during_an_abort_keeps_its_reason() -> None:
    """An abort that comes too late does not turn an answer into an abortion."""
    machine = make_machine()
    machine.abort(now=1.0)
    assert end_of(resolve(machine, idle(answer("msg_a", text("p", "hi"))))).reason is (
        FinishReason.DONE
    )


def test_an_abort_before_any_answer_ends_the_turn() -> None:
    """Aborted right after it was sent, a prompt has no answer at all."""
    machine = make_machine()
    machine.abort(now=1.0)
    assert end_of(resolve(machine, idle())).reason is FinishReason.ABORTED


def test_a_run_that_an_abort_stopped_was_aborted() -> None:
    """Rejecting what the agent waits for stops the run; during an abort that is the abort."""
    machine = make_machine()
    machine.abort(now=1.0)
    end = end_of(resolve(machine, idle(answer("msg_a", finish="tool-calls"))))
    assert end.reason is FinishReason.ABORTED


def test_a_compaction_at_the_end_is_not_the_answer() -> None:
    """A summary that the server wrote for itself hides neither the answer nor its text."""
    machine = make_machine()
    summary = answer("msg_s", text("p_s", "We did.", "msg_s"), summary=True)
    end = end_of(resolve(machine, idle(answer("msg_a", text("p", "Done.")), summary)))
    assert (end.reason, end.text) == (FinishReason.DONE, "Done.")


def test_messages_of_earlier_turns_are_not_ours_wherever_they_are_listed() -> None:
    """When our clock is behind the server's, our prompt is listed before older messages."""
    machine = make_machine(known_prompts={"msg_before"})
    old = answer("msg_old", text("p_old", "old", "msg_old"), parent_id="msg_before")
    assert resolve(machine, idle(user("msg_before"), old)) == []


@pytest.mark.parametrize(
    ("error", "is_retryable", "retry_after"),
    [
        (failed("APIError", isRetryable=False), False, None),
        (failed("APIError", responseHeaders={"retry-after": "7"}), True, 7.0),
        (failed("APIError", responseHeaders={"retry-after-ms": "300"}), True, 0.3),
        (failed("APIError", responseHeaders={"retry-after": "Fri, 1 Jan"}), True, None),
        (failed("APIError", responseHeaders="nonsense", statusCode="nonsense"), True, None),
        (failed("ContextOverflowError"), False, None),
        (failed("ProviderAuthError"), False, None),
        (wire.ErrorInfo(), True, None),
    ],
)
def test_an_error_tells_whether_trying_again_helps(
    error: wire.ErrorInfo,
    is_retryable: bool,  # noqa: FBT001 - a parameter of the test
    retry_after: float | None,
) -> None:
    """What the provider said about repeating reaches the caller."""
    end = end_of(resolve(make_machine(), idle(answer("msg_a", finish=None, error=error))))
    assert end.error is not None
    assert end.error.message
    assert (end.error.is_retryable, end.error.retry_after) == (is_retryable, retry_after)


# --- when to look ---


def test_a_prompt_that_nobody_speaks_of_is_looked_for_and_sent_again() -> None:
    """Silence for five seconds asks for a look; a prompt that is not there is to be sent again."""
    machine = make_machine()
    assert machine.look_at == 5.0
    empty = Snapshot(status=None, messages=(), is_whole=True)
    assert resolve(machine, empty, now=5.0) == []
    assert machine.needs_resend
    assert machine.look_at == 10.0
    assert resolve(machine, idle(), now=10.0) == []
    assert not machine.needs_resend


def test_a_prompt_that_is_never_worked_on_ends_as_interrupted() -> None:
    """A server that takes a prompt and does nothing cannot hold the turn for ever."""
    machine = make_machine()
    told: list[SessionEvent] = []
    while not machine.is_finished:
        told = resolve(machine, idle(), now=machine.look_at)
    assert end_of(told).reason is FinishReason.INTERRUPTED


def test_idle_right_after_sending_is_not_the_end() -> None:
    """The second idle of the turn before comes late; the status is empty until work begins."""
    old = answer("msg_old", text("p_old", "old", "msg_old"), parent_id="msg_before")
    machine = make_machine(known_prompts={"msg_before"})
    feed(machine, wire.SessionIdle(session_id=SESSION), now=0.1)
    assert machine.look_at <= 0.1
    nothing = Snapshot(status=None, messages=(), is_whole=True)
    assert resolve(machine, nothing, now=0.1) == []
    assert not machine.needs_resend
    newest = Snapshot(status=None, messages=(old,), is_whole=False)
    assert resolve(machine, newest, now=0.1) == []
    assert machine.needs_whole
    whole = Snapshot(status=None, messages=(user("msg_before"), old, user()), is_whole=True)
    assert resolve(machine, whole, now=0.2) == []
    assert machine.state is TurnState.SENT
    assert not machine.needs_resend


def test_a_late_word_about_an_old_message_is_not_taken_for_an_answer() -> None:
    """After an abort the old message is updated once more, while the next prompt runs."""
    machine = make_machine(known_prompts={"msg_before"})
    old = answer("msg_old", parent_id="msg_before").info
    stale = (
        wire.MessageUpdated(info=wire.MessageInfo(id="msg_before", role="user")),
        wire.MessageUpdated(info=old),
        wire.PartUpdated(part=text("p_old", "old text", "msg_old")),
    )
    assert feed(machine, *stale) == []


def test_a_running_turn_is_not_polled() -> None:
    """While events come, no look is due; after a minute of silence one is, to be sure."""
    machine = make_machine()
    feed(machine, wire.SessionStatus(session_id=SESSION, status=BUSY), now=2.0)
    assert machine.look_at == 62.0
    feed(machine, wire.TodoUpdated(session_id=SESSION), now=50.0)
    assert machine.look_at == 110.0
    assert resolve(machine, Snapshot(status=BUSY, messages=(user(),), is_whole=False)) == []
    assert machine.look_at > 60.0


def test_an_event_during_a_look_asks_for_another_look() -> None:
    """The answer to a look may be older than an event that came while it was under way."""
    machine = make_machine()
    feed(machine, wire.SessionStatus(session_id=SESSION, status=BUSY))
    feed(machine, wire.SessionFailed(session_id=SESSION))
    machine.begin_look()
    feed(machine, wire.SessionIdle(session_id=SESSION), now=1.5)
    machine.resolve(Snapshot(status=BUSY, messages=(user(),), is_whole=True), now=1.6, wall=0.0)
    assert machine.look_at <= 1.6


def test_an_idle_event_spares_asking_for_the_status() -> None:
    """The event is the status, unless the message says that the run may still go on."""
    machine = make_machine()
    assert machine.needs_status
    feed(machine, begin(), wire.SessionIdle(session_id=SESSION))
    assert not machine.needs_status
    between = Snapshot(
        status=None,
        messages=(user(), answer("msg_a", finish="tool-calls")),
        is_whole=True,
        is_status_known=False,
    )
    assert resolve(machine, between, now=1.1) == []
    assert machine.look_at <= 1.1
    assert machine.needs_status
    machine.abort(now=1.1)
    feed(machine, wire.SessionIdle(session_id=SESSION), now=1.2)
    nothing = Snapshot(status=None, messages=(user(),), is_whole=True, is_status_known=False)
    assert resolve(machine, nothing, now=1.2) == []
    feed(machine, wire.SessionIdle(session_id=SESSION), now=1.2)
    machine.lose_events(now=1.2)
    assert machine.needs_status


def test_a_message_that_is_closed_is_looked_at_without_delay() -> None:
    """While a turn settles, the event that closes the message ends the waiting."""
    machine = make_machine()
    feed(machine, begin(), wire.SessionStatus(session_id=SESSION, status=BUSY))
    feed(machine, wire.SessionIdle(session_id=SESSION))
    assert resolve(machine, idle(answer("msg_a", finish=None))) == []
    closed = answer("msg_a", finish=None, error=failed("APIError"))
    feed(machine, wire.MessageUpdated(info=closed.info), now=1.1)
    assert machine.look_at <= 1.1


def test_each_settling_has_its_own_time() -> None:
    """Settling long ago, before the run went on, does not shorten the next one."""
    machine = make_machine()
    is_open = idle(answer("msg_a", finish=None))
    assert resolve(machine, is_open, now=1.0) == []
    feed(machine, wire.SessionStatus(session_id=SESSION, status=BUSY), now=1.1)
    assert resolve(machine, is_open, now=50.0) == []


def test_a_finished_turn_tells_nothing_more() -> None:
    """After the end neither events nor looks nor a second end say anything."""
    machine = make_machine()
    machine.finish(FinishReason.LOST, None)
    assert machine.look_at == inf
    assert feed(machine, wire.SessionIdle(session_id=SESSION)) == []
    assert resolve(machine, idle(answer("msg_a"))) == []
    assert machine.finish(FinishReason.DONE, None) == []


# --- what is told ---


def begin(message_id: str = "msg_a") -> wire.MessageUpdated:
    """The assistant begins a message."""
    return wire.MessageUpdated(info=answer(message_id, finish=None).info)


def delta(part_id: str, content: str) -> wire.PartDelta:
    """Some more text."""
    return wire.PartDelta(session_id=SESSION, message_id="msg_a", part_id=part_id, delta=content)


def texts(told: Sequence[SessionEvent]) -> list[str]:
    """The pieces of text."""
    return [event.text for event in told if isinstance(event, TextReceived)]


def test_text_comes_piece_by_piece_and_once() -> None:
    """The full text that follows the pieces adds only what was missing."""
    machine = make_machine()
    told = feed(
        machine,
        begin(),
        wire.PartUpdated(part=text("p", "")),
        delta("p", "Hel"),
        delta("p", "lo"),
        wire.PartUpdated(part=text("p", "Hello there")),
        wire.PartUpdated(part=text("p", "Hello there")),
    )
    assert texts(told) == ["Hel", "lo", " there"]
    told += resolve(machine, idle(answer("msg_a", text("p", "Hello there"))))
    assert texts(told) == ["Hel", "lo", " there"]
    assert end_of(told).text == "Hello there"


def test_an_old_update_does_not_stop_the_text() -> None:
    """The empty beginning of a part, come late, changes nothing."""
    machine = make_machine()
    empty = wire.PartUpdated(part=text("p", ""))
    told = feed(machine, begin(), empty, delta("p", "ab"), empty, delta("p", "c"))
    assert texts(told) == ["ab", "c"]


def test_pieces_after_a_gap_wait_for_the_full_text() -> None:
    """A piece that follows lost ones would garble the text; the full text brings all of it."""
    machine = make_machine()
    feed(machine, begin(), wire.PartUpdated(part=text("p", "")), delta("p", "He"))
    machine.lose_events(now=1.0)
    assert machine.look_at <= 1.0
    assert feed(machine, delta("p", "o")) == []
    assert texts(feed(machine, wire.PartUpdated(part=text("p", "Hello")))) == ["llo"]


def test_a_late_update_of_an_earlier_message_is_not_told_again() -> None:
    """When the next message has begun, the texts of the one before are closed."""
    machine = make_machine()
    first = wire.PartUpdated(part=text("p", "once"))
    assert texts(feed(machine, begin(), first, begin("msg_b"), first)) == ["once"]


def test_text_that_the_server_stripped_is_not_told_twice() -> None:
    """The stored text lacks the blank end of what was streamed; the stream's form stays."""
    machine = make_machine()
    feed(machine, begin(), wire.PartUpdated(part=text("p", "")), delta("p", "Hi \n"))
    told = feed(machine, wire.PartUpdated(part=text("p", "Hi")))
    told += resolve(machine, idle(answer("msg_a", text("p", "Hi"))))
    assert texts(told) == []
    assert end_of(told).text == "Hi \n"


def test_text_that_differs_from_its_pieces_is_told_whole_at_the_end() -> None:
    """When a piece was lost or doubled, the joined text still ends with the answer."""
    machine = make_machine()
    told = feed(machine, begin(), wire.PartUpdated(part=text("p", "")), delta("p", "lo"))
    told += resolve(machine, idle(answer("msg_a", text("p", "Hello"))))
    assert "".join(texts(told)).endswith("Hello")
    assert end_of(told).text == "Hello"


def test_hidden_text_is_not_told() -> None:
    """Reasoning, and what the server itself put in, is not part of the answer."""
    machine = make_machine()
    hidden = wire.Part(id="h", type="text", text="x", message_id="msg_a", session_id=SESSION,
                       synthetic=True)  # fmt: skip
    thought = wire.Part(id="r", type="reasoning", text="y", message_id="msg_a", session_id=SESSION)
    told = feed(machine, begin(), wire.PartUpdated(part=hidden), wire.PartUpdated(part=thought))
    told += resolve(machine, idle(answer("msg_a", hidden, thought, text("p", "z"))))
    assert texts(told) == ["z"]
    assert end_of(told).text == "z"


def test_the_answer_is_the_text_after_the_last_tool_call() -> None:
    """What was said on the way is told as it comes, but is not the answer."""
    machine = make_machine()
    first = answer("msg_a", text("p1", "Let me see."), tool("t", "completed", output="42"),
                   finish="tool-calls")  # fmt: skip
    told = resolve(machine, idle(first, answer("msg_b", text("p2", "It is 42.", "msg_b"))))
    assert texts(told) == ["Let me see.", "It is 42."]
    assert end_of(told).text == "It is 42."


def test_a_long_text_is_cut() -> None:
    """Five megabytes of text end as one, and say so; what is told stays bounded too."""
    machine = make_machine()
    long = "ä" * 5_000_000
    told = resolve(machine, idle(answer("msg_a", text("p", long))))
    end = end_of(told)
    assert end.is_truncated
    assert len(end.text.encode()) <= 1024 * 1024
    assert long.startswith(end.text)
    assert sum(map(len, texts(told))) <= 1024 * 1024


def test_a_tool_call_is_told_once_per_status_and_never_backwards() -> None:
    """Repeated and late updates of a tool call are not told."""
    machine = make_machine()
    told = feed(
        machine,
        begin(),
        wire.PartUpdated(part=tool("t", "pending")),
        wire.PartUpdated(part=tool("t", "running", input={"command": "ls"})),
        wire.PartUpdated(part=tool("t", "running", input={"command": "ls"})),
        wire.PartUpdated(part=tool("t", "error", error="no")),
        wire.PartUpdated(part=tool("t", "running")),
        wire.PartUpdated(part=tool("t", "some-new-status")),
    )
    calls = [event for event in told if isinstance(event, ToolCalled)]
    assert [call.status for call in calls] == [
        ToolStatus.PENDING,
        ToolStatus.RUNNING,
        ToolStatus.FAILED,
    ]
    assert calls[1].input == {"command": "ls"}
    assert calls[2].error == "no"


def test_a_huge_tool_output_is_cut() -> None:
    """Outputs and arguments of tools are passed on up to a limit."""
    machine = make_machine()
    part = tool("t", "completed", output="x" * 10**6, input={"content": "y" * 10**6, "n": 1})
    (call,) = feed(machine, begin(), wire.PartUpdated(part=part))
    assert isinstance(call, ToolCalled)
    assert len(call.output) == 64 * 1024
    assert len(str(call.input["content"])) == 64 * 1024
    assert call.input["n"] == 1


def test_usage_counts_every_model_call_once_also_of_children() -> None:
    """The sum over steps, whether seen by event or by look, is the turn's usage."""
    machine = make_machine()
    child = step("s2", 100, "msg_c", "ses_child")
    told = feed(
        machine,
        begin(),
        wire.PartUpdated(part=step("s1", 10)),
        wire.PartUpdated(part=child),
        wire.PartUpdated(part=child),
    )
    told += resolve(machine, idle(answer("msg_a", step("s1", 10), step("s3", 1000))))
    end = end_of(told)
    assert end.usage == Usage(input_tokens=1110, output_tokens=3, cost=1.5)
    reported = [event.usage for event in told if isinstance(event, UsageReported)]
    assert sum(reported, Usage()) == end.usage


def test_children_seen_by_a_look_count_from_the_prompt_on() -> None:
    """After lost events, a child of this turn is counted and one of an earlier turn is not."""
    machine = make_machine()
    prompt = wire.Message(
        info=wire.MessageInfo(id=PROMPT, role="user", time=wire.Timing(created=50.0))
    )
    children = tuple(
        wire.Message(
            info=wire.MessageInfo(
                id=f"msg_c{stamp}", role="assistant", time=wire.Timing(created=stamp)
            ),
            parts=(step(f"s{stamp}", int(stamp), session_id="ses_child"),),
        )
        for stamp in (10.0, 60.0)
    )
    last = answer("msg_a")
    snapshot = Snapshot(status=None, messages=(prompt, last), is_whole=True, children=children)
    assert end_of(resolve(machine, snapshot)).usage.input_tokens == 60


def test_a_retry_is_told_once_with_its_delay() -> None:
    """The server's stamp becomes a delay; repeating the status tells nothing new."""
    machine = make_machine()
    status = wire.StatusInfo(type="retry", attempt=1, message="Too Many Requests", next=1_004_000)
    event = wire.SessionStatus(session_id=SESSION, status=status)
    told = feed(machine, event, event)
    assert told == [
        RetryScheduled(session_id=SESSION, attempt=1, message="Too Many Requests", delay=4.0)
    ]


def test_a_todo_list_is_told_when_it_changes() -> None:
    """The same list again tells nothing."""
    machine = make_machine()
    todos = (wire.TodoInfo(content="write", status="pending"),)
    event = wire.TodoUpdated(session_id=SESSION, todos=todos)
    (told,) = feed(machine, event, event)
    assert isinstance(told, TodoChanged)
    assert told.items[0].text == "write"


def test_a_broken_run_keeps_what_was_shown() -> None:
    """When the server has no text of a run that broke off, the shown text is the answer."""
    machine = make_machine()
    feed(machine, begin(), wire.PartUpdated(part=text("p", "")), delta("p", "half a sen"))
    end = end_of(machine.finish(FinishReason.LOST, None))
    assert end.text == "half a sen"


def test_a_broken_runs_text_starts_after_its_last_tool_call() -> None:
    """What was said before a tool call is not taken for the answer."""
    machine = make_machine()
    call = wire.PartUpdated(part=tool("t", "running"))
    feed(machine, begin(), wire.PartUpdated(part=text("p", "Let me see.")), call)
    assert end_of(machine.finish(FinishReason.LOST, None)).text == ""


# --- lost, doubled and reordered events ---


@frozen
class Run:
    """What a server does for one prompt: the events it sends and the messages it has then."""

    events: list[wire.Event] = field(factory=list)
    snapshots: list[Snapshot] = field(factory=list, repr=False)


@st.composite
def runs(draw: st.DrawFn, alphabet: str = "ab \n") -> Run:
    """Runs of a few steps, each with pieces of text and tool calls; the last one only text."""
    run = Run()
    done: list[wire.Message] = []
    count = draw(st.integers(1, 3))
    pieces = st.lists(st.text(alphabet, min_size=1, max_size=4), max_size=3)

    def send(event: wire.Event, *, now: Sequence[wire.Message], is_busy: bool = True) -> None:
        run.events.append(event)
        status = BUSY if is_busy else None
        run.snapshots.append(Snapshot(status=status, messages=(user(), *done, *now), is_whole=True))

    for number in range(count):
        is_last = number == count - 1
        message_id = f"msg_{number}"
        parts: list[wire.Part] = []

        def current(
            finish: str | None = None,
            message_id: str = message_id,
            parts: list[wire.Part] = parts,
        ) -> wire.Message:
            return answer(message_id, *parts, finish=finish)

        send(wire.SessionStatus(session_id=SESSION, status=BUSY), now=())
        send(wire.MessageUpdated(info=current().info), now=(current(),))
        for index in range(draw(st.integers(0, 2))):
            part_id = f"p{number}.{index}"
            streamed = draw(pieces)
            opened = text(part_id, "", message_id)
            send(wire.PartUpdated(part=opened), now=(current(),))
            for piece in streamed:
                event = wire.PartDelta(
                    session_id=SESSION, message_id=message_id, part_id=part_id, delta=piece
                )
                send(event, now=(current(),))
            parts.append(text(part_id, "".join(streamed), message_id))
            send(wire.PartUpdated(part=parts[-1]), now=(current(),))
        if not is_last:
            for status in ("pending", "running", "completed"):
                call = tool(f"t{number}", status, message_id)
                parts[:] = [part for part in parts if part.id != call.id] + [call]
                send(wire.PartUpdated(part=call), now=(current(),))
        parts.append(step(f"s{number}", 10 + number, message_id))
        send(wire.PartUpdated(part=parts[-1]), now=(current(),))
        closed = current("stop" if is_last else "tool-calls")
        send(wire.MessageUpdated(info=closed.info), now=(closed,))
        done.append(closed)
    send(wire.SessionIdle(session_id=SESSION), now=(), is_busy=False)
    return run


def drive(run: Run, order: Sequence[int], *, is_told: bool) -> list[SessionEvent]:
    """Deliver the events in an order, look whenever it is due, then let time pass to the end.

    Args:
        run: What the server does.
        order: Indexes into its events, one delivered per tenth of a second.
        is_told: Whether the stream's trouble is noticed, as a broken connection is.
    """
    machine = make_machine()
    told: list[SessionEvent] = []
    reached = 0

    def look(now: float) -> None:
        truth = run.snapshots[reached]
        shown = Snapshot(
            status=truth.status if machine.needs_status else None,
            messages=truth.messages if machine.needs_whole else truth.messages[-1:],
            is_whole=machine.needs_whole,
            is_status_known=machine.needs_status,
        )
        machine.begin_look()
        told.extend(machine.resolve(shown, now=now, wall=0.0))

    now = 0.0
    for index in order:
        now += 0.1
        reached = max(reached, index)
        told += machine.feed(run.events[index], now=now, wall=0.0)
        if machine.look_at <= now:
            look(now)
    reached = len(run.events) - 1
    if is_told:
        machine.lose_events(now=now)
    for _ in range(50):
        if machine.is_finished:
            break
        now = max(now, machine.look_at)
        assert now < inf, "nothing would ever end this turn"
        look(now)
    return told


@st.composite
def troubles(draw: st.DrawFn) -> tuple[Run, list[int]]:
    """A run, and its events lost, doubled and out of order."""
    # Blanks are left out: a doubled blank at the end of a text looks like one that was stripped.
    run = draw(runs("ab"))
    order: list[int] = []
    for index in range(len(run.events)):
        order += [index] * draw(st.sampled_from([0, 1, 1, 1, 2]))
    for _ in range(draw(st.integers(0, 4))):
        if len(order) > 1:
            at = draw(st.integers(0, len(order) - 2))
            order[at], order[at + 1] = order[at + 1], order[at]
    return run, order


def check(told: Sequence[SessionEvent], run: Run) -> None:
    """What is true of every turn, and of this one's end."""
    ends = [event for event in told if isinstance(event, Finished)]
    assert len(ends) == 1
    end = end_of(told)
    assert end.reason is FinishReason.DONE
    last = run.snapshots[-1].messages[-1]
    whole = "".join(part.text or "" for part in last.parts if part.type == "text")
    assert end.text == whole
    assert "".join(texts(told)).endswith(end.text)
    reported = [event.usage for event in told if isinstance(event, UsageReported)]
    assert sum(reported, Usage()) == end.usage
    seen = [(call.call_id, call.status) for call in told if isinstance(call, ToolCalled)]
    assert len(seen) == len(set(seen))


@settings(deadline=None)
@given(runs())
def test_a_healthy_stream_is_told_without_loss(run: Run) -> None:
    """Every event once and in order: all text, all calls, all usage, nothing twice."""
    told = drive(run, range(len(run.events)), is_told=False)
    check(told, run)
    parts = [part for message in run.snapshots[-1].messages for part in message.parts]
    assert "".join(texts(told)) == "".join(p.text or "" for p in parts if p.type == "text")
    assert end_of(told).usage == usage_of_run(run)


@settings(deadline=None)
@given(troubles())
def test_lost_doubled_and_reordered_events_cannot_change_the_end(
    trouble: tuple[Run, list[int]],
) -> None:
    """Whatever happens to the events, the turn ends once, with the true answer."""
    run, order = trouble
    check(drive(run, order, is_told=False), run)


@settings(deadline=None)
@given(troubles())
def test_after_a_noticed_gap_the_usage_is_right_too(trouble: tuple[Run, list[int]]) -> None:
    """A look at everything finds the model calls whose events were lost."""
    run, order = trouble
    idle_at = len(run.events) - 1
    told = drive(run, [index for index in order if index != idle_at], is_told=True)
    check(told, run)
    assert end_of(told).usage == usage_of_run(run)


def usage_of_run(run: Run) -> Usage:
    """What the model calls of a run consumed."""
    total = Usage()
    for message in run.snapshots[-1].messages:
        for part in message.parts:
            if part.type == "step-finish" and part.tokens is not None:
                tokens = part.tokens
                total += Usage(
                    input_tokens=int(tokens.input or 0),
                    output_tokens=int(tokens.output or 0),
                    cost=part.cost or 0.0,
                )
    return total
