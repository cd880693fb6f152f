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
        copies = Copies(Workspace(root, pool), Leases(store), pool, (), store)
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
        copies = Copies(Workspace(root, pool), Leases(store), pool, (), store)
        with pytest.raises(WorkplaceError, match="of more than 1 files"):
            await copies.open("a", ())
    assert not names(folder)


async def test_a_copy_that_a_killed_process_has_left(tmp_path: Path, folder: Path) -> None:
    """Its task goes on in it, as it left it; what nobody goes on with is removed at the end."""
    root = tmp_path / "root"
    root.mkdir()
    for name in "abc":
        (root / name).write_text(name)
    async with WorkStealingPool(1) as pool, MemoryStore() as store:
        killed = Copies(Workspace(root, pool), Leases(store), pool, (), store)
        await killed.open("t#1", ("a",))
        place = await killed.open("t#2", ("a",))
        (place.directory / "a").write_text("t#2")
        (place.directory / "b").write_text("stray")
        killed.abandon()
        (root / "b").write_text("another task was here")
        (root / ".a.00c0ffee").write_text("t#")  # it was being written
        (root / ".a.orig").write_text("of a person")
        workspace = Workspace(root, pool)
        await workspace.begin()
        copies = Copies(workspace, Leases(store), pool, (), store)
        await copies.begin()
        found = await copies.open("t#2", ("a",))
        assert found.directory == place.directory
        change = await found.look()
        assert change.changed == ("a",)
        assert change.strays == ("b",)
        assert (found.directory / "b").read_text() == "another task was here"
        assert not (await found.integrate(change.tree)).problem
        assert (root / "a").read_text() == "t#2"
        assert sorted(path.name for path in root.glob(".a*")) == [".a.orig"]
        await copies.aclose()
        workspace.close()
    assert not names(folder)


async def test_a_copy_that_was_not_finished(tmp_path: Path, folder: Path) -> None:
    """Killed while it is made, a copy is made anew; a folder of another name is left alone."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "a").write_text("a")
    async with WorkStealingPool(1) as pool, MemoryStore() as store:
        killed = Copies(Workspace(root, pool), Leases(store), pool, (), store)
        place = await killed.open("t#1", ("a",))
        killed.abandon()
        (place.directory.parent / "base.json").write_text('{"a": ')
        (folder / "precious").mkdir()
        await store.put("copy/t#2", "precious")
        copies = Copies(Workspace(root, pool), Leases(store), pool, (), store)
        await copies.begin()
        again = await copies.open("t#1", ("a",))
        assert again.directory != place.directory
        await copies.aclose()
    assert names(folder) == ["precious"]


async def test_a_race_whose_winner_was_being_written(tmp_path: Path, folder: Path) -> None:
    """What a killed process had written of a change already is no conflict with it."""
    root = tmp_path / "root"
    root.mkdir()
    for name in "ab":
        (root / name).write_text(name)
    async with WorkStealingPool(1) as pool, MemoryStore() as store:
        workspace = Workspace(root, pool)
        await workspace.begin()
        copies = Copies(workspace, Leases(store), pool, (), store)
        place = await copies.open("t#1", ("a", "b"))
        for name in "ab":
            (place.directory / name).write_text("new")
        change = await place.look()
        (root / "a").write_text("new")
        assert not (await place.integrate(change.tree)).problem
        assert [(root / name).read_text() for name in "ab"] == ["new", "new"]
        workspace.close()
    assert not names(folder)
