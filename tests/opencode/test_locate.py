from __future__ import annotations

from pathlib import Path

import pytest

from orchestra.errors import ConfigurationError
from orchestra.opencode.client import locate
from orchestra.opencode.client.locate import LOCAL_EXECUTABLE, check_version, locate_opencode


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_the_current_directory_is_not_obeyed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repository that is worked on cannot bring the program that works on it."""
    program(tmp_path / LOCAL_EXECUTABLE)
    program(tmp_path / "opencode")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(locate, "CHECKOUT", tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError, match="npm install --global"):
        locate_opencode(environment={"PATH": str(tmp_path / "empty")})


def test_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The argument wins over the variable, the variable over the checkout, that over the path."""
    monkeypatch.setattr(locate, "CHECKOUT", tmp_path)
    on_path = program(tmp_path / "bin" / "opencode")
    environment = {"PATH": str(on_path.parent)}
    assert locate_opencode(environment=environment) == on_path
    ours = program(tmp_path / LOCAL_EXECUTABLE)
    assert locate_opencode(environment=environment) == ours
    named = program(tmp_path / "named")
    environment["ORCHESTRA_OPENCODE"] = str(named)
    assert locate_opencode(environment=environment) == named
    given = program(tmp_path / "given")
    assert locate_opencode(given, environment=environment) == given


def test_named_program_that_is_missing(tmp_path: Path) -> None:
    """A program that was named and is not there is an error, not a reason to look elsewhere."""
    with pytest.raises(ConfigurationError, match="is not a program"):
        locate_opencode(tmp_path / "missing")


def test_version_is_compared() -> None:
    """Only the tested version passes without a word."""
    assert check_version("1.18.33") == ""
    assert "9.9.9 is not 1.18.33" in check_version("9.9.9")
