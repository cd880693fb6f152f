"""A receipt is for one tree: what comes after the check is not taken over, wherever a task works."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from small_missions import repository

from orchestra import MemoryStore
from orchestra.opencode.mission.isolation import Isolation, IsolationKind
from orchestra.opencode.mission.places import Places
from orchestra.opencode.mission.workplaces import Workplace

PLACES = ("shared", "worktree", "race in worktrees", "race in copies")


@asynccontextmanager
async def places_at(
    root: Path, kind: str, store: MemoryStore | None = None
) -> AsyncIterator[Places]:
    isolation: IsolationKind = "worktree" if kind == "worktree" else "shared"
    async with MemoryStore() as own:
        places = Places(
            root,
            (store or own).namespace("m"),
            mission_id="m",
            isolation=Isolation(kind=isolation, folder=root.parent / "worktrees"),
        )
        try:
            await places.begin()
            yield places
        finally:
            await places.aclose()


async def open_place(places: Places, kind: str) -> Workplace:
    return await places.open("t#1", ["a", "b"], is_apart=kind.startswith("race"))


@pytest.fixture(params=PLACES)
def kind(request: pytest.FixtureRequest, root: Path) -> str:
    kind: str = request.param
    if kind != "race in copies":
        repository(root)
    return kind


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    (root / "a").write_text("old\n")
    (root / "c").write_text("c\n")
    return root


def texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


async def work(place: Workplace) -> None:
    async with place.at_work():
        (place.directory / "a").write_text("new\n")
        (place.directory / "b").write_text("added\n")


@pytest.mark.parametrize("late", ["written", "removed", "elsewhere"])
async def test_what_comes_after_the_check_is_put_aside(root: Path, kind: str, late: str) -> None:
    """Changed between gates and merge by something that still writes: what was checked is merged."""
    async with places_at(root, kind) as places:
        place = await open_place(places, kind)
        await work(place)
        change = await place.look()
        if late == "removed":
            (place.directory / "a").unlink()
        else:
            (place.directory / ("a" if late == "written" else "c")).write_text("late\n")
        taken = await place.integrate(change.tree)
        assert (taken.problem, taken.is_moved) == ("", False)
        await places.whole()
    is_anybodys = kind == "shared" and late == "elsewhere"  # a person's, in their own workspace
    assert texts(root) == {"a": "new\n", "b": "added\n", "c": "late\n" if is_anybodys else "c\n"}
    if late != "removed" and not is_anybodys:
        (folder,) = (root / ".orchestra" / "quarantine").iterdir()
        assert list(texts(folder).values()) == ["late\n"]
    assert len(places.warnings) == 1, places.warnings


async def test_a_receipt_of_another_tree_does_not_count(root: Path, kind: str) -> None:
    """One from before the last turn, or from nowhere, takes nothing over: it is checked again."""
    async with places_at(root, kind) as places:
        place = await open_place(places, kind)
        first = await place.look()
        await work(place)
        second = await place.look()
        async with place.at_work():
            (place.directory / "b").write_text("more\n")
            assert (await place.integrate(second.tree)).is_moved
        await place.look()
        for tree in ("", first.tree, second.tree):
            assert (await place.integrate(tree)).is_moved
        assert not (await place.integrate((await place.look()).tree)).is_moved
    assert (root / "a").read_text() == "new\n"


@pytest.mark.parametrize("kind", ["shared", "worktree"])
@pytest.mark.parametrize("is_changed", [False, True])
async def test_a_receipt_outlives_its_process(
    root: Path,
    kind: str,
    is_changed: bool,  # noqa: FBT001  (a parameter)
) -> None:
    """Between check and merge the process is another one: the receipt is for the same tree only."""
    repository(root)
    before = {"t#1": {"a": "", "b": ""}}
    async with MemoryStore() as store:
        dead = Places(
            root,
            store.namespace("m"),
            mission_id="m",
            isolation=Isolation(kind=kind, folder=root.parent / "worktrees"),  # type: ignore[arg-type]  # a parameter
        )
        await dead.begin()
        place = await open_place(dead, kind)
        await work(place)
        tree = (await place.look()).tree
        if dead._worktrees is not None:
            dead._worktrees._mission_lock.release()
        if is_changed:
            (place.directory / "a").write_text("late\n")
        async with places_at(root, kind, store) as places:
            places.recall(before)
            again = await open_place(places, kind)
            taken = await again.integrate(tree)
            assert not taken.problem
            # A tree of git can be had back after a restart; what a file held cannot.
            assert taken.is_moved is (is_changed and kind == "shared")
        dead._workspace.close()
        await dead._stack.aclose()
    if kind == "worktree" or not is_changed:
        assert (root / "a").read_text() == "new\n"
