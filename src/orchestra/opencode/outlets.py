"""Where a mission on the command line tells what happens: display, files, toasts, notification."""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TextIO, final

from attrs import frozen

from orchestra import Redactor, SessionBackend, background_tasks
from orchestra.opencode.event_log import EventLog
from orchestra.opencode.log_files import keep_log
from orchestra.opencode.mission.events import MissionEvent
from orchestra.opencode.mission.report import MissionReport
from orchestra.opencode.mission.scrubbing import Scrubber
from orchestra.opencode.notification import notify, ring
from orchestra.opencode.progress import PlainProgress, Progress
from orchestra.opencode.toasts import Toasts

__all__ = ("OutletOptions", "Outlets", "open_outlets", "tell_end")

_logger = logging.getLogger("orchestra.mission")


@frozen(kw_only=True)
class OutletOptions:
    """Where to tell what happens.

    Attributes:
        event_log: A file for JSON lines; None: none.
        notify: Whether people are told by notification and bell when the mission is over.
        has_toasts: Whether interfaces that are attached to the same server get toasts.
        has_log: Whether the readable log is written.
    """

    event_log: Path | None = None
    notify: bool = False
    has_toasts: bool = False
    has_log: bool = True


@final
class Outlets:
    """Passes each event on to whoever wants it; a mission's listener.

    Args:
        progress: The display.
    """

    def __init__(self, progress: Progress) -> None:
        self._listeners: list[Callable[[MissionEvent], object]] = [progress.handle]
        self._toasts: Toasts | None = None

    def __repr__(self) -> str:
        return f"<Outlets {len(self._listeners)}>"

    def add(self, listener: Callable[[MissionEvent], object]) -> None:
        """Pass events on to one more.

        Args:
            listener: Takes each event.
        """
        self._listeners.append(listener)

    def add_toasts(self, toasts: Toasts) -> None:
        """Show events as toasts too.

        Args:
            toasts: What sends them.
        """
        self._toasts = toasts
        self.add(toasts.handle)

    async def flush(self) -> None:
        """Show the toast that tells the end; to be called while the backend is there. A checkpoint."""
        if self._toasts is not None:
            await self._toasts.flush()

    def handle(self, event: MissionEvent) -> None:
        """Take in one event.

        Args:
            event: The event.
        """
        for listener in tuple(self._listeners):
            try:
                listener(event)
            except Exception:
                _logger.exception("%r failed at an event; it gets no more", listener)
                self._listeners.remove(listener)


@asynccontextmanager
async def open_outlets(
    outlets: Outlets,
    options: OutletOptions,
    *,
    mission: str,
    directory: Path,
    backend: SessionBackend,
    redactor: Redactor | None,
    tell: Callable[[str], None],
) -> AsyncIterator[None]:
    """Open what is wanted for the length of a block. What cannot be opened is told, and left out.

    Args:
        outlets: Gets the listeners.
        options: What is wanted.
        mission: The mission's id.
        directory: The workspace.
        backend: Where the agents run, for toasts.
        redactor: Takes secrets out of the files.
        tell: Takes lines for people.
    """
    async with AsyncExitStack() as stack:
        if options.has_log:
            stack.enter_context(keep_log(directory, redactor=redactor))
            outlets.add(PlainProgress(lambda line: _logger.info("%s %s", mission, line)).handle)
        if options.event_log is not None:
            try:
                log = EventLog(options.event_log, mission=mission, scrubber=Scrubber(redactor))
            except OSError as exc:
                tell(f"orchestra: no event log is written: {exc}")
            else:
                stack.callback(log.close)
                outlets.add(log.handle)
        toasts = _make_toasts(backend, directory) if options.has_toasts else None
        if toasts is None:
            yield
            return
        outlets.add_toasts(toasts)
        async with background_tasks() as tasks:
            tasks.start_soon(toasts.run)
            yield


def _make_toasts(backend: SessionBackend, directory: Path) -> Toasts | None:
    try:
        from orchestra.opencode.backend import OpenCodeBackend  # noqa: PLC0415  (an extra)
    except ImportError:
        return None
    if not isinstance(backend, OpenCodeBackend):
        return None
    server = backend
    return Toasts(lambda toast: server.show_toast(toast, directory=directory))


async def tell_end(report: MissionReport, stream: TextIO = sys.stderr) -> None:
    """Tell people who look elsewhere that a mission is over. A checkpoint.

    Args:
        report: Its report.
        stream: Whose bell is rung.
    """
    ring(stream)
    title = f"mission {report.outcome.value}"
    await notify(title, f"{report.goal}: {report.reason}", directory=Path(report.directory))
