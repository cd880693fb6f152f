"""What the agents of a mission may do: allowed, denied, or asked of somebody who may not be there.

No request hangs: whoever is asked has a deadline, and then a default holds.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from typing import Literal, final

import anyio

from orchestra import MemoryStore, MVCCStore, PermissionRule
from orchestra.errors import StoreError
from orchestra.events import PermissionReply, PermissionRequest
from orchestra.opencode.mission.people_settings import PeopleSettings
from orchestra.opencode.mission.scrubbing import Scrubber
from orchestra.opencode.people.questions import (
    Person,
    PersonAnswer,
    PersonQuestion,
    QuestionDesk,
)

__all__ = ("MissionPermissions",)

_LOG = logging.getLogger(__name__)

_MAX_TEXT = 2_000
_FORGET_LIMIT = 2.0


@final
class MissionPermissions:
    """Answers what agents ask; to be given to a backend as its ``permission_policy``.

    ::

        permissions = MissionPermissions(settings.people, person=ask_on_the_phone)
        backend = OpenCodeBackend(permission_policy=permissions)
        report = await run_mission("...", backend=backend, settings=settings)

    The rules of the asking session's role decide; sub-agents that a server has started count to the
    role of the session that they descend from. What no rule is about is denied.

    Args:
        settings: The rules, and how long somebody is waited for.
        person: Asked when the rules say ``ask``; beside those who answer in the store.
        scrubber: Takes secrets out of what people see.
    """

    def __init__(
        self,
        settings: PeopleSettings,
        *,
        person: Person | None = None,
        scrubber: Scrubber | None = None,
    ) -> None:
        self._settings = settings
        self._person = person
        self._scrubber = scrubber or Scrubber(None)
        self._store: MVCCStore | None = None
        self._counts = {"allow": 0, "deny": 0, "ask": 0}

    def __repr__(self) -> str:
        counts = ", ".join(f"{name}={count}" for name, count in self._counts.items())
        return f"<MissionPermissions {counts}>"

    @contextmanager
    def asking(self, store: MVCCStore, person: Person | None = None) -> Iterator[None]:
        """Let people answer in the store too, for the length of a block.

        Args:
            store: Where missions keep their state, each in the namespace named after its id.
            person: Takes the place of the one given before.
        """
        before = self._person
        self._store = store
        self._person = person or before
        try:
            yield
        finally:
            self._store = None
            self._person = before

    async def __call__(self, request: PermissionRequest) -> PermissionReply:
        """Answer a request. A checkpoint if somebody has to be asked.

        Args:
            request: What an agent wants to do.
        """
        action = self._decide(request)
        self._counts[action] += 1
        if action == "allow":
            return PermissionReply(is_allowed=True)
        if action == "deny":
            return PermissionReply(
                is_allowed=False,
                message=f"{request.permission} is not permitted in this mission; go on without it.",
            )
        return await self._ask(request)

    def _decide(self, request: PermissionRequest) -> Literal["allow", "deny", "ask"]:
        """Return what the rules say; of several patterns the strictest answer counts."""
        rules = self._settings.permissions.get(request.session_metadata.get("role", ""), ())
        answers = [
            _match(rules, request.permission, pattern) for pattern in request.patterns or ("",)
        ]
        for action in ("deny", "ask"):
            if action in answers:
                return action
        return "allow"

    async def _ask(self, request: PermissionRequest) -> PermissionReply:
        mission = request.session_metadata.get("mission", "")
        default = self._settings.permission_default
        silent = PermissionReply(
            is_allowed=default,
            message="" if default else "Nobody answered in time; go on without it.",
        )
        question = PersonQuestion(
            id=_question_id(request),
            mission=mission,
            text=self._describe(request),
            deadline=self._settings.permission_deadline,
            request=request,
        )
        if self._store is not None and mission:
            answer = await self._put(self._store.namespace(mission), question)
        elif self._person is not None:
            async with MemoryStore() as store:  # nobody but that person can answer
                answer = await self._put(store, question)
        else:
            return silent
        if answer is None:
            return silent
        if answer.is_approved:
            return PermissionReply(is_allowed=True)
        note = answer.note or "Somebody has refused it; go on without it."
        return PermissionReply(is_allowed=False, message=note)

    async def _put(self, store: MVCCStore, question: PersonQuestion) -> PersonAnswer | None:
        """Put a question to people; nothing is left of it, since each request is its own."""
        desk = QuestionDesk(
            store.using(author="permissions"), person=self._person, scrubber=self._scrubber
        )
        try:
            return await desk.ask(question)
        except StoreError:
            return None
        finally:
            with anyio.move_on_after(_FORGET_LIMIT, shield=True):
                try:
                    await desk.forget(question)
                except StoreError as exc:
                    _LOG.info("%s could not be taken back: %s", question.id, exc)

    def _describe(self, request: PermissionRequest) -> str:
        about = request.session_metadata
        who = " ".join(filter(None, (about.get("role", request.agent), about.get("task"))))
        what = self._scrubber.text(" ".join(request.patterns))[:_MAX_TEXT]
        text = f"{who} wants to: {request.permission} {what}".rstrip()
        return "".join(char if char.isprintable() else "\ufffd" for char in text)


def _question_id(request: PermissionRequest) -> str:
    """Name a question after what is asked too: a backend may number anew after a restart."""
    about = request.session_metadata
    what = [about.get("role"), about.get("task"), request.permission, *request.patterns]
    digest = sha256(json.dumps(what).encode("utf-8", errors="replace")).hexdigest()[:8]
    return f"permission-{request.id}-{digest}"


def _match(
    rules: Sequence[PermissionRule], permission: str, pattern: str
) -> Literal["allow", "deny", "ask"]:
    action: Literal["allow", "deny", "ask"] = "deny"
    for rule in rules:
        if _fits(rule.permission, permission) and _fits(rule.pattern, pattern):
            action = rule.action
    return action


def _fits(pattern: str, text: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), text, re.DOTALL) is not None
