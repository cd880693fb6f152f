"""A backend whose sessions remember everything, and that is slow or fails where a test wants it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio
from attrs import define, field

from orchestra import Agent, BackendStatistics, Session, SessionBackend
from orchestra.errors import TransportError
from orchestra.events import Finished, FinishReason, SessionEvent, Started

__all__ = ("Guest", "Inn")


class Guest(Session):
    """A session that knows what was said to it, and by which mission."""

    def __init__(self, inn: Inn, number: int, agent: str, directory: Path) -> None:
        self.inn = inn
        self.agent = agent
        self.number = number
        self.directory = directory
        self.context: list[str] = []
        self.metadata: dict[str, str] = {}
        self.is_well = True
        self.is_busy = False
        self.is_closed = False

    @property
    def id(self) -> str:
        return f"guest_{self.number}"

    def stream(
        self, prompt: str, *, prompt_id: str | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[SessionEvent]]:
        assert prompt_id is None
        return self._stream(prompt)

    @asynccontextmanager
    async def _stream(self, prompt: str) -> AsyncGenerator[AsyncIterator[SessionEvent]]:
        assert not self.is_busy
        assert not self.is_closed
        self.context.append(prompt)
        self.is_busy = True
        try:
            async with aclosing(self._answer()) as events:
                yield events
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(self.inn.seconds["idle"])
            self.is_busy = False

    async def _answer(self) -> AsyncGenerator[SessionEvent]:
        yield Started(session_id=self.id, prompt_id="p")
        await anyio.sleep(self.inn.seconds["answer"])
        text = " ".join(self.context)
        yield Finished(session_id=self.id, reason=FinishReason.DONE, text=text)

    async def check(self) -> bool:
        self.inn.looks += 1
        await anyio.sleep(self.inn.seconds["check"])
        return self.is_well and not self.is_busy and not self.is_closed

    async def reset(self) -> bool:
        await anyio.sleep(self.inn.seconds["reset"])
        if self.inn.is_forgetful and not self.is_busy:
            self.context.clear()
        return not self.context

    async def relabel(self, *, title: str, metadata: Mapping[str, str]) -> None:
        await anyio.sleep(self.inn.seconds["relabel"])
        if not self.is_well:
            raise TransportError(f"{title}: the guest does not answer")
        self.metadata = dict(metadata)

    async def abort(self) -> None:
        await anyio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        assert not self.is_closed, "a session is closed twice"
        self.is_closed = True
        with anyio.CancelScope(shield=True):
            while self.is_busy:  # noqa: ASYNC110 - the clock is virtual
                await anyio.sleep(0.01)
            await anyio.sleep(self.inn.seconds["close"])
        self.inn.open_now.remove(self)


@define
class Inn(SessionBackend):
    """The backend.

    Attributes:
        seconds: How long each act takes.
        is_forgetful: Whether a reset empties the context.
        refusals: How many more times opening a session fails.
        open_now: The sessions that are open, or being closed.
        most: How many of them there were at the most.
        looks: How often a session was checked.
        warm: The directories that were prewarmed.
        on_open: Called with the agent's name where a session has been opened.
    """

    seconds: dict[str, float] = field(
        factory=lambda: dict.fromkeys(
            ("open", "answer", "idle", "check", "reset", "relabel", "close", "prewarm"), 1.0
        )
    )
    is_forgetful: bool = True
    refusals: int = 0
    open_now: list[Guest] = field(factory=list)
    opened: int = 0
    most: int = 0
    looks: int = 0
    warm: list[Path] = field(factory=list)
    on_open: Callable[[str], object] | None = None

    @property
    def name(self) -> str:
        return "inn"

    @property
    def is_open(self) -> bool:
        return True

    async def open(
        self,
        agent: Agent | str,
        *,
        directory: Path,
        title: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> Session:
        await anyio.sleep(self.seconds["open"])
        if self.refusals:
            self.refusals -= 1
            raise TransportError(f"no room for {agent} {title} {metadata}")
        self.opened += 1
        name = agent if isinstance(agent, str) else agent.name
        guest = Guest(self, self.opened, name, directory)
        self.open_now.append(guest)
        self.most = max(self.most, len(self.open_now))
        if self.on_open is not None:
            self.on_open(name)
        return guest

    async def prewarm(self, directory: Path) -> None:
        await anyio.sleep(self.seconds["prewarm"])
        self.warm.append(directory)

    def statistics(self) -> BackendStatistics:
        return BackendStatistics(
            sessions_open=len(self.open_now),
            sessions_opened=self.opened,
            turns_running=sum(guest.is_busy for guest in self.open_now),
            turns_finished=0,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass
