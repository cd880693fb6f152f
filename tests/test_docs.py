from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from orchestra.opencode import MissionSettings
from orchestra.opencode.mission.file import parse_mission

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.rst", *sorted((ROOT / "docs").glob("*.rst"))]
BLOCK = re.compile(
    r"^\.\. code-block:: (\w+)\n((?:   :\w+:.*\n)*)\n((?:(?: {4}.*)?\n)+)", re.MULTILINE
)


def blocks(page: Path, language: str) -> list[str]:
    """The code of a page that is meant to run: all blocks of a language that are not sketches."""
    found = BLOCK.findall(page.read_text("utf-8"))
    return [
        dedent(code)
        for kind, options, code in found
        if kind == language and "sketch" not in options
    ]


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if blocks(page, "python")],
    ids=lambda page: page.stem,
)
def test_examples_run(page: Path, tmp_path: Path) -> None:
    """The Python of a page runs from top to bottom as one program, without a warning."""
    program = tmp_path / "program.py"
    program.write_text("\n\n".join(blocks(page, "python")), encoding="utf-8")
    workspace = tmp_path / "work"
    workspace.mkdir()
    done = subprocess.run(
        [sys.executable, "-W", "error", program],
        cwd=workspace,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    for expected in re.findall(r"# prints: (.*)", program.read_text("utf-8")):
        assert expected in done.stdout.splitlines()


def test_the_mission_file_on_its_page_is_one(tmp_path: Path) -> None:
    """The example of the mission file's page is read without a fault."""
    (tmp_path / "service").mkdir()
    (tmp_path / "missions").mkdir()
    for text in blocks(ROOT / "docs" / "mission-file.rst", "toml"):
        assert parse_mission(text, tmp_path / "missions" / "mission.toml").goal


def test_every_key_of_the_rules_is_documented() -> None:
    """The page of the mission file names each rule, with the default that the code has."""
    page = (ROOT / "docs" / "mission-file.rst").read_text("utf-8")
    defaults = MissionSettings()
    limits = {"max_rounds": defaults.loop.rounds, "max_iterations": defaults.loop.iterations}
    for key, limit in limits.items():
        assert re.search(rf"^``{key}`` \(.*default {limit}\)$", page, re.MULTILINE)
    for key in ("turn_timeout", "command_timeout", "retry_delay"):
        assert re.search(
            rf"^``{key}`` \(.*default {getattr(defaults, key):g}\)$", page, re.MULTILINE
        )
    assert f'``todo_file`` (text, default ``"{defaults.todo_file}"``)' in page
    assert "Defaults: 1, 10, 10, 10." in page
    assert list(defaults.limits.values()) == [1, 10, 10, 10]


def test_every_option_is_documented() -> None:
    """The page of the command line names each option that the command knows."""
    page = (ROOT / "docs" / "command-line.rst").read_text("utf-8")
    shown = subprocess.run(
        [Path(sys.executable).with_name("orchestra"), "run", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for option in set(re.findall(r"--[a-z-]+", shown)) - {"--help"}:
        assert re.search(rf"^``{option}\b", page, re.MULTILINE), option
