"""What the turn of an embedded session tells: as it goes on, and again when it is over."""

from __future__ import annotations

import anyio
import anyio.lowlevel
from anyio.streams.memory import MemoryObjectSendStream

from orchestra.events import (
    Finished,
    FinishReason,
    SessionEvent,
    Started,
    TextReceived,
    ToolCalled,
    TurnError,
    Usage,
    UsageReported,
)

__all__ = ("Replay", "TurnRecord")

_MAX_TEXT = 1 << 20
"""Characters of an answer that are kept."""


class TurnRecord:
    """What a turn has told so far, and the way to its reader."""

    def __init__(self, session_id: str, send: MemoryObjectSendStream[SessionEvent]) -> None:
        self._session_id = session_id
        self._send = send
        self._answer: list[str] = []
        self._answer_size = 0
        self._usage = Usage()

    async def tell(self, event: SessionEvent) -> None:
        """Pass an event on, and remember what the end of the turn needs of it."""
        try:
            await self._send.send(event)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            raise RuntimeError(f"the turn of session {self._session_id} is over") from None
        if isinstance(event, TextReceived):
            if self._answer_size <= _MAX_TEXT:
                self._answer.append(event.text)
                self._answer_size += len(event.text)
        elif isinstance(event, ToolCalled):
            self._answer.clear()
            self._answer_size = 0
        elif isinstance(event, UsageReported):
            self._usage += event.usage

    def finish(
        self, reason: FinishReason, answer: str | None = None, error: TurnError | None = None
    ) -> Finished:
        """Return the end of the turn."""
        text = "".join(self._answer) if answer is None else answer
        return Finished(
            session_id=self._session_id,
            reason=reason,
            text=text[:_MAX_TEXT],
            is_truncated=len(text) > _MAX_TEXT,
            usage=self._usage,
            error=error,
        )

    def close(self) -> None:
        """Say that nothing more comes."""
        self._send.close()


class Replay:
    """Tells again how a turn ended that is over."""

    def __init__(self, prompt_id: str, end: Finished) -> None:
        name = end.session_id
        self._events: list[SessionEvent] = [end, Started(session_id=name, prompt_id=prompt_id)]
        if end.text:
            self._events.insert(1, TextReceived(session_id=name, text=end.text))
        if end.usage != Usage():
            self._events.insert(1, UsageReported(session_id=name, usage=end.usage))

    def __aiter__(self) -> Replay:
        return self

    async def __anext__(self) -> SessionEvent:
        await anyio.lowlevel.checkpoint()
        if not self._events:
            raise StopAsyncIteration
        return self._events.pop()
