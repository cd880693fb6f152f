"""Asking whoever sits at the terminal: the object by itself, and whole runs in a pseudo-terminal."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TextIO

import anyio
import pytest

from orchestra.opencode.people.commands import answer_question
from orchestra.opencode.people.questions import PersonAnswer, PersonQuestion
from orchestra.opencode.people.terminal import TerminalPerson

if sys.platform == "win32":
    pytest.skip("needs pseudo-terminals", allow_module_level=True)

from terminals import Terminal

SCRIPT = Path(sys.executable).with_name("orchestra")
AGENTS = """
import json
from pathlib import Path
import anyio

def accept(turn):
    return json.dumps({"verdict": "accept", "reasons": []})

def work(turn):
    Path(turn.directory, "done.txt").write_text("done")
    return "done"

def plan(turn):
    name = "two" if "one is not enough" in turn.prompt else "one"
    return json.dumps({"tasks": [{"id": name, "title": f"Task {name}"}]})
"""
MISSION = """
goal = "do it"
workspace.directory = "work"
[agents]
commander.call = "agents.py:accept"
planner.call = "agents.py:plan"
worker.call = "agents.py:work"
reviewer.call = "agents.py:accept"
"""
ASKED = "[y/n"


@pytest.fixture
def mission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "agents.py").write_text(AGENTS, encoding="utf-8")
    (tmp_path / "work").mkdir()
    path = tmp_path / "mission.toml"
    path.write_text(MISSION, encoding="utf-8")
    return path


def outcome(mission: Path) -> tuple[str, str]:
    report = mission.parent / "work" / ".orchestra" / "report.json"
    found = json.loads(report.read_text("utf-8"))
    return found["outcome"], found["reason"]


def approve(mission: Path) -> None:
    """Answer from another process."""
    yes = PersonAnswer(is_approved=True)
    anyio.run(answer_question, mission.parent / "work", "last", None, yes)


def test_a_no_with_a_reason_then_a_yes(mission: Path) -> None:
    """The reason goes to the planner, a yes to the new plan starts it, and the end is told aloud."""
    programs = mission.parent / "bin"
    programs.mkdir()
    for name in ("notify-send", "osascript"):
        (programs / name).write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >"{mission.parent}/told"\n')
        (programs / name).chmod(0o700)
    path = {"PATH": os.pathsep.join([str(programs), os.environ["PATH"]])}
    words = ("run", mission, "--approve-plan", "--notify")
    with Terminal(SCRIPT, *words, environment=path) as terminal:
        terminal.shows("one: Task one")
        terminal.shows(ASKED)
        terminal.type("No, one is not enough\n")
        terminal.shows("two: Task two")
        terminal.shows(ASKED)
        assert not (mission.parent / "work" / "done.txt").exists()
        terminal.type("y\n")
        assert terminal.ends() == 0
        assert "\a" in terminal.text
    assert outcome(mission) == ("accepted", "the task was accepted")
    told = (mission.parent / "told").read_text("utf-8").splitlines()
    assert told[-2:] == ["mission accepted", "do it: the task was accepted"]
    records = mission.parent / "work" / ".orchestra" / "missions.db"
    assert records.stat().st_mode & 0o077 == 0
    assert (mission.parent / "work" / "done.txt").exists()


def test_ctrl_c_ends_it(mission: Path) -> None:
    """Exit code 130, a report that says who ended it, and nothing was started."""
    with Terminal(SCRIPT, "run", mission, "--approve-plan") as terminal:
        terminal.shows(ASKED)
        terminal.type("\x03")
        assert terminal.ends() == 130
        assert "mission interrupted: interrupted by SIGINT" in terminal.text
    assert outcome(mission) == ("interrupted", "interrupted by SIGINT")
    assert not (mission.parent / "work" / "done.txt").exists()


def test_ctrl_d_leaves_it_to_others_and_a_closed_window_ends_it(mission: Path) -> None:
    """Who ends the input is told how to answer from elsewhere; SIGHUP is a stop like Ctrl-C."""
    with Terminal(SCRIPT, "run", mission, "--approve-plan") as terminal:
        terminal.shows(ASKED)
        terminal.type("\x04")
        terminal.shows("no answer from here; answer with: orchestra approve mission_")
        terminal.shows(f"--dir {mission.parent / 'work'}")
        terminal.close()
        assert terminal.process.wait(60) == 130
    assert outcome(mission) == ("interrupted", "interrupted by SIGHUP")


def test_what_is_typed_is_not_read_in_the_background(mission: Path) -> None:
    """A mission behind ``&`` leaves the keyboard to the shell, and is not stopped by the system."""
    shell = (
        '"$0" run "$1" --approve-plan & read line; echo "shell: $line"; wait %1; echo "over: $?"'
    )
    with Terminal("/bin/bash", "-mc", shell, SCRIPT, mission) as terminal:
        terminal.shows(ASKED)
        terminal.type("y\n")
        terminal.shows("shell: y")
        assert not (mission.parent / "work" / "done.txt").exists()
        terminal.type("n\n")
        approve(mission)
        terminal.shows("over: 0")
        terminal.ends()


# --- the object by itself ---


@pytest.fixture
def screen() -> Iterator[tuple[int, TextIO]]:
    """Where somebody types, and where that is read."""
    master, slave = os.openpty()
    with os.fdopen(slave, encoding="utf-8") as source:
        yield master, source
    os.close(master)


def question(name: str) -> PersonQuestion:
    return PersonQuestion(id=name, mission="m", text="may I?")


@pytest.mark.parametrize(
    ("line", "is_approved", "note"),
    [
        ("y", True, ""),
        (" YES. ", True, ""),
        ("n", False, ""),
        ("no: too much, at once", False, "too much, at once"),
        ("N because", False, "because"),
    ],
)
async def test_how_people_answer(
    screen: tuple[int, TextIO], line: str, note: str, *, is_approved: bool
) -> None:
    """A yes stands alone, a no may say why; anything else is asked again."""
    keyboard, source = screen
    shown: list[str] = []

    def write(text: str) -> None:
        shown.append(text)
        if ASKED in text:
            os.write(keyboard, f"yes, but later\n\ny/n\nnobody\n{line}\n".encode())

    person = TerminalPerson(source, write, nullcontext, lambda _: "elsewhere")
    with anyio.fail_after(10):
        answer = await person(question("a"))
    assert isinstance(answer, PersonAnswer)
    assert (answer.is_approved, answer.note) == (is_approved, note)
    assert shown[2:] == ["please answer y alone, or n and why not"] * 4


async def test_an_answer_that_comes_late_answers_nothing_else(screen: tuple[int, TextIO]) -> None:
    """What was typed after a question had gone is not the answer to the next one."""
    keyboard, source = screen
    asked = anyio.Event()

    def write(text: str) -> None:
        if ASKED in text:
            asked.set()

    person = TerminalPerson(source, write, nullcontext, lambda _: "elsewhere")
    answers: list[PersonAnswer | None] = []

    async def ask() -> None:
        answers.append(await person(question("b")))

    with anyio.fail_after(10):
        with anyio.move_on_after(0.01):
            await person(question("a"))
        os.write(keyboard, b"y\n")
        asked = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await asked.wait()
            os.write(keyboard, b"n\n")
    assert [answer and answer.is_approved for answer in answers] == [False]
