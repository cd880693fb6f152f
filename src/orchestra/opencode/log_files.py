"""The readable log: in the platform's folder for logs, bounded, older parts compressed."""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import final

from orchestra import Redactor

__all__ = ("keep_log", "log_folder", "log_path")

_MAX_BYTES = 1024 * 1024
_BACKUPS = 4


def log_folder() -> Path:
    r"""Return the folder for logs of this user; it need not exist.

    Linux and others: ``$XDG_STATE_HOME/orchestra/log``, by default below ``~/.local/state``. macOS:
    ``~/Library/Logs/orchestra``. Windows: ``%LOCALAPPDATA%\orchestra\Logs``.
    """
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Logs" / "orchestra"
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return Path(local) if local else Path.home() / "AppData" / "Local" / "orchestra" / "Logs"
    state = os.environ.get("XDG_STATE_HOME", "")
    base = Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state"  # noqa: PTH117
    return base / "orchestra" / "log"


def log_path(directory: Path) -> Path:
    """Return the log of a workspace: one each, since two processes cannot rotate the same file.

    Args:
        directory: The workspace.
    """
    place = directory.resolve()
    digest = hashlib.sha256(os.fsencode(place)).hexdigest()[:8]
    name = "".join(char if char.isalnum() or char in "-_." else "_" for char in place.name)
    return log_folder() / f"{name[:40] or 'root'}-{digest}.log"


@final
class _Formatter(logging.Formatter):
    """Takes secrets out of whole entries, tracebacks included."""

    def __init__(self, redactor: Redactor | None) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if self._redactor is None else self._redactor.redact(text)


@final
class _Handler(RotatingFileHandler):
    """Compresses what it has put aside; what cannot be written is dropped without a word."""

    def rotation_filename(self, default_name: str) -> str:
        return f"{default_name}.gz"

    def rotate(self, source: str, dest: str) -> None:
        with suppress(FileNotFoundError), open(source, "rb") as plain:  # noqa: PTH123
            handle = os.open(dest, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(handle, "wb") as raw, gzip.open(raw, "wb") as packed:
                shutil.copyfileobj(plain, packed)
            os.unlink(source)  # noqa: PTH108

    def _open(self) -> TextIOWrapper:
        handle = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        return open(handle, "a", encoding="utf-8", errors="replace")  # noqa: PTH123

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging's name)
        """Go on without this entry: a full disk must not end a mission."""


@contextmanager
def keep_log(directory: Path, *, redactor: Redactor | None = None) -> Iterator[Path | None]:
    """Write what the ``orchestra`` loggers say to the workspace's log, for the length of a block.

    Args:
        directory: The workspace.
        redactor: Takes secrets out; None: nothing is taken out.

    Yields:
        The file; None when it cannot be written, which is no reason not to go on.
    """
    path = log_path(directory)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handler = _Handler(path, maxBytes=_MAX_BYTES, backupCount=_BACKUPS, encoding="utf-8")
    except OSError:
        yield None
        return
    handler.setFormatter(_Formatter(redactor))
    handler.setLevel(logging.INFO)
    logger = logging.getLogger("orchestra")
    before = logger.level
    if not before or before > logging.INFO:
        logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield path
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        handler.close()
