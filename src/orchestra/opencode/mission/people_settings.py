"""How a mission deals with people: how long it waits for them, and what holds when nobody comes."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen, validators

from orchestra import PermissionRule

__all__ = ("PeopleSettings",)


def _is_positive(_settings: object, _field: object, seconds: float | None) -> None:
    if seconds is not None and not seconds > 0:
        raise ValueError(f"approval_deadline must be positive, or None for ever, not {seconds!r}")


@frozen(kw_only=True)
class PeopleSettings:
    """How long a mission waits for people.

    Attributes:
        approval_deadline: Seconds that a plan waits for somebody's word before the mission ends
            INTERRUPTED; None: for ever. The answer may still be given afterwards.
        permission_deadline: Seconds that an agent's request waits for somebody.
        permission_default: Whether it is allowed when nobody has answered in that time.
        permissions: For each role what its agents may do beyond or below their own rules, last
            match wins. ``ask`` has the agent's requests put to somebody.
    """

    approval_deadline: float | None = field(default=3600.0, validator=_is_positive)
    permission_deadline: float = field(default=120.0, validator=validators.gt(0))
    permission_default: bool = False
    permissions: Mapping[str, tuple[PermissionRule, ...]] = field(factory=dict)
