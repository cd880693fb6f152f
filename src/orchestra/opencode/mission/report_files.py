"""The files that a mission leaves in its workspace: ``.orchestra/report.json`` and its page."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path

from attrs import frozen

from orchestra.opencode.mission.report import MissionReport
from orchestra.opencode.mission.report_html import report_to_html
from orchestra.opencode.mission.report_json import report_to_json

__all__ = ("REPORT_FOLDER", "ReportFiles", "make_folder", "make_private", "write_report")

REPORT_FOLDER = ".orchestra"
"""The folder, in the workspace, that holds everything of ours but the to-do list."""


@frozen
class ReportFiles:
    """Where a report was written.

    Attributes:
        json: For programs; see `report_from_json`.
        html: For people.
    """

    json: Path
    html: Path


def make_folder(directory: Path) -> Path:
    """Make the folder of ours in a workspace: its owner's only, and ignored by git. Blocks.

    Args:
        directory: The workspace.

    Raises:
        OSError: It cannot be made, or is not a folder of its own.
    """
    folder = directory / REPORT_FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink():
        raise NotADirectoryError(
            f"{str(folder)!r} is a link, and a report must not leave the workspace; remove it"
        )
    folder.chmod(0o700)
    _replace(folder / ".gitignore", "*\n")
    return folder


def make_private(path: Path) -> Path:
    """Make a file its owner's only, and make it if it is not there; return it. Blocks.

    Args:
        path: The file; what a database puts beside it has the same mode.

    Raises:
        OSError: It cannot be made, or belongs to somebody else.
    """
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    path.chmod(0o600)
    return path


def write_report(report: MissionReport, directory: Path) -> ReportFiles:
    """Write a report into a workspace, in place of the last one.

    Each file is there as a whole or not at all, only its owner may read it, and git ignores the
    folder. Does blocking I/O: call it from a worker thread when the event loop has other work.

    Args:
        report: The report.
        directory: The workspace.

    Raises:
        OSError: The files cannot be written, or ``.orchestra`` is not a folder of its own.
    """
    folder = make_folder(directory)
    text = json.dumps(report_to_json(report), indent=1, allow_nan=False)
    _replace(folder / "report.json", f"{text}\n")
    _replace(folder / "report.html", report_to_html(report))
    _sync_folder(folder)
    return ReportFiles(json=folder / "report.json", html=folder / "report.html")


def _replace(path: Path, text: str) -> None:
    """Write a file beside its place, and move it there once it is on the disk."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    # What was decoded from foreign bytes may hold surrogates, which UTF-8 cannot.
    data = text.encode("utf-8", errors="replace")
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
