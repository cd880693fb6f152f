"""What a worker's copy of the workspace leaves behind, however it ends."""

from __future__ import annotations

import tempfile
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from orchestra import MemoryStore, WorkStealingPool
from orchestra.opencode.mission.contents import Contents
from orchestra.opencode.mission.copies import Copies
from orchestra.opencode.mission.leases import Leases
from orchestra.opencode.mission.workplaces import WorkplaceError
from orchestra.opencode.mission.workspace import Workspace


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder that temporary files go to."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def names(folder: Path) -> list[str]:
    return [each.name for each in folder.iterdir()]


@pytest.mark.parametrize("data", [b"", b"text"])
def test_nothing_is_kept_once_closed(data: bytes) -> None:
    """A thread that still reads for contents that were closed opens no file again."""
    contents = Contents()
    contents.keep(b"1", b"first")
    contents.close()
    contents.keep(b"2", data)
    assert contents.get(b"1") is None
    assert contents.get(b"2") is None
    contents.close()


@pytest.mark.parametrize("steps", range(6))
async def test_cancelled_while_it_is_made(tmp_path: Path, folder: Path, steps: int) -> None:
    """Whoever is cancelled while a copy is made leaves no folder; the next one gets a copy."""
    root = tmp_path / "root"
    root.mkdir()
    for name in range(20):
        (root / f"{name}.txt").write_text(str(name))
    async with WorkStealingPool(1) as pool, MemoryStore() as store:
        copies = Copies(Workspace(root, pool), Leases(store), pool, ())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(copies.open, "a", ())
            for _ in range(steps * 3):
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        held = 1 if "1" in repr(copies) else 0
        assert len(names(folder)) == held
        place = await copies.open("a", ())
        assert (place.directory / "7.txt").read_text() == "7"
        await copies.aclose()
    assert not names(folder)


async def test_a_workspace_too_large_to_copy(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy that cannot be made is an error of the task, and leaves no folder."""
    monkeypatch.setattr("orchestra.opencode.mission.copies._MAX_FILES", 1)
    root = tmp_path / "root"
    root.mkdir()
    for name in "ab":
        (root / name).write_text(name)
    async with WorkStealingPool(1) as pool, MemoryStore() as store:
        copies = Copies(Workspace(root, pool), Leases(store), pool, ())
        with pytest.raises(WorkplaceError, match="of more than 1 files"):
            await copies.open("a", ())
    assert not names(folder)
