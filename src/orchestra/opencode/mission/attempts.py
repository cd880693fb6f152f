"""Prompts that are never sent twice: each is written down, with its session, before it is sent."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import final

from orchestra import Agent, Session, SessionBackend
from orchestra.errors import LeaseLostError, OrchestraError, SessionLostError, StoreError
from orchestra.opencode.mission.ledger import Ledger
from orchestra.opencode.mission.orders import Ask
from orchestra.opencode.mission.plan import Role
from orchestra.opencode.mission.saved import Attempt

__all__ = ("Attempts",)

_LOG = logging.getLogger(__name__)

_SELF_CONTAINED = frozenset({Role.COMMANDER, Role.WORKER})
"""Roles each of whose messages says all that is needed, whatever was said before."""


@final
class Attempts:
    """Finds the session and the id for a prompt: those it had before, if it was begun before.

    Args:
        ledger: Where attempts are written.
        backend: Where the agents run.
        directory: The workspace.
        agents: The agent of each role.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        backend: SessionBackend,
        directory: Path,
        agents: Mapping[Role, Agent],
    ) -> None:
        self._ledger = ledger
        self._backend = backend
        self._directory = directory
        self._agents = agents
        self._reopened: dict[str, Session] = {}

    async def begin(
        self,
        ask: Ask,
        session: Session | None,
        *,
        agent: Agent,
        directory: Path,
        open_: Callable[[], Awaitable[Session]],
    ) -> tuple[Session, str]:
        """Return where to send a prompt, and under which id. A checkpoint.

        Args:
            ask: The prompt.
            session: Its session, when this process has opened it.
            agent: Whom it is for.
            directory: Where a new session is opened.
            open_: Opens a new session.

        Raises:
            SessionLostError: The session is gone, and without it the prompt means nothing.
            StoreError: The attempt cannot be written, so it must not be sent.
        """
        if session is None:
            session = self._reopened.get(ask.session) or await self._reopen(ask, agent)
        if session is None:
            session = await open_()
        known = self._ledger.attempts.get(ask.key)
        if known is not None and known.session == session.id:
            return session, known.prompt
        earlier = map(self._ledger.attempts.__getitem__, self._ledger.attempts_in(ask.session))
        place = next(
            (each.directory for each in earlier if each.session == session.id), str(directory)
        )
        attempt = Attempt(session.id, session.new_prompt_id(), place)
        await self._ledger.begin_attempt(ask.key, attempt)
        return session, attempt.prompt

    async def _reopen(self, ask: Ask, agent: Agent) -> Session | None:
        earlier = self._ledger.attempts_in(ask.session)
        if not earlier:
            return None
        last = self._ledger.attempts[earlier[-1]]
        try:
            session = await self._backend.reopen(
                last.session, agent, directory=Path(last.directory)
            )
        except (SessionLostError, NotADirectoryError):
            if ask.turn > 1 and ask.role not in _SELF_CONTAINED:
                raise
            return None
        self._reopened[ask.session] = session
        return session

    async def is_ours(self) -> bool:
        """Whether this process carries the mission on, as far as can be told. A checkpoint."""
        try:
            await self._ledger.confirm()
        except LeaseLostError:
            return False
        except StoreError:
            return True
        return True

    async def detach(self) -> None:
        """Leave the sessions of earlier processes as they are. A checkpoint if there are any."""
        for session in self._reopened.values():
            await session.detach()

    async def close_others(self, mission_id: str, *, is_over: bool = False) -> None:
        """Close the mission's sessions that nobody needs any more; what fails is logged.

        Those that a crash left between their opening and the record of it, or between the record
        of their end and the end itself.

        Args:
            mission_id: The mission, as in the sessions' metadata.
            is_over: Whether none is needed any more.
        """
        attempts = self._ledger.attempts.values()
        needed = set() if is_over else {attempt.session for attempt in attempts}
        for directory in {self._directory, *(Path(each.directory) for each in attempts)}:
            try:
                await self._close_in(directory, mission_id, needed)
            except NotADirectoryError:
                continue  # a task's own copy of the workspace, which is gone
            except (OrchestraError, OSError) as exc:
                _LOG.warning("leftovers of mission %s could not be closed: %s", mission_id, exc)

    async def _close_in(self, directory: Path, mission_id: str, needed: set[str]) -> None:
        agent = self._agents[Role.WORKER]  # nothing is said to it
        for session_id in await self._backend.find_sessions(
            {"mission": mission_id}, directory=directory
        ):
            if session_id not in needed:
                session = await self._backend.reopen(session_id, agent, directory=directory)
                await session.aclose()

    def __repr__(self) -> str:
        return f"<Attempts {len(self._ledger.attempts)}, {len(self._reopened)} sessions reopened>"
