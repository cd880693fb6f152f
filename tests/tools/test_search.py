"""Which files are looked at, which lines are found, and that both engines agree."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from text_tools import children, ripgrep_or_skip, write_files

from orchestra._core.globs import Glob
from orchestra._core.patterns import is_portable
from orchestra.tools.listing import Selection, find_ripgrep, list_files
from orchestra.tools.root import Root
from orchestra.tools.search import Found, GrepQuery, glob, grep

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the tools are POSIX")

CATASTROPHE = "(a|a)*$(?=b)|(a|aa)+$b"


@pytest.fixture(params=["python", "ripgrep"])
def ripgrep(request: pytest.FixtureRequest) -> str | None:
    """Run a test with each engine."""
    return ripgrep_or_skip() if request.param == "ripgrep" else None


@pytest.fixture
def root(tmp_path: Path) -> Root:
    folder = tmp_path / "root"
    folder.mkdir()
    return Root(folder)


def lines(found: Found) -> list[str]:
    return [f"{m.path}:{m.line}:{m.column}:{m.text}" for m in found.matches]


# ---- which files ----


async def test_rules_of_the_listing(root: Root, ripgrep: str | None) -> None:
    """Hidden and ignored files, links, .git and names that cannot be shown are left out."""
    write_files(
        root.path,
        {
            ".gitignore": "*.log\nbuild/\n!.shown\n",
            "a.py": "",
            "a.log": "",
            ".hidden": "",
            ".shown": "",
            "build/x.py": "",
            "deep/.gitignore": "!kept.log\n/top.py\n",
            "deep/kept.log": "",
            "deep/top.py": "",
            "deep/down/top.py": "",
            "deep/down/.config/x": "",
            ".git/config": "",
            "sub/.git": "",
            "sub/.ignore": "b.py",
            "sub/b.py": "",
            "bad\nname": "",
        },
    )
    (root.path / "link.py").symlink_to("a.py")
    (root.path / "folder").symlink_to("deep")
    (root.path / os.fsdecode(b"\xff.py")).touch()

    async def listed(selection: Selection) -> list[str]:
        found = await list_files(root, selection, ripgrep=ripgrep)
        assert not found.cut
        return list(found.paths)

    plain = [".shown", "a.py", "deep/down/top.py", "deep/kept.log", "sub/b.py"]
    assert await listed(Selection()) == plain
    hidden = [".gitignore", ".hidden", "deep/.gitignore", "deep/down/.config/x", "sub/.ignore"]
    assert await listed(Selection(is_hidden_included=True)) == sorted([*plain, *hidden])
    ignored = ["a.log", "build/x.py", "deep/top.py"]
    assert await listed(Selection(is_ignored_included=True)) == sorted(
        {*plain, *ignored} - {".shown"}
    )


async def test_a_folder_inside_obeys_the_rules_above_it(root: Root, ripgrep: str | None) -> None:
    """Looking at a folder alone finds what looking at everything finds in it."""
    write_files(
        root.path, {".gitignore": "deep/*.log\n", "deep/a.log": "", "deep/b": "", "deeper": ""}
    )
    found = await list_files(root, Selection(path="deep/../deep/."), ripgrep=ripgrep)
    assert found.paths == ("deep/b",)
    named = await list_files(root, Selection(path="deep/a.log"), ripgrep=ripgrep)
    assert named.paths == ("deep/a.log",)  # a file that is named is meant


async def test_what_lies_above_the_root_does_not_count(tmp_path: Path, ripgrep: str | None) -> None:
    """A .gitignore outside the root changes nothing."""
    write_files(tmp_path, {".gitignore": "*\n", "root/a": ""})
    assert (await list_files(Root(tmp_path / "root"), Selection(), ripgrep=ripgrep)).paths == ("a",)


async def test_glob_counts_from_the_folder(root: Root, ripgrep: str | None) -> None:
    """A glob is seen from the folder that is searched; the limit says what it left out."""
    write_files(root.path, {"src/a.py": "", "src/x/b.py": "", "src/c.js": "", "d.py": ""})
    query = Selection(path="src", glob=Glob("/*.py"))
    assert (await glob(root, query, ripgrep=ripgrep)).paths == ("src/a.py",)
    found = await glob(root, Selection(glob=Glob("*.py")), limit=2, ripgrep=ripgrep)
    assert found.paths == ("d.py", "src/a.py")
    assert found.cut == "these are the first 2 of 3 files; narrow the glob"


async def test_no_path_leads_out(root: Root, ripgrep: str | None) -> None:
    """Neither dots nor an absolute path nor a link leaves the root."""
    other = root.path.parent / "other"
    write_files(other, {"secret": "password\n"})
    write_files(root.path, {"deep/a": "password\n"})
    (root.path / "link").symlink_to(other)
    for path in ("..", "../other", "/", "link", "link/secret", "deep/../../other"):
        query = GrepQuery(pattern="pass", selection=Selection(path=path))
        with pytest.raises(ValueError, match="leads out of the root; name one inside it"):
            await grep(root, query, ripgrep=ripgrep)
    found = await grep(root, GrepQuery(pattern="pass"), ripgrep=ripgrep)
    assert lines(found) == ["deep/a:1:1:password"]


async def test_a_path_that_is_none(root: Root) -> None:
    """What does not exist is FileNotFoundError, a null character or a circle ValueError."""
    (root.path / "circle").symlink_to("circle")
    with pytest.raises(FileNotFoundError, match="'nothing' does not exist"):
        await glob(root, Selection(path="nothing"))
    for path in ("a\0b", "circle", "x" * 5_000):
        with pytest.raises(ValueError, match="path"):
            await glob(root, Selection(path=path))


async def test_slow_walks_are_stopped(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """A walk that takes too long ends in time, with what it has found and a word about it."""
    write_files(root.path, {f"{number}/a": "" for number in range(5)})
    released = anyio.Event()
    real = Root.folder

    def slow(self: Root, relative: str) -> object:
        anyio.from_thread.run(released.wait)
        return real(self, relative)

    monkeypatch.setattr(Root, "folder", slow)
    monkeypatch.setattr(Root, "status", lambda _self, _path: root.path.stat())
    found = await list_files(root, Selection(timeout=0.05))
    assert found.cut == "listing the files was stopped after 0.05 s"
    released.set()


# ---- which lines ----


async def test_lines_and_columns(root: Root, ripgrep: str | None) -> None:
    """A match has its line, the column of its first byte, and the line as it is."""
    write_files(
        root.path,
        {
            "a.txt": "one two\r\nTWO\n\ntwo two",
            "b.txt": "é two\n",
            "c.bin": b"two\0\n",
            "latin.txt": b"\xe9 two\n",
        },
    )
    found = await grep(root, GrepQuery(pattern="two"), ripgrep=ripgrep)
    assert lines(found) == [
        "a.txt:1:5:one two",
        "a.txt:4:1:two two",
        "b.txt:1:4:é two",
        "latin.txt:1:3:\ufffd two",
    ]
    assert (found.engine, found.cut) == ("ripgrep" if ripgrep else "python", "")
    loose = await grep(root, GrepQuery(pattern="^TWO$", is_case_ignored=True), ripgrep=ripgrep)
    assert lines(loose) == ["a.txt:2:1:TWO"]


async def test_only_the_beginning_tells_what_is_binary(root: Root, ripgrep: str | None) -> None:
    """A null byte after the first 8 KiB does not hide what stands before and after it."""
    write_files(root.path, {"a": "x" * 9_000 + "\nneedle\n\0\nneedle\n"})
    found = await grep(root, GrepQuery(pattern="needle"), ripgrep=ripgrep)
    assert lines(found) == ["a:2:1:needle", "a:4:1:needle"]


async def test_literal_patterns(root: Root, ripgrep: str | None) -> None:
    """A literal is no regular expression, also when it looks like an option."""
    write_files(root.path, {"a": "--files (x*\nx\n"})
    for pattern in ("--files", "(x*"):
        query = GrepQuery(pattern=pattern, is_literal=True)
        assert len((await grep(root, query, ripgrep=ripgrep)).matches) == 1


async def test_long_lines_are_cut(root: Root, ripgrep: str | None) -> None:
    """A line of a megabyte is shown in part, and says so."""
    write_files(root.path, {"a": "é" * 500_000 + "\n" + "é" * 500 + "\n"})
    long, short = (await grep(root, GrepQuery(pattern="é"), ripgrep=ripgrep)).matches
    assert long.text == "é" * 500 + " [cut after 500 characters]"
    assert short.text == "é" * 500


async def test_the_first_matches_are_the_same_ones(root: Root, ripgrep: str | None) -> None:
    """A limit keeps the first matches in the order of path and line, and says so."""
    write_files(root.path, {f"{number:02}": "a\na\n" for number in range(20)})
    found = await grep(root, GrepQuery(pattern="a", limit=3), ripgrep=ripgrep)
    assert lines(found) == ["00:1:1:a", "00:2:1:a", "01:1:1:a"]
    assert found.cut == "these are the first 3 matches; narrow the search"
    everything = await grep(root, GrepQuery(pattern="a", limit=40), ripgrep=ripgrep)
    assert (len(everything.matches), everything.cut) == (40, "")


async def test_large_files_are_left_out(root: Root, ripgrep: str | None) -> None:
    """A file over the limit is not searched; one that is named and too large is told."""
    write_files(root.path, {"large": "a" * 100, "small": "a"})
    query = GrepQuery(pattern="a", selection=Selection(max_file_size=50))
    assert lines(await grep(root, query, ripgrep=ripgrep)) == ["small:1:1:a"]
    named = GrepQuery(pattern="a", selection=Selection(path="large", max_file_size=50))
    found = await grep(root, named, ripgrep=ripgrep)
    assert (found.matches, found.cut) == ((), "'large' is too large: 100 bytes")


async def test_both_engines_find_the_same(tmp_path: Path) -> None:
    """On random trees with random ignore files, ripgrep and Python list and match the same."""
    rg = ripgrep_or_skip()
    rnd = random.Random(6)
    names = ["a", "b", "a.py", "b.log", ".h", "é", "foo bar"]
    rules = ["*.py", "*.log", "/a", "a/", "**/b", "a/**", "!a", "!.h", "*", "!*/", "[ab]", "a/*"]
    rules += ["{a,b}.*", "b/**/a", "foo*", "?", "\\!a", "#a", "[a", "é"]
    texts: list[str | bytes] = [
        "a\n",
        "ab",
        "foo\r\nbar a\n",
        "\0",
        "é x\nab ab\n",
        "",
        b"\xe9\xff\n",
    ]
    atoms = ["a", "b", "é", ".", "*", "+?", "|", "(", ")", "(?:", "[^a]", "\\w", "\\b", "$", "^"]

    def grow(folder: Path, depth: int) -> None:
        for name in rnd.sample(names, rnd.randint(2, 4)):
            if depth < 3 and rnd.random() < 0.4:
                grow(folder / name, depth + 1)
            else:
                write_files(folder, {name: rnd.choice(texts)})
        if rnd.random() < 0.7:
            write_files(folder, {".gitignore": "\n".join(rnd.sample(rules, rnd.randint(1, 4)))})

    used = 0
    for number in range(4):
        grow(tmp_path / str(number), 0)
        root = Root(tmp_path / str(number))
        for is_hidden in (True, False):
            selection = Selection(is_hidden_included=is_hidden)
            assert await list_files(root, selection) == await list_files(
                root, selection, ripgrep=rg
            )
        pattern = ""
        while not is_portable(pattern):
            pattern = "".join(rnd.choices(atoms, k=rnd.randint(1, 5)))
        query = GrepQuery(pattern=pattern, is_case_ignored=rnd.random() < 0.3)
        here, there = await grep(root, query), await grep(root, query, ripgrep=rg)
        assert here.matches == there.matches, pattern
        used += there.engine == "ripgrep"
    assert used


# ---- what goes wrong ----


async def test_a_regular_expression_that_never_ends_is_stopped(root: Root) -> None:
    """It costs its time-out and nothing else, and no process stays."""
    write_files(root.path, {"a": "a" * 60 + "\n"})
    before = children() if sys.platform == "linux" else set()
    query = GrepQuery(pattern=CATASTROPHE, selection=Selection(timeout=0.3))
    with anyio.fail_after(20):
        found = await grep(root, query)
    assert (found.matches, found.cut) == ((), "the search was stopped after 0.3 s; narrow it")
    assert sys.platform != "linux" or children() <= before


async def test_cancelling_a_search_ends_its_process(root: Root) -> None:
    """A search that is cancelled leaves no process."""
    write_files(root.path, {"a": "a" * 60 + "\n"})
    before = children() if sys.platform == "linux" else set()
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(grep, root, GrepQuery(pattern=CATASTROPHE))
            await anyio.sleep(0.1)
            group.cancel_scope.cancel()
    assert sys.platform != "linux" or children() <= before


def test_a_search_whose_caller_is_gone_ends_itself(root: Root) -> None:
    """The process has a timer of the kernel's, whatever the pattern does."""
    write_files(root.path, {"a": "a" * 60 + "\n"})
    request = {
        "root": str(root.path),
        "files": ["a"],
        "pattern": CATASTROPHE,
        "is_literal": False,
        "is_case_ignored": False,
        "per_file": 1,
        "max_file_size": 100,
        "timeout": 0.2,
    }
    argv = [sys.executable, "-P", "-m", "orchestra.tools.scanner"]
    done = subprocess.run(argv, input=json.dumps(request), text=True, timeout=20, check=False)
    assert done.returncode == -signal.SIGALRM


