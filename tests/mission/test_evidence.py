"""What a mission did to the files, seen from outside."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import anyio
import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestra import EmbeddedBackend, Turn, WorkStealingPool
from orchestra.opencode import Evidence, MissionSettings, Plan, TaskSpec, read_task, run_mission
from orchestra.opencode.mission import evidence as evidence_module
from orchestra.opencode.mission.evidence import Tree, Witness, WorkspaceWatch
from orchestra.opencode.mission.plan import GateSettings

SECRETS = {
    "-----BEGIN RSA PRIVATE KEY-----\n" + "a1B2" * 16: "a private key",
    "AKIA" + "A1B2" * 4: "an AWS access key",
    "ghp_" + "a1B2" * 9: "a GitHub token",
    "glpat-" + "a1B2" * 5: "a GitLab token",
    "sk-ant-" + "a1B2" * 10: "an Anthropic key",
    "sk-proj-" + "a1B2" * 12: "an OpenAI key",
    "AIza" + "a1B2c" * 7: "a Google key",
    "xoxb-" + "1a2b" * 6: "a Slack token",
}


def write(root: Path, files: Mapping[str, str | bytes]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


async def look(root: Path, **changes: str | bytes | None) -> Evidence:
    """Look, change files (None removes one), and look again."""
    witness = Witness(root, skipped=["TODO.md"])
    await witness.begin()
    for name, content in changes.items():
        path = root / name.replace("__", "/").replace("_DOT_", ".")
        if content is None:
            path.unlink()
        else:
            write(root, {str(path.relative_to(root)): content})
    found = await witness.end()
    assert found is not None
    return found


async def test_changes_are_told_apart(tmp_path: Path) -> None:
    """New, changed and removed files are named; what stayed the same is only counted."""
    write(tmp_path, {"same": "1", "a/changed": "1", "removed": "1"})
    found = await look(tmp_path, a__changed="2", removed=None, b__new="3")
    assert (found.added, found.changed, found.removed) == (("b/new",), ("a/changed",), ("removed",))
    assert found.files == 3
    assert found.before != found.after


async def test_nothing_changed(tmp_path: Path) -> None:
    """An untouched tree has the same digest; what does not count does not change it."""
    write(tmp_path, {"a": "1"})
    found = await look(
        tmp_path,
        TODO_DOT_md="- [ ] x",
        _DOT_TODO_DOT_md_DOT_0a1b2c3d="- [ ]",  # on its way to be TODO.md
        _DOT_git__HEAD="x",
        node_modules__m="y",
    )
    assert found.before == found.after
    assert (found.added, found.changed, found.removed, found.files) == ((), (), (), 1)


async def test_same_size_and_time_but_other_contents(tmp_path: Path) -> None:
    """A file that was rewritten in place is seen although its size and its mtime are the same."""
    write(tmp_path, {"a": "one"})
    stamp = (tmp_path / "a").stat().st_mtime_ns
    witness = Witness(tmp_path)
    await witness.begin()
    (tmp_path / "a").write_text("two")
    os.utime(tmp_path / "a", ns=(stamp, stamp))
    found = await witness.end()
    assert found is not None
    assert found.changed == ("a",)


@pytest.mark.parametrize("secret", SECRETS)
async def test_secrets_are_found_and_not_repeated(secret: str, tmp_path: Path) -> None:
    """A changed file that holds a key is told with its line; the key itself is not."""
    found = await look(tmp_path, config="first\nkey = " + secret + "\n")
    (finding,) = found.findings
    assert (finding.path, finding.line, finding.message) == (
        "config",
        2,
        f"it looks like {SECRETS[secret]}",
    )


async def test_a_file_full_of_secrets_is_not_dwelt_on(tmp_path: Path) -> None:
    """What is found in one file is bounded, and each is on its own line."""
    found = await look(tmp_path, keys=f"{'AKIA' + 'A1B2' * 4}\n" * 150_000)
    assert [finding.line for finding in found.findings] == list(range(1, 1_001))


async def test_old_secrets_and_ordinary_text_are_quiet(tmp_path: Path) -> None:
    """What was there before, and what only looks alike, is not reported."""
    write(tmp_path, {"old": next(iter(SECRETS))})
    found = await look(tmp_path, new="sk-short AKIA1 ghp_ task-" + "a" * 50 + " public key")
    assert found.findings == ()


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("m.py", "x = 1\n", "def f(:\n"),
        ("d.json", "{}", "{,}"),
        ("c.toml", "a = 1", "a = = 1"),
        ("b.py", "# ok\n", b"\xff\xfe\x00"),
        ("n.py", "# ok\n", "(" * 100_000),
        ("e.json", "[]", "[" * 1_000_000),
    ],
)
async def test_files_that_do_not_parse(
    name: str, good: str, bad: str | bytes, tmp_path: Path
) -> None:
    """A changed file that its language cannot read is told; a good one is not."""
    key = name.replace(".", "_DOT_")
    assert (await look(tmp_path, **{key: good})).findings == ()
    (finding,) = (await look(tmp_path, **{key: bad})).findings
    assert finding.path == name
    assert "does not parse" in finding.message


async def test_links_are_not_followed(tmp_path: Path) -> None:
    """A link counts as where it points to; what is behind it is neither read nor walked."""
    outside = tmp_path / "outside"
    write(outside, {"secret": next(iter(SECRETS))})
    root = tmp_path / "root"
    root.mkdir()
    witness = Witness(root)
    await witness.begin()
    (root / "file").symlink_to(outside / "secret")
    (root / "folder").symlink_to(outside)
    (root / "loop").symlink_to(root)
    found = await witness.end()
    assert found is not None
    assert (found.added, found.findings) == (("file", "folder", "loop"), ())


async def test_pipes_and_unreadable_files_do_not_hang(tmp_path: Path) -> None:
    """A FIFO is not opened."""
    os.mkfifo(tmp_path / "pipe")
    with anyio.fail_after(30):
        assert (await look(tmp_path, a="1")).added == ("a",)


async def test_unchanged_files_are_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second look reads only what has another stamp."""
    write(tmp_path, {f"f{number}": str(number) for number in range(20)})
    read: list[str] = []
    digest = evidence_module._digest

    def spy(root: str, path: str, keep: object = None) -> bytes:
        read.append(path)
        return digest(root, path)

    monkeypatch.setattr(evidence_module, "_digest", spy)
    async with WorkStealingPool() as pool:
        watch = WorkspaceWatch(tmp_path, pool)
        first = await watch.take()
        assert len(read) == 20
        first = evolve(first, files={p: evolve(f, is_racy=False) for p, f in first.files.items()})
        (tmp_path / "f7").write_text("other")
        second = await watch.take(first)
    assert read[20:] == ["f7"]
    assert isinstance(second, Tree)


