"""Where the copies of the workspace are: written before they are made, so that a kill loses none."""

from __future__ import annotations

import json
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import final

from orchestra import MVCCStore, Transaction
from orchestra.errors import StoreError
from orchestra.opencode.mission.evidence import FileState
from orchestra.opencode.mission.keys import COPY

__all__ = ("CopyBook", "read_base", "write_base")

_NAME = re.compile(r"orchestra-copy-[0-9a-f]{16}")
_BASE = "base.json"


@final
class CopyBook:
    """Names the folders of a mission's copies, in the folder for temporary files.

    Only the name is written: whoever alters the records cannot have another folder removed.

    Args:
        store: The mission's namespace.
        check: Called with each transaction; raises when the mission has another owner.

    Attributes:
        left: The folders that an earlier process has named, by task.
    """

    def __init__(self, store: MVCCStore, check: Callable[[Transaction], Awaitable[None]]) -> None:
        self._store = store.using(author="copies")
        self._check = check
        self.left: dict[str, Path] = {}

    async def begin(self) -> None:
        """Read what an earlier process has written. A checkpoint.

        Raises:
            StoreError: It cannot be read.
        """
        async with self._store.snapshot() as snap:
            found = await snap.range(COPY)
        for key, name in found.items():
            if _NAME.fullmatch(str(name)):
                self.left[key.removeprefix(COPY)] = Path(tempfile.gettempdir(), str(name))

    async def name(self, task_id: str) -> Path:
        """Return the folder for a task's copy, which is not made yet. A checkpoint.

        Args:
            task_id: The task.

        Raises:
            StoreError: It cannot be written.
        """
        folder = Path(tempfile.gettempdir(), f"orchestra-copy-{secrets.token_hex(8)}")

        async def write(tx: Transaction) -> None:
            await self._check(tx)
            tx.put(COPY + task_id, folder.name)

        await self._store.transact(write)
        return folder

    async def forget(self, task_id: str) -> None:
        """Say that a task's folder is removed. A checkpoint.

        Args:
            task_id: The task.
        """

        async def write(tx: Transaction) -> None:
            await self._check(tx)
            if await tx.get(COPY + task_id) is not None:
                tx.delete(COPY + task_id)

        try:
            await self._store.transact(write)
        except StoreError:
            return  # the name of a folder that is not there does no harm

    def __repr__(self) -> str:
        return f"<CopyBook left={len(self.left)}>"


def write_base(folder: Path, files: Mapping[str, FileState]) -> None:
    """Write beside a copy what it was made of; that it is there says that the copy is whole. Blocks.

    Args:
        folder: The copy's folder.
        files: The files of the copy, as they were made.

    Raises:
        OSError: It cannot be written.
    """
    plain = {path: [state.digest.hex(), state.mode] for path, state in files.items()}
    draft = folder / f"{_BASE}.new"
    draft.write_text(json.dumps(plain), encoding="utf-8", errors="surrogateescape")
    draft.rename(folder / _BASE)


def read_base(folder: Path) -> dict[str, FileState] | None:
    """Return what a copy was made of; None: it was never finished, or is not ours. Blocks.

    Args:
        folder: The copy's folder.
    """
    try:
        info = folder.lstat()
        if not stat.S_ISDIR(info.st_mode) or (os.name != "nt" and info.st_uid != os.getuid()):
            return None
        plain = json.loads((folder / _BASE).read_text(encoding="utf-8", errors="surrogateescape"))
    except (OSError, ValueError):
        return None
    return {
        path: FileState((-1, 0, 0, 0, mode), bytes.fromhex(digest))
        for path, (digest, mode) in plain.items()
    }
