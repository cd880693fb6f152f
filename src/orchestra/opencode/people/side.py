"""A mission's side towards people: it has its plan approved, and hears when it shall end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import final

import anyio

from orchestra import MVCCStore, SessionBackend, Transaction
from orchestra.errors import StoreError
from orchestra.opencode.mission.leases import allow
from orchestra.opencode.mission.orders import ApprovalGiven, AskApproval, StopRequested
from orchestra.opencode.mission.people_settings import PeopleSettings
from orchestra.opencode.mission.plan import Plan
from orchestra.opencode.mission.scrubbing import Scrubber
from orchestra.opencode.people.approval import plan_question, unapproved
from orchestra.opencode.people.cancelling import (
    Quiescence,
    confirm_quiet,
    last_wish,
    wait_cancel,
    write_quiet,
)
from orchestra.opencode.people.questions import Person, QuestionDesk, drop_requests

__all__ = ("PeopleSide",)

_LOOK_AGAIN = 5.0
"""Seconds after which a store that could not be read is looked into again."""


@final
class PeopleSide:
    """Asks people, and listens to them, for one mission.

    Args:
        mission: The mission's id.
        store: Its namespace.
        settings: How long people are waited for.
        check: Called with each transaction; raises when the mission has another owner.
        person: Whom to ask, beside those who look into the store.
        scrubber: Takes secrets out of what is written.
    """

    def __init__(
        self,
        mission: str,
        store: MVCCStore,
        *,
        settings: PeopleSettings,
        check: Callable[[Transaction], Awaitable[None]] = allow,
        person: Person | None = None,
        scrubber: Scrubber | None = None,
    ) -> None:
        self._mission = mission
        self._store = store.using(author="mission")
        self._settings = settings
        self._check = check
        self._desk = QuestionDesk(self._store, check=check, person=person, scrubber=scrubber)
        self._since = 0

    def __repr__(self) -> str:
        return f"<PeopleSide of {self._mission} {self._desk!r}>"

    async def begin(self) -> None:
        """Forget wishes of before: who starts a mission again wants it to run. A checkpoint."""
        self._since = await last_wish(self._store)
        with suppress(StoreError):  # the mission's own state tells of that
            await drop_requests(self._store, self._check)

    async def approve(self, order: AskApproval, shown: Plan) -> ApprovalGiven | StopRequested:
        """Have a plan approved, however long that takes. A checkpoint.

        Args:
            order: What the machine wants to know.
            shown: The plan, without secrets.
        """
        deadline = self._settings.approval_deadline
        question = plan_question(self._mission, shown, number=order.proposal, deadline=deadline)
        try:
            answer = await self._desk.ask(question)
        except StoreError as exc:
            return StopRequested(reason=f"the plan cannot be put to anybody: {exc}")
        if answer is None:
            return StopRequested(reason=unapproved(self._mission, deadline or 0.0))
        return ApprovalGiven(ticket=order.ticket, is_approved=answer.is_approved, note=answer.note)

    async def wait_cancel(self) -> StopRequested:
        """Wait until somebody wants the mission to end. A checkpoint."""
        while True:
            try:
                wish = await wait_cancel(self._store, since=self._since, check=self._check)
            except StoreError:
                await anyio.sleep(_LOOK_AGAIN)
            else:
                return StopRequested(reason=wish.reason)

    async def confirm(
        self, backend: SessionBackend, session_ids: Collection[str], *, limit: float
    ) -> Quiescence:
        """See that nothing runs any more, and write down what was found. A checkpoint.

        Args:
            backend: Where the sessions were opened.
            session_ids: All that the mission has opened.
            limit: Seconds that they are waited for.
        """
        quiescence = await confirm_quiet(backend, session_ids, limit=limit)
        try:
            await write_quiet(self._store, quiescence, check=self._check)
        except StoreError as exc:
            if quiescence.is_quiet:
                return quiescence
            return Quiescence(
                sessions=quiescence.sessions, busy=quiescence.busy, why=f"{quiescence.why}; {exc}"
            )
        return quiescence
