"""A worktree per worker: merged in plan order, and nothing that was in one is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestra import MemoryStore
from orchestra.opencode.mission.git import Git, GitError
from orchestra.opencode.mission.isolation import Isolation
from orchestra.opencode.mission.mission_lock import MissionLock
from orchestra.opencode.mission.places import Places
from orchestra.opencode.mission.repository import Repository
from orchestra.opencode.mission.workplaces import Workplace, WorkplaceError
from orchestra.opencode.mission.worktrees import Worktrees

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs flock")


def git(root: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", *words],  # noqa: S607
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


def make_repository(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    git(root, "init", "-q", "-b", "main")
    (root / "a").write_text("1\n2\n3\n")
    (root / "b").write_text("b\n")
    (root / ".gitignore").write_text("*.log\n")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "first")


@asynccontextmanager
async def worktrees_at(
    root: Path, *, mission: str = "m", patience: float = 60.0, store: MemoryStore | None = None
) -> AsyncIterator[Places]:
    async with MemoryStore() as own:
        places = Places(
            root,
            (store or own).namespace(mission),
            mission_id=mission,
            isolation=Isolation(
                kind="worktree", folder=root.parent / "worktrees", patience=patience
            ),
            skipped=["TODO.md"],
        )
        try:
            await places.begin()
            yield places
        finally:
            await places.aclose()


async def work(place: Workplace, **files: str | None) -> None:
    async with place.at_work():
        for name, content in files.items():
            path = place.directory / name.replace("__", "/")
            if content is None:
                path.unlink()
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content)


async def accept(place: Workplace) -> str:
    taken = await place.integrate((await place.look()).tree)
    assert not taken.is_moved
    return taken.problem


def branches(root: Path) -> list[str]:
    return git(root, "for-each-ref", "--format=%(refname:short)", "refs/heads").split()


async def test_cancelled_before_there_are_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is cancelled while worktrees are got ready leaves no lock, no folder and no file."""
    make_repository(tmp_path / "r")

    async def cancel(_: Worktrees) -> str:
        scope.cancel()
        await anyio.lowlevel.checkpoint()
        raise AssertionError("not cancelled")

    released: list[bool] = []
    release = MissionLock.release

    def note(lock: MissionLock) -> None:
        released.append(lock.is_held)
        release(lock)

    monkeypatch.setattr(MissionLock, "release", note)
    with monkeypatch.context() as patch, anyio.CancelScope() as scope:
        patch.setattr(Worktrees, "_find_tip", cancel)
        async with worktrees_at(tmp_path / "r"):
            pass
    assert scope.cancelled_caught
    assert True in released
    assert not [path for path in (tmp_path / "worktrees").rglob("*") if path.is_file()]


async def test_the_users_work_survives(tmp_path: Path) -> None:
    """Branch, index, uncommitted and untracked work are as before; the change is in the files."""
    root = tmp_path / "r"
    make_repository(root)
    (root / "a").write_text("1\n2\n3 mine\n")
    (root / "untracked").write_text("mine")
    (root / "staged").write_text("mine")
    git(root, "add", "staged")
    status = git(root, "status", "--porcelain")
    head = git(root, "rev-parse", "HEAD")
    async with worktrees_at(root) as places:
        place = await places.open("t", [])
        assert (place.directory / "a").read_text() == "1\n2\n3 mine\n"
        assert (place.directory / "untracked").read_text() == "mine"
        await work(place, a="1 theirs\n2\n3 mine\n", sub__new="x")
        change = await place.look()
        assert change.changed == ("a", "sub/new")
        assert "+1 theirs" in change.diff
        (root / "b").write_text("edited meanwhile\n")
        assert not (await place.integrate(change.tree)).problem
        assert (root / "a").read_text() == "1 theirs\n2\n3 mine\n"
        assert (root / "sub/new").read_text() == "x"
        assert (root / "b").read_text() == "edited meanwhile\n"
    assert git(root, "rev-parse", "HEAD") == head
    assert set(status.splitlines()) < set(git(root, "status", "--porcelain").splitlines())
    assert branches(root) == ["main"]
    assert git(root, "worktree", "list").count("\n") == 1
    assert not list((tmp_path / "worktrees").glob("*/*"))
    assert not places.warnings


