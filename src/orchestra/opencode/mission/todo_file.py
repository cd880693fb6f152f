"""The TODO list's file: read as a whole, written as a whole or not at all. Everything blocks."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from orchestra.opencode.mission.todo_text import TodoLine, parse_lines, split_section

__all__ = (
    "digest_of",
    "list_of",
    "place_section",
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
    mode = None
    with suppress(FileNotFoundError):
        mode = stat.S_IMODE(_status(path).st_mode)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:  # a new file gets what the user's mask allows
            file.write(text.encode("utf-8", errors="surrogateescape"))
            file.flush()
            if is_synced:
                os.fsync(file.fileno())
        if mode is not None:
            temporary.chmod(mode)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _status(path: Path) -> os.stat_result:
    """Return what the file is, which must be a regular one.

    A symbolic link could lead out of the workspace, and a pipe would block.
    """
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return status


def digest_of(text: str) -> bytes:
    """Return what tells this text from any other."""
    return hashlib.sha256(text.encode(errors="surrogateescape")).digest()


def list_of(text: str) -> tuple[list[TodoLine], int | None, bool]:
    """Return the lines of a file's list, and where they are from.

    Returns:
        The lines, the revision that they were written from (None: the file does not say), and
        whether they are the whole file, since it has no section.
    """
    # The store holds text: bytes that are no UTF-8 are shown as such, and not kept.
    clean = text.encode(errors="surrogateescape").decode(errors="replace")
    _, section, revision, whole = split_section(clean)
    if section is not None:
        return parse_lines(section), revision, False
    return parse_lines(whole.strip("\n")), None, True


def read_text(path: Path) -> str:
    """Return the file's text as it is, line ends and all; empty when there is no file.

    Raises:
        OSError: It cannot be read, or is no regular file.
    """
    try:
        _status(path)
        return path.read_bytes().decode("utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return ""


def stamp_of(path: Path) -> object:
    """Return what changes when the file is rewritten or replaced; None when there is none."""
    try:
        found = path.lstat()
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


def place_section(path: Path, section: str) -> None:
    """Put a section into the file in place of the one that is there, or before all else. Blocks.

    What stands around it stays as it is.

    Args:
        path: The file; made when it does not exist.
        section: The section, with its marks.

    Raises:
        OSError: It cannot be read or written, or is no regular file.
    """
    text = read_text(path)
    before, inner, _, after = split_section(text)
    if inner is None:
        before, after = "", f"\n\n{text}" if text else "\n"
    write_atomically(path, before + section + after)
