"""Puts files of a workspace back as they were, and what stood there aside: nothing is lost."""

from __future__ import annotations

import glob
import os
import re
import secrets
import shutil
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from attrs import frozen

from orchestra.opencode.mission.contents import Contents
from orchestra.opencode.mission.evidence import FileState, read_state

__all__ = ("Restored", "Restoring", "move_aside", "put_back", "remove_drafts", "write_file")

_TOKEN = re.compile(r"[0-9a-f]{8}")


@frozen(kw_only=True)
class Restoring:
    """A file that is to be as it was.

    Attributes:
        path: The file, relative to the workspace.
        state: How it was; None: it was not there.
        aside: The folder that takes what stands there now.
    """

    path: str
    state: FileState | None
    aside: Path


@frozen(kw_only=True)
class Restored:
    """What became of that.

    Attributes:
        path: The file.
        is_changed: Whether it was not as it was.
        aside: Where that is now; None: there was nothing, or it was left.
        problem: Why it is not as it was.
    """

    path: str
    is_changed: bool = True
    aside: Path | None = None
    problem: str = ""


def put_back(root: str, contents: Contents, wanted: Sequence[Restoring]) -> list[Restored]:
    """Put files back. Blocks.

    What was added is moved away first, so that a folder that has become a link does not lead
    out of the workspace when the files in it are written.

    Args:
        root: The workspace.
        contents: What files held.
        wanted: The files.
    """
    order = sorted(wanted, key=lambda each: each.state is not None)
    return [_put_back(root, contents, each) for each in order]


def _put_back(root: str, contents: Contents, wanted: Restoring) -> Restored:
    path, state = wanted.path, wanted.state
    now = read_state(root, path)
    if (now and now.digest) == (state and state.digest):
        return Restored(path=path, is_changed=False)
    data = None
    if state is not None:
        data = contents.get(state.digest)
        if data is None:
            return Restored(path=path, problem="what it held before was too large to be kept")
    aside = None
    try:
        if now is not None:
            aside = move_aside(Path(root, path), wanted.aside, path)
        if state is not None and data is not None:
            write_file(root, path, data, state.mode)
    except OSError as exc:
        return Restored(path=path, aside=aside, problem=str(exc))
    return Restored(path=path, aside=aside)


def move_aside(full: Path, folder: Path, path: str) -> Path:
    """Move a file into a folder, beside what is there of the same name. Blocks.

    Its date becomes that of the move, from which its time there counts.

    Args:
        full: The file.
        folder: The folder.
        path: Where it goes in it.

    Raises:
        OSError: It cannot be moved.
    """
    target = folder / path
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if os.path.lexists(target):
        target = target.with_name(f"{target.name}.{secrets.token_hex(3)}")
    shutil.move(full, target)
    with suppress(OSError, NotImplementedError):
        os.utime(target, follow_symlinks=False)
    return target


def write_file(root: str, path: str, data: bytes, mode: int) -> None:
    """Write a file as a whole or not at all, inside the workspace only. Blocks.

    Args:
        root: The workspace.
        path: The file, relative to it.
        data: Its contents; of a link, ``link:`` and where it points to.
        mode: Its type and permissions.

    Raises:
        OSError: It cannot be written, or a folder on its way leads out of the workspace.
    """
    full = Path(root, path)
    real, base = os.path.realpath(full.parent), os.path.realpath(root)
    if real != base and not real.startswith(base + os.sep):
        raise OSError(f"{path} leads out of the workspace")
    full.parent.mkdir(parents=True, exist_ok=True)
    temporary = full.with_name(f"{_draft(full)}{secrets.token_hex(4)}")
    try:
        if stat.S_ISLNK(mode):
            temporary.symlink_to(os.fsdecode(data.removeprefix(b"link:")))
        else:
            temporary.write_bytes(data)
            temporary.chmod(stat.S_IMODE(mode))
        temporary.replace(full)
    finally:
        temporary.unlink(missing_ok=True)


def remove_drafts(root: str, paths: Sequence[str]) -> None:
    """Remove what `write_file` has left beside files when its process was killed. Blocks.

    Args:
        root: The workspace.
        paths: The files, relative to it.
    """
    for full in (Path(root, path) for path in paths):
        for found in full.parent.glob(f"{glob.escape(_draft(full))}*"):
            if _TOKEN.fullmatch(found.name.removeprefix(_draft(full))):
                found.unlink(missing_ok=True)


def _draft(full: Path) -> str:
    return f".{full.name[:100]}."