async def test_both_changes_of_one_file_are_merged(tmp_path: Path) -> None:
    """Two who worked on the same file at the same time both get in, if they do not conflict."""
    root = tmp_path / "r"
    make_repository(root)
    async with worktrees_at(root) as places:
        one, two = (
            await places.open("one", [], position=0),
            await places.open("two", [], position=1),
        )
        await work(one, a="1 one\n2\n3\n")
        await work(two, a="1\n2\n3 two\n")
        assert await accept(one) == ""
        assert await accept(two) == ""
    assert (root / "a").read_text() == "1 one\n2\n3 two\n"


async def test_a_conflict_goes_back_to_its_worker(tmp_path: Path) -> None:
    """The worker is told what conflicts, finds both versions in its files, and settles it."""
    root = tmp_path / "r"
    make_repository(root)
    async with worktrees_at(root) as places:
        one, two = (
            await places.open("one", [], position=0),
            await places.open("two", [], position=1),
        )
        await work(one, a="one\n2\n3\n")
        await work(two, a="two\n2\n3\n", extra="x")
        assert await accept(one) == ""
        problem = await accept(two)
        assert "conflicts with what was accepted meanwhile in a;" in problem
        assert "+<<<<<<<" in problem
        assert "+two" in problem
        assert (root / "a").read_text() == "one\n2\n3\n"
        assert (two.directory / "a").read_text().count("<<<<<<<") == 1
        two = await places.open("two", [], position=1)
        await work(two, a="one and two\n2\n3\n")
        assert await accept(two) == ""
    assert (root / "a").read_text() == "one and two\n2\n3\n"
    assert (root / "extra").read_text() == "x"


async def test_changes_are_merged_in_plan_order(tmp_path: Path) -> None:
    """A later task that is done first waits for the earlier ones that are under way."""
    root = tmp_path / "r"
    make_repository(root)
    order: list[str] = []

    async def take(place: Workplace, name: str) -> None:
        assert await accept(place) == ""
        order.append(name)

    async with worktrees_at(root) as places:
        made = [await places.open(name, [], position=number) for number, name in enumerate("xyz")]
        async with anyio.create_task_group() as group:
            for place, name in reversed(list(zip(made, "xyz", strict=True))):
                await work(place, **{name: name})
                group.start_soon(take, place, name)
                await anyio.wait_all_tasks_blocked()
    assert order == ["x", "y", "z"]


async def test_waiting_for_the_earlier_ones_is_bounded(tmp_path: Path) -> None:
    """An earlier task that takes too long, or fails, does not stop the later ones."""
    root = tmp_path / "r"
    make_repository(root)
    async with worktrees_at(root, patience=0.05) as places:
        slow, quick = (
            await places.open("slow", [], position=0),
            await places.open("q", [], position=1),
        )
        await work(quick, q="q")
        assert await accept(quick) == ""
        await slow.discard()
    assert (root / "q").read_text() == "q"


async def test_what_is_not_taken_over_is_saved(tmp_path: Path) -> None:
    """Uncommitted, staged, untracked and committed work is on a branch before a worktree goes."""
    root = tmp_path / "r"
    make_repository(root)
    async with worktrees_at(root) as places:
        place = await places.open("t", ["a"])
        await work(place, a="committed")
        git(place.directory, "commit", "-q", "-a", "-m", "by the agent")
        await work(place, staged="s", untracked="u")
        git(place.directory, "add", "staged")
        await place.discard()
    (warning,) = places.warnings
    assert warning == ("work that was not taken over is kept in the branch orchestra/salvage/m/t")
    saved = "orchestra/salvage/m/t"
    assert branches(root) == ["main", saved]
    for name, content in {"a": "committed", "staged": "s", "untracked": "u"}.items():
        assert git(root, "show", f"{saved}:{name}") == content
    assert "by the agent" in git(root, "log", "--format=%s", saved)


