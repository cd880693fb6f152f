"""Keeping ``.orchestra`` small, without removing what is not ours."""

from __future__ import annotations

import gzip
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from orchestra import MemoryStore, MVCCStore, SQLiteStore
from orchestra.opencode.housekeeping import CleanOptions, clean_workspace

NOW = 2_000_000_000.0
DAY = 86_400.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / ".orchestra"
    folder.mkdir()
    return folder


def put(path: Path, days: float, text: str = "x") -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(text, encoding="utf-8")
    moment = NOW - days * DAY
    os.utime(path, (moment, moment))
    return path


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


async def test_thousands_of_files(tmp_path: Path, folder: Path) -> None:
    """3,000 leftovers become fewer than 200 files below 2 MB; what is not ours stays."""
    for number in range(1_000):
        put(folder / f"report-{number}.json", 20 - number / 100, "x" * 5_000)
        put(folder / f"mission_{number:04}.log", 2, "line\n" * 100)
        put(folder / f".report.json.{number:08x}", 1)
    kept = [
        put(folder / "notes.txt", 900, "mine"),
        put(folder / "report.json", 900),
        put(folder / "report.html", 900),
        put(folder / ".gitignore", 900),
        put(folder / "worktrees" / "t1" / "report-1.json", 900),
    ]
    cleaning = await clean_workspace(tmp_path, now=NOW)
    assert all(path.exists() for path in kept)
    assert cleaning.files <= 200
    assert cleaning.size <= 2_000_000
    assert cleaning.freed > 4_000_000
    assert cleaning.packed == 1_000
    assert not cleaning.problems
    assert not [name for name in tree(folder) if name.startswith(".report")]


async def test_logs_are_packed_and_then_go(tmp_path: Path, folder: Path) -> None:
    """A log of yesterday is compressed and can still be read; one of last week is gone."""
    put(folder / "mission_1.log", 0.5, "today")
    put(folder / "mission_2.log", 2, "before")
    put(folder / "mission_3.log.gz", 8)
    cleaning = await clean_workspace(tmp_path, now=NOW)
    assert tree(folder) == {"mission_1.log", "mission_2.log.gz"}
    assert gzip.decompress((folder / "mission_2.log.gz").read_bytes()) == b"before"
    assert (cleaning.packed, cleaning.removed) == (1, 1)


async def test_quarantine_is_kept_longer_and_told(tmp_path: Path, folder: Path) -> None:
    """Files in quarantine outlive reports, are counted, and stay a day although there is no room."""
    put(folder / "quarantine" / "m1" / "a.py", 0.9, "x" * 100)
    put(folder / "quarantine" / "m0" / "b.py", 31)
    cleaning = await clean_workspace(tmp_path, CleanOptions(size=50), now=NOW)
    assert tree(folder) == {"quarantine/m1/a.py"}
    assert cleaning.quarantined == 1
    assert "in quarantine" in str(cleaning)
    assert "look them through" in cleaning.problems[0]
    assert "removed 1 files" in cleaning.notes[0]


async def test_quarantine_is_bounded(tmp_path: Path, folder: Path) -> None:
    """Past their day of grace quarantined files go for want of room, the oldest first, and it is told."""
    for number in range(1_000):
        put(folder / "quarantine" / "t" / f"{number:04}.py", 2 + number / 1_000, "x" * 3_000)
    put(folder / "report-1.json", 0.1)
    cleaning = await clean_workspace(tmp_path, now=NOW)
    assert not cleaning.problems
    assert cleaning.files <= 200
    assert cleaning.size <= 2_000_000
    left = tree(folder)
    assert "quarantine/t/0000.py" in left
    assert "quarantine/t/0999.py" not in left
    assert f"removed {1_000 - len(left)} files from" in cleaning.notes[0]


