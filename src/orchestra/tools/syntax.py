"""Search and rewrite by syntax, with ast-grep; needs ``pip install 'orchestra[tools]'``.

A pattern is code in which ``$NAME`` stands for one node and ``$$$NAME`` for any number of them. A
rewrite is a text with the same variables; it is put in as it is, so that the lines of a longer one
get no indentation. Files that are not UTF-8 are skipped. Which files are looked at is told in
`orchestra.tools.listing`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, Final, final

import anyio
import anyio.to_thread
from attrs import field, frozen

from orchestra._core.checks import count
from orchestra.tools._helper import run_helper
from orchestra.tools.listing import Selection, list_files
from orchestra.tools.root import Root

__all__ = ("LANGUAGES", "SyntaxFound", "SyntaxMatch", "SyntaxQuery", "match_syntax")

LANGUAGES: Mapping[str, tuple[str, ...]] = {
    "bash": (".sh", ".bash"),
    "c": (".c", ".h"),
    "cpp": (".cpp", ".cc", ".cxx", ".hpp", ".hh", ".hxx"),
    "csharp": (".cs",),
    "css": (".css",),
    "elixir": (".ex", ".exs"),
    "go": (".go",),
    "haskell": (".hs",),
    "html": (".html", ".htm"),
    "java": (".java",),
    "javascript": (".js", ".jsx", ".mjs", ".cjs"),
    "json": (".json",),
    "kotlin": (".kt", ".kts"),
    "lua": (".lua",),
    "php": (".php",),
    "python": (".py", ".pyi"),
    "ruby": (".rb",),
    "rust": (".rs",),
    "scala": (".scala",),
    "swift": (".swift",),
    "tsx": (".tsx",),
    "typescript": (".ts", ".mts", ".cts"),
    "yaml": (".yaml", ".yml"),
}
"""The languages, and the suffixes of their files."""
_VARIABLE = re.compile(r"\$(?:\$\$)?[A-Z_][A-Z0-9_]*")
_MAX_CODE = 10_000
_MAX_NEW = 32 << 20
"""Characters of new text that one rewrite may have."""


@frozen(kw_only=True)
class SyntaxQuery:
    """What to look for.

    Attributes:
        pattern: Code with variables.
        language: One of `LANGUAGES`.
        rewrite: What to put in its place; None: only look.
        is_applied: Whether files are written; else a rewrite is only shown.
        selection: In which files; those of the language's suffixes count.
        limit: How many matches are returned. A rewrite of more is shown in part and not applied.
    """

    pattern: str = field()
    language: str = field()
    rewrite: str | None = field(default=None)
    is_applied: bool = False
    selection: Selection = field(factory=lambda: Selection(max_file_size=1 << 20))
    limit: int = field(default=1_000, validator=count)

    @pattern.validator
    def _check_pattern(self, _: object, pattern: str) -> None:
        if not 0 < len(pattern) <= _MAX_CODE:
            raise ValueError(f"the pattern must have 1 to {_MAX_CODE:,} characters; change it")

    @language.validator
    def _check_language(self, _: object, language: str) -> None:
        if language not in LANGUAGES:
            raise ValueError(f"language {language!r} is unknown; choose {', '.join(LANGUAGES)}")

    @rewrite.validator
    def _check_rewrite(self, _: object, rewrite: str | None) -> None:
        unknown = set(_VARIABLE.findall(rewrite or "")) - set(_VARIABLE.findall(self.pattern))
        if unknown:
            raise ValueError(f"the rewrite has {min(unknown)}, which the pattern does not; name it")
        if len(rewrite or "") > _MAX_CODE:
            raise ValueError(f"the rewrite must have at most {_MAX_CODE:,} characters; change it")


@frozen(kw_only=True)
class SyntaxMatch:
    """A node that matches. Lines and columns count from 1, columns in characters.

    Attributes:
        path: The file, relative to the root.
        line: Where it begins.
        column: The same.
        end_line: Where it ends.
        end_column: The column after its last character.
        text: Its source, at most 2,000 characters.
        captures: What the variables stand for, likewise.
        replacement: What it becomes, likewise; None for a search.
    """

    path: str
    line: int
    column: int
    end_line: int
    end_column: int
    text: str
    captures: Mapping[str, str]
    replacement: str | None


@frozen(kw_only=True)
class SyntaxFound:
    """What was found, and what was done about it.

    Attributes:
        matches: In the order of path and place.
        written: The files that were rewritten.
        cut: What is missing or was not done, as sentences; empty when nothing is.
    """

    matches: tuple[SyntaxMatch, ...]
    written: tuple[str, ...] = ()
    cut: str = ""


async def match_syntax(
    root: Root, query: SyntaxQuery, *, ripgrep: str | None = None
) -> SyntaxFound:
    """Search by syntax, and rewrite if asked to. Always a checkpoint.

    A rewrite is written only when all of it is known: not after the time or a limit was exceeded.
    Each file is replaced as a whole, unless it has changed since it was looked at. Once the
    writing has begun it is not cancelled.

    Args:
        root: The folder that cannot be left.
        query: What to look for.
        ripgrep: The program that lists files; None: do without.

    Raises:
        ImportError: ast-grep-py is not installed.
        ValueError: The pattern cannot be used, or the path leads out of the root.
        FileNotFoundError: There is nothing of that name.
        OSError: A process cannot be started, or a file not be written.
    """
    if find_spec("ast_grep_py") is None:
        raise ImportError("AST search needs ast-grep-py: pip install 'orchestra[tools]'")
    deadline = anyio.current_time() + query.selection.timeout
    listing = await list_files(root, query.selection, ripgrep=ripgrep)
    answer = _Answer(query.limit)
    request = {
        "files": [path for path in listing.paths if path.endswith(LANGUAGES[query.language])],
        "language": query.language,
        "pattern": query.pattern,
        "rewrite": query.rewrite,
        "limit": query.limit + 1,
        "max_file_size": query.selection.max_file_size,
    }
    is_timed_out = False
    with suppress(_TooMuchError):
        timeout = max(0.01, deadline - anyio.current_time())
        is_timed_out = await run_helper(
            "matcher", root, request, timeout=timeout, on_text=answer.take
        )
    cuts = [
        f"these are the first {query.limit:,} matches" if answer.is_full else "",
        "the new text is more than 32 MiB" if answer.is_too_much else "",
        f"the search was stopped after {query.selection.timeout:g} s" if is_timed_out else "",
        listing.cut,
    ]
    written: tuple[str, ...] = ()
    if query.is_applied and query.rewrite is not None:
        if any(cuts):
            cuts.append("nothing was written, since this is not all; narrow the search")
        else:
            written, failed = await anyio.to_thread.run_sync(_write, root, answer.changes)
            if failed:
                cuts.append(f"not written: {', '.join(failed[:20])}; look and repeat")
    return SyntaxFound(
        matches=tuple(answer.matches[: query.limit]),
        written=written,
        cut="; ".join(part for part in cuts if part),
    )


class _TooMuchError(Exception):
    """There is more new text than is held."""


@frozen
class _Change:
    path: str
    digest: str
    new: str


@final
class _Answer:
    """Reads what the matcher prints."""

    def __init__(self, limit: int) -> None:
        self._limit: Final = limit
        self._rest: Final[list[str]] = []
        self._size = 0
        self.matches: Final[list[SyntaxMatch]] = []
        self.changes: Final[list[_Change]] = []

    @property
    def is_full(self) -> bool:
        return len(self.matches) > self._limit

    @property
    def is_too_much(self) -> bool:
        return self._size > _MAX_NEW

    async def take(self, text: str) -> None:
        *lines, rest = text.split("\n")
        for line in lines:
            record: dict[str, Any] = json.loads("".join([*self._rest, line]))
            self._rest.clear()
            if "digest" in record:
                self.changes.append(_Change(**record))
            else:
                self.matches.append(SyntaxMatch(**record))
        self._rest.append(rest)
        self._size += len(text)
        if self.is_too_much:
            raise _TooMuchError


def _write(root: Root, changes: Sequence[_Change]) -> tuple[tuple[str, ...], list[str]]:
    written: list[str] = []
    failed: list[str] = []
    for change in changes:
        try:
            data = root.read(change.path, limit=_MAX_NEW)
            if data is None or hashlib.sha256(data).hexdigest() != change.digest:
                failed.append(f"{change.path} (changed meanwhile)")
            elif root.replace(change.path, change.new.encode(), expected=data):
                written.append(change.path)
            else:
                failed.append(f"{change.path} (changed meanwhile)")
        except OSError as exc:
            failed.append(f"{change.path} ({exc.strerror})")
    return tuple(written), failed
