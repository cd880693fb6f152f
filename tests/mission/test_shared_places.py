"""Many tasks in one directory: whose a change is, what is put back, and what may be accepted."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestra import MemoryStore
from orchestra.opencode.mission.isolation import Isolation
from orchestra.opencode.mission.places import Places
from orchestra.opencode.mission.workplaces import Change, Workplace, WorkplaceError


def write(root: Path, files: Mapping[str, str | None]) -> None:
    for name, content in files.items():
        path = root / name
        if content is None:
            path.unlink()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)


def read(root: Path) -> dict[str, str]:
    files = {str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file()}
    return {
        name: path.read_text()
        for name, path in sorted(files.items())
        if not name.startswith((".orchestra/", ".git/"))
    }


def quarantine(root: Path) -> dict[str, str]:
    return read(root / ".orchestra" / "quarantine")


@asynccontextmanager
async def places_at(root: Path, *, is_watched: bool = True) -> AsyncIterator[Places]:
    async with MemoryStore() as store:
        places = Places(
            root,
            store.namespace("m"),
            mission_id="m",
            isolation=Isolation(),
            skipped=["TODO.md"],
            is_watched=is_watched,
        )
        try:
            await places.begin()
            yield places
        finally:
            await places.aclose()


async def work(place: Workplace, files: Mapping[str, str | None]) -> None:
    async with place.at_work():
        write(place.directory, files)


async def test_a_change_inside_the_lease_is_seen_and_accepted(tmp_path: Path) -> None:
    """The holder's change has a digest, a list and a diff, and is taken over as it was seen."""
    write(tmp_path, {"a.py": "one\n", "b.py": "b\n"})
    async with places_at(tmp_path) as places:
        place = await places.open("t", ["./a.py", "new/c.py"])
        before = await place.look()
        await work(place, {"a.py": "two\n", "new/c.py": "c\n"})
        change = await place.look()
        assert change.tree != before.tree
        assert (change.changed, change.strays) == (("a.py", "new/c.py"), ())
        assert change.diff == (
            "--- a/a.py\n+++ b/a.py\n@@ -1 +1 @@\n-one\n+two\n"
            "--- /dev/null\n+++ b/new/c.py\n@@ -0,0 +1 @@\n+c\n"
        )
        taken = await place.integrate(change.tree)
        assert (taken.problem, taken.is_moved) == ("", False)
        whole = await places.whole()
        assert whole.changed == ("a.py", "new/c.py")
    assert read(tmp_path) == {"a.py": "two\n", "b.py": "b\n", "new/c.py": "c\n"}
    assert not places.warnings


async def test_a_change_outside_the_lease_is_put_aside(tmp_path: Path) -> None:
    """Strays are shown and kept in quarantine, and the files are as before, without git."""
    write(tmp_path, {"a": "1", "b": "1", "gone": "1", "run.sh": "#!"})
    (tmp_path / "run.sh").chmod(0o755)
    async with places_at(tmp_path) as places:
        place = await places.open("t", ["a"])
        await work(
            place, {"a": "2", "b": "stray", "gone": None, "deep/new": "stray", "run.sh": "x"}
        )
        change = await place.look()
        assert change.changed == ("a",)
        assert change.strays == ("deep/new", "b", "gone", "run.sh")
        assert read(tmp_path) == {"a": "2", "b": "1", "gone": "1", "run.sh": "#!"}
        assert os.access(tmp_path / "run.sh", os.X_OK)
        assert quarantine(tmp_path) == {"t/b": "stray", "t/deep/new": "stray", "t/run.sh": "x"}
        assert not (await place.integrate(change.tree)).problem
    assert len(places.warnings) == 4
    assert (
        "task 't' changed b without a lease on it: it was put back; "
        "its version is in .orchestra/quarantine/t/b" in places.warnings
    )


async def test_whoever_wrote_by_a_tool_call_is_known(tmp_path: Path) -> None:
    """With many at work, a stray is put to the account of the task whose tool call wrote it."""
    async with places_at(tmp_path) as places:
        one, two = await places.open("one", ["a"]), await places.open("two", ["b"])
        async with one.at_work(), two.at_work():
            write(tmp_path, {"a": "1", "b": "1", "x": "1"})
            two.on_edit(str(tmp_path / "x"))
        first, second = await one.look(), await two.look()
        assert (first.changed, first.strays) == (("a",), ())
        assert (second.changed, second.strays) == (("b",), ("x",))


