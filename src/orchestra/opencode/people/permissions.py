"""What the agents of a mission may do: allowed, denied, or asked of somebody who may not be there.

No request hangs: whoever is asked has a deadline, and then a default holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, final

from orchestra import MVCCStore, PermissionRule
from orchestra.errors import StoreError
from orchestra.events import PermissionReply, PermissionRequest
from orchestra.opencode.mission.people_settings import PeopleSettings
from orchestra.opencode.mission.scrubbing import Scrubber
from orchestra.opencode.people.questions import Person, PersonQuestion, QuestionDesk

__all__ = ("MissionPermissions",)

_MAX_TEXT = 2_000


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
        if self._store is None or not mission:
            return silent
        question = PersonQuestion(
            id=f"permission-{request.id}",
            mission=mission,
            text=self._describe(request),
            deadline=self._settings.permission_deadline,
            request=request,
        )
        store = self._store.namespace(mission).using(author="permissions")
        desk = QuestionDesk(store, person=self._person, scrubber=self._scrubber)
        try:
            answer = await desk.ask(question)
            if answer is None:
                await desk.withdraw(question)
                return silent
        except StoreError:
            return silent
        if answer.is_approved:
            return PermissionReply(is_allowed=True)
        note = answer.note or "Somebody has refused it; go on without it."
        return PermissionReply(is_allowed=False, message=note)

    def _describe(self, request: PermissionRequest) -> str:
        about = request.session_metadata
        who = " ".join(filter(None, (about.get("role", request.agent), about.get("task"))))
        what = self._scrubber.text(" ".join(request.patterns))[:_MAX_TEXT]
        text = f"{who} wants to: {request.permission} {what}".rstrip()
        return "".join(char if char.isprintable() else "\ufffd" for char in text)


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