async def test_looks_merged_by_ancestry_but_is_not(tmp_path: Path) -> None:
    """code-yeongyu/oh-my-opencode#5911: a worktree whose branch is merged has untracked files."""
    root = tmp_path / "r"
    make_repository(root)
    async with worktrees_at(root) as places:
        place = await places.open("t", [])
        await work(place, a="2\n")
        assert await accept(place) == ""
        other = await places.open("other", [])
        await work(other, untracked="precious")
        assert git(other.directory, "rev-list", "HEAD", "--not", "--branches") == ""
    assert git(root, "show", "orchestra/salvage/m/other:untracked") == "precious"


async def test_a_repository_inside_is_not_removed(tmp_path: Path) -> None:
    """What no branch can keep stays where it is, and is told."""
    root = tmp_path / "r"
    make_repository(root)
    async with worktrees_at(root) as places:
        place = await places.open("t", [])
        make_repository(place.directory / "inner")
        await place.discard()
    assert (place.directory / "inner" / "a").exists()
    assert any("is left where it is" in warning for warning in places.warnings)


async def test_strays_of_a_worktree(tmp_path: Path) -> None:
    """What a task changes outside its lease is put aside in its worktree too."""
    root = tmp_path / "r"
    make_repository(root)
    async with worktrees_at(root) as places:
        place = await places.open("t", ["a", "x.log"])
        await work(place, a="2", b="stray", new="stray", **{"x.log": "ignored but declared"})
        change = await place.look()
        assert (change.changed, change.strays) == (("a", "x.log"), ("b", "new"))
        assert (place.directory / "b").read_text() == "b\n"
        assert not (place.directory / "new").exists()
        assert not (await place.integrate(change.tree)).problem
    aside = root / ".orchestra" / "quarantine" / "t"
    assert {path.name for path in aside.iterdir()} == {"b", "new"}
    assert (root / "b").read_text() == "b\n"
    assert (root / "x.log").read_text() == "ignored but declared"


async def test_no_hook_of_the_repository_runs(tmp_path: Path) -> None:
    """Hooks are code in a place that agents may write to."""
    root = tmp_path / "r"
    make_repository(root)
    for name in (
        "post-checkout",
        "pre-commit",
        "post-merge",
        "reference-transaction",
        "post-index-change",
    ):
        hook = root / ".git" / "hooks" / name
        hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran-{name}\n")
        hook.chmod(0o755)
    async with worktrees_at(root) as places:
        place = await places.open("t", [])
        await work(place, a="2")
        assert await accept(place) == ""
    assert not list(tmp_path.glob("ran-*"))  # noqa: ASYNC240


