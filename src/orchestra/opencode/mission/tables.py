"""Taking typed values out of plain data (TOML, JSON), with every fault told by its key path.

Nothing here raises for wrong data: a fault becomes a line in ``problems`` and reading goes on, so
that a person sees all of them at once.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from datetime import date, time
from difflib import get_close_matches
from typing import final

__all__ = ("Table", "describe")

_NAMES: tuple[tuple[type, str], ...] = (
    (str, "text"),
    (bool, "a boolean"),
    (int, "an integer"),
    (float, "a number"),
    (list, "an array"),
    (dict, "a table"),
    (date, "a date"),
    (time, "a time"),
)


def describe(value: object) -> str:
    """Say what a value is, in a few words on one line.

    Args:
        value: Anything that a TOML or JSON reader returns.
    """
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else f"{value[:37]}...")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < 10**20):
        return repr(value)
    if value is None:
        return "null"
    return next((name for kind, name in _NAMES if isinstance(value, kind)), type(value).__name__)


def _quoted(key: str) -> str:
    is_bare = (key.isascii() and key.replace("-", "_").isalnum()) or key.isidentifier()
    return key if is_bare else describe(key)


@final
class Table:
    """One table, read key by key; `close` then complains about the keys that nobody asked for.

    Args:
        values: The table's contents.
        source: What a line about a fault starts with, e.g. the file's name.
        path: The table's own key path; empty for the document.
        problems: Where faults go; the document's own list for a table inside it.

    Attributes:
        problems: The faults found so far in the whole document, one line each.
    """

    def __init__(
        self,
        values: Mapping[str, object],
        *,
        source: str = "",
        path: str = "",
        problems: list[str] | None = None,
    ) -> None:
        self._values = values
        self._source = source
        self._path = path
        self.problems: list[str] = [] if problems is None else problems
        self._known: list[str] = []

    def __repr__(self) -> str:
        return f"<Table {self._path or self._source} {len(self._values)} keys>"

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def path(self, key: str, index: int | None = None) -> str:
        """Return the whole path of a key, as problems name it.

        Args:
            key: A key of this table.
            index: Which item of the array that is its value, from 0.
        """
        item = "" if index is None else f"[{index}]"
        prefix = f"{self._path}." if self._path else ""
        return f"{prefix}{_quoted(key)}{item}"

    def problem(self, key: str, sentence: str, *, index: int | None = None) -> None:
        """Note a fault.

        Args:
            key: The key that is wrong; empty for the table itself.
            sentence: What was expected, and what is there.
            index: Which item of the array that is its value, from 0.
        """
        path = self.path(key, index) if key else self._path
        self.problems.append(": ".join(part for part in (self._source, path, sentence) if part))

    def wrong(self, key: str, expected: str) -> None:
        """Note that a value is not what it should be.

        Args:
            key: The key that is wrong.
            expected: What it should have been, e.g. ``an integer``.
        """
        self.problem(key, f"expected {expected}, got {describe(self._values.get(key))}")

    def take(self, key: str, expected: str, *, is_required: bool = False) -> object:
        """Return a value of any type, or None when it is not there.

        Args:
            key: The key.
            expected: What should be there, for the line about a missing key.
            is_required: Whether its absence is a fault.
        """
        self._known.append(key)
        value = self._values.get(key)
        if key not in self._values and is_required:
            self.problem(key, f"expected {expected}, but it is missing")
        return value

    def text(
        self,
        key: str,
        default: str = "",
        *,
        is_required: bool = False,
        is_filled: bool = True,
    ) -> str:
        """Read text.

        Args:
            key: The key.
            default: What an absent or wrong value becomes.
            is_required: Whether its absence is a fault.
            is_filled: Whether empty (or blank) text is a fault.
        """
        expected = "text that is not empty" if is_filled else "text"
        value = self.take(key, expected, is_required=is_required)
        if key not in self._values:
            return default
        if not isinstance(value, str) or (is_filled and not value.strip()):
            self.wrong(key, expected)
            return default
        return value

    def integer(self, key: str, default: int, *, minimum: int, maximum: int) -> int:
        """Read an integer in a range, both ends included.

        Args:
            key: The key.
            default: What an absent or wrong value becomes.
            minimum: The least that is right.
            maximum: The most that is right.
        """
        expected = f"an integer from {minimum} to {maximum:,}"
        value = self.take(key, expected)
        if key not in self._values:
            return default
        if type(value) is not int or not minimum <= value <= maximum:
            self.wrong(key, expected)
            return default
        return value

    def seconds(self, key: str, default: float) -> float:
        """Read a length of time in seconds: above 0, and at most a year.

        Args:
            key: The key.
            default: What an absent or wrong value becomes.
        """
        expected = "a number of seconds above 0"
        value = self.take(key, expected)
        if key not in self._values:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.wrong(key, expected)
            return default
        if not 0 < value <= 366 * 86400 or not math.isfinite(value):
            self.wrong(key, f"{expected} and at most a year")
            return default
        return float(value)

    def number(self, key: str, default: float = 0.0) -> float:
        """Read a number of any size; null, which JSON has for want of NaN, is NaN.

        Args:
            key: The key.
            default: What an absent or wrong value becomes.
        """
        value = self.take(key, "a number")
        if key not in self._values:
            return default
        if value is None:
            return math.nan
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.wrong(key, "a number")
            return default
        return float(value)

    def boolean(self, key: str, *, default: bool) -> bool:
        """Read true or false.

        Args:
            key: The key.
            default: What an absent or wrong value becomes.
        """
        value = self.take(key, "true or false")
        if key not in self._values:
            return default
        if not isinstance(value, bool):
            self.wrong(key, "true or false")
            return default
        return value

    def choice(
        self, key: str, choices: tuple[str, ...], *, is_required: bool = False
    ) -> str | None:
        """Read one of some words; None when it is absent or wrong.

        Args:
            key: The key.
            choices: The words.
            is_required: Whether its absence is a fault.
        """
        expected = " or ".join(repr(choice) for choice in choices)
        value = self.take(key, expected, is_required=is_required)
        if key not in self._values:
            return None
        if not isinstance(value, str) or value not in choices:
            self.wrong(key, expected)
            return None
        return value

    def items(self, key: str, expected: str, *, is_required: bool = False) -> list[object]:
        """Read an array of anything; empty when it is absent or wrong.

        Args:
            key: The key.
            expected: What should be there.
            is_required: Whether its absence is a fault.
        """
        value = self.take(key, expected, is_required=is_required)
        if key not in self._values:
            return []
        if not isinstance(value, list):
            self.wrong(key, expected)
            return []
        return value

    def texts(self, key: str, *, is_filled: bool = True) -> tuple[str, ...]:
        """Read an array of texts.

        Args:
            key: The key.
            is_filled: Whether empty (or blank) text is a fault.
        """
        expected = "text that is not empty" if is_filled else "text"
        texts = []
        for index, item in enumerate(self.items(key, "an array of texts")):
            if isinstance(item, str) and (item.strip() or not is_filled):
                texts.append(item)
            else:
                self.problem(key, f"expected {expected}, got {describe(item)}", index=index)
        return tuple(texts)

    def command(self, key: str, *, is_required: bool = False) -> tuple[str, ...]:
        """Read one command line: an array of words, or text that is split as a shell would.

        Args:
            key: The key.
            is_required: Whether its absence is a fault.
        """
        value = self.take(key, "a command line", is_required=is_required)
        return self._command(key, value) if key in self._values else ()

    def commands(self, key: str) -> tuple[tuple[str, ...], ...]:
        """Read an array of command lines.

        Args:
            key: The key.
        """
        lines = (
            self._command(key, item, index)
            for index, item in enumerate(self.items(key, "an array of command lines"))
        )
        return tuple(line for line in lines if line)

    def _command(self, key: str, value: object, index: int | None = None) -> tuple[str, ...]:
        words: list[object] = []
        if isinstance(value, str):
            try:
                words.extend(shlex.split(value))
            except ValueError as error:
                fault = f"expected a command line, but there is {str(error).lower()}"
                self.problem(key, fault, index=index)
                return ()
        elif isinstance(value, list):
            words = value
        line = tuple(word for word in words if isinstance(word, str) and "\0" not in word)
        if not line or len(line) != len(words) or not line[0].strip():
            fault = f"expected a command line (text, or an array of words), got {describe(value)}"
            self.problem(key, fault, index=index)
            return ()
        return line

    def is_table(self, key: str) -> bool:
        """Whether a key's value is a table.

        Args:
            key: The key.
        """
        return isinstance(self._values.get(key), dict)

    def table(self, key: str) -> Table:
        """Read a table below this one; an empty one when it is absent or wrong.

        Args:
            key: The key.
        """
        value = self.take(key, "a table")
        if key in self._values and not isinstance(value, dict):
            self.wrong(key, "a table")
        values = value if isinstance(value, dict) else {}
        return self._below(values, self.path(key))

    def tables(self, key: str, *, is_required: bool = False) -> list[Table]:
        """Read an array of tables.

        Args:
            key: The key.
            is_required: Whether its absence is a fault.
        """
        tables = []
        for index, item in enumerate(
            self.items(key, "an array of tables", is_required=is_required)
        ):
            if isinstance(item, dict):
                tables.append(self._below(item, self.path(key, index)))
            else:
                self.problem(key, f"expected a table, got {describe(item)}", index=index)
        return tables

    def _below(self, values: Mapping[str, object], path: str) -> Table:
        return Table(values, source=self._source, path=path, problems=self.problems)

    def close(self) -> None:
        """Note every key that was not read, with the nearest one that would have been."""
        for key in self._values:
            if key in self._known:
                continue
            near = get_close_matches(key, self._known, n=1)
            hint = f"did you mean {near[0]!r}" if near else f"known are {', '.join(self._known)}"
            self.problem(key, f"this key is not known; {hint}")