async def test_nobody_knows_who(tmp_path: Path) -> None:
    """A stray that may be of several is put aside all the same, and the warning names them."""
    async with places_at(tmp_path) as places:
        one, two = await places.open("one", ["a"]), await places.open("two", ["b"])
        async with one.at_work(), two.at_work():
            write(tmp_path, {"x": "1"})
        assert ((await one.look()).strays, (await two.look()).strays) == ((), ())
        assert read(tmp_path) == {}
        assert quarantine(tmp_path) == {"unknown/x": "1"}
        assert "(at work: 'one', 'two')" in places.warnings[0]


async def test_a_stray_is_not_touched_while_its_author_works(tmp_path: Path) -> None:
    """What may be a passing file of somebody at work is left until that turn is over."""
    async with places_at(tmp_path) as places:
        one, two = await places.open("one", ["a"]), await places.open("two", ["b"])
        async with one.at_work():
            write(tmp_path, {"x": "1"})
            await two.look()
            assert read(tmp_path) == {"x": "1"}
        change = await one.look()
        assert change.strays == ("x",)
        assert read(tmp_path) == {}


async def test_work_without_declared_files(tmp_path: Path) -> None:
    """It may change what nobody has a lease on, and nothing else."""
    write(tmp_path, {"a": "1"})
    async with places_at(tmp_path) as places:
        holder, free = await places.open("holder", ["a"]), await places.open("free", [])
        async with free.at_work():
            write(tmp_path, {"a": "stray", "x": "1"})
        change = await free.look()
        assert (change.changed, change.strays) == (("x",), ("a",))
        assert read(tmp_path) == {"a": "1", "x": "1"}
        assert not (await free.integrate(change.tree)).problem
        assert (await holder.look()).changed == ()


async def test_the_second_to_edit_a_file_is_stopped(tmp_path: Path) -> None:
    """Of two at work on one file, what the one without the lease writes is not left there."""
    write(tmp_path, {"a": "1"})
    async with places_at(tmp_path) as places:
        holder, other = await places.open("holder", ["a"]), await places.open("other", ["b"])
        async with holder.at_work(), other.at_work():
            write(tmp_path, {"a": "other's"})
            other.on_edit("a")
            await places.whole()
            assert read(tmp_path) == {"a": "1"}
            write(tmp_path, {"a": "holder's"})
            holder.on_edit("a")
        change = await holder.look()
        assert change.changed == ("a",)
        assert (await other.look()).strays == ("a",)
        assert not (await holder.integrate(change.tree)).problem
    assert read(tmp_path) == {"a": "holder's"}


async def test_an_earlier_attempt_cannot_be_accepted(tmp_path: Path) -> None:
    """Whoever wakes after its lease has moved on is refused, and what it writes is put back."""
    write(tmp_path, {"a": "1"})
    async with places_at(tmp_path) as places:
        late = await places.open("t", ["a"])
        async with late.at_work():  # paused here
            present = await places.open("t", ["a"])
            await work(present, {"a": "good"})
            change = await present.look()
            write(tmp_path, {"a": "late"})
        taken = await late.integrate((await late.look()).tree)
        assert "earlier attempt" in taken.problem
        assert not (await present.integrate(change.tree)).problem
    assert read(tmp_path) == {"a": "good"}
    assert quarantine(tmp_path) == {"t/a": "late"}
    assert places.warnings[0].startswith(
        "an earlier attempt at task 't' changed a: it was put back"
    )


async def test_a_lease_that_another_process_has_taken(tmp_path: Path) -> None:
    """The fence in the store counts, whatever this process believes."""
    async with MemoryStore() as store:
        made = [
            Places(tmp_path, store.namespace("m"), mission_id="m", isolation=Isolation())
            for _ in range(2)
        ]
        for places in made:
            await places.begin()
        old = await made[0].open("t", ["a"])
        await work(old, {"a": "1"})
        change = await old.look()
        await made[1].open("t", ["a"])
        taken = await old.integrate(change.tree)
        for places in made:
            await places.aclose()
    assert taken.problem == (
        "the lease on a has moved on; 't' has it since: this change comes from an earlier attempt"
    )


