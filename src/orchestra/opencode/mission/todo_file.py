"""The TODO list's file: read as a whole, written as a whole or not at all. Everything blocks."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from orchestra.opencode.mission.todo_text import TodoLine, parse_lines, split_section

__all__ = (
    "digest_of",
    "list_of",
    "read_text",
    "replace_section",
    "stamp_of",
    "write_atomically",
)


def write_atomically(path: Path, text: str, *, is_synced: bool = True) -> None:
    """Replace a file so that a reader sees all of the old text or all of the new one. Blocks.

    Args:
        path: The file.
        text: The new text.
        is_synced: Whether it survives the loss of power.

    Raises:
        OSError: It cannot be written; the old file is as it was.
    """
    try:
        mode = path.stat().st_mode & 0o777
    except FileNotFoundError:
        mode = 0o644
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), mode)
            if is_synced:
                os.fsync(file.fileno())
        os.replace(temporary, path)  # noqa: PTH105  (the name of an open temporary file)
    except BaseException:
        os.unlink(temporary)  # noqa: PTH108  (the same)
        raise


def digest_of(text: str) -> bytes:
    """Return what tells this text from any other."""
    return hashlib.sha256(text.encode(errors="surrogateescape")).digest()


def list_of(text: str) -> tuple[list[TodoLine], int | None, bool]:
    """Return the lines of a file's list, and where they are from.

    Returns:
        The lines, the revision that they were written from (None: the file does not say), and
        whether they are the whole file, since it has no section.
    """
    _, section, revision, whole = split_section(text)
    if section is not None:
        return parse_lines(section), revision, False
    return parse_lines(whole.strip("\n")), None, True


def read_text(path: Path) -> str:
    """Return the file's text; empty when there is no file."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return ""


def stamp_of(path: Path) -> object:
    """Return what changes when the file is rewritten or replaced; None when there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def replace_section(path: Path, section: str, expected: bytes, *, is_synced: bool) -> str | None:
    """Write the section into the file, unless somebody else has written it meanwhile.

    Args:
        path: The file.
        section: What `wrap_section` returned.
        expected: The digest of the text that was read.
        is_synced: Whether the file survives the loss of power.

    Returns:
        The new text; None when the file is not the one that was read.
    """
    text = read_text(path)
    if digest_of(text) != expected:
        return None
    before, inner, _, after = split_section(text)
    if inner is None:
        # A list that was found in a file without a section has become the section.
        has_items = any(line.mark is not None for line in parse_lines(text))
        before, after = "", "\n" if has_items or not text else "\n\n" + text
    new = before + section + after
    write_atomically(path, new, is_synced=is_synced)
    return new