@pytest.mark.parametrize("pattern", ["(", "[é]"])
async def test_a_pattern_that_is_none_is_refused(root: Root, pattern: str) -> None:
    """A broken pattern is a ValueError, also when there is no file."""
    with pytest.raises(ValueError, match=r"no regular expression: missing|beyond ASCII; write"):
        await grep(root, GrepQuery(pattern=pattern))


@pytest.mark.parametrize("pattern", ["", "a\nb", "a\0", "x" * 3_000])
def test_a_query_is_checked(pattern: str) -> None:
    """An empty, long or several-line pattern is refused before anything is done."""
    with pytest.raises(ValueError, match="the pattern"):
        GrepQuery(pattern=pattern)


async def test_the_workspace_cannot_bring_a_program(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a ripgrep nor a Python module that lies in the root is run."""
    write_files(root.path, {"bin/rg": "#!/bin/sh\n", "json.py": "raise SystemExit(9)", "a": "x\n"})
    (root.path / "bin/rg").chmod(0o755)
    for path in (str(root.path / "bin"), "bin", ""):
        monkeypatch.setenv("PATH", path)
        monkeypatch.chdir(root.path)
        assert find_ripgrep(root) is None
    query = GrepQuery(pattern="x", selection=Selection(path="a"))
    assert lines(await grep(root, query)) == ["a:1:1:x"]


async def test_a_ripgrep_that_refuses_is_replaced(root: Root, tmp_path: Path) -> None:
    """A ripgrep that does not know an option costs nothing: Python searches instead."""
    write_files(root.path, {"a": "x\n"})
    old = tmp_path / "rg"
    old.write_text(
        '#!/bin/sh\ncase "$*" in *--files*) printf "a\\0";; *) echo "no such option" >&2; exit 2;; esac'
    )
    old.chmod(0o755)
    found = await grep(root, GrepQuery(pattern="x"), ripgrep=str(old))
    assert (lines(found), found.engine) == (["a:1:1:x"], "python")


async def test_ripgrep_is_not_configured_from_outside(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A configuration file of the user's changes no result."""
    write_files(root.path, {"a": "x\n"})
    write_files(tmp_path, {"config": "--invert-match\n--heading\n"})
    monkeypatch.setenv("RIPGREP_CONFIG_PATH", str(tmp_path / "config"))
    found = await grep(root, GrepQuery(pattern="x"), ripgrep=ripgrep_or_skip())
    assert lines(found) == ["a:1:1:x"]
