"""Questions to people: written down before anybody is asked, answered once, by whoever comes first.

A question is a key ``question/<id>`` in the mission's namespace of the store, its answer a key
``answer/<id>``. Whoever can open the store can answer: a callback of the program, somebody at the
terminal, another process, also days later and while nobody runs the mission.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from inspect import isawaitable
from typing import Any, TypeAlias, final

import anyio
from attrs import frozen

from orchestra import MVCCStore, Transaction
from orchestra.errors import CompactedError
from orchestra.events import PermissionRequest
from orchestra.opencode.mission.leases import allow
from orchestra.opencode.mission.plan import Plan
from orchestra.opencode.mission.scrubbing import Scrubber

__all__ = (
    "ANSWER",
    "QUESTION",
    "Person",
    "PersonAnswer",
    "PersonQuestion",
    "QuestionDesk",
    "drop_requests",
    "list_questions",
    "write_answer",
)

QUESTION = "question/"
ANSWER = "answer/"

_logger = logging.getLogger(__name__)


@frozen(kw_only=True)
class PersonQuestion:
    """What somebody is asked.

    Attributes:
        id: Names it within its mission, also after a restart.
        mission: The mission's id.
        text: What it is about, in lines for people.
        deadline: Seconds that it waits; None: for ever.
        plan: The plan, when that is what it is about.
        request: What an agent wants to do, when that is what it is about.
    """

    id: str
    mission: str
    text: str
    deadline: float | None = None
    plan: Plan | None = None
    request: PermissionRequest | None = None


@frozen(kw_only=True)
class PersonAnswer:
    """What somebody has said.

    Attributes:
        is_approved: Whether it may be done.
        note: Why not, or what to change; told to the agent.
        by: Who, for the history.
    """

    is_approved: bool
    note: str = ""
    by: str = ""


Person: TypeAlias = Callable[
    [PersonQuestion],
    PersonAnswer | bool | Awaitable[PersonAnswer | bool | None] | None,
]
"""Answers questions, at once or later; cancelled when somebody else was quicker. None: no answer."""


@final
class QuestionDesk:
    """Asks people, through the store.

    Args:
        store: The mission's namespace.
        check: Called with each transaction; raises when the mission has another owner.
        person: Is asked too, beside those who look into the store.
        scrubber: Takes secrets out of what is written.
    """

    def __init__(
        self,
        store: MVCCStore,
        *,
        check: Callable[[Transaction], Awaitable[None]] = allow,
        person: Person | None = None,
        scrubber: Scrubber | None = None,
    ) -> None:
        self._check = check
        self._store = store
        self._person = person
        self._scrubber = scrubber or Scrubber(None)
        self._open = 0

    def __repr__(self) -> str:
        return f"<QuestionDesk {self._store.name!r} open={self._open}>"

    async def ask(self, question: PersonQuestion) -> PersonAnswer | None:
        """Write a question down, and wait for the first answer. A checkpoint.

        An answer that is there already, from before a restart, is taken without asking anybody. A
        question that was answered is not listed any more; one that nobody answered stays.

        Args:
            question: What is asked.

        Returns:
            The answer; None when the deadline is over.

        Raises:
            StoreError: The question cannot be written; nobody was asked.
        """
        self._open += 1
        try:
            return await self._ask(question)
        finally:
            self._open -= 1

    async def forget(self, question: PersonQuestion) -> None:
        """Take back a question, and an answer that came too late for it. A checkpoint.

        Args:
            question: What was asked.

        Raises:
            StoreError: It cannot be written.
        """
        await self._store.transact(
            _deleting(QUESTION + question.id, ANSWER + question.id, check=self._check)
        )

    async def _ask(self, question: PersonQuestion) -> PersonAnswer | None:
        written = self._scrubber.value(
            {
                "text": question.text,
                "kind": "permission" if question.request is not None else "plan",
                "deadline": question.deadline,
                "asked_at": _now(),
            }
        )

        async def note(tx: Transaction) -> None:
            await self._check(tx)
            if await tx.get(ANSWER + question.id) is None:
                tx.put(QUESTION + question.id, written)

        await self._store.transact(note)
        answer: PersonAnswer | None = None
        async with anyio.create_task_group() as group:
            if self._person is not None:
                group.start_soon(self._consult, self._person, question)
            with anyio.move_on_after(question.deadline):
                answer = await self._wait_answer(question.id)
            group.cancel_scope.cancel()
        if answer is not None:
            await self._store.transact(_deleting(QUESTION + question.id, check=self._check))
        return answer

    async def _consult(self, person: Person, question: PersonQuestion) -> None:
        """Ask the one who is here; that this one cannot answer leaves it to the others."""
        async with self._store.snapshot() as snap:
            if await snap.get(ANSWER + question.id) is not None:
                return
        try:
            told = person(question)
            answer = await told if isawaitable(told) else told
        except Exception:  # noqa: BLE001  (somebody else's code; logged, without secrets)
            message = f"asking about {question.id} failed; it can be answered from outside"
            self._scrubber.log_exception(_logger, message)
            return
        if answer is None:
            return
        if isinstance(answer, bool):
            answer = PersonAnswer(is_approved=answer)
        await write_answer(self._store, question.id, answer)

    async def _wait_answer(self, question_id: str) -> PersonAnswer:
        key = ANSWER + question_id
        while True:
            async with self._store.snapshot() as snap:
                plain = await snap.get(key)
                revision = snap.revision
            if plain is not None:
                return PersonAnswer(**plain)
            try:
                async with self._store.watch(key, since=revision) as commits:
                    await anext(aiter(commits))
            except CompactedError:
                continue  # somebody tidied up: look again


async def write_answer(store: MVCCStore, question_id: str, answer: PersonAnswer) -> bool:
    """Answer an open question, unless somebody has. A checkpoint.

    Args:
        store: The mission's namespace.
        question_id: `PersonQuestion.id`.
        answer: What is said.

    Returns:
        Whether this answer counts.

    Raises:
        StoreError: It cannot be written.
    """

    async def write(tx: Transaction) -> bool:
        is_open = await tx.get(QUESTION + question_id) is not None
        if not is_open or await tx.get(ANSWER + question_id) is not None:
            return False
        tx.put(
            ANSWER + question_id,
            {"is_approved": answer.is_approved, "note": answer.note, "by": answer.by},
        )
        return True

    return await store.transact(write)


async def list_questions(store: MVCCStore) -> dict[str, Mapping[str, Any]]:
    """Return the open questions of a mission, by their ids. A checkpoint.

    Args:
        store: The mission's namespace.
    """
    async with store.snapshot() as snap:
        questions = await snap.range(QUESTION)
        answers = await snap.range(ANSWER)
    return {
        name: questions[QUESTION + name]
        for name in (key.removeprefix(QUESTION) for key in questions)
        if ANSWER + name not in answers
    }


async def drop_requests(
    store: MVCCStore, check: Callable[[Transaction], Awaitable[None]] = allow
) -> None:
    """Take back what agents of an earlier run have asked and nobody has answered. A checkpoint.

    Who still wants to know asks again.

    Args:
        store: The mission's namespace.
        check: Called with the transaction; raises when the mission has another owner.

    Raises:
        StoreError: It cannot be read or written.
    """
    questions = await list_questions(store)
    stale = [name for name, asked in questions.items() if asked["kind"] == "permission"]
    if stale:
        await store.transact(_deleting(*(QUESTION + name for name in stale), check=check))


def _deleting(
    *keys: str, check: Callable[[Transaction], Awaitable[None]]
) -> Callable[[Transaction], Awaitable[None]]:
    async def delete(tx: Transaction) -> None:
        await check(tx)
        for key in keys:
            if await tx.get(key) is not None:
                tx.delete(key)

    return delete


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
