"""A backend whose turns are what a test says: events in any order, and any end."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio
import anyio.lowlevel
from attrs import define, evolve, field

from orchestra.abc import Agent, BackendStatistics, Rates, Session, SessionBackend
from orchestra.events import Finished, FinishReason, SessionEvent, Started, Usage, UsageReported

Play = Callable[[Agent, str], AsyncGenerator[SessionEvent]]
"""What comes of a prompt: all that is told between the first event and the last, and the last."""


def done(text: str, tokens: int = 10) -> list[SessionEvent]:
    """Return an answer that took one model call."""
    usage = Usage(output_tokens=tokens)
    return [
        UsageReported(session_id="", usage=usage),
        Finished(session_id="", reason=FinishReason.DONE, text=text, usage=usage),
    ]


class _Session(Session):
    def __init__(self, name: str, agent: Agent, backend: ModelBackend) -> None:
        self._name = name
        self._agent = agent
        self._backend = backend

    @property
    def id(self) -> str:
        return self._name

    @asynccontextmanager
    async def stream(
        self, prompt: str, *, prompt_id: str | None = None
    ) -> AsyncIterator[AsyncIterator[SessionEvent]]:
        await anyio.lowlevel.checkpoint()
        self._backend.models.append(self._agent.model)
        async with (
            aclosing(self._backend.play(self._agent, prompt)) as play,
            aclosing(self._events(play, prompt_id or "p")) as events,
        ):
            yield events

    async def _events(
        self, play: AsyncGenerator[SessionEvent], prompt_id: str
    ) -> AsyncGenerator[SessionEvent]:
        yield Started(session_id=self._name, prompt_id=prompt_id)
        async for event in play:
            yield evolve(event, session_id=self._name)

    async def abort(self) -> None:
        await anyio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()


@define(eq=False)
class ModelBackend(SessionBackend):
    """Sessions that play.

    Attributes:
        play: What comes of each prompt.
        rates: What the models cost.
        models: The model of each prompt, in order.
    """

    play: Play
    rates: Mapping[str, Rates] = field(factory=dict)
    models: list[str | None] = field(factory=list)
    _is_open: bool = False
    _opened: int = 0

    @property
    def name(self) -> str:
        return "model"

    @property
    def is_open(self) -> bool:
        return self._is_open

    async def prices(self, directory: Path) -> Mapping[str, Rates]:  # noqa: ARG002
        await anyio.lowlevel.checkpoint()
        return self.rates

    async def open(
        self,
        agent: Agent | str,
        *,
        directory: Path,  # noqa: ARG002
        title: str = "",  # noqa: ARG002
        metadata: Mapping[str, str] | None = None,  # noqa: ARG002
    ) -> Session:
        await anyio.lowlevel.checkpoint()
        self._opened += 1
        agent = Agent(agent) if isinstance(agent, str) else agent
        return _Session(f"s{self._opened}", agent, self)

    def statistics(self) -> BackendStatistics:
        return BackendStatistics(
            sessions_open=0, sessions_opened=self._opened, turns_running=0, turns_finished=0
        )

    async def __aenter__(self) -> Self:
        self._is_open = True
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_open = False
