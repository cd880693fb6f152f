"""``orchestra approve`` and ``orchestra cancel`` from another process, against a mission that runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import anyio
import pytest
from talking import rest_of

from orchestra import EmbeddedBackend, SQLiteStore
from orchestra.opencode.mission import ownership
from orchestra.opencode.mission.plan import MissionSettings, Plan, TaskSpec
from orchestra.opencode.mission.runner import Mission
from orchestra.opencode.mission.saved import SavedMission
from orchestra.opencode.notes import JobOptions, recall, take_notes
from orchestra.opencode.people.cancelling import Quiescence, write_quiet
from orchestra.opencode.people.ending import cancel_mission
from orchestra.opencode.reaper import can_find

SCRIPT = Path(sys.executable).with_name("orchestra")
LIMIT = 120.0
PLAN = Plan((TaskSpec(id="a", title="Do a"),))
ACCEPT = '{"verdict": "accept"}'

AGENTS = """
import json
from pathlib import Path
import anyio

def accept(turn):
    return json.dumps({"verdict": "accept", "reasons": []})

def work(turn):
    Path(turn.directory, "done.txt").write_text("done")
    return "done"

async def hang(turn):
    await turn.text("hanging")
    Path(turn.directory, "hangs").touch()
    await anyio.sleep_forever()

async def ask(turn):
    reply = await turn.ask_permission("bash", "ls")
    Path(turn.directory, "reply.txt").write_text(f"{reply.is_allowed} {reply.message}")
    return "done"
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with agents beside it, and a folder for logs that is not the user's."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "agents.py").write_text(AGENTS, encoding="utf-8")
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def mission_file(work: Path, worker: str = "work", more: str = "") -> Path:
    path = work.parent / "mission.toml"
    path.write_text(
        f"""
goal = "do it"
workspace.directory = "work"
{more}
[[tasks]]
id = "t1"
title = "One"
[agents.worker]
call = "agents.py:{worker}"
[agents.reviewer]
call = "agents.py:accept"
""",
        encoding="utf-8",
    )
    return path


