"""TODO.md: the section is kept true, and what others wrote around it stays as it is."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from orchestra.opencode.mission.todo_file import place_section
from orchestra.opencode.mission.todo_text import TodoLine, TodoMark, wrap_section

FIRST = wrap_section(
    [TodoLine(text="# The goal"), TodoLine(text="a: Do it", mark=TodoMark.ACTIVE)], 1
)
SECOND = wrap_section(
    [TodoLine(text="# The goal"), TodoLine(text="a: Do it", mark=TodoMark.DONE)], 22
)
MARKER = "<!-- orchestra:end -->"

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX file modes")


def test_a_new_file_has_the_section_only(tmp_path: Path) -> None:
    """Without a TODO.md there is one afterwards."""
    place_section(tmp_path / "TODO.md", FIRST)
    assert (tmp_path / "TODO.md").read_text() == f"{FIRST}\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"", b""),
        (b"# My own\n\n- [ ] mine\n", b"\n## Later\n- more"),
        (b"windows\r\n", b"\r\nlines\r\n"),
        (b"\xff\xfe no UTF-8 \xc3\n", b"\n\xe4\x80"),
        (b"\xef\xbb\xbf with a mark\n", b"\r old \r lines"),
        (b"nothing \0 is lost\n", b""),
    ],
)
def test_what_others_wrote_stays(before: bytes, after: bytes, tmp_path: Path) -> None:
    """What stands around the section stays to the byte, however often it is rewritten."""
    path = tmp_path / "TODO.md"
    path.write_bytes(before + FIRST.encode() + after)
    for section in (SECOND, FIRST, SECOND):
        place_section(path, section)
    assert path.read_bytes() == before + SECOND.encode() + after


@pytest.mark.parametrize(
    "text",
    [
        "# My own\r\n",
        "no newline at the end",
        f"{MARKER}\nan end without a beginning\n",
        FIRST.splitlines()[0] + "\na beginning without an end\n",
    ],
)
def test_the_section_goes_before_what_was_there(text: str, tmp_path: Path) -> None:
    """A file without a whole section gets one, once, and keeps its text."""
    path = tmp_path / "TODO.md"
    path.write_bytes(text.encode())
    place_section(path, FIRST)
    place_section(path, SECOND)
    assert path.read_bytes().decode() == f"{SECOND}\n\n{text}"


@pytest.mark.parametrize("function", ["fsync", "replace", "chmod"])
def test_a_failing_write_changes_nothing(
    function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the disk is full the old file is whole, and no temporary one is left."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "TODO.md"
    path.write_text("mine")
    monkeypatch.setattr(os, function, fail)
    with pytest.raises(OSError, match="No space"):
        place_section(path, FIRST)
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]


@posix
@pytest.mark.parametrize("mode", [0o600, 0o664, 0o755])
def test_the_file_keeps_its_mode(mode: int, tmp_path: Path) -> None:
    """Who may read the file may read it afterwards, and nobody else."""
    path = tmp_path / "TODO.md"
    path.write_text("mine")
    path.chmod(mode)
    place_section(path, FIRST)
    assert stat.S_IMODE(path.stat().st_mode) == mode


@posix
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_new_file_obeys_the_mask(mask: int, tmp_path: Path) -> None:
    """A new file is as open as the user's mask lets new files be."""
    old = os.umask(mask)
    try:
        place_section(tmp_path / "TODO.md", FIRST)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "TODO.md").stat().st_mode) == 0o666 & ~mask


@posix
@pytest.mark.parametrize("is_dangling", [False, True])
def test_a_link_is_not_followed(is_dangling: bool, tmp_path: Path) -> None:  # noqa: FBT001
    """A link could lead out of the workspace: it is refused, and link and target stay."""
    target, workspace = tmp_path / "target", tmp_path / "workspace"
    workspace.mkdir()
    if not is_dangling:
        target.write_text("not ours")
    path = workspace / "TODO.md"
    path.symlink_to(target)
    with pytest.raises(OSError, match="no regular file"):
        place_section(path, FIRST)
    assert path.readlink() == target
    assert list(workspace.iterdir()) == [path]
    assert is_dangling or target.read_text() == "not ours"


@posix
def test_what_would_block_is_refused(tmp_path: Path) -> None:
    """A pipe that nobody writes to does not hold the mission up; a directory is no file."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "directory").mkdir()
    for name in ("pipe", "directory"):
        with pytest.raises(OSError, match="no regular file"):
            place_section(tmp_path / name, FIRST)


def test_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    """Directories are not made up."""
    with pytest.raises(FileNotFoundError):
        place_section(tmp_path / "docs" / "TODO.md", FIRST)
