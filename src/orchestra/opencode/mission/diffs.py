"""A change as people and reviewers read it: a unified diff of bounded length."""

from __future__ import annotations

import difflib
import io
from collections.abc import Iterable

from attrs import frozen

__all__ = ("FileChange", "make_diff")

_MAX_DIFF = 16_000
"""Characters of a whole diff."""
_MAX_FILE = 6_000
"""Characters of one file's part, when there are several."""
_MAX_LINES = 5_000
"""Lines of a file up to which it is compared line by line."""


@frozen
class FileChange:
    """One changed file.

    Attributes:
        path: The file, relative to the workspace.
        before: Its contents before; None: there was no such file.
        after: Its contents now; None: it is gone.
        is_known: Whether both were kept; otherwise they are not shown.
    """

    path: str
    before: bytes | None
    after: bytes | None
    is_known: bool = True


def make_diff(changes: Iterable[FileChange]) -> str:
    """Return the changes as one unified diff; what is too long for it is counted. Blocks.

    Args:
        changes: The changed files, in the order in which they are shown.
    """
    changes = list(changes)
    limit = _MAX_DIFF if len(changes) == 1 else _MAX_FILE
    parts: list[str] = []
    room = _MAX_DIFF
    for number, change in enumerate(changes):
        part = _diff_file(change)
        if len(part) > limit:
            part = f"{part[:limit]}\n... ({len(part) - limit} more characters of {change.path})\n"
        if len(part) > room:
            left = len(changes) - number
            parts.append(f"... ({left} more changed {'file' if left == 1 else 'files'})\n")
            break
        parts.append(part)
        room -= len(part)
    return "".join(parts)


def _diff_file(change: FileChange) -> str:
    old = f"a/{change.path}" if change.before is not None else "/dev/null"
    new = f"b/{change.path}" if change.after is not None else "/dev/null"
    header = f"--- {old}\n+++ {new}\n"
    if not change.is_known:
        return f"{header}(changed; it is too large to be shown, or what it held before is not known any more)\n"
    before, after = _lines(change.before), _lines(change.after)
    if before is None or after is None:
        sizes = f"{len(change.before or b'')} -> {len(change.after or b'')} bytes"
        return f"{header}(binary, or too long to be compared: {sizes})\n"
    lines = list(difflib.unified_diff(before, after, n=3))[2:]
    return header + "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines
    )


def _lines(data: bytes | None) -> list[str] | None:
    """Return a text's lines; None for what is no text, or too long."""
    if data is None:
        return []
    if b"\0" in data:
        return None
    lines = io.StringIO(data.decode("utf-8", errors="replace")).readlines()  # at \n only
    return lines if len(lines) <= _MAX_LINES else None
