"""Where workers work: the settings."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias, get_args

from attrs import field, frozen, validators

__all__ = ("ISOLATIONS", "Isolation", "IsolationKind")

IsolationKind: TypeAlias = Literal["shared", "worktree"]
ISOLATIONS: tuple[IsolationKind, ...] = get_args(IsolationKind)


@frozen(kw_only=True)
class Isolation:
    """Where workers work.

    Attributes:
        kind: ``shared``: all in the workspace, kept apart by leases on their files.
            ``worktree``: each in a git worktree of its own, which is merged into the workspace.
        folder: Where worktrees are made; None: ``orchestra/worktrees`` in the user's state folder
            (``$XDG_STATE_HOME``, or ``~/.local/state``).
        patience: Seconds that an accepted change waits for those of earlier tasks of the plan that
            are under way, so that they are merged in plan order.
    """

    kind: IsolationKind = field(default="shared", validator=validators.in_(ISOLATIONS))
    folder: Path | None = None
    patience: float = field(default=600.0, validator=validators.ge(0))
