"""Errors that a change has brought, as language servers tell them."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from orchestra.errors import ConfigurationError
from orchestra.opencode.mission.diagnostics import Diagnostics, find_program

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the tools are POSIX")

RUFF = str(Path(sys.executable).with_name("ruff"))


@asynccontextmanager
async def asking(
    workspace: Path, *argv: str, warnings: list[str] | None = None
) -> AsyncIterator[Diagnostics]:
    """Have diagnostics of .py files, for a bounded time; warnings fail unless they are taken."""
    told: list[str] = []
    with anyio.fail_after(30):
        async with Diagnostics(
            {".py": argv or (RUFF, "server")}, workspace=workspace, warn=told.append
        ) as diagnostics:
            yield diagnostics
    if warnings is None:
        assert not told
    else:
        warnings += told


async def test_only_new_errors_are_told(tmp_path: Path) -> None:
    """An error that the file had before is known by what it says, wherever it has moved to."""
    (tmp_path / "a.py").write_text("import os\n\n\nold()\nold()\nnew()\n")
    async with asking(tmp_path) as diagnostics:
        assert diagnostics.covers("x/A.PY")
        assert not diagnostics.covers("a.pyx")
        found = await diagnostics.new_errors(tmp_path, "a.py", b"old()\n")
        assert [(each.path, each.line) for each in found] == [("a.py", 5), ("a.py", 6)]
        assert all("new error from Ruff F821" in each.message for each in found)
        assert len(await diagnostics.new_errors(tmp_path, "a.py", None)) == 3
        assert await diagnostics.new_errors(tmp_path, "a.py", b"old(old(new()))\n") == []
        assert repr(diagnostics) == "<Diagnostics .py servers=1>"


async def test_each_folder_has_its_server_and_few_are_kept(tmp_path: Path) -> None:
    """A copy of the workspace is asked about in its own folder; idle servers beyond four end."""
    async with asking(tmp_path) as diagnostics:

        async def ask(name: str) -> None:
            folder = tmp_path / name
            folder.mkdir()
            (folder / "a.py").write_text(f"{name}()\n")
            (found,) = await diagnostics.new_errors(folder, "a.py", None)
            assert f"`{name}`" in found.message

        async with anyio.create_task_group() as group:
            for name in "abcdef":
                group.start_soon(ask, name)
        assert repr(diagnostics) == "<Diagnostics .py servers=4>"


async def test_a_server_that_is_ill_refuses_nothing(tmp_path: Path) -> None:
    """One that ends at once is tried again, once, and told as a warning."""
    (tmp_path / "a.py").write_text("wrong()\n")
    warnings: list[str] = []
    async with asking(tmp_path, sys.executable, "-c", "", warnings=warnings) as diagnostics:
        assert await diagnostics.new_errors(tmp_path, "a.py", None) == []
    (warning,) = warnings
    assert warning.startswith("a.py: its diagnostics are not known: ")


async def test_a_file_that_is_no_text_refuses_nothing(tmp_path: Path) -> None:
    """What the server cannot be told is a warning."""
    (tmp_path / "a.py").write_bytes(b"\xff\xfe")
    warnings: list[str] = []
    async with asking(tmp_path, warnings=warnings) as diagnostics:
        assert await diagnostics.new_errors(tmp_path, "a.py", None) == []
    assert len(warnings) == 1


async def test_a_program_of_the_workspace_is_none(tmp_path: Path) -> None:
    """An agent cannot put a server where it is found: the mission does not begin with one."""
    tool = tmp_path / "bin" / "ruff"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\ntouch ran\n")
    tool.chmod(0o755)
    inside, outside = str(tool.parent), str(Path(RUFF).parent)
    assert find_program("ruff", tmp_path, os.pathsep.join([inside, "", ".", outside])) == RUFF
    assert find_program("ruff", tmp_path, inside) is None
    assert find_program(str(tool), tmp_path) is None
    assert find_program("bin/ruff", tmp_path, outside) is None
    link = tmp_path.parent / f"{tmp_path.name}-bin"
    link.mkdir()
    (link / "ruff").symlink_to(tool)
    assert find_program("ruff", tmp_path, str(link)) is None
    with pytest.raises(ConfigurationError, match="no program"):
        async with asking(tmp_path, str(tool)):
            pass
    assert not (tmp_path / "ran").exists()
