"""A folder that file access cannot leave, neither by ``..`` nor by a symbolic link. POSIX only."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, final

__all__ = ("Root", "is_binary", "is_presentable")

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# A named pipe would block the opener until somebody writes.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_UNPRESENTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffd]")
_HEAD = 8_192
_BLOCK = 1 << 20


def is_binary(head: bytes) -> bool:
    """Whether a file is no text, as git tells it: a null byte in its first 8 KiB.

    Args:
        head: The file's beginning.
    """
    return b"\0" in head[:_HEAD]


def is_presentable(name: str) -> bool:
    """Whether a path can be shown: text in UTF-8 without control characters.

    Args:
        name: As the operating system gave it, undecodable bytes escaped or replaced.
    """
    return _UNPRESENTABLE.search(name) is None


@final
class Root:
    """A folder; paths are relative to it, with ``/``, and never lead out of it.

    A path that somebody names may go through symbolic links as long as it stays inside. What is
    opened is opened folder by folder without following any, so that a link that is put in between
    the check and the opening leads nowhere.

    Args:
        path: The folder.

    Raises:
        NotADirectoryError: It is none, or does not exist.
    """

    __slots__ = ("path",)

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: Final = Path(path).resolve()
        if not self.path.is_dir():
            raise NotADirectoryError(f"{str(self.path)!r} is no folder; name the one to work in")

    def resolve(self, given: str) -> str:
        """Return a path that somebody named as one relative to this folder. Blocks.

        Args:
            given: Relative to this folder, or absolute.

        Returns:
            The path without ``.``, ``..`` and links; empty for the folder itself.

        Raises:
            ValueError: It leads out of the folder, or cannot be a path.
            FileNotFoundError: There is nothing of that name.
        """
        if "\0" in given:
            raise ValueError("the path has a null character; leave it out")
        try:
            found = (self.path / given).resolve(strict=True)
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(f"{given!r} does not exist; list what does with glob") from None
        except (OSError, RuntimeError) as exc:  # RuntimeError: links in a circle, before 3.13
            reason = exc.strerror if isinstance(exc, OSError) else "its links go in a circle"
            raise ValueError(f"the path {given[:200]!r} cannot be used: {reason}") from None
        if not found.is_relative_to(self.path):
            raise ValueError(f"the path {given!r} leads out of the root; name one inside it")
        relative = found.relative_to(self.path).as_posix()
        return "" if relative == "." else relative

    @contextmanager
    def folder(self, relative: str) -> Iterator[int]:
        """Hold a descriptor of a folder for a block. Blocks.

        Args:
            relative: From `resolve`.

        Raises:
            OSError: It cannot be opened, or a part of the path is a link.
        """
        descriptor = os.open(self.path, _FOLDER)
        try:
            for part in relative.split("/") if relative else ():
                inner = os.open(part, _FOLDER, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = inner
            yield descriptor
        finally:
            os.close(descriptor)

    def read(self, relative: str, *, limit: int) -> bytes | None:
        """Read a regular file. Blocks.

        Args:
            relative: From `resolve` or from a listing.
            limit: Bytes; a longer file is not read.

        Returns:
            The contents; None when it is too long, or no regular file.

        Raises:
            OSError: It cannot be read, or a part of the path is a link.
        """
        with self._opened(relative) as descriptor:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_size > limit:
                return None
            data = bytearray()
            while len(data) <= limit and (block := os.read(descriptor, _BLOCK)):
                data += block  # it may grow meanwhile
            return bytes(data) if len(data) <= limit else None

    def head(self, relative: str) -> bytes:
        """Read a file's first 8 KiB. Blocks.

        Args:
            relative: From `resolve` or from a listing.

        Raises:
            OSError: It cannot be read, or a part of the path is a link.
        """
        with self._opened(relative) as descriptor:
            return os.read(descriptor, _HEAD)

    def status(self, relative: str) -> os.stat_result:
        """Return what a file is, links not followed. Blocks.

        Args:
            relative: From `resolve` or from a listing.

        Raises:
            OSError: It cannot be looked at, or a folder of the path is a link.
        """
        parent, _, name = relative.rpartition("/")
        with self.folder(parent) as descriptor:
            return os.stat(name or ".", dir_fd=descriptor, follow_symlinks=False)

    def replace(self, relative: str, new: bytes, *, expected: bytes) -> bool:
        """Replace a file's contents, so that a reader sees all of the old or all of the new. Blocks.

        Args:
            relative: From `resolve` or from a listing.
            new: The new contents.
            expected: The contents that it must have now.

        Returns:
            False when it has other contents by now, and was left alone.

        Raises:
            OSError: It cannot be written; the file is as it was.
        """
        if self.read(relative, limit=len(expected)) != expected:
            return False
        parent, _, name = relative.rpartition("/")
        temporary = f".{name[:80]}.{os.urandom(4).hex()}"
        with self.folder(parent) as folder:
            mode = stat.S_IMODE(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            descriptor = os.open(temporary, flags, 0o600, dir_fd=folder)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(new)
                    file.flush()
                    os.fchmod(descriptor, mode)
                    os.fsync(descriptor)
                os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=folder)
                raise
        return True

    @contextmanager
    def _opened(self, relative: str) -> Iterator[int]:
        parent, _, name = relative.rpartition("/")
        with self.folder(parent) as folder:
            descriptor = os.open(name, _FILE, dir_fd=folder)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def __repr__(self) -> str:
        return f"Root({str(self.path)!r})"
