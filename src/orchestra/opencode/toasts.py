"""Progress as toasts in an OpenCode terminal interface that is attached to the same server.

Nobody may be looking, and the server says ``true`` in any case; so a toast is sent and forgotten,
not oftener than every few seconds, and the last one of a burst wins.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Literal, TypeAlias, final

import anyio
from attrs import frozen

from orchestra.errors import OrchestraError
from orchestra.opencode.mission.events import (
    MissionEvent,
    MissionFinished,
    MissionStarted,
    PlanAccepted,
    TaskChanged,
)
from orchestra.opencode.mission.report import MissionOutcome, TaskState

__all__ = ("Toast", "ToastSender", "Toasts")

_logger = logging.getLogger(__name__)

_MAX_FAILURES = 3
_MAX_TEXT = 200

Variant: TypeAlias = Literal["info", "success", "warning", "error"]


@frozen(kw_only=True)
class Toast:
    """A line that is shown for a while.

    Attributes:
        title: Its heading.
        message: What it says.
        variant: How it looks.
        duration: Seconds that it stays.
    """

    title: str
    message: str
    variant: Variant = "info"
    duration: float = 5.0


ToastSender: TypeAlias = Callable[[Toast], Awaitable[object]]
"""Shows a toast to whoever is there; see `OpenCodeBackend.show_toast`."""


@final
class Toasts:
    """Turns a mission's events into toasts; a listener, and a task that sends.

    Args:
        send: Shows a toast.
        interval: Seconds between two.
    """

    def __init__(self, send: ToastSender, *, interval: float = 3.0) -> None:
        self._send = send
        self._interval = interval
        self._next: Toast | None = None
        self._is_there = anyio.Event()
        self._accepted = 0
        self._tasks = 0
        self.sent: int = 0
        self.failures: int = 0

    def __repr__(self) -> str:
        return f"<Toasts sent={self.sent} failures={self.failures}>"

    def handle(self, event: MissionEvent) -> None:
        """Take in one event.

        Args:
            event: The event.
        """
        toast = self._toast(event)
        if toast is not None:
            self._next = toast
            self._is_there.set()

    async def run(self) -> None:
        """Send what there is, until the mission is over or cancelled, or nothing gets through."""
        while self.failures < _MAX_FAILURES:
            await self._is_there.wait()
            self._is_there = anyio.Event()
            await self.flush()
            await anyio.sleep(self._interval)

    async def flush(self) -> None:
        """Send the last toast that was not sent, if there is one. A checkpoint."""
        toast, self._next = self._next, None
        if toast is None or self.failures >= _MAX_FAILURES:
            await anyio.lowlevel.checkpoint()
            return
        try:
            with anyio.fail_after(2.0):
                await self._send(toast)
        except (OrchestraError, OSError, TimeoutError, anyio.ClosedResourceError) as exc:
            self.failures += 1
            _logger.debug("a toast was not sent: %s", exc)
        else:
            self.sent += 1
            self.failures = 0

    def _toast(self, event: MissionEvent) -> Toast | None:
        title = "orchestra"
        if isinstance(event, MissionStarted):
            return Toast(title=title, message=f"mission: {_line(event.goal)}")
        if isinstance(event, PlanAccepted):
            self._tasks += len(event.plan.tasks)
            return Toast(title=title, message=f"a plan of {len(event.plan.tasks)} tasks")
        if isinstance(event, TaskChanged) and event.state is TaskState.ACCEPTED:
            self._accepted += 1
            message = f"{self._accepted} of {self._tasks} tasks accepted"
            return Toast(title=title, message=message)
        if isinstance(event, TaskChanged) and event.state is TaskState.FAILED:
            message = _line(f"{event.task_id} failed: {event.note}")
            return Toast(title=title, message=message, variant="warning", duration=8.0)
        if isinstance(event, MissionFinished):
            is_good = event.report.outcome is MissionOutcome.ACCEPTED
            return Toast(
                title=f"mission {event.report.outcome.value}",
                message=_line(event.report.reason),
                variant="success" if is_good else "error",
                duration=10.0,
            )
        return None


def _line(text: str) -> str:
    return " ".join(text.split())[:_MAX_TEXT]
