"""The life of one prompt, as a pure state machine: no clock, no I/O.

In go the server's events and, now and then, what a look at the server (a few GETs) has shown; out
come session events, and the time of the next look. Nothing depends on an event being there once,
in order, or at all: events make the machine quick, looks make it right. While the event stream is
down the looks come at the times of the `FallbackPoller`, which also says what to believe.

::

    SENT -> RUNNING -> SETTLING -> FINISHED
                ^_________|            (the look shows that it is still busy)
"""

from __future__ import annotations

from enum import Enum
from math import inf
from typing import final

from attrs import define, field

from orchestra.events import (
    Finished,
    FinishReason,
    RetryScheduled,
    SessionEvent,
    TextReceived,
    TodoChanged,
    TodoItem,
    ToolCalled,
    ToolStatus,
    TurnError,
    Usage,
    UsageReported,
)
from orchestra.opencode.client import wire
from orchestra.opencode.client.looking import FallbackPoller, Snapshot, TurnTiming
from orchestra.opencode.client.verdict import (
    classify_error,
    classify_finish,
    cut,
    cut_values,
    interrupted,
    usage_of,
)

__all__ = ("Snapshot", "TurnMachine", "TurnState", "TurnTiming")

TEXT_LIMIT = 1024 * 1024
"""Bytes of an answer (as UTF-8) that are kept; the rest is cut."""

OUTPUT_LIMIT = 64 * 1024
"""Bytes of a tool's output, and of each of its arguments, that are passed on."""


class TurnState(Enum):
    """How far a prompt is."""

    SENT = "sent"
    """Not yet seen at work."""
    RUNNING = "running"
    SETTLING = "settling"
    """It seems to be over; a look will tell."""
    FINISHED = "finished"


@define
class _TextPart:
    """A text part's emitted beginning."""

    pieces: list[str] = field(factory=list)
    is_in_step: bool = True

    @property
    def text(self) -> str:
        if len(self.pieces) > 1:
            self.pieces = ["".join(self.pieces)]
        return self.pieces[0] if self.pieces else ""


_RANKS = {
    ToolStatus.PENDING: 0,
    ToolStatus.RUNNING: 1,
    ToolStatus.COMPLETED: 2,
    ToolStatus.FAILED: 2,
}
_TOOL_STATUS = {
    "pending": ToolStatus.PENDING,
    "running": ToolStatus.RUNNING,
    "completed": ToolStatus.COMPLETED,
    "error": ToolStatus.FAILED,
}


VAIN_STEPS = 20
"""Model calls in a row without a word or a tool call after which a turn goes nowhere: an empty
answer without a finish reason makes the server ask again at once, without end."""

_ABORTED = TurnError(name="Aborted", message="the turn was aborted")