async def test_git_of_the_workspace_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An executable called git in the workspace is never started, whatever PATH says."""
    root = tmp_path / "r"
    make_repository(root)
    (root / "git").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (root / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{root}{os.pathsep}.{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(root)
    async with worktrees_at(root) as places:
        await (await places.open("t", [])).discard()
    assert not (tmp_path / "ran").exists()


async def test_a_workspace_below_the_top_of_the_repository(tmp_path: Path) -> None:
    """Paths are those of the workspace, and nothing outside of it is taken over."""
    root = tmp_path / "r"
    make_repository(root)
    below = root / "pkg"
    below.mkdir()
    (below / "m").write_text("1")
    async with worktrees_at(below) as places:
        place = await places.open("t", ["m"])
        await work(place, m="2")
        (place.directory.parent / "a").write_text("outside")
        change = await place.look()
        assert change.changed == ("m",)
        assert not (await place.integrate(change.tree)).problem
    assert (below / "m").read_text() == "2"
    assert (root / "a").read_text() == "1\n2\n3\n"


async def test_without_a_repository(tmp_path: Path) -> None:
    """Worktrees that cannot be are refused in one sentence, before anything starts."""
    with pytest.raises(WorkplaceError, match="is not in a git repository"):
        async with worktrees_at(tmp_path / "r"):
            pass
    (tmp_path / "r").mkdir()
    with pytest.raises(WorkplaceError, match="is not in a git repository"):
        async with worktrees_at(tmp_path / "r"):
            pass


async def test_an_empty_repository(tmp_path: Path) -> None:
    """A repository without a commit is one too."""
    (tmp_path / "r").mkdir()
    git(tmp_path / "r", "init", "-q")
    async with worktrees_at(tmp_path / "r") as places:
        place = await places.open("t", [])
        await work(place, a="1")
        assert await accept(place) == ""
    assert (tmp_path / "r" / "a").read_text() == "1"


async def test_an_earlier_attempt_is_refused(tmp_path: Path) -> None:
    """Worktrees carry the fence of their attempt like everybody else."""
    root = tmp_path / "r"
    make_repository(root)
    async with MemoryStore() as store, worktrees_at(root, store=store) as places:
        place = await places.open("t", ["a"])
        await work(place, a="2")
        key = "lease/a"
        space = store.namespace("m")
        await space.put(key, {"task": "other", "fence": 10_000})
        assert "'other' has it since" in await accept(place)
    assert (root / "a").read_text() == "1\n2\n3\n"


_CHILD = """
import sys, anyio
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_worktrees import worktrees_at, work

async def main():
    async with worktrees_at(Path({root!r}), mission="dead") as places:
        place = await places.open("t", [])
        await work(place, a="unsaved", untracked="precious")
        print("ready", flush=True)
        await anyio.sleep_forever()

