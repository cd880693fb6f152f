from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from orchestra.opencode.client.locate import KNOWN_VERSION

ROOT = Path(__file__).parents[1]


@pytest.fixture(name="dev")
def load_dev(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script as a module, with an empty PATH and an empty folder for OpenCode."""
    spec = importlib.util.spec_from_file_location("dev", ROOT / "dev.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("ORCHESTRA_OPENCODE", raising=False)
    monkeypatch.setattr(module, "OPENCODE_HOME", tmp_path / ".opencode-cli")
    return module


def program(path: Path, script: str) -> Path:
    """A shell script in place of a program."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_pins_agree(dev: ModuleType) -> None:
    """The OpenCode that is installed is the one that the package is tested with."""
    assert dev.OPENCODE == KNOWN_VERSION


def test_groups_are_read_from_the_project(dev: ModuleType) -> None:
    """The requirements are the package with its extra and every group, included ones too."""
    requirements, pins = dev.read_requirements("all", ["dev"])
    assert requirements[0] == ".[all]"
    assert "nox" in requirements
    assert any(requirement.startswith("pytest") for requirement in requirements)
    assert pins == dev.read_requirements("cli", [])[1]


def test_unknown_group_is_refused(dev: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """A group that does not exist is one sentence and exit code 2."""
    assert dev.main(["install", "nonsense"]) == 2
    assert "no group 'nonsense'" in capsys.readouterr().err


def test_old_python_is_told_so(
    dev: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An older Python gets one sentence and exit code 2."""
    monkeypatch.setattr(sys, "version_info", (3, 10, 4, "final", 0))
    assert dev.main(["demo"]) == 2
    assert capsys.readouterr().err == (
        "dev.py: this is Python 3.10.4; run dev.py with Python 3.11 or newer\n"
    )


def test_missing_venv_module_is_told_so(
    dev: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """When the environment cannot be made, nothing of it stays, and one sentence says why."""
    half = 'mkdir -p "$3"; echo "No module named venv" >&2; exit 1'
    monkeypatch.setattr(sys, "executable", str(program(tmp_path / "python", f"PATH=/bin; {half}")))
    assert dev.main(["--venv", str(tmp_path / "venv"), "demo"]) == 2
    error = capsys.readouterr().err
    assert "No module named venv" in error
    assert "install the venv module" in error
    assert not (tmp_path / "venv").exists()


def test_interrupted_setup_leaves_nothing_half_made(
    dev: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """Ctrl-C while the environment is made is one sentence and exit code 130."""

    def interrupted(command: list[str]) -> int:
        Path(command[-1]).mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(dev, "quietly", interrupted)
    assert dev.main(["--venv", str(tmp_path / "venv"), "demo"]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not (tmp_path / "venv").exists()


def test_environment_is_installed_once(dev: ModuleType, tmp_path: Path) -> None:
    """Pip runs again only for what is not there yet, or when the pins changed."""
    log = tmp_path / "log"
    program(tmp_path / "venv/bin/python", f'echo "$@" >> {log}')

    def installs() -> int:
        return len(log.read_text().splitlines())

    dev.prepare(tmp_path / "venv", extra="all")
    dev.prepare(tmp_path / "venv", extra="all")
    assert installs() == 1
    dev.prepare(tmp_path / "venv", extra="all", groups=["tests"])
    dev.prepare(tmp_path / "venv", extra="all")
    assert installs() == 2
    stamp = tmp_path / "venv/.dev-stamp.json"
    stamp.write_text(stamp.read_text().replace('"pins": "', '"pins": "other'))
    dev.prepare(tmp_path / "venv", extra="all")
    assert installs() == 3


def test_demo_runs_the_mission_with_its_own_python(
    dev: ModuleType, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The demo runs the example with more arguments, and python3 is that of the environment."""
    program(tmp_path / "venv/bin/python", "exit 0")
    program(tmp_path / "venv/bin/python3", 'echo "own python3"')
    program(tmp_path / "venv/bin/orchestra", 'echo "$@"; python3; exit 1')
    assert dev.main(["--venv", str(tmp_path / "venv"), "demo", "--json"]) == 1
    assert capfd.readouterr().out.splitlines()[-2:] == [f"run {dev.DEMO} --json", "own python3"]
    assert (ROOT / dev.DEMO).is_file()


def test_failed_install_is_tried_again(
    dev: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A failure of pip shows pip's last lines and one sentence, and is not taken for done."""
    program(tmp_path / "venv/bin/python", 'echo "Could not resolve host"; exit 1')
    for _ in range(2):
        assert dev.main(["--venv", str(tmp_path / "venv"), "demo"]) == 2
        error = capsys.readouterr().err
        assert "Could not resolve host" in error
        assert "check the network" in error


def test_without_node_the_tests_run_and_say_what_is_skipped(
    dev: ModuleType, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Without node pytest runs, and the reason stands before and after its output."""
    program(tmp_path / "venv/bin/python", 'echo "pytest: $@"; exit 5')
    assert dev.run_tests(tmp_path / "venv/bin", ["-x"]) == 5
    before, pytest_line, after = capfd.readouterr().out.splitlines()
    assert pytest_line == "pytest: -m pytest -x"
    assert "needs node and npm" in before
    assert "skipped above" in after


def test_in_ci_nothing_is_skipped(dev: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """In CI a missing OpenCode is a failure, before any test runs."""
    monkeypatch.setenv("CI", "true")
    with pytest.raises(dev.SetupError, match="never skipped"):
        dev.run_tests(Path("/nowhere"), [])


def test_opencode_is_reused(
    dev: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An installed OpenCode of the right version needs no npm; an older one does."""
    installed = tmp_path / ".opencode-cli/node_modules/.bin/opencode"
    program(installed, f"echo {dev.OPENCODE}")
    assert dev.install_opencode() == ""
    program(installed, "echo 1.0.0")
    assert "needs node and npm" in dev.install_opencode()
    monkeypatch.setenv("ORCHESTRA_OPENCODE", "/some/opencode")
    assert dev.install_opencode() == ""


def test_failing_npm_is_told_so(
    dev: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """When npm fails its words are shown, and the reason says what to check."""
    program(tmp_path / "bin/npm", 'echo "npm error network"; exit 1')
    program(tmp_path / "bin/node", "exit 0")
    assert "check the network" in dev.install_opencode()
    assert "npm error network" in capsys.readouterr().err