async def test_what_was_accepted_stays(tmp_path: Path) -> None:
    """Nobody without a lease changes a file that was accepted, also when nobody is at work."""
    async with places_at(tmp_path) as places:
        place = await places.open("t", ["a"])
        await work(place, {"a": "good"})
        assert not (await place.integrate((await place.look()).tree)).problem
        write(tmp_path, {"a": "zombie"})
        await places.whole()
        assert read(tmp_path) == {"a": "good"}
        again = await places.open("later", ["a"])
        await work(again, {"a": "better"})
        assert not (await again.integrate((await again.look()).tree)).problem
    assert read(tmp_path) == {"a": "better"}


async def test_a_person_at_the_keyboard_is_left_alone(tmp_path: Path) -> None:
    """What changes while nobody of the mission is at work is told, and left as it is."""
    async with places_at(tmp_path) as places:
        write(tmp_path, {"notes": "mine"})
        assert (await places.whole()).changed == ("notes",)
    assert places.warnings == ["notes changed while nobody of this mission was at work"]


async def test_commands_may_leave_files(tmp_path: Path) -> None:
    """What the mission's own commands make in the workspace is not moved away."""
    async with places_at(tmp_path) as places:
        async with places.at_work():
            write(tmp_path, {"coverage.xml": "x"})
        await places.whole()
    assert read(tmp_path) == {"coverage.xml": "x"}
    assert not places.warnings


async def test_a_formatter_moves_the_files(tmp_path: Path) -> None:
    """When a check has changed a task's files, the change is not what was checked any more."""
    async with places_at(tmp_path) as places:
        place = await places.open("t", ["a"])
        await work(place, {"a": "x=1"})
        change = await place.look()
        await work(place, {"a": "x = 1"})
        assert (await place.integrate(change.tree)).is_moved
        assert not (await place.integrate((await place.look()).tree)).is_moved


async def test_a_folder_can_be_declared(tmp_path: Path) -> None:
    """A lease on a folder is one on everything in it."""
    write(tmp_path, {"src/a": "1"})
    async with places_at(tmp_path) as places:
        place = await places.open("t", ["src/"])
        await work(place, {"src/a": "2", "src/deep/b": "1", "c": "1"})
        change = await place.look()
        assert (change.changed, change.strays) == (("src/a", "src/deep/b"), ("c",))
        assert not (await place.integrate(change.tree)).problem


async def test_files_that_are_nobodys_work(tmp_path: Path) -> None:
    """What git ignores, the to-do list and caches are no strays."""
    await anyio.run_process(["git", "init", "-q", str(tmp_path)])
    write(tmp_path, {".gitignore": "*.log\nbuild/\n"})
    async with places_at(tmp_path) as places:
        place = await places.open("t", ["a"])
        files = {"a": "1", "x.log": "1", "build/out": "1", "TODO.md": "1", "__pycache__/m": "1"}
        await work(place, files)
        assert (await place.look()).strays == ()
    assert read(tmp_path) == {".gitignore": "*.log\nbuild/\n", **files}
    assert not places.warnings