anyio.run(main)
"""


async def test_what_a_killed_mission_leaves(tmp_path: Path) -> None:
    """The next mission saves and removes a dead one's worktrees, and no living one's."""
    root = tmp_path / "r"
    make_repository(root)
    script = _CHILD.format(tests=str(Path(__file__).parent), root=str(root))
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220
    try:
        assert child.stdout is not None
        assert await anyio.to_thread.run_sync(child.stdout.readline) == "ready\n"
        async with worktrees_at(root, mission="living") as places:
            assert not places.warnings
        assert branches(root) == ["main", "orchestra/dead/t"]
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        if child.stdout is not None:
            child.stdout.close()
    async with worktrees_at(root, mission="next"):
        pass
    assert branches(root) == ["main", "orchestra/salvage/dead/t"]
    assert git(root, "show", "orchestra/salvage/dead/t:untracked") == "precious"
    assert git(root, "worktree", "list").count("\n") == 1
    assert not list((tmp_path / "worktrees").glob("*/*"))


async def test_what_an_interrupted_mission_saved_is_there_again(tmp_path: Path) -> None:
    """Whoever goes on with a mission finds the work that was under way, as it was checked."""
    root = tmp_path / "r"
    make_repository(root)
    (root / "b").write_text("not committed\n")
    async with worktrees_at(root) as places:
        place = await places.open("t", ["a", "new"])
        await work(place, a="2\n", new="n")
        tree = (await place.look()).tree
    assert branches(root) == ["main", "orchestra/salvage/m/t"]
    (root / "b").write_text("edited meanwhile\n")
    async with worktrees_at(root) as places:
        other = await places.open("other", ["b"], is_resumed=True)
        assert (await other.look()).changed == ()
        await other.discard()
        place = await places.open("t", ["a", "new"], is_resumed=True)
        assert (place.directory / "b").read_text() == "not committed\n"
        change = await place.look()
        assert (change.tree, change.changed) == (tree, ("a", "new"))
        taken = await place.integrate(tree)
        assert (taken.problem, taken.is_moved) == ("", False)
    assert (root / "a").read_text() == "2\n"
    assert (root / "b").read_text() == "edited meanwhile\n"
    assert branches(root) == ["main"]
    assert not places.warnings


@pytest.mark.parametrize("moment", ["added", "adding", "written", "removed", "locked"])
async def test_a_worktree_that_was_being_made_or_removed(moment: str, tmp_path: Path) -> None:
    """Killed in the middle of it, a task has its worktree all the same, and none is left."""
    root = tmp_path / "r"
    make_repository(root)
    async with MemoryStore() as store:
        async with worktrees_at(root, store=store) as places:
            place = await places.open("t", ("a",))
            top = place.directory
            base = top.with_name("t.base")
            kept = base.read_text()
            if moment == "added":  # and nobody has written down what it was made of
                base.unlink()
            elif moment == "adding":
                base.unlink()
                for path in (*top.iterdir(), root / ".git/worktrees/t/HEAD"):
                    path.unlink()
                (root / ".git/worktrees/t/locked").write_text("initializing")
            elif moment == "written":
                await work(place, a="mine\n2\n3\n")
                base.with_name("t.base.new").write_text("half")
            elif moment == "removed":
                git(root, "worktree", "remove", "--force", str(top))
            else:
                top.with_name("t.index.lock").touch()
                top.with_name("index.lock").touch()
            places.abandon()
        async with worktrees_at(root, store=store) as places:
            place = await places.open("t", ("a",))
            assert (
                (place.directory / "a")
                .read_text()
                .startswith("mine" if moment == "written" else "1")
            )
            await work(place, a="done\n2\n3\n")
            assert not await accept(place)
            assert places.warnings == []
    assert kept
    assert (root / "a").read_text() == "done\n2\n3\n"
    assert branches(root) == ["main"]
    assert git(root, "worktree", "list").count("\n") == 1
    assert not git(root, "for-each-ref", "refs/orchestra")
    assert not list((tmp_path / "worktrees").glob("*/*"))


async def test_a_change_that_was_taken_over_already(tmp_path: Path) -> None:
    """Killed before it could say so, a task is known to be taken over, until it is begun again."""
    root = tmp_path / "r"
    make_repository(root)
    async with MemoryStore() as store:
        async with worktrees_at(root, store=store) as places:
            place = await places.open("t", ("a",))
            await work(place, a="done\n2\n3\n")
            tree = (await place.look()).tree
            assert not (await place.integrate(tree)).problem
            places.abandon()
        async with worktrees_at(root, store=store) as places:
            assert not await places.is_taken("t", ("a",), "another")
            assert await places.is_taken("t", ("a",), tree)
            await places.open("t", ("a",))
            assert not await places.is_taken("t", ("a",), tree)
    assert branches(root) == ["main"]


@pytest.mark.parametrize("moment", ["announced", "begun", "written", "edited"])
async def test_killed_while_a_change_is_taken_over(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever goes on still knows what was the task's work, and overwrites no edit of a person."""
    root = tmp_path / "r"
    make_repository(root)

    class KilledError(Exception):
        pass

    async def write(_: Repository, top: Path, *__: object) -> bool:
        if moment != "announced":
            (top / "a").write_text("new a\n")
        if moment == "written":
            (top / "c").write_text("new c\n")
        raise KilledError

    async with MemoryStore() as store:
        async with worktrees_at(root, store=store) as places:
            place = await places.open("p.a", ("a", "c"))
            await work(place, a="new a\n", c="new c\n")
            tree = (await place.look()).tree
            with monkeypatch.context() as patch:
                patch.setattr(Repository, "write", write)
                with pytest.raises(KilledError):
                    await place.integrate(tree)
            places.abandon()
        if moment == "edited":
            (root / "a").write_text("of a person\n")
        async with worktrees_at(root, store=store) as places:
            place = await places.open("p.a", ("a", "c"), is_resumed=True)
            assert (await place.look()).tree == tree
            problem = await accept(place)
            if moment == "edited":
                assert "conflict" in problem
                assert (root / "a").read_text() == "of a person\n"
            else:
                assert not problem
                parent = await places.open("p", ("a", "b", "c"), parts=("p.a",))
                change = await parent.look()
                assert change.changed == ("a", "c")
                assert "+new a" in change.diff
                assert not await accept(parent)
    if moment != "edited":
        assert ((root / "a").read_text(), (root / "c").read_text()) == ("new a\n", "new c\n")
        assert branches(root) == ["main"]
        assert not git(root, "for-each-ref", "refs/orchestra", "refs/orchestra-next")


