"""What is remembered of missions, on the command line."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestra import SQLiteStore
from orchestra.opencode.cli import main
from orchestra.opencode.records import RECORDS, list_missions

MISSION = """
goal = "Say hello"

[rules]
evidence = false

[[tasks]]
id = "a"
title = "Say it"

[agents.worker]
command = ["echo", "hello"]

[agents.reviewer]
command = ["echo", '{"verdict": "accept"}']
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A workspace in which one mission was run."""
    (tmp_path / "mission.toml").write_text(MISSION)
    place = tmp_path / "work"
    place.mkdir()
    assert main(["run", str(tmp_path / "mission.toml"), "--dir", str(place)]) == 0
    return place


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(list(words))
    said = capsys.readouterr()
    return code, said.out, said.err


def test_missions_are_listed_and_told(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A mission is in the list; its steps are told in order, by 'last' or the start of its id."""
    place = str(workspace)
    code, out, _ = run(capsys, "history", "--dir", place)
    assert code == 0
    name = out.split()[0]
    assert "accepted" in out
    assert "1 tasks" in out
    for reference in ("last", name, name[:12], name.removeprefix("mission_")[:4]):
        code, out, _ = run(capsys, "history", reference, "--dir", place)
        assert code == 0
        lines = out.splitlines()
        assert "mission running" in lines[0]
        assert "plan of 1 tasks" in lines[1]
        assert any("mission accepted" in line for line in lines[-2:])
        assert [line for line in lines if "a working (round 1)" in line]


def test_history_as_json(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Programs get the same as one object."""
    code, out, _ = run(capsys, "history", "last", "--dir", str(workspace), "--json")
    steps = json.loads(out)["steps"]
    assert code == 0
    assert [step["revision"] for step in steps] == list(range(1, len(steps) + 1))
    code, out, _ = run(capsys, "history", "--dir", str(workspace), "--json")
    assert json.loads(out)["missions"][0]["goal"] == "Say hello"


def test_missions_are_remembered_beside_each_other(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second mission does not touch the first, and both are whole."""
    file = str(workspace.parent / "mission.toml")
    assert main(["run", file, "--dir", str(workspace)]) == 0
    _, out, _ = run(capsys, "history", "--dir", str(workspace), "--json")
    assert len(json.loads(out)["missions"]) == 2
    code, out, _ = run(capsys, "verify", "--dir", str(workspace))
    assert code == 0
    assert out.count("whole") == 2


KILLED = """
import sys
from orchestra.opencode.cli import main
main(sys.argv[1:])
"""


def test_a_killed_mission_is_told_from_a_running_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once its owner's process is gone, `why`, `history` and `cancel` say so, and whose it was."""
    file = tmp_path / "mission.toml"
    file.write_text(MISSION.replace('"echo", "hello"', '"sleep", "2"'))
    words = [sys.executable, "-c", KILLED, "run", str(file), "--dir", str(tmp_path)]
    child = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while "a is working" not in run(capsys, "why", "a", "--dir", str(tmp_path))[1]:
            assert time.monotonic() < until
            time.sleep(0.05)
        assert "no longer there" not in run(capsys, "why", "a", "--dir", str(tmp_path))[1]
        assert "no longer there" not in run(capsys, "history", "--dir", str(tmp_path))[1]
    finally:
        child.kill()
        child.wait()
    told = f"its owner (process {child.pid} on "
    for command in (("why", "a"), ("history",)):
        _, out, _ = run(capsys, *command, "--dir", str(tmp_path))
        assert told in out
        assert "is no longer there; 'orchestra resume mission_" in out
    code, out, _ = run(capsys, "cancel", "last", "--dir", str(tmp_path))
    assert code == 0
    assert f"its orchestrator (process {child.pid} on " in out
    assert told not in run(capsys, "history", "--dir", str(tmp_path))[1]


async def test_missions_of_one_second_are_in_order(tmp_path: Path) -> None:
    """The mission that started last is the last, whatever its id, also within a second."""
    about = {"goal": "g", "state": "running", "started_at": "2026-01-01T00:00:00+00:00"}
    (tmp_path / ".orchestra").mkdir()
    names = ["mission_c", "mission_a", "mission_b"]
    async with SQLiteStore(tmp_path / ".orchestra" / RECORDS) as store:
        for name in names:
            await store.namespace(name).put("mission", about)
    assert [mission.id for mission in await list_missions(tmp_path)] == names


def test_altered_history_is_found(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Who changes a stored value is found out, and the exit code says so."""
    path = workspace / ".orchestra" / "missions.db"
    sql = sqlite3.connect(path)
    columns = [row[1] for row in sql.execute("PRAGMA table_info(versions)")]
    assert "body" in columns, columns
    changed = sql.execute(
        "UPDATE versions SET body = CAST(replace(CAST(body AS TEXT), 'accepted', 'rejected') AS BLOB)"
        " WHERE CAST(body AS TEXT) LIKE '%accepted%'"
    ).rowcount
    sql.commit()
    sql.close()
    assert changed
    code, out, _ = run(capsys, "verify", "--dir", str(workspace))
    assert code == 1
    assert "BROKEN" in out
    code, out, _ = run(capsys, "verify", "--dir", str(workspace), "--json")
    assert (code, json.loads(out)["is_whole"]) == (1, False)


@pytest.mark.parametrize("command", ["history", "verify"])
def test_where_nothing_was_run(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A workspace without missions is a sentence and exit code 2."""
    code, _, err = run(capsys, command, "--dir", str(tmp_path))
    assert code == 2
    assert "no mission is remembered" in err


def test_a_mission_that_is_not_known(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown or unclear reference says what to do."""
    code, _, err = run(capsys, "history", "nope", "--dir", str(workspace))
    assert code == 2
    assert "no mission begins with 'nope'" in err
    main(["run", str(workspace.parent / "mission.toml"), "--dir", str(workspace)])
    code, _, err = run(capsys, "history", "mission_", "--dir", str(workspace))
    assert code == 2
    assert "more than one" in err


def test_records_that_are_none(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A damaged file is a sentence, and does not keep a mission from running."""
    path = workspace / ".orchestra" / "missions.db"
    for beside in path.parent.glob("missions.db*"):
        beside.unlink()
    path.write_bytes(b"this is no database, and never was" * 200)
    code, _, err = run(capsys, "history", "--dir", str(workspace))
    assert code == 1
    assert "Traceback" not in err
    file = str(workspace.parent / "mission.toml")
    code, out, err = run(capsys, "run", file, "--dir", str(workspace))
    assert code == 0
    assert "will have no history" in err
    assert "mission accepted" in out