def run(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [SCRIPT, *arguments], capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.returncode == code, (done.stdout, done.stderr)
    return done


def start(arguments: Sequence[str | Path]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [SCRIPT, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(is_true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + LIMIT
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def reads(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    wait_until(lambda: text in process.stdout.readline())  # type: ignore[union-attr]


def test_approve_from_another_process(work: Path) -> None:
    """Nothing starts before ``orchestra approve``; the event log and the readable log tell it."""
    events = work.parent / "events.jsonl"
    process = start(["run", mission_file(work), "--approve-plan", "--event-log", events])
    reads(process, "answer with: orchestra approve")
    assert not (work / "done.txt").exists()
    shown = run("approve", "--dir", work, "--show").stdout
    assert "t1: One" in shown
    done = json.loads(run("approve", "--dir", work, "--json").stdout)
    assert done["is_approved"] is True
    stdout, stderr = rest_of(process, LIMIT)
    assert process.returncode == 0, stderr
    assert "accepted" in stdout
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    assert [line["n"] for line in lines] == list(range(1, len(lines) + 1))
    assert [lines[0]["kind"], lines[-1]["kind"]] == ["MissionStarted", "MissionFinished"]
    (log,) = (work.parent / "state" / "orchestra" / "log").iterdir()
    assert "t1 accepted" in log.read_text()
    again = run("approve", "--dir", work, code=2).stderr
    assert "has approved plan-1-" in again
    assert "already; the mission has ended as accepted" in again


def test_reject_with_a_note(work: Path) -> None:
    """A no ends a mission with a given plan: exit code 130, and the note is its reason."""
    process = start(["run", mission_file(work), "--approve-plan"])
    reads(process, "answer with: orchestra approve")
    run("approve", "--dir", work, "--reject", "--note", "not on a Friday")
    stdout, _ = rest_of(process, LIMIT)
    assert process.returncode == 130
    assert "the plan was not approved: not on a Friday" in stdout


def test_a_permission_is_answered_from_another_process(work: Path) -> None:
    """With ``ask`` in the mission file, somebody elsewhere may allow what an agent wants."""
    path = mission_file(work, "ask", 'permissions.worker = {bash = "ask"}')
    process = start(["run", path])
    reads(process, "worker t1 wants to: bash ls")
    asked = json.loads(run("approve", "--dir", work, "--show", "--json").stdout)["questions"]
    (question,) = asked
    run("approve", "--dir", work, "--question", question)
    rest_of(process, LIMIT)
    assert process.returncode == 0
    assert (work / "reply.txt").read_text() == "True "


def test_cancel_from_another_process(work: Path) -> None:
    """It returns when every session is idle, with exit code 0; the mission ends as interrupted."""
    process = start(["run", mission_file(work, "hang")])
    reads(process, "t1 working")
    told = json.loads(run("cancel", "--dir", work, "--json").stdout)
    assert (told["state"], told["is_quiet"], told["sessions"]) == ("interrupted", True, 1)
    stdout, _ = rest_of(process, LIMIT)
    assert process.returncode == 130
    assert "cancelled by" in stdout
    assert "interrupted: 1 session, all idle" in run("cancel", "--dir", work).stdout
    assert "interrupted" in run("history", "--dir", work).stdout


def test_an_owner_that_does_not_answer_is_not_taken_for_gone(work: Path) -> None:
    """As long as its process is there it is waited for, and named; then it ends by itself."""
    process = start(["run", mission_file(work, "hang")])
    wait_until((work / "hangs").exists)  # nothing is written then that a stop could hold up
    os.kill(process.pid, signal.SIGSTOP)
    try:
        outcome = anyio.run(cancel_mission, work, "last", None, 0.2)
    finally:
        os.kill(process.pid, signal.SIGCONT)
    assert (outcome.state, outcome.quiescence) == ("running", None)
    assert outcome.note.startswith(f"process {process.pid} on ")
    assert anyio.run(cancel_mission, work, "last").is_quiet
    rest_of(process, LIMIT)
    assert process.returncode == 130


def test_cancel_when_the_owner_was_killed(work: Path) -> None:
    """Whoever cancels then ends what it has left on this machine, or says that it cannot look."""
    path = mission_file(work)
    program = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(600)"
    command = f"command = {json.dumps([sys.executable, '-c', program])}"
    path.write_text(path.read_text().replace('call = "agents.py:work"', command))
    process = start(["run", path])
    reads(process, "t1 working")
    wait_until(lambda: (work / "pid").exists() and (work / "pid").read_text())
    child = int((work / "pid").read_text())
    os.kill(process.pid, signal.SIGKILL)
    rest_of(process, LIMIT)
    os.kill(child, 0)

    anyio.run(change_owner, work.resolve(), "another machine")
    outcome = anyio.run(cancel_mission, work, "last", None, 0.2)
    assert (outcome.state, outcome.quiescence) == ("running", None)
    assert "ask again there" in outcome.note
    os.kill(child, 0)

    anyio.run(change_owner, work.resolve(), "")
    outcome = anyio.run(cancel_mission, work, "last")
    assert (outcome.state, outcome.is_quiet) == ("interrupted", can_find())
    with pytest.raises(ProcessLookupError) if can_find() else nullcontext():
        wait_until(lambda: os.kill(child, 0))
    assert "interrupted" in run("history", "--dir", work).stdout


async def change_owner(work: Path, machine: str) -> None:
    """Have the records say on which machine the mission ran; empty: on this one, and it is gone."""
    async with SQLiteStore(work / ".orchestra" / "missions.db") as store:
        space = ownership._namespace(store, work)
        owner = {**await space.get("current"), "machine": machine or ownership._machine()}
        await space.put("current", owner)


async def test_what_was_not_found_idle_is_looked_at_again(work: Path) -> None:
    """A mission that has ended, with sessions that were not known to be idle, is asked about anew."""
    path = work / ".orchestra" / "missions.db"
    path.parent.mkdir()
    settings = MissionSettings(todo_file=None, has_evidence=False)
    backend = EmbeddedBackend({"worker": lambda _: "done", "reviewer": lambda _: ACCEPT})
    async with SQLiteStore(path) as store:
        async with Mission(
            "g", backend=backend, directory=work, plan=PLAN, settings=settings, store=store
        ) as mission:
            await mission.wait_finished()
        busy = Quiescence(sessions=1, busy=("s1",), why="the server did not answer")
        await write_quiet(store.namespace(mission.id), busy)
        outcome = await cancel_mission(work, "last", wait=0.1)
        assert (outcome.state, outcome.is_quiet) == ("accepted", True)


def test_a_resumed_mission_goes_on_with_its_event_log() -> None:
    """The file is noted with its whole path, since nobody resumes from the same folder."""
    options = JobOptions(mission="g", backend="opencode", event_log=Path("events.jsonl"))
    saved = SavedMission(
        id="m", goal="g", directory=Path("w"), state="running", is_over=False, started_at="",
        launch=json.loads(json.dumps(take_notes(options))),
    )  # fmt: skip
    again = recall(saved, url=None, password=None)
    assert again.event_log == Path.cwd() / "events.jsonl"


def test_clean(work: Path) -> None:
    """It says what it did, and leaves a workspace alone that has nothing to clean."""
    assert json.loads(run("clean", "--dir", work, "--json").stdout)["removed"] == 0
    assert not (work / ".orchestra").exists()


def test_nothing_to_answer_or_cancel(work: Path) -> None:
    """Where no mission is remembered there is one sentence and exit code 2."""
    for command in ("approve", "cancel"):
        assert len(run(command, "--dir", work, code=2).stderr.splitlines()) == 1
