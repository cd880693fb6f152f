"""Statistics of files: how many, how large, how many lines, by kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from heapq import nlargest
from threading import Event
from typing import Final, final

import anyio
import anyio.to_thread
from attrs import frozen

from orchestra.tools.listing import Selection, list_files
from orchestra.tools.root import Root, is_binary

__all__ = ("FileStatistics", "SuffixStatistics", "file_statistics")

_LARGEST = 10
_SUFFIXES = 50


@frozen(kw_only=True)
class SuffixStatistics:
    """The files of one suffix.

    Attributes:
        suffix: With its dot, in lower case; empty for names without one.
        files: How many.
        size: Bytes.
        lines: Lines of those that are text.
    """

    suffix: str
    files: int
    size: int
    lines: int


@frozen(kw_only=True)
class FileStatistics:
    """What the files of a selection are.

    Attributes:
        files: How many.
        size: Bytes.
        lines: Lines of those that are text.
        binary_files: How many are not.
        suffixes: The 50 suffixes with the most bytes, these first.
        largest: The 10 largest files with their size in bytes, largest first.
        cut: What is missing, as sentences; empty when nothing is.
    """

    files: int
    size: int
    lines: int
    binary_files: int
    suffixes: tuple[SuffixStatistics, ...]
    largest: tuple[tuple[str, int], ...]
    cut: str


async def file_statistics(
    root: Root, selection: Selection, *, ripgrep: str | None = None
) -> FileStatistics:
    """Count files, bytes and lines. Always a checkpoint.

    Args:
        root: The folder that cannot be left.
        selection: Which files.
        ripgrep: The program; None: do without.

    Raises:
        ValueError: The path leads out of the root.
        FileNotFoundError: There is nothing of that name.
    """
    deadline = anyio.current_time() + selection.timeout
    listing = await list_files(root, selection, ripgrep=ripgrep)
    census = _Census(root, listing.paths, selection.max_file_size)
    try:
        with anyio.move_on_at(deadline) as scope:
            await anyio.to_thread.run_sync(census.run, abandon_on_cancel=True)
    finally:
        census.stop.set()
    slow = f"counting was stopped after {selection.timeout:g} s; narrow it"
    return census.result(
        "; ".join(part for part in (slow if scope.cancelled_caught else "", listing.cut) if part)
    )


@final
class _Census:
    """Reads files in a thread until it is told to stop."""

    def __init__(self, root: Root, paths: Sequence[str], max_file_size: int) -> None:
        self._root: Final = root
        self._paths: Final = paths
        self._max_file_size: Final = max_file_size
        # One record for each file, added in one step: an abandoned thread may still be adding.
        self._seen: Final[list[tuple[str, int, int | None]]] = []
        self.stop: Final = Event()

    def run(self) -> None:
        for path in self._paths:
            if self.stop.is_set():
                return
            try:
                data = self._root.read(path, limit=self._max_file_size)
            except OSError:
                continue  # gone meanwhile, or not ours to read
            if data is not None:
                self._seen.append((path, len(data), None if is_binary(data) else _lines(data)))

    def result(self, cut: str) -> FileStatistics:
        seen = tuple(self._seen)
        files, sizes, lines = Counter[str](), Counter[str](), Counter[str]()
        for path, size, length in seen:
            suffix = _suffix(path)
            files[suffix] += 1
            sizes[suffix] += size
            lines[suffix] += length or 0
        return FileStatistics(
            files=len(seen),
            size=sizes.total(),
            lines=lines.total(),
            binary_files=sum(length is None for _, _, length in seen),
            suffixes=tuple(
                SuffixStatistics(suffix=name, files=files[name], size=size, lines=lines[name])
                for name, size in nlargest(_SUFFIXES, sizes.items(), key=lambda item: item[1])
            ),
            largest=tuple(
                (path, size) for path, size, _ in nlargest(_LARGEST, seen, key=lambda one: one[1])
            ),
            cut=cut,
        )


def _lines(data: bytes) -> int:
    return data.count(b"\n") + (not data.endswith(b"\n") and bool(data))


def _suffix(path: str) -> str:
    stem, dot, suffix = path.rpartition("/")[2].rpartition(".")
    return f".{suffix.lower()}" if dot and stem else ""
