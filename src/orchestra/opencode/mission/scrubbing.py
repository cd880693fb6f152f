"""Takes secrets out of what a mission tells, writes and logs: out of records as well as texts."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, final

from attrs import evolve, fields, has

from orchestra import RedactionStream, Redactor
from orchestra.events import SessionEvent, TextReceived
from orchestra.opencode.mission.report import CommandResult

__all__ = ("Scrubber", "TextFeed")

T = TypeVar("T")

_KEPT = frozenset(
    {
        "added",
        "after",
        "backend",
        "before",
        "call_id",
        "causes",
        "changed",
        "critical_path",
        "depends",
        "directory",
        "files",
        "id",
        "path",
        "prompt_id",
        "removed",
        "segments",
        "session_id",
        "started_at",
        "strays",
        "task_id",
        "tree",
    }
)
"""Fields of records that name things; a secret has no business there, and other parts rely on
what they say."""


@final
class Scrubber:
    """Redacts plain data and attrs records.

    Args:
        redactor: Finds the secrets; None: everything stays as it is.
    """

    def __init__(self, redactor: Redactor | None) -> None:
        self._redactor = redactor
        self._names: dict[tuple[type, frozenset[str]], tuple[str, ...]] = {}

    def text(self, text: str) -> str:
        """Return a text without secrets.

        Args:
            text: The text.
        """
        return text if self._redactor is None else self._redactor.redact(text)

    def value(self, value: T, kept: frozenset[str] = _KEPT) -> T:
        """Return the same record or data without secrets.

        Args:
            value: Texts, records, mappings, lists and tuples, in each other.
            kept: Fields of records that stay.
        """
        if self._redactor is None:
            return value
        scrubbed: T = self._scrub(self._redactor, value, kept)
        return scrubbed

    def _scrub(self, redactor: Redactor, value: Any, kept: frozenset[str]) -> Any:
        if isinstance(value, str | Mapping | list):
            return redactor.redact_value(value)
        if isinstance(value, tuple):
            return tuple([self._scrub(redactor, item, kept) for item in value])
        if isinstance(value, CommandResult):
            value = evolve(value, argv=self.command(value.argv))
        changes: dict[str, Any] = {}
        for name in self._fields_of(type(value), kept):
            before = getattr(value, name)
            after = self._scrub(redactor, before, kept)
            if after is not before and after != before:
                changes[name] = after
        return evolve(value, **changes) if changes else value

    def _fields_of(self, kind: type, kept: frozenset[str]) -> tuple[str, ...]:
        """Return the fields of a class that may hold a secret; of what is no record, none."""
        names = self._names.get((kind, kept))
        if names is None:
            found = fields(kind) if has(kind) else ()
            names = tuple(field.name for field in found if field.name not in kept)
            self._names[kind, kept] = names
        return names

    def command(self, argv: Sequence[str]) -> tuple[str, ...]:
        """Return a command line without secrets; an option counts as the name of what follows it.

        Args:
            argv: The command line, split.
        """
        if self._redactor is None:
            return tuple(argv)
        words: list[str] = []
        option = ""
        for word in argv:
            words.append(self._redactor.redact_value({option: word})[option])
            option = word.lstrip("-") if word.startswith("-") else ""
        return tuple(words)

    def feed(self) -> TextFeed:
        """Return a filter for the events of one turn."""
        return TextFeed(None if self._redactor is None else self._redactor.stream())

    def log_exception(self, logger: logging.Logger, message: str) -> None:
        """Log the exception that is being handled; what it says may hold secrets.

        Args:
            logger: Where to.
            message: What happened.
        """
        logger.error("%s\n%s", message, self.text(traceback.format_exc().rstrip()))

    def __repr__(self) -> str:
        return f"<Scrubber {self._redactor!r}>"


@final
class TextFeed:
    """Joins the pieces of an answer, so that a secret spread over several is seen.

    Args:
        stream: Redacts the text; None: pieces pass as they are.
    """

    def __init__(self, stream: RedactionStream | None) -> None:
        self._stream = stream

    def take(self, event: SessionEvent) -> list[SessionEvent]:
        """Return what can be told now: text by the line, and before any other event all of it.

        Args:
            event: What the session told.
        """
        if self._stream is None:
            return [event]
        if isinstance(event, TextReceived):
            text = self._stream.feed(event.text)
            return [evolve(event, text=text)] if text else []
        text = self._stream.flush()
        rest = [TextReceived(session_id=event.session_id, text=text)] if text else []
        return [*rest, event]
