"""What the tests of the text tools share."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

__all__ = ("children", "ripgrep_or_skip", "write_files")

RIPGREP = shutil.which("rg")


def ripgrep_or_skip() -> str:
    """Return ripgrep's path, or skip the test."""
    if RIPGREP is None:
        pytest.skip("there is no ripgrep on PATH")
    return RIPGREP


def write_files(folder: Path, files: dict[str, str | bytes]) -> None:
    """Write files, and the folders they are in."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def children() -> set[int]:
    """The processes whose parent is this one; Linux only."""
    mine = os.getpid()
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == mine:
            found.add(int(stat.parent.name))
    return found