async def test_a_file_that_changed_in_the_tick_of_the_first_look(tmp_path: Path) -> None:
    """A file so young that its next change may have the same times is read again."""
    write(tmp_path, {"a": "one"})
    async with WorkStealingPool() as pool:
        watch = WorkspaceWatch(tmp_path, pool)
        first = await watch.take()
        stamp = first.files["a"].stamp
        (tmp_path / "a").write_text("two")
        now = os.lstat(tmp_path / "a")
        renewed = (stamp[0], now.st_mtime_ns, now.st_ctime_ns, stamp[3], stamp[4])
        same = evolve(first, files={"a": evolve(first.files["a"], stamp=renewed)})
        assert (await watch.take(same)).digest != first.digest


async def test_too_large_a_workspace_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above the limit nobody looks, and the warning says so."""
    monkeypatch.setattr(evidence_module, "_MAX_FILES", 3)
    write(tmp_path, {str(number): "" for number in range(4)})
    witness = Witness(tmp_path)
    await witness.begin()
    assert await witness.end() is None
    assert witness.warnings == [
        "changes of the workspace are not looked at: it has more than 3 files"
    ]


async def test_changes_beyond_the_list_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The evidence is bounded, and says by how much."""
    monkeypatch.setattr(evidence_module, "_MAX_LISTED", 2)
    found = await look(tmp_path, a="1", b="1", c="1")
    assert (found.added, found.unlisted) == (("a", "b"), 1)


FILES = st.dictionaries(
    st.sampled_from(["a", "b", "c/d", "c/e"]), st.sampled_from(["", "1", "2"]), max_size=4
)


@settings(deadline=None, max_examples=25)
@given(FILES, FILES)
def test_digest_is_of_paths_and_contents(before: dict[str, str], after: dict[str, str]) -> None:
    """Two trees have the same digest exactly when they hold the same files."""
    from tempfile import TemporaryDirectory

    async def run(root: Path) -> Evidence:
        write(root, before)
        witness = Witness(root)
        await witness.begin()
        for name in before:
            (root / name).unlink()
        write(root, after)
        found = await witness.end()
        assert found is not None
        return found

    with TemporaryDirectory() as directory:
        found = anyio.run(run, Path(directory))
    assert (found.before == found.after) is (before == after)
    assert set(found.added) == after.keys() - before.keys()
    assert set(found.removed) == before.keys() - after.keys()
    assert set(found.changed) == {
        name for name in before if after.get(name, before[name]) != before[name]
    }


async def test_a_mission_reports_its_evidence(tmp_path: Path) -> None:
    """The report names what workers wrote, warns of what is wrong in it, and may be told not to."""

    async def worker(turn: Turn) -> str:
        write(turn.directory, {read_task(turn.prompt).files[0]: "def f(:"})
        return "done"

    async def reviewer(turn: Turn) -> str:
        return '{"verdict": "accept"}'

    async def run(rules: MissionSettings) -> tuple[Evidence | None, tuple[str, ...]]:
        report = await run_mission(
            "g",
            backend=EmbeddedBackend({"worker": worker, "reviewer": reviewer}),
            directory=tmp_path,
            plan=Plan([TaskSpec(id="a", title="A", files=("a.py",))]),
            settings=rules,
        )
        return report.evidence, report.warnings

    rules = MissionSettings()
    found, warnings = await run(rules)
    assert found is not None
    assert found.added == ("a.py",)
    assert any("a.py:1: it does not parse" in warning for warning in warnings)
    (tmp_path / "a.py").unlink()
    gates = GateSettings(unparsed=("*.py",))
    assert await run(evolve(rules, has_evidence=False, gates=gates)) == (None, ())