@final
class TurnMachine:
    """One prompt of one session, from its sending to its end.

    Args:
        session_id: The session.
        prompt_id: The id we gave to the user message.
        now: Seconds on a clock that never goes back; all later ``now`` are on the same clock.
        known_prompts: Ids of the session's earlier user messages; those that turn up are added.
        timing: When to look.
    """

    def __init__(
        self,
        *,
        session_id: str,
        prompt_id: str,
        now: float,
        known_prompts: set[str],
        timing: TurnTiming | None = None,
    ) -> None:
        self.session_id = session_id
        self.prompt_id = prompt_id
        self.timing: TurnTiming = timing or TurnTiming()
        self.state: TurnState = TurnState.SENT
        self.is_aborting: bool = False
        self.needs_whole: bool = False
        """Whether the next look must fetch all messages: events may have been lost."""
        self.needs_resend: bool = False
        """Whether the last look showed that the prompt never arrived."""
        self._known = known_prompts
        self._prompts = {prompt_id}
        self._sent_at = now
        self._start_at = now + self.timing.start
        self._quiet_at = inf
        self._due_at = inf
        self._poller = FallbackPoller(self.timing)
        self._settle_until = inf
        self._error: wire.ErrorInfo | None = None
        self._messages: dict[str, bool] = {}  # id -> whether it is a compaction's summary
        self._texts: dict[str, _TextPart] = {}
        self._closed: set[str] = set()
        self._ranks: dict[str, int] = {}
        self._steps: set[str] = set()
        self._answer: list[str] = []  # emitted since the last tool call
        self._answer_length = 0
        self._is_cut = False
        self._is_idle_told = False
        self._vain_steps = 0
        self._usage = Usage()
        self._todo: tuple[TodoItem, ...] = ()
        self._retry: float | None = None
        self._known.add(prompt_id)

    @property
    def look_at(self) -> float:
        """When to look at the server and call `resolve`; ``inf`` when an event will tell."""
        if self.state is TurnState.FINISHED:
            return inf
        start_at = self._start_at if self.state is TurnState.SENT else inf
        return min(self._due_at, self._quiet_at, self._poller.due_at, start_at)

    @property
    def needs_status(self) -> bool:
        """Whether the next look must fetch the status; an idle event has just told it otherwise."""
        return self.needs_whole or not self._is_idle_told

    @property
    def is_polling(self) -> bool:
        """Whether looks take the place of events, since the event stream is down."""
        return self._poller.is_active

    @property
    def is_finished(self) -> bool:
        """Whether the turn is over."""
        return self.state is TurnState.FINISHED

    @property
    def is_spinning(self) -> bool:
        """Whether the model is called again and again and neither says nor does anything."""
        return self._vain_steps >= VAIN_STEPS and not self.is_finished

    def __repr__(self) -> str:
        return f"<TurnMachine {self.prompt_id} {self.state.value}>"

    # --- what happens ---

    def feed(  # noqa: C901 - one case for each kind of event
        self, event: wire.Event, *, now: float, wall: float
    ) -> list[SessionEvent]:
        """Take in an event of the session, or of one of its children.

        Args:
            event: The event.
            now: The time.
            wall: Seconds since the epoch on the server's clock, for its ``next`` stamps.

        Returns:
            What to tell.
        """
        if self.is_finished:
            return []
        told: list[SessionEvent] = []
        self._quiet_at = now + self.timing.quiet
        match event:
            case wire.PartUpdated(part=part) if part.session_id != self.session_id:
                self._take_usage(part, told)
            case wire.PartUpdated(part=part) if part.message_id in self._messages:
                self._take_part(part, told)
            case wire.PartDelta():
                self._take_delta(event, told)
            case wire.MessageUpdated(info=info):
                self._take_message(info)
                is_over = info.error is not None or info.finish is not None
                if is_over and self.state is TurnState.SETTLING:
                    self._due_at = now
            case wire.SessionStatus(status=status) if status.type != "idle":
                self._take_status(status, wall, told)
            case wire.SessionStatus() | wire.SessionIdle():
                self._is_idle_told = True
                self._look_soon(now)
            case wire.SessionFailed(error=error):
                self._error = error or wire.ErrorInfo()
                self._look_soon(now)
            case wire.TodoUpdated(todos=todos):
                items = tuple(TodoItem(text=todo.content, status=todo.status) for todo in todos)
                if items != self._todo:
                    self._todo = items
                    told.append(TodoChanged(session_id=self.session_id, items=items))
            case _:
                pass
        return told

    def lose_events(self, *, now: float) -> None:
        """Say that events may be missing from here on: look at everything, and soon.

        Args:
            now: The time.
        """
        self.needs_whole = True
        for part_id in self._texts:
            self._texts[part_id].is_in_step = False
        self._due_at = min(self._due_at, now)

    def stream_broke(self, *, now: float) -> None:
        """Say that no events come in from here on.

        Args:
            now: The time.
        """
        self._poller.start(now)
        self.lose_events(now=now)

    def stream_mended(self, *, now: float) -> None:
        """Say that events come in again; those of the meantime are lost.

        Args:
            now: The time.
        """
        self._poller.stop()
        self.lose_events(now=now)

    def look_failed(self, *, now: float) -> None:
        """Say that a look has shown nothing, which tells nothing: look again.

        Args:
            now: The time.
        """
        self._poller.retry(now)
        self.lose_events(now=now)

    def abort(self, *, now: float) -> None:
        """Say that the server was asked to abort the run.

        Args:
            now: The time.
        """
        self.is_aborting = True
        self._due_at = min(self._due_at, now + self.timing.settle)

    def begin_look(self) -> None:
        """Say that a look starts now; what comes while it is under way asks for another."""
        self._due_at = self._quiet_at = self._start_at = inf
        self._poller.begin_read()
        self._is_idle_told = False

    def resolve(self, snapshot: Snapshot, *, now: float, wall: float) -> list[SessionEvent]:
        """Take in what a look has shown; this is where a turn ends.

        A look that failed is to be begun again.

        Args:
            snapshot: What was seen.
            now: The time after the look.
            wall: As for `feed`.

        Returns:
            What to tell; ends with `Finished` when the turn is over.
        """
        if self.is_finished:
            return []
        told: list[SessionEvent] = []
        ours = self._messages_of_turn(snapshot)
        for message in ours:
            self._take_message(message.info)
            for part in message.parts:
                self._take_part(part, told)
        self._take_children(snapshot, told)
        is_blind = not ours and bool(snapshot.messages) and not snapshot.is_whole
        if is_blind and snapshot.messages[-1].info.id != self.prompt_id:
            # A part of the list that does not show where our prompt is says nothing.
            self.needs_whole = True
            self._due_at = now
            return told
        self.needs_whole = False
        self._quiet_at = now + self.timing.quiet
        self._poller.take(snapshot, now)
        if snapshot.status is not None and snapshot.status.type != "idle":
            self._take_status(snapshot.status, wall, told)
            if self.is_aborting:
                self._due_at = min(self._due_at, now + self.timing.settle)
            return told
        answers = [message for message in ours if message.info.summary is not True]
        last = answers[-1] if answers else None
        if not snapshot.is_status_known and not _is_conclusive(last):
            self._due_at = now  # the idle event may have been an old one
        elif self._is_unknown(last, now):
            self.needs_whole = self._poller.is_nearly_sure
        else:
            self._judge(last, snapshot, now, told)
        return told

    def _is_unknown(self, last: wire.Message | None, now: float) -> bool:
        """Whether nobody can say yet what it means that the session is not seen at work."""
        if last is None or self.is_aborting:
            return False  # that has limits of its own
        return not self._poller.believes(now, is_conclusive=_is_conclusive(last))

    def finish(self, reason: FinishReason, error: TurnError | None) -> list[SessionEvent]:
        """End the turn for a reason that the server does not know of.

        Args:
            reason: Why.
            error: Why, in words.

        Returns:
            What to tell.
        """
        if self.is_finished:
            return []
        told: list[SessionEvent] = []
        self._finish(reason, error, None, told)
        return told

    # --- judging ---

    def _judge(
        self,
        last: wire.Message | None,
        snapshot: Snapshot,
        now: float,
        told: list[SessionEvent],
    ) -> None:
        """Decide what an idle session's last answer means."""
        if last is None:
            self._judge_silence(snapshot, now, told)
            return
        info = last.info
        if info.error is not None:
            self._finish(*classify_error(info.error), last, told)
        elif info.is_completed and info.finish:
            reason, error = classify_finish(last)
            if reason is FinishReason.STOPPED and self.is_aborting:
                reason, error = FinishReason.ABORTED, _ABORTED
            self._finish(reason, error, last, told)
        elif now < min(self._settle_until, now + self.timing.settle_limit):
            # Idle comes before the last message is closed when a run fails or is aborted.
            self.state = TurnState.SETTLING
            self._settle_until = min(self._settle_until, now + self.timing.settle_limit)
            self._due_at = min(self._due_at, now + self.timing.settle)
        elif self.is_aborting:
            # Aborted while it waited for a retry: the server leaves the message open.
            self._finish(FinishReason.ABORTED, _ABORTED, last, told)
        elif self._error is not None:
            self._finish(*classify_error(self._error), last, told)
        else:
            error = interrupted("the run broke off in the middle of an answer")
            self._finish(FinishReason.INTERRUPTED, error, last, told)

    def _judge_silence(self, snapshot: Snapshot, now: float, told: list[SessionEvent]) -> None:
        """Decide what it means that an idle session has no answer to the prompt."""
        if self.is_aborting:
            self._finish(FinishReason.ABORTED, _ABORTED, None, told)
        elif self._error is not None:
            _, error = classify_error(self._error)
            error = TurnError(name=error.name, message=error.message, is_retryable=False)
            self._finish(FinishReason.REFUSED, error, None, told)
        elif now - self._sent_at >= self.timing.start_limit:
            error = interrupted("the server took the prompt and never started to work on it")
            self._finish(FinishReason.INTERRUPTED, error, None, told)
        else:
            is_stored = any(m.info.id == self.prompt_id for m in snapshot.messages)
            is_due = now - self._sent_at >= self.timing.start
            self.needs_resend = is_due and not is_stored
            self.state = TurnState.SENT
            self._start_at = now + self.timing.start

    def _finish(
        self,
        reason: FinishReason,
        error: TurnError | None,
        last: wire.Message | None,
        told: list[SessionEvent],
    ) -> None:
        emitted = "".join(self._answer)
        text = self._final_text(last) if last is not None else ""
        is_truncated = False
        if not text and reason is not FinishReason.DONE:
            # The server does not keep what was being written when a run breaks off.
            text, is_truncated = emitted, self._is_cut
        text, is_long = cut(text, TEXT_LIMIT)
        if not is_long and not emitted.endswith(text):
            missing = text.removeprefix(emitted)
            told.append(TextReceived(session_id=self.session_id, text=missing))
        self.state = TurnState.FINISHED
        told.append(
            Finished(
                session_id=self.session_id,
                reason=reason,
                text=text,
                is_truncated=is_truncated or is_long,
                usage=self._usage,
                error=error,
            )
        )

    def _final_text(self, last: wire.Message) -> str:
        """The text after the message's last tool call, in the form in which it was emitted."""
        pieces: list[str] = []
        for part in last.parts:
            if part.type == "tool":
                pieces.clear()
            elif part.type == "text" and part.text and not (part.synthetic or part.ignored):
                known = self._texts.get(part.id)
                # The server strips the blank end of a text when it stores it.
                is_same = known is not None and known.text.rstrip() == part.text.rstrip()
                pieces.append(known.text if known is not None and is_same else part.text)
        return "".join(pieces)

    # --- taking in ---

    def _look_soon(self, now: float) -> None:
        if self.state is TurnState.RUNNING:
            self.state = TurnState.SETTLING
        self._due_at = min(self._due_at, now)

    def _messages_of_turn(self, snapshot: Snapshot) -> list[wire.Message]:
        """The assistant's messages since our prompt, oldest first."""
        ours = []
        is_after = False
        for message in snapshot.messages:
            info = message.info
            if info.id == self.prompt_id:
                is_after = True
            elif info.role == "user":
                # After a compaction the server goes on under a prompt of its own.
                if is_after and info.id not in self._known:
                    self._known.add(info.id)
                    self._prompts.add(info.id)
            elif info.parent_id in self._prompts:
                ours.append(message)
        return ours

    def _take_children(self, snapshot: Snapshot, told: list[SessionEvent]) -> None:
        """Count what children have consumed since our prompt, by the server's clock."""
        stamps = {message.info.id: message.info.created for message in snapshot.messages}
        start = stamps.get(self.prompt_id, inf)
        for message in snapshot.children:
            if message.info.created >= start:
                for part in message.parts:
                    self._take_usage(part, told)

    def _take_message(self, info: wire.MessageInfo) -> None:
        if info.role == "user":
            # A prompt that is not ours: the server's own "continue" after a compaction.
            if info.id not in self._known:
                self._known.add(info.id)
                self._prompts.add(info.id)
        elif info.id not in self._messages and info.parent_id in self._prompts:
            self._messages[info.id] = info.summary is True
            self._closed.update(self._texts)
            self._texts.clear()

    def _take_part(self, part: wire.Part, told: list[SessionEvent]) -> None:
        match part.type:
            case "text":
                self._take_text(part, told)
            case "tool":
                self._take_tool(part, told)
            case "step-finish":
                if part.id not in self._steps:
                    self._vain_steps += 1
                self._take_usage(part, told)
            case _:
                pass

    def _take_text(self, part: wire.Part, told: list[SessionEvent]) -> None:
        is_hidden = part.synthetic or part.ignored or self._messages.get(part.message_id, False)
        if is_hidden or part.id in self._closed:
            return
        known = self._texts.setdefault(part.id, _TextPart())
        text = part.text or ""
        emitted = known.text
        if text.startswith(emitted):
            known.is_in_step = True
            self._emit_text(known, text[len(emitted) :], told)
        elif not emitted.startswith(text.rstrip()):
            known.is_in_step = False  # what was emitted is not what was written: see `_finish`

    def _take_delta(self, event: wire.PartDelta, told: list[SessionEvent]) -> None:
        known = self._texts.get(event.part_id)
        if known is not None and known.is_in_step and event.field == "text":
            self._emit_text(known, event.delta, told)

    def _emit_text(self, known: _TextPart, text: str, told: list[SessionEvent]) -> None:
        room = TEXT_LIMIT - self._answer_length
        if len(text) > room:
            self._is_cut = True
            known.is_in_step = False
            text = text[: max(room, 0)]
        if text:
            self._vain_steps = 0
            known.pieces.append(text)
            self._answer.append(text)
            self._answer_length += len(text)
            told.append(TextReceived(session_id=self.session_id, text=text))

    def _take_tool(self, part: wire.Part, told: list[SessionEvent]) -> None:
        state = part.state or wire.ToolState()
        status = _TOOL_STATUS.get(state.status)
        if status is None:
            return
        call_id = part.call_id or part.id
        rank = self._ranks.get(call_id)
        if rank is None:
            self._vain_steps = 0
            self._answer.clear()
            self._answer_length = 0
            self._is_cut = False
        elif _RANKS[status] <= rank:
            return
        self._ranks[call_id] = _RANKS[status]
        is_failed = status is ToolStatus.FAILED
        told.append(
            ToolCalled(
                session_id=self.session_id,
                call_id=call_id,
                tool=part.tool or "",
                status=status,
                input=cut_values(state.input or {}, OUTPUT_LIMIT),
                output=cut(state.output or "", OUTPUT_LIMIT)[0],
                error=cut(state.error or "unknown error", OUTPUT_LIMIT)[0] if is_failed else "",
            )
        )

    def _take_usage(self, part: wire.Part, told: list[SessionEvent]) -> None:
        if part.type != "step-finish" or part.id in self._steps:
            return
        self._steps.add(part.id)
        usage = usage_of(part)
        self._usage += usage
        told.append(UsageReported(session_id=self.session_id, usage=usage))

    def _take_status(self, status: wire.StatusInfo, wall: float, told: list[SessionEvent]) -> None:
        self.state = TurnState.RUNNING
        self._settle_until = inf
        self._is_idle_told = False
        if status.type != "retry":
            self._retry = None
        elif status.attempt != self._retry:
            self._retry = status.attempt
            told.append(
                RetryScheduled(
                    session_id=self.session_id,
                    attempt=int(status.attempt or 1),
                    message=cut(status.message or "", 2000)[0],
                    delay=max(0.0, (status.next or 0.0) / 1000 - wall),
                )
            )


def _is_conclusive(last: wire.Message | None) -> bool:
    """Whether a run does not go on after this message, whatever the status."""
    if last is None:
        return False
    info = last.info
    return info.error is not None or (
        info.is_completed and info.finish not in {None, "tool-calls", "unknown"}
    )
