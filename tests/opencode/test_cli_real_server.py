"""The command line against the real OpenCode server, with a scripted model behind it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal
from talking import rest_of

from orchestra.opencode import read_task, report_from_json
from orchestra.opencode.reaper import find_processes
from orchestra.testing import Hang, ModelRequest, Rule, ScriptedModel, Step, ToolCall

pytestmark = pytest.mark.real_server

SCRIPT = Path(sys.executable).with_name("orchestra")
LIMIT = 120.0
NAMES = ("ada", "grace", "edsger")


def _toml(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    return json.dumps(value)


def _plan(_: ModelRequest) -> str:
    tasks = [{"id": name, "title": f"Greet {name}", "files": [f"{name}.txt"]} for name in NAMES]
    command = "python3 -c 'print(open(\"ada.txt\").read())'"
    return json.dumps({"tasks": [{**task, "acceptance": [command]} for task in tasks]})


def _work(request: ModelRequest) -> list[Step]:
    task = read_task(request.prompt)
    arguments = {"filePath": task.files[0], "content": f"Hello, {task.id}!\n"}
    return [ToolCall("write", arguments), f"Greeted {task.id}."]


RULES = (
    Rule(agent="commander", prompt="hang", answer=Hang("thinking", times=None)),
    Rule(agent="commander", answer=["Three files, side by side."]),
    Rule(agent="planner", answer=_plan),
    Rule(agent="worker", answer=_work),
    Rule(agent="reviewer", answer=['{"verdict": "accept"}']),
)


@pytest.fixture(scope="module")
def model() -> Iterator[ScriptedModel]:
    """A scripted model, in a thread of its own."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(ScriptedModel(*RULES)) as model,
    ):
        yield model


def _mission(folder: Path, model: ScriptedModel, goal: str, name: str = "scripted/m1") -> Path:
    (folder / "work").mkdir()
    path = folder / "mission.toml"
    path.write_text(
        f"""
goal = {json.dumps(goal)}
workspace.directory = "work"
[backend]
kind = "opencode"
model = "{name}"
config = {_toml(model.opencode_config())}
""",
        encoding="utf-8",
    )
    return path


def _start(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [SCRIPT, "run", path, "--json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_mission_file_runs_on_a_server_of_its_own(tmp_path: Path, model: ScriptedModel) -> None:
    """One command starts the server, plans, works, reviews and reports; a stray command is refused."""
    process = _start(_mission(tmp_path, model, "greet three people"))
    stdout, stderr = rest_of(process, LIMIT)
    assert process.returncode == 0, stderr
    report = report_from_json(json.loads(stdout))
    assert [task.state.value for task in report.tasks] == ["accepted"] * 3
    for name in NAMES:
        assert (tmp_path / "work" / f"{name}.txt").read_text() == f"Hello, {name}!\n"
    assert all(task.commands[0].refusal for task in report.tasks)
    assert report.usage.input_tokens > 0
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == [
        ".orchestra",
        "TODO.md",
        *sorted(f"{name}.txt" for name in NAMES),
    ]


def test_ctrl_c_leaves_no_server_behind(tmp_path: Path, model: ScriptedModel) -> None:
    """An interrupted mission reports, and the server that was started is gone with it."""
    process = _start(_mission(tmp_path, model, "hang"))
    assert process.stderr is not None
    while "commander at work" not in (line := process.stderr.readline()):
        assert line, "it ended"
    children = find_processes("=", ancestor=process.pid)
    process.send_signal(signal.SIGINT)
    stdout, stderr = rest_of(process, LIMIT)
    assert process.returncode == 130, stderr
    assert report_from_json(json.loads(stdout)).outcome.value == "interrupted"
    if sys.platform == "linux":
        assert children
        deadline = time.monotonic() + 10
        while left := [child for child in children if Path(f"/proc/{child.pid}").exists()]:
            assert time.monotonic() < deadline, left
            time.sleep(0.05)


def test_an_unknown_model_is_one_sentence(tmp_path: Path, model: ScriptedModel) -> None:
    """A model that the server does not have ends the mission with its name, without a traceback."""
    process = _start(_mission(tmp_path, model, "greet", name="scripted/m99"))
    stdout, stderr = rest_of(process, LIMIT)
    assert process.returncode in {1, 2}
    assert "Traceback" not in stderr
    assert "m99" in json.dumps(json.loads(stdout))
