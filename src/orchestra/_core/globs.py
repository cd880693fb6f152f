r"""Globs and ``.gitignore`` rules, as ripgrep reads them.

``*`` and ``?`` stay within a name, ``**`` between slashes is any number of folders, ``[a-z]`` and
``[!a-z]`` are classes, ``{a,b}`` are alternatives, ``\`` takes the next character as it is. Matching
takes time in proportion to the lengths of pattern and path, whatever the pattern: a star takes the
first place that fits and is never tried again.

The rules of ``.gitignore`` are those of gitignore(5), but for braces, which git takes as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import pairwise
from typing import Final, final

from attrs import frozen

__all__ = ("Glob", "IgnoreRules")

_MAX_ALTERNATIVES = 256
"""Patterns that braces may stand for."""
_MAX_BRACES = 64
_MAX_LENGTH = 4_096


@final
class Glob:
    """A glob for paths with ``/``, relative to the folder that is searched.

    A glob without a slash means names at any depth, one with a slash the whole path.

    Args:
        pattern: The glob.

    Raises:
        ValueError: A class or a brace is not closed, a backslash is last, or it is too long.
    """

    __slots__ = ("_alternatives", "pattern")

    def __init__(self, pattern: str) -> None:
        self.pattern: Final = pattern
        if len(pattern) > _MAX_LENGTH:
            raise ValueError(f"a glob of {len(pattern)} characters is too long; give a shorter one")
        anchored = pattern.removeprefix("/")
        if "/" not in pattern:
            anchored = f"**/{pattern}"
        if anchored.endswith("/**"):
            anchored += "/*"  # what is inside, and not the folder itself
        self._alternatives: Final = tuple(
            tuple(None if part == "**" else _segment(part, pattern) for part in one.split("/"))
            for one in _alternatives(anchored, pattern)
        )

    def matches(self, path: str) -> bool:
        """Whether a path is meant.

        Args:
            path: A relative path with ``/``.
        """
        names = path.split("/")
        return any(_match(alternative, names) for alternative in self._alternatives)

    def __repr__(self) -> str:
        return f"Glob({self.pattern!r})"


def _match(parts: tuple[re.Pattern[str] | None, ...], names: list[str]) -> bool:
    # The usual walk for wildcards, on names instead of characters: after a mismatch only the last
    # `**` has to take one name more.
    at = index = 0
    retry: tuple[int, int] | None = None
    while index < len(names):
        if at < len(parts) and (part := parts[at]) is None:
            at += 1
            retry = at, index
        elif at < len(parts) and part is not None and part.fullmatch(names[index]):
            at += 1
            index += 1
        elif retry is not None:
            at, index = retry[0], retry[1] + 1
            retry = at, index
        else:
            return False
    return all(part is None for part in parts[at:])


def _alternatives(pattern: str, whole: str) -> list[str]:
    """Write out the braces."""
    cuts: list[int] = []
    depth = 0
    for index, char in _plain(pattern, whole):
        depth += {"{": 1, "}": -1}.get(char, 0)
        if depth < 0:
            raise ValueError(f"the glob {whole!r} closes a brace that is not open; write \\}}")
        if (char in "{," and depth == 1) or (char == "}" and depth == 0):
            cuts.append(index)
        if char == "}" and depth == 0:
            break
    if depth or pattern.count("{") > _MAX_BRACES:
        raise ValueError(f"the glob {whole!r} does not close a brace, or has too many; split it")
    if not cuts:
        return [pattern]
    head, tails = pattern[: cuts[0]], _alternatives(pattern[cuts[-1] + 1 :], whole)
    choices = [
        one
        for start, end in pairwise(cuts)
        for one in _alternatives(pattern[start + 1 : end], whole)
    ]
    if len(choices) * len(tails) > _MAX_ALTERNATIVES:
        raise ValueError(
            f"the glob {whole!r} stands for more than {_MAX_ALTERNATIVES} globs; split it"
        )
    return [f"{head}{choice}{tail}" for choice in choices for tail in tails]


def _plain(pattern: str, whole: str) -> Iterator[tuple[int, str]]:
    """Yield the characters that are neither escaped nor in a class, with where they stand."""
    index = 0
    while index < len(pattern):
        char = pattern[index]
        if char == "\\":
            index += 1
        elif char == "[":
            index = _end_of_class(pattern, index, whole)
        else:
            yield index, char
        index += 1


def _end_of_class(pattern: str, start: int, whole: str) -> int:
    """Return where the bracket is that closes a class; one that comes first is a member."""
    first = start + 2 if pattern[start + 1 : start + 2] in {"!", "^"} else start + 1
    end = pattern.find("]", first + 1)
    if end < 0:
        raise ValueError(f"the glob {whole!r} does not close a class; write \\[ for the character")
    return end


@lru_cache(maxsize=1_024)
def _segment(part: str, whole: str) -> re.Pattern[str]:
    """Compile the part of a glob for one name."""
    chunks = [""]
    index = 0
    while index < len(part):
        char = part[index]
        if char == "*":
            if chunks[-1] or len(chunks) == 1:
                chunks.append("")
        elif char == "?":
            chunks[-1] += "."
        elif char == "[":
            end = _end_of_class(part, index, whole)
            chunks[-1] += _members(part[index + 1 : end], whole)
            index = end
        elif char == "\\":
            index += 1
            if index == len(part):
                raise ValueError(f"the glob {whole!r} ends with a backslash; write it twice")
            chunks[-1] += re.escape(part[index])
        else:
            chunks[-1] += re.escape(char)
        index += 1
    first, *rest = chunks
    if rest:
        last = rest.pop()
        first += "".join(f"(?>.*?{chunk})" for chunk in rest if chunk) + f".*{last}"
    return re.compile(first, re.DOTALL)


def _members(text: str, whole: str) -> str:
    """Translate the inside of a class."""
    negation = "^" if text[0] in "!^" else ""
    if negation:
        text = text[1:]
    written = ""
    index = 0
    while index < len(text):
        low = high = text[index]
        if text[index + 1 : index + 2] == "-" and index + 2 < len(text):
            high = text[index + 2]
            index += 2
            if high < low:
                raise ValueError(f"the glob {whole!r} has a range backwards; turn it round")
        written += re.escape(low) if low == high else f"{re.escape(low)}-{re.escape(high)}"
        index += 1
    return f"[{negation}{written}]"


@frozen
class _Rule:
    glob: Glob
    is_ignored: bool
    is_for_folders: bool


@final
class IgnoreRules:
    """The rules of one ``.gitignore``; a line that is no glob is passed over, as ripgrep does.

    Args:
        text: The file's text.
    """

    __slots__ = ("_rules",)

    def __init__(self, text: str) -> None:
        rules = (_rule(line) for line in text.removeprefix("\ufeff").split("\n"))
        self._rules: Final = tuple(rule for rule in rules if rule is not None)[::-1]

    def verdict(self, path: str, *, is_folder: bool) -> bool | None:
        """Say what the last rule that fits says.

        Args:
            path: The path, relative to the folder of the file.
            is_folder: Whether it is a folder.

        Returns:
            True: ignored; False: expressly not ignored; None: no rule fits.
        """
        path = _as_bytes(path)
        for rule in self._rules:
            if (is_folder or not rule.is_for_folders) and rule.glob.matches(path):
                return rule.is_ignored
        return None

    @staticmethod
    def decide(files: Iterable[tuple[IgnoreRules, str]], *, is_folder: bool) -> bool | None:
        """Ask several files in turn.

        Args:
            files: The rules, nearest folder first, each with the path relative to its folder.
            is_folder: Whether the path is a folder's.

        Returns:
            The first verdict.
        """
        for rules, path in files:
            if (verdict := rules.verdict(path, is_folder=is_folder)) is not None:
                return verdict
        return None


def _as_bytes(text: str) -> str:
    """Write each byte as a character: in these rules, ``?`` is one byte."""
    return text if text.isascii() else text.encode(errors="surrogateescape").decode("latin-1")


def _rule(line: str) -> _Rule | None:
    """Read a line of a ``.gitignore``."""
    if line.startswith("#"):
        return None
    if not line.endswith("\\ "):
        line = line.rstrip()
    is_ignored = not line.startswith("!")
    line = line.removeprefix("!")
    is_for_folders = line.endswith("/")
    if is_for_folders:
        line = line[:-1].removesuffix("\\")
    if not line:
        return None
    try:
        return _Rule(Glob(_as_bytes(line)), is_ignored, is_for_folders)
    except ValueError:
        return None