async def test_files_that_come_and_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that vanishes while git looks ends nothing; a draft of TODO.md is nobody's work."""
    root = tmp_path / "r"
    make_repository(root)
    (root / ".TODO.md.0123abcd").write_text("half")
    (root / ".TODO.md.example").write_text("a person's")
    failures = 4
    run_git = Git.run

    async def run(self: Git, *words: str, stdin: str = "", index: Path | None = None) -> str:
        nonlocal failures
        if words[0] == "add" and failures:
            failures -= 1
            raise GitError("git add: fatal: unable to stat 'x': No such file or directory")
        return await run_git(self, *words, stdin=stdin, index=index)

    monkeypatch.setattr(Git, "run", run)
    async with worktrees_at(root) as places:
        place = await places.open("t", ("a",))
        assert not failures
        assert not (place.directory / ".TODO.md.0123abcd").exists()
        assert (place.directory / ".TODO.md.example").exists()
        await work(place, a="new\n")
        assert not await accept(place)
    assert (root / ".TODO.md.0123abcd").read_text() == "half"


ACTS = st.lists(
    st.tuples(
        st.sampled_from(["write", "remove", "add", "commit", "move", "accept", "open", "discard"]),
        st.integers(0, 1),
        st.sampled_from(["a", "b", "c", "d/e"]),
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=5)
@given(ACTS)
def test_nothing_that_was_in_a_worktree_is_lost(  # noqa: C901
    acts: list[tuple[str, int, str]],
) -> None:
    """Whatever stood in a worktree when it went is in the workspace or on a branch."""

    async def play(root: Path) -> None:  # noqa: C901
        made: dict[int, Workplace] = {}
        held: dict[int, set[str]] = {}
        count = 0
        async with worktrees_at(root) as places:
            for act, who, name in [*acts, ("write", 0, "last")]:
                if who not in made:
                    made[who] = await places.open(f"t{who}", [], position=who)
                place = made[who]
                path = place.directory / name
                if act == "write":
                    count += 1
                    await work(place, **{name.replace("/", "__"): f"content {count}\n"})
                elif act == "remove" and path.exists():
                    path.unlink()
                elif act == "move" and path.exists():
                    path.rename(place.directory / "moved")
                elif act == "add":
                    git(place.directory, "add", "-A")
                elif act == "commit":
                    git(place.directory, "commit", "-q", "--allow-empty", "-a", "-m", "x")
                held[who] = texts(place.directory)
                if act == "accept" and who == min(made):
                    await accept(place)
                    if not place.directory.exists():
                        del made[who]
                elif act == "discard":
                    await made.pop(who).discard()
        known = texts(root)
        for branch in branches(root):
            known |= set(git(root, "log", "-p", "-m", "--format=", branch).splitlines())
        known = {line.lstrip("+") for line in known}
        for content in held.values():
            assert {line for line in content if line.startswith("content")} <= known

    with TemporaryDirectory() as directory:
        root = Path(directory, "r")
        make_repository(root)
        anyio.run(play, root)


def texts(root: Path) -> set[str]:
    return {
        line
        for path in root.rglob("*")
        if path.is_file() and ".git" not in path.parts
        for line in path.read_text().splitlines()
    }
