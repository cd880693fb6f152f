"""Who has spent what. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

from attrs import frozen

from orchestra._core.amounts import Amount
from orchestra._core.budget import Account

__all__ = ("CostTree", "cost_tree")


@final
@frozen(kw_only=True)
class CostTree:
    """Who spent what: one budget, and below it its children.

    ``str()`` shows it as indented lines.

    Attributes:
        name: The budget's name.
        path: The names from the root down, joined by ``/``.
        spent: What was used, descendants included.
        own: What it used itself.
        held: What those in flight hold, descendants included.
        children: In the order in which they were made.
    """

    name: str
    path: str
    spent: Amount
    own: Amount
    held: Amount
    children: tuple[CostTree, ...]

    def __str__(self) -> str:
        return "\n".join(_lines(self, ""))


def _lines(tree: CostTree, indent: str) -> Iterator[str]:
    yield f"{indent}{tree.name}: {tree.spent}"
    for child in tree.children:
        yield from _lines(child, f"{indent}  ")


def cost_tree(account: Account) -> CostTree:
    """Return what an account and its descendants have spent."""
    return CostTree(
        name=account.name,
        path=account.path,
        spent=account.spent(),
        own=account.own(),
        held=account.held(),
        children=tuple(cost_tree(child) for child in account.children.values()),
    )