async def test_links_are_not_followed(tmp_path: Path, folder: Path) -> None:
    """Neither a link in the folder nor a folder that is a link leads anywhere."""
    outside = put(tmp_path / "outside" / "report-1.json", 900)
    (folder / "report-9.json").symlink_to(outside)
    (folder / "quarantine").symlink_to(outside.parent)
    await clean_workspace(tmp_path, now=NOW)
    assert outside.exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / ".orchestra").symlink_to(outside.parent)
    assert (await clean_workspace(other, now=NOW)).files == 0
    assert outside.exists()


async def _record(store: MVCCStore, number: int, *, days: float, state: str) -> None:
    space = store.namespace(f"mission_{number:04}")
    started = datetime.fromtimestamp(NOW - days * DAY, UTC).isoformat()
    for round_ in range(3):
        await space.put("task/a", {"text": f"{number} {round_} " + "y" * 4_000})
    await space.put("mission", {"goal": "g", "state": state, "started_at": started})


async def test_old_records_go_and_the_file_shrinks(tmp_path: Path, folder: Path) -> None:
    """Missions of last week and overwritten values are forgotten; others and the memory stay."""
    async with SQLiteStore(folder / "missions.db", durability="process") as store:
        await store.namespace("memory").put("fact", "kept")
        for number in range(40):
            await _record(store, number, days=8, state="accepted")
        await _record(store, 40, days=8, state="running")
        await _record(store, 41, days=3, state="failed")
        await _record(store, 42, days=2, state="accepted")
    before = (folder / "missions.db").stat().st_size
    cleaning = await clean_workspace(tmp_path, now=NOW)
    assert cleaning.missions == 40
    assert (folder / "missions.db").stat().st_size < before / 3
    async with SQLiteStore(folder / "missions.db") as store:
        assert await store.namespaces() == (
            "memory",
            "mission_0040",
            "mission_0041",
            "mission_0042",
        )
        assert await store.namespace("memory").get("fact") == "kept"
        assert len(await store.namespace("mission_0041").history("task/a")) == 1
        assert len(await store.namespace("mission_0040").history("task/a")) == 3
        for name in await store.namespaces():
            assert await store.namespace(name).verify()


async def test_too_many_young_records_go_too(tmp_path: Path, folder: Path) -> None:
    """When the records are too big the oldest finished missions go, however young they are."""
    async with SQLiteStore(folder / "missions.db", durability="process") as store:
        for number in range(30):
            await _record(store, number, days=1 - number / 100, state="accepted")
    await clean_workspace(tmp_path, CleanOptions(size=120_000), now=NOW)
    assert (folder / "missions.db").stat().st_size <= 120_000
    async with SQLiteStore(folder / "missions.db") as store:
        names = await store.namespaces()
    assert "mission_0029" in names
    assert "mission_0000" not in names


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_a_dropped_namespace_is_as_if_it_had_never_been(kind: str, tmp_path: Path) -> None:
    """Its name can be used again from revision 1; as long as it is read it stays."""
    async with SQLiteStore(tmp_path / "s.db") if kind == "sqlite" else MemoryStore() as store:
        space = store.namespace("a")
        await space.put("k", "v" * 2_000)
        await store.namespace("b").put("k", "v" * 2_000)
        async with space.snapshot() as snap:
            assert await snap.get("k")
            assert not await space.drop()
        assert await space.drop()
        assert await store.namespaces() == ("b",)
        assert await space.get("k") is None
        assert await store.namespace("b").get("k") == "v" * 2_000
        assert await space.put("k", 1) == 1
        assert await space.verify()


async def test_what_another_process_reads_is_not_dropped(tmp_path: Path) -> None:
    """A namespace that is open elsewhere is left alone until that has gone."""
    async with SQLiteStore(tmp_path / "s.db") as store:
        await store.namespace("a").put("k", 1)
        async with (
            SQLiteStore(tmp_path / "s.db") as other,
            other.namespace("a").snapshot() as snap,
        ):
            assert await snap.get("k") == 1
            assert not await store.namespace("a").drop()
        assert await store.namespace("a").drop()
