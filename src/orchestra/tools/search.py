r"""Search for lines (grep) and for files (glob) below a folder that cannot be left.

Which files are looked at is told in `orchestra.tools.listing`. Lines are searched by ripgrep where
it is and the pattern means the same to it, else by Python in a process that can be killed; the
matches are the same.

A pattern is a regular expression of Python's `re` that is matched against the bytes of each line by
itself: ``\w``, ``\d``, ``\s``, ``\b`` and letter case are ASCII, ``.`` is one byte, a character beyond
ASCII stands for itself but not in a class. The ``\r`` before a line end belongs to the line. A file with
a null byte in its first 8 KiB is binary and skipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final, Literal, final

import anyio
import anyio.to_thread
from attrs import field, frozen

from orchestra._core.checks import count
from orchestra._core.patterns import is_portable
from orchestra.processes import run_command
from orchestra.tools._helper import run_helper
from orchestra.tools.listing import (
    Listing,
    Selection,
    list_files,
    ripgrep_environment,
)
from orchestra.tools.root import Root, is_binary

__all__ = ("Found", "GrepQuery", "Match", "glob", "grep")

_MAX_PATTERN = 2_000
_SHOWN = 500
"""Characters of a line that are shown."""
_PREVIEW = 4 * _SHOWN
"""So many graphemes are no fewer characters, and a longer line has more than are shown."""
_MAX_ARGUMENTS = 100_000
"""Bytes of paths for one ripgrep."""


@frozen(kw_only=True)
class GrepQuery:
    """What to look for.

    Attributes:
        pattern: A regular expression, or a text; without line breaks.
        is_literal: Whether it is a text.
        is_case_ignored: Whether ASCII letters of the other case match too.
        selection: In which files.
        limit: How many matching lines are returned.
    """

    pattern: str = field()
    is_literal: bool = False
    is_case_ignored: bool = False
    selection: Selection = field(factory=Selection)
    limit: int = field(default=1_000, validator=count)

    @pattern.validator
    def _check_pattern(self, _: object, pattern: str) -> None:
        if not 0 < len(pattern) <= _MAX_PATTERN:
            raise ValueError(f"the pattern must have 1 to {_MAX_PATTERN:,} characters; change it")
        if any(char in pattern for char in "\0\n\r"):
            raise ValueError("the pattern has a line break or a null character; search one line")


@frozen(kw_only=True)
class Match:
    """A line that matches.

    Attributes:
        path: The file, relative to the root.
        line: Its number, from 1.
        column: The byte at which the first match in it begins, from 1.
        text: The line without its end, undecodable bytes replaced; a long one is cut, and says so.
    """

    path: str
    line: int
    column: int
    text: str


@frozen(kw_only=True)
class Found:
    """What a search found.

    Attributes:
        matches: In the order of path and line.
        engine: Who looked: ``ripgrep`` or ``python``.
        cut: What is missing, as sentences; empty when nothing is.
    """

    matches: tuple[Match, ...]
    engine: Literal["ripgrep", "python"]
    cut: str = ""


async def glob(
    root: Root, selection: Selection, *, limit: int = 5_000, ripgrep: str | None = None
) -> Listing:
    """Return the files of a selection, no more than the limit. Always a checkpoint.

    Args:
        root: The folder that cannot be left.
        selection: Which files.
        limit: How many paths are returned.
        ripgrep: The program; None: do without.

    Raises:
        ValueError: The path leads out of the root.
        FileNotFoundError: There is nothing of that name.
    """
    listing = await list_files(root, selection, ripgrep=ripgrep)
    if len(listing.paths) <= limit:
        return listing
    cut = f"these are the first {limit:,} of {len(listing.paths):,} files; narrow the glob"
    return Listing(paths=listing.paths[:limit], cut=_sentences(cut, listing.cut))


async def grep(root: Root, query: GrepQuery, *, ripgrep: str | None = None) -> Found:
    """Return the lines that match. Always a checkpoint.

    The selection's time-out holds for the whole search.

    Args:
        root: The folder that cannot be left.
        query: What to look for.
        ripgrep: The program; None: do without.

    Raises:
        ValueError: The pattern is no regular expression, or the path leads out of the root.
        FileNotFoundError: There is nothing of that name.
        OSError: A process cannot be started.
    """
    deadline = anyio.current_time() + query.selection.timeout
    listing = await list_files(root, query.selection, ripgrep=ripgrep)
    matches = _Matches(root, query.limit)
    is_for_ripgrep = bool(listing.paths) and (query.is_literal or is_portable(query.pattern))
    engine: Literal["ripgrep", "python"]
    engine = "ripgrep" if ripgrep is not None and is_for_ripgrep else "python"
    is_timed_out = False
    with suppress(_EnoughError):
        if ripgrep is not None and is_for_ripgrep:
            try:
                is_timed_out = await _run_ripgrep(
                    ripgrep, root, query, listing.paths, deadline, matches
                )
            except _RefusedError:
                engine, matches = "python", _Matches(root, query.limit)
        if engine == "python":
            is_timed_out = await _run_python(root, query, listing.paths, deadline, matches)
    slow = f"the search was stopped after {query.selection.timeout:g} s; narrow it"
    full = f"these are the first {query.limit:,} matches; narrow the search"
    return Found(
        matches=tuple(matches.found[: query.limit]),
        engine=engine,
        cut=_sentences(
            full if len(matches.found) > query.limit else "",
            slow if is_timed_out else "",
            listing.cut,
        ),
    )


def _sentences(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


class _EnoughError(Exception):
    """There are more matches than are wanted."""


class _RefusedError(Exception):
    """ripgrep did not take the pattern or an option."""


@final
class _Matches:
    """Reads matches as they are printed, ``PATH NUL LINE:COLUMN:TEXT``, and stops at the limit."""

    def __init__(self, root: Root, limit: int) -> None:
        self._root: Final = root
        self._limit: Final = limit
        self._rest = ""
        self._path = ""
        self._is_text = False
        self.found: Final[list[Match]] = []

    async def take(self, text: str) -> None:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            path, _, numbered = line.partition("\0")
            if path != self._path:
                self._path = path
                self._is_text = await anyio.to_thread.run_sync(self._check, path)
            if self._is_text:
                number, column, shown = numbered.split(":", 2)
                self._add(Match(path=path, line=int(number), column=int(column), text=_cut(shown)))

    def _add(self, match: Match) -> None:
        self.found.append(match)
        if len(self.found) > self._limit:
            raise _EnoughError

    def _check(self, path: str) -> bool:
        try:
            return not is_binary(self._root.head(path))
        except OSError:
            return False  # gone meanwhile, or a link by now


def _cut(line: str) -> str:
    line = line.removesuffix("\r")
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]} [cut after {_SHOWN} characters]"


def _batches(paths: Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for path in paths:
        length = len(path.encode()) + 1
        if batch and size + length > _MAX_ARGUMENTS:
            yield batch
            batch, size = [], 0
        batch.append(path)
        size += length
    if batch:
        yield batch


async def _run_ripgrep(
    ripgrep: str,
    root: Root,
    query: GrepQuery,
    paths: Sequence[str],
    deadline: float,
    matches: _Matches,
) -> bool:
    argv = [
        *(ripgrep, "--no-config", "--no-messages", "--no-heading", "--with-filename", "--null"),
        *("--line-number", "--column", "--color", "never", "--no-unicode", "--encoding", "none"),
        *("--max-columns", str(_PREVIEW), "--max-columns-preview", "--text"),
        # One thread searches in the order of the arguments, so the first matches are the same ones
        # whenever it is stopped.
        *("--threads", "1", "--max-count", str(query.limit + 1)),
        "--ignore-case" if query.is_case_ignored else "--case-sensitive",
    ]
    if query.is_literal:
        argv.append("--fixed-strings")
    argv += ("--regexp", query.pattern, "--")
    for batch in _batches(paths):
        done = await run_command(
            [*argv, *batch],
            directory=root.path,
            environment=ripgrep_environment(),
            timeout=max(0.0, deadline - anyio.current_time()),
            output_limit=2_048,
            on_text=matches.take,
        )
        if done.is_timed_out:
            return True
        if done.exit_code not in {0, 1} and done.stderr.strip():
            raise _RefusedError
    return False


async def _run_python(
    root: Root, query: GrepQuery, paths: Sequence[str], deadline: float, matches: _Matches
) -> bool:
    request = {
        "files": paths,
        "pattern": query.pattern,
        "is_literal": query.is_literal,
        "is_case_ignored": query.is_case_ignored,
        "per_file": query.limit + 1,
        "max_file_size": query.selection.max_file_size,
    }
    timeout = max(0.01, deadline - anyio.current_time())
    return await run_helper("scanner", root, request, timeout=timeout, on_text=matches.take)
