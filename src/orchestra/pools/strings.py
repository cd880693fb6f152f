"""One copy of each string that comes again and again."""

from __future__ import annotations

import sys
from collections import OrderedDict
from typing import final

import attrs

from orchestra._core.checks import check_at_least

__all__ = ("StringPool", "StringPoolStatistics")


@attrs.frozen(kw_only=True)
class StringPoolStatistics:
    """What a `StringPool` has and has done.

    Attributes:
        size: Strings that it keeps.
        hits: How often a string was there already.
        misses: How often one was not, and was added.
        evictions: How often the one longest unused gave way to a new one.
        skipped: How often one was too long to be kept.
    """

    size: int
    hits: int
    misses: int
    evictions: int
    skipped: int


@final
class StringPool:
    """Gives one and the same object for equal strings, and keeps the most recently used ones.

    It is ``sys.intern`` with a bound and with statistics: what it gives is interned, and it keeps it
    alive. It saves memory where many records that live long repeat few strings, such as the names
    of agents, models and tools that a JSON decoder copies each time. It does not save time:
    ``sys.intern`` costs less where the strings are known to be few, and comparing equal strings by
    ``==`` costs little more than by ``is``.

    On Python 3.12 the interpreter itself keeps every interned string for ever, so there the bound is
    on what the pool keeps, and strings of unbounded variety should not be given to it.

    May be used from any thread. Counts that threads change at the same moment may miss one.

    Args:
        max_size: So many strings are kept.
        max_length: Longer strings, counted in characters, are given back as they are.

    Raises:
        TypeError: A number is none.
        ValueError: A number is below 1.
    """

    __slots__ = (
        "_evictions",
        "_hits",
        "_max_length",
        "_max_size",
        "_misses",
        "_skipped",
        "_strings",
    )

    def __init__(self, *, max_size: int = 1000, max_length: int = 100) -> None:
        check_at_least("max_size", max_size, 1)
        check_at_least("max_length", max_length, 1)
        self._max_size = max_size
        self._max_length = max_length
        self._strings: OrderedDict[str, str] = OrderedDict()  # the one longest unused is first
        self._hits = 0
        self._misses = 0
        self._evictions = 0
        self._skipped = 0

    def intern(self, text: str) -> str:
        """Give the one copy of a string, which is a plain ``str``.

        Args:
            text: Any string. One that is too long is given back itself.

        Raises:
            TypeError: It is no string.
        """
        strings = self._strings
        try:
            found = strings[text]
            strings.move_to_end(text)
        except KeyError:
            return self._add(text)
        self._hits += 1
        return found

    def clear(self) -> None:
        """Keep nothing any more; the counts of what was done stay."""
        self._strings.clear()

    def statistics(self) -> StringPoolStatistics:
        """Count what it has and has done."""
        return StringPoolStatistics(
            size=len(self._strings),
            hits=self._hits,
            misses=self._misses,
            evictions=self._evictions,
            skipped=self._skipped,
        )

    def _add(self, text: str) -> str:
        if not isinstance(text, str):
            raise TypeError(f"only strings can be interned, not {text!r}")
        if len(text) > self._max_length:
            self._skipped += 1
            return text
        self._misses += 1
        found = sys.intern(str.__str__(text))  # which makes a plain one of a subclass's
        self._strings[found] = found
        while len(self._strings) > self._max_size:
            try:
                self._strings.popitem(last=False)
            except KeyError:  # another thread was quicker
                break
            self._evictions += 1
        return found

    def __repr__(self) -> str:
        return f"<StringPool {len(self._strings)}/{self._max_size}>"
