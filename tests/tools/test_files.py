"""The root that cannot be left, files that are replaced as a whole, and statistics."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import anyio
import pytest
from text_tools import write_files

from orchestra._core.globs import Glob
from orchestra.tools.files import SuffixStatistics, file_statistics
from orchestra.tools.listing import Selection
from orchestra.tools.root import Root

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the tools are POSIX")


def test_a_root_is_a_folder(tmp_path: Path) -> None:
    """A file or nothing at all is no root."""
    write_files(tmp_path, {"a": ""})
    for path in (tmp_path / "a", tmp_path / "nothing"):
        with pytest.raises(NotADirectoryError, match="is no folder; name the one to work in"):
            Root(path)
    assert repr(Root(tmp_path)) == f"Root({str(tmp_path)!r})"


def test_links_are_resolved_only_inside(tmp_path: Path) -> None:
    """A link that stays inside is followed when a path is named; an absolute path may be given."""
    root = Root(tmp_path)
    write_files(tmp_path, {"deep/a": ""})
    (tmp_path / "link").symlink_to("deep")
    assert root.resolve("link/a") == "deep/a"
    assert root.resolve(str(tmp_path / "deep")) == "deep"
    assert root.resolve(".") == root.resolve("") == root.resolve("deep/..") == ""


def test_a_link_put_in_after_the_check_leads_nowhere(tmp_path: Path) -> None:
    """What is opened is opened without following any link, in whatever place of the path."""
    write_files(tmp_path, {"out/secret": "x", "root/a": ""})
    root = Root(tmp_path / "root")
    (root.path / "folder").symlink_to(tmp_path / "out")
    (root.path / "secret").symlink_to(tmp_path / "out/secret")
    for path in ("folder/secret", "secret"):
        with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
            root.read(path, limit=10)
        with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
            root.replace(path, b"y", expected=b"x")
    assert (tmp_path / "out/secret").read_text() == "x"


def test_only_regular_files_of_bounded_size_are_read(tmp_path: Path) -> None:
    """A named pipe does not block, and a file over the limit is not read."""
    root = Root(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    write_files(tmp_path, {"a": "12345"})
    assert root.read("pipe", limit=10) is None
    assert root.read("a", limit=4) is None
    assert root.read("a", limit=5) == b"12345"


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    """The mode stays, the old contents stay readable for who has them open, nothing else is left."""
    root = Root(tmp_path)
    write_files(tmp_path, {"deep/a": "old"})
    (tmp_path / "deep/a").chmod(0o750)
    with (tmp_path / "deep/a").open() as reader:
        assert root.replace("deep/a", b"new", expected=b"old")
        assert reader.read() == "old"
    assert (tmp_path / "deep/a").read_text() == "new"
    assert stat.S_IMODE((tmp_path / "deep/a").stat().st_mode) == 0o750
    assert os.listdir(tmp_path / "deep") == ["a"]  # noqa: PTH208


def test_a_file_that_has_changed_is_left_alone(tmp_path: Path) -> None:
    """Somebody else's change is not overwritten."""
    root = Root(tmp_path)
    write_files(tmp_path, {"a": "theirs"})
    assert not root.replace("a", b"ours", expected=b"old")
    assert (tmp_path / "a").read_text() == "theirs"


def test_a_replacement_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the disk refuses, the file is as it was and there is no temporary one."""
    root = Root(tmp_path)
    write_files(tmp_path, {"a": "old"})

    def refuse(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space"):
        root.replace("a", b"new", expected=b"old")
    assert os.listdir(tmp_path) == ["a"]  # noqa: PTH208
    assert (tmp_path / "a").read_text() == "old"


async def test_statistics(tmp_path: Path) -> None:
    """Files, bytes and lines are counted, in all and by suffix; binary ones have no lines."""
    write_files(
        tmp_path,
        {"a.py": "1\n2\n", "b.PY": "1\n2", "c": "", "d.bin": b"\n\0\n", "e.tar.gz": "x", ".f": ""},
    )
    found = await file_statistics(Root(tmp_path), Selection())
    assert (found.files, found.size, found.lines, found.binary_files) == (5, 11, 5, 1)
    assert found.suffixes[0] == SuffixStatistics(suffix=".py", files=2, size=7, lines=4)
    assert {one.suffix for one in found.suffixes} == {".py", ".bin", ".gz", ""}
    assert found.largest[0] == ("a.py", 4)
    assert found.cut == ""


async def test_statistics_of_a_selection(tmp_path: Path) -> None:
    """A file or a glob narrows what is counted."""
    write_files(tmp_path, {"deep/a.py": "1\n", "b.py": "1\n2\n", "c.js": "1\n"})
    root = Root(tmp_path)
    assert (await file_statistics(root, Selection(path="deep/a.py"))).lines == 1
    assert (await file_statistics(root, Selection(glob=Glob("*.py")))).lines == 3


async def test_counting_is_stopped_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was counted until then is told, and the thread ends at the next file."""
    write_files(tmp_path, {str(number): "x" for number in range(5)})
    release, reads, real = threading.Event(), [0], Root.read

    def slow(self: Root, relative: str, *, limit: int) -> bytes | None:
        reads[0] += 1
        if reads[0] == 3:
            release.wait(20)
        return real(self, relative, limit=limit)

    monkeypatch.setattr(Root, "read", slow)
    found = await file_statistics(Root(tmp_path), Selection(timeout=0.2))
    assert (found.files, found.cut) == (2, "counting was stopped after 0.2 s; narrow it")
    release.set()
    await anyio.sleep(0.05)
    assert reads[0] == 3
