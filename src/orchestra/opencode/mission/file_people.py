"""What a mission file says about people: ``[people]`` and ``[permissions]``."""

from __future__ import annotations

from typing import Literal, cast

from attrs import frozen

from orchestra import PermissionRule
from orchestra.opencode.agents.roles import NEVER_OPEN
from orchestra.opencode.mission.people_settings import PeopleSettings
from orchestra.opencode.mission.plan import Role
from orchestra.opencode.mission.tables import Table

__all__ = ("PeopleTables", "read_people")

_ACTIONS = ("allow", "deny", "ask")


@frozen(kw_only=True)
class PeopleTables:
    """What the tables say.

    Attributes:
        settings: How people are dealt with.
        must_approve: Whether somebody must approve the plan.
        notify: Whether people are told when the mission is over.
    """

    settings: PeopleSettings
    must_approve: bool
    notify: bool


def read_people(root: Table) -> PeopleTables:
    """Read ``[people]`` and ``[permissions]``; faults go into the document's list.

    Args:
        root: The document.
    """
    defaults = PeopleSettings()
    people = root.table("people")
    default = people.choice("permission_default", ("allow", "deny"))
    must_approve = people.boolean("approve_plan", default=False)
    notify = people.boolean("notify", default=False)
    approval_deadline = people.seconds("approval_deadline", defaults.approval_deadline or 0.0)
    permission_deadline = people.seconds("permission_deadline", defaults.permission_deadline)
    people.close()
    roles = root.table("permissions")
    tables = {role.value: roles.table(role.value) for role in Role}
    roles.close()
    permissions = {name: _rules(table) for name, table in tables.items()}
    settings = PeopleSettings(
        approval_deadline=approval_deadline,
        permission_deadline=permission_deadline,
        permission_default=default == "allow",
        permissions={name: rules for name, rules in permissions.items() if rules},
    )
    return PeopleTables(settings=settings, must_approve=must_approve, notify=notify)


def _rules(table: Table) -> tuple[PermissionRule, ...]:
    """Read the rules of a role: an action for each kind of act, or for each pattern of one."""
    rules: list[PermissionRule] = []
    for permission in table:
        if table.is_table(permission):
            patterns = table.table(permission)
            for pattern in patterns:
                rules += _rule(patterns, pattern, permission, pattern)
            patterns.close()
        else:
            rules += _rule(table, permission, permission, "*")
    table.close()
    return tuple(rules)


def _rule(table: Table, key: str, permission: str, pattern: str) -> list[PermissionRule]:
    if not permission:
        table.problem(key, "expected the name of a permission, or '*'")
        return []
    action = table.choice(key, _ACTIONS)
    if action is None:
        return []
    if action != "deny" and permission in NEVER_OPEN:
        table.wrong(key, NEVER_OPEN[permission])
        return []
    word = cast("Literal['allow', 'deny', 'ask']", action)
    return [PermissionRule(permission=permission, pattern=pattern, action=word)]
