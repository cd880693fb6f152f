"""Acceptance commands: what is permitted, what they get, and what is told of them."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import anyio
import pytest
from tool_processes import is_running, until

from orchestra.opencode.mission.acceptance import command_environment, run_acceptance
from orchestra.opencode.mission.plan import MissionSettings
from orchestra.opencode.mission.report import CommandResult

ANYTHING = MissionSettings(allow=(("*",),))


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


async def run(*argv: str, directory: Path, settings: MissionSettings = ANYTHING) -> CommandResult:
    with anyio.fail_after(20):
        return await run_acceptance(argv, directory=directory, settings=settings)


async def test_exit_code_and_output(tmp_path: Path) -> None:
    """A command that ran has its exit code, and both of its outputs in order."""
    result = await run("sh", "-c", "echo out; echo err >&2; exit 3", directory=tmp_path)
    assert (result.exit_code, result.output) == (3, "out\nerr\n")
    assert result.is_failed
    assert not result.refusal
    assert not result.error
    assert result.elapsed > 0
    assert not (await run("true", directory=tmp_path)).is_failed


async def test_there_is_no_shell(tmp_path: Path) -> None:
    """What a shell would take for orders stays text."""
    result = await run("echo", "$HOME", "*", "`id`", "; touch x", directory=tmp_path)
    assert result.output == "$HOME * `id` ; touch x\n"
    assert names(tmp_path) == []


async def test_it_runs_in_the_workspace(tmp_path: Path) -> None:
    """The working directory is the workspace, and a program in it can be named from there."""
    script = tmp_path / "check"
    script.write_text("#!/bin/sh\npwd\n")
    script.chmod(0o755)
    result = await run("./check", directory=tmp_path)
    assert result.output == f"{tmp_path}\n"


async def test_it_has_no_input(tmp_path: Path) -> None:
    """A command that asks for input finds its end."""
    code = "import sys; print(repr(sys.stdin.read()), sys.stdin.isatty())"
    result = await run(*python(code), directory=tmp_path)
    assert result.output == "'' False\n"


async def test_it_has_a_deadline(tmp_path: Path) -> None:
    """A command that takes too long is stopped; what it printed until then is kept."""
    script = "echo so far; touch ready; exec sleep 1000"
    seconds = 0.3
    while True:  # where it takes longer to come so far, it is given more
        settings = MissionSettings(allow=(("sh", "*"),), command_timeout=seconds)
        result = await run("sh", "-c", script, directory=tmp_path, settings=settings)
        if (tmp_path / "ready").exists():
            break
        seconds *= 5.0
    assert result.exit_code is None
    assert result.error == f"was stopped after {seconds:g} s"
    assert result.output == "so far\n"
    assert result.is_failed


async def test_its_output_is_bounded(tmp_path: Path) -> None:
    """Of a long output the end is kept."""
    code = "print('x' * 1_000_000, end='the end')"
    result = await run(*python(code), directory=tmp_path)
    assert len(result.output) == 65_536
    assert result.output.endswith("xthe end")


async def test_its_output_may_be_anything(tmp_path: Path) -> None:
    """Bytes that are no text are replaced."""
    result = await run("printf", r"\377\376ok", directory=tmp_path)
    assert result.output == "\N{REPLACEMENT CHARACTER}" * 2 + "ok"


async def test_it_does_not_see_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables that are named like secrets are not in its environment, others are."""
    secrets = ("MY_API_KEY", "github_token", "DB_PASSWORD", "MyPasswd", "A_SECRET", "CREDENTIALS")
    for name in secrets:
        monkeypatch.setenv(name, "hush-hush")
    monkeypatch.setenv("HARMLESS", "seen")
    result = await run("env", directory=tmp_path)
    assert "hush-hush" not in result.output
    assert "HARMLESS=seen\n" in result.output
    assert f"PATH={os.environ['PATH']}\n" in result.output


def test_the_environment_is_not_changed() -> None:
    """Leaving secrets out makes a new mapping."""
    environment = {"A": "1", "A_TOKEN": "2"}
    assert command_environment(environment) == {"A": "1"}
    assert environment == {"A": "1", "A_TOKEN": "2"}


@pytest.mark.parametrize(
    "settings",
    [
        MissionSettings(),
        MissionSettings(allow=(("touch", "allowed"),)),
        MissionSettings(allow=(("touch",),)),
        MissionSettings(allow=(("other", "*"), ())),
        MissionSettings(acceptance=(("touch",), ("touch", "*"))),
    ],
)
async def test_what_is_not_permitted_is_refused(settings: MissionSettings, tmp_path: Path) -> None:
    """A command off the allow list is not started, and the result says why."""
    result = await run("touch", "made", directory=tmp_path, settings=settings)
    assert result.refusal == "it is not on the mission's allow list"
    assert result.exit_code is None
    assert not result.is_failed
    assert names(tmp_path) == []


async def test_what_the_settings_name_is_permitted(tmp_path: Path) -> None:
    """The mission's own acceptance commands need no second mention in the allow list."""
    settings = MissionSettings(acceptance=(("touch", "made"),))
    result = await run("touch", "made", directory=tmp_path, settings=settings)
    assert result.exit_code == 0
    assert names(tmp_path) == ["made"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("no-such-program-anywhere",), "No such file"),
        (("/",), "Permission denied"),
        (("echo", "a\0b"), "null byte"),
        (("echo", "\ud800"), "surrogates"),
        ((), "empty"),
    ],
)
async def test_what_cannot_start_says_so(argv: tuple[str, ...], words: str, tmp_path: Path) -> None:
    """A command that cannot be started has failed, with the reason, and raises nothing."""
    result = await run(*argv, directory=tmp_path)
    assert result.is_failed
    assert result.error.startswith("could not start: ")
    assert words in result.error


async def test_its_children_are_ended(tmp_path: Path) -> None:
    """A server that it left in the background does not outlive it."""
    result = await run("sh", "-c", "sleep 1000 & echo $!", directory=tmp_path)
    assert result.exit_code == 0
    pid = int(result.output)
    await until(lambda: not is_running(pid))


async def test_a_killed_command_has_failed(tmp_path: Path) -> None:
    """A command that a signal ended has failed."""
    result = await run("sh", "-c", "kill -KILL $$", directory=tmp_path)
    assert result.exit_code == -signal.SIGKILL
    assert result.is_failed
