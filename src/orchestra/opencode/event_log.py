"""What a mission tells, as JSON lines for machines.

Each line is one object: ``schema``, ``mission``, ``n`` (from 1, without gaps but where ``dropped``
says so), ``time`` (ISO 8601 in UTC), ``at`` (seconds after the mission's start), ``kind`` and the
event's own fields. Keys may be added within a schema, never changed.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import IO, Any, Final, final

from attrs import fields, has

from orchestra.opencode.mission.events import MissionEvent, MissionFinished
from orchestra.opencode.mission.report_json import report_to_json
from orchestra.opencode.mission.scrubbing import Scrubber

__all__ = ("EVENT_SCHEMA", "EventLog")

EVENT_SCHEMA: Final = 1

_logger = logging.getLogger(__name__)


@final
class EventLog:
    """Appends each event of a mission to a file, as one line that is flushed at once.

    A file that cannot be written, say for a full disk, ends neither the mission nor the log: what
    could not be written is counted, and the next line that can be says how many are missing in
    ``dropped``. Writing blocks for as long as the file system does.

    Args:
        path: The file; made if it is not there, readable for its owner only.
        mission: The mission's id.
        scrubber: Takes secrets out.

    Attributes:
        written: How many lines were written.
        dropped: How many could not be.

    Raises:
        OSError: The file cannot be opened.
    """

    def __init__(self, path: Path, *, mission: str, scrubber: Scrubber | None = None) -> None:
        self.written: int = 0
        self.dropped: int = 0
        self._path = path
        self._mission = mission
        self._scrubber = scrubber or Scrubber(None)
        self._number = 0
        self._missing = 0
        self._is_torn = False
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._file: IO[bytes] = os.fdopen(handle, "ab", buffering=0)

    def __repr__(self) -> str:
        return f"<EventLog {str(self._path)!r} written={self.written} dropped={self.dropped}>"

    def handle(self, event: MissionEvent) -> None:
        """Write one event; a mission's listener.

        Args:
            event: The event.
        """
        self._number += 1
        line: dict[str, Any] = {
            "schema": EVENT_SCHEMA,
            "mission": self._mission,
            "n": self._number,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "at": round(event.at, 6),
            "kind": type(event).__name__,
        }
        if isinstance(event, MissionFinished):
            line["report"] = report_to_json(event.report)
        else:
            line |= {name: value for name, value in _plain(event).items() if name != "at"}
        if self._missing:
            line["dropped"] = self._missing
        text = json.dumps(self._scrubber.value(line), ensure_ascii=False, default=str)
        self._write(f"{text}\n".encode("utf-8", errors="replace"))

    def _write(self, data: bytes) -> None:
        if self._is_torn:
            data = b"\n" + data  # what was written of a line stays on a line of its own
        try:
            count = self._file.write(data)
            if count != len(data):
                self._is_torn = self._is_torn or bool(count)
                raise OSError(f"{count} of {len(data)} bytes were written")
        except (OSError, ValueError) as exc:
            if not self._missing:
                _logger.warning("an event could not be written to %s: %s", self._path, exc)
            self._missing += 1
            self.dropped += 1
        else:
            self._is_torn = False
            self._missing = 0
            self.written += 1

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._file.close()


def _plain(value: object) -> Any:
    """Return an event as JSON takes it."""
    if isinstance(value, Enum):
        return value.value
    kind: type[Any] = type(value)
    if has(kind):
        plain = {field.name: _plain(getattr(value, field.name)) for field in fields(kind)}
        return {"kind": kind.__name__, **plain} if _is_told(value) else plain
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return str(value)


def _is_told(value: object) -> bool:
    """Whether it is an event within an event, whose kind must be told too."""
    return type(value).__module__ == "orchestra.events" and hasattr(value, "session_id")