async def test_a_link_does_not_lead_out(tmp_path: Path) -> None:
    """A folder that was replaced by a link is put back inside the workspace, not where it leads."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    write(root, {"src/a": "1"})
    outside.mkdir()
    async with places_at(root) as places:
        place = await places.open("t", ["b"])
        async with place.at_work():
            (root / "src" / "a").unlink()
            (root / "src").rmdir()
            (root / "src").symlink_to(outside)
        assert set((await place.look()).strays) == {"src", "src/a"}
    assert read(root) == {"src/a": "1"}
    assert not list(outside.iterdir())


async def test_paths_outside_are_refused(tmp_path: Path) -> None:
    """Nobody gets a lease on what is not in the workspace."""
    async with places_at(tmp_path) as places:
        for path in ("../x", "/etc/passwd", "a/../../x"):
            with pytest.raises(WorkplaceError, match="not in the workspace"):
                await places.open("t", [path])


async def test_without_watching_declared_files_count(tmp_path: Path) -> None:
    """A mission that does not look at the whole workspace still binds a change to its files."""
    write(tmp_path, {"a": "1"})
    async with places_at(tmp_path, is_watched=False) as places:
        place = await places.open("t", ["a"])
        await work(place, {"a": "2", "x": "1"})
        change = await place.look()
        assert (change.changed, change.strays) == (("a",), ())
        write(tmp_path, {"a": "zombie"})
        assert not (await place.integrate(change.tree)).problem
        assert (await places.whole()).tree == ""
    assert read(tmp_path) == {"a": "2", "x": "1"}


# --- whatever the interleaving ---

FILES = ("a", "b", "c")
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["turn", "begin", "write", "end", "check", "open", "discard", "scan", "command"]
        ),
        st.integers(0, 2),
        st.sampled_from([*FILES, "x"]),
        st.booleans(),
    ),
    max_size=40,
)


class Play:
    """Three tasks, each with a lease on one file, that write wherever they like."""

    def __init__(self, root: Path, places: Places) -> None:
        self.root = root
        self.places = places
        self.place: dict[int, Workplace] = {}
        self.working: dict[int, AbstractAsyncContextManager[None]] = {}
        self.looked: dict[int, Change] = {}
        self.left: dict[int, str] = {}
        self.accepted: dict[str, str] = {}
        self.count = 0

    async def step(self, what: str, who: int, path: str, by_tool: bool) -> None:  # noqa: C901, FBT001, PLR0912
        if who not in self.place:
            self.place[who] = await self.places.open(f"t{who}", [FILES[who]])
            self.left.pop(who, None)
        place, is_working = self.place[who], who in self.working
        if what == "write":
            await self.write(who, path, by_tool=by_tool)
        elif what == "scan":
            await self.places.whole()
        elif what == "end" and is_working:
            manager = self.working.pop(who)
            await manager.__aexit__(None, None, None)
            self.left[who] = read(self.root)[FILES[who]]
        elif is_working:
            return
        elif what in {"begin", "turn"}:
            self.accepted.pop(FILES[who], None)
            self.working[who] = manager = place.at_work()
            await manager.__aenter__()
            if what == "turn":
                await self.write(who, FILES[who], by_tool=by_tool)
                await self.step("end", who, path, by_tool)
        elif what == "command":
            await place.look()
            self.accepted.pop(FILES[who], None)
            async with place.checking():
                await self.write(who, path, by_tool=False)
            self.left[who] = read(self.root)[FILES[who]]
        elif what == "open":
            self.place[who] = await self.places.open(f"t{who}", [FILES[who]])
        elif what == "check":
            change = await place.look()
            if by_tool:  # and meanwhile somebody else writes it
                await self.write((who + 1) % 3, FILES[who], by_tool=False)
            taken = await place.integrate(change.tree)
            if not taken.problem and not taken.is_moved:
                del self.place[who]
                content = read(self.root)[FILES[who]]
                assert content == self.left.get(who, content)
                self.accepted[FILES[who]] = content
        elif what == "discard":
            await place.discard()
            del self.place[who]

    async def write(self, who: int, path: str, *, by_tool: bool) -> None:
        """Write a file: inside or outside of the lease, at work or long after it has moved on."""
        self.count += 1
        write(self.root, {path: f"{who} {self.count}"})
        # At the same file with its holder, it is the tool calls that tell who it was.
        is_contested = path in FILES and path != FILES[who] and FILES.index(path) in self.working
        if who in self.working and (by_tool or is_contested):
            self.place[who].on_edit(path)
        if is_contested and who in self.working:
            await self.places.whole()
        elif is_contested:
            self.left.pop(FILES.index(path), None)  # a mixture, which no one could tell apart

    async def end(self) -> None:
        for who in list(self.working):
            await self.step("end", who, "", by_tool=False)
        await self.places.whole()
        left = read(self.root)
        for path, content in self.accepted.items():
            if FILES.index(path) not in self.place:
                assert left[path] == content


@settings(deadline=None, max_examples=40)
@given(STEPS)
def test_no_accepted_change_is_outside_its_lease(steps: list[tuple[str, int, str, bool]]) -> None:
    """In whatever order they work, write anywhere, look and merge: what is accepted is the holder's."""

    async def run(root: Path) -> None:
        write(root, dict.fromkeys(FILES, "base"))
        async with places_at(root) as places:
            play = Play(root, places)
            for step in steps:
                await play.step(*step)
            await play.end()

    with TemporaryDirectory() as directory:
        anyio.run(run, Path(directory))
