"""Literal search in many files: one call of the C executor, or the same in Python."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

MAX_NEEDLES = 62
MAX_THREADS = 64
_WINDOW = 256 * 1024
# Opening a FIFO must not wait for its writer. Windows has none of these, nor needs them.
_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_CLOEXEC", "O_NOCTTY", "O_NONBLOCK"))


def _check(needles: Sequence[bytes], threads: int) -> None:
    if len(needles) > MAX_NEEDLES:
        raise ValueError(
            f"cannot look for {len(needles)} needles at once; give {MAX_NEEDLES} at most"
        )
    if any(not isinstance(needle, bytes) for needle in needles):
        raise TypeError("needles are bytes; encode text first")
    if not all(needles):
        raise ValueError("an empty needle is in every file; leave it out")
    if not 1 <= threads <= MAX_THREADS:
        raise ValueError(f"cannot use {threads} threads; give 1 to {MAX_THREADS}")


def scan_files_native(
    paths: Sequence[str | os.PathLike[str]], needles: Sequence[bytes], *, threads: int
) -> list[int]:
    """As `scan_files_fallback`, in one C call that releases the GIL."""
    from orchestra._native._loader import ffi, lib  # noqa: PLC0415 - absent without a compiler

    _check(needles, threads)
    names = [os.fsencode(path) for path in paths]
    if any(b"\0" in name for name in names):
        raise ValueError("embedded null byte in a path; file names cannot have one")
    name_buffers = [ffi.new("char[]", name) for name in names]
    needle_buffers = [ffi.from_buffer(needle) for needle in needles]
    needle_array = ffi.new("exe_needle[]", len(needles))
    for entry, buffer, needle in zip(needle_array, needle_buffers, needles, strict=True):
        entry.text = buffer
        entry.length = len(needle)
    found = ffi.new("int64_t[]", len(names))
    report = ffi.new("exe_report *")
    failed = lib.exe_scan_files(
        ffi.new("char *[]", name_buffers),
        len(names),
        needle_array,
        len(needles),
        threads,
        found,
        report,
    )
    if failed:
        raise MemoryError
    result: list[int] = ffi.unpack(found, len(names)) if names else []
    return result


def scan_files_fallback(
    paths: Sequence[str | os.PathLike[str]], needles: Sequence[bytes], *, threads: int
) -> list[int]:
    """Look for every needle in every file, one file after the other.

    Returns:
        For each path an integer with bit k set if needle k occurs, or a negative errno.
    """
    _check(needles, threads)
    names = [os.fsencode(path) for path in paths]
    if any(b"\0" in name for name in names):
        raise ValueError("embedded null byte in a path; file names cannot have one")
    return [_scan_one(name, needles) for name in names]


def _scan_one(name: bytes, needles: Sequence[bytes]) -> int:
    overlap = max((len(needle) for needle in needles), default=1) - 1
    wanted = (1 << len(needles)) - 1
    found = 0
    kept = b""
    try:
        file = os.open(name, _FLAGS | getattr(os, "O_BINARY", 0))
    except OSError as error:
        return -(error.errno or errno.EIO)
    try:
        mode = os.fstat(file).st_mode
        if not stat.S_ISREG(mode):
            return -(errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL)
        while found != wanted and (block := os.read(file, _WINDOW)):
            window = kept + block
            for bit, needle in enumerate(needles):
                if needle in window:
                    found |= 1 << bit
            kept = window[-overlap:] if overlap else b""
    except OSError as error:
        return -(error.errno or errno.EIO)
    finally:
        os.close(file)
    return found
