"""Sees that an agent makes the same call of a tool again and again within one turn; pure.

OpenCode's own guard looks at the calls of one step of the model only, so a model that makes one
equal call per step is not seen by it (opencode#45442: 364 equal searches in 50 minutes).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import final

from orchestra.events import SessionEvent, ToolCalled, ToolStatus

__all__ = ("LoopGuard",)

_LOOSE = 5
"""So many times as many equal calls may give different results: somebody may wait for something."""


@final
class LoopGuard:
    """Counts equal calls in a row.

    Calls are equal when tool, arguments and result are. Calls whose results differ, as those of
    somebody who looks whether a build is ready, may be five times as many.

    Args:
        limit: Equal calls in a row at which the turn shall be ended.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._call = b""
        self._result = b""
        self._equal_calls = 0
        self._equal_results = 0
        self._all = sha256()

    def see(self, event: SessionEvent) -> str:
        """Take an event of the turn.

        Args:
            event: Any event; calls count when they have come to an end.

        Returns:
            Why the turn should be ended; empty as long as it should not.
        """
        if not isinstance(event, ToolCalled):
            return ""
        if event.status not in {ToolStatus.COMPLETED, ToolStatus.FAILED}:
            return ""
        call = _digest(event.tool, _written(event.input))
        result = _digest(event.status.value, event.output, event.error)
        self._all.update(call)
        is_equal = call == self._call
        self._equal_calls = self._equal_calls + 1 if is_equal else 1
        self._equal_results = self._equal_results + 1 if is_equal and result == self._result else 1
        self._call, self._result = call, result
        if self._equal_results >= self._limit or self._equal_calls >= self._limit * _LOOSE:
            return f"it made the same call of {event.tool!r} {self._equal_calls} times in a row"
        return ""

    @property
    def digest(self) -> str:
        """What all its calls so far were, in order; equal for equal calls, empty without any."""
        return self._all.hexdigest()[:16] if self._call else ""

    def __repr__(self) -> str:
        return f"<LoopGuard {self._equal_calls} equal calls of {self._limit}>"


def _written(arguments: Mapping[str, object]) -> str:
    return json.dumps(arguments, sort_keys=True, default=repr)


def _digest(*texts: str) -> bytes:
    total = sha256()
    for text in texts:
        data = text.encode("utf-8", "replace")
        total.update(b"%d:" % len(data))
        total.update(data)
    return total.digest()
