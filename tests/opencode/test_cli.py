from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from talking import rest_of

from orchestra import __version__
from orchestra.opencode.mission.report_json import report_from_json

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "tidy"
SCRIPT = Path(sys.executable).with_name("orchestra")
LIMIT = 120.0

AGENTS = """
import json, subprocess, sys
from pathlib import Path
import anyio

def accept(turn):
    return json.dumps({"verdict": "accept", "reasons": []})

def reject(turn):
    return json.dumps({"verdict": "reject", "reasons": ["not good enough"]})

def work(turn):
    Path(turn.directory, "done.txt").write_text("done")
    return "done"

async def hang(turn):
    await turn.text("hanging")
    await anyio.sleep_forever()

async def hang_a_moment(turn):
    await turn.text("hanging")
    try:
        await anyio.sleep_forever()
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(1.5)

async def hang_for_good(turn):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(turn.directory, "child").write_text(str(child.pid))
    with anyio.CancelScope(shield=True):
        await anyio.sleep_forever()
"""


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """An empty workspace, with the agents beside it."""
    (tmp_path / "agents.py").write_text(AGENTS, encoding="utf-8")
    workspace = tmp_path / "work"
    workspace.mkdir()
    return workspace


def mission_file(
    work: Path, worker: str = "work", reviewer: str = "accept", more: str = ""
) -> Path:
    """Write a mission of one task."""
    path = work.parent / "mission.toml"
    path.write_text(
        f"""
goal = "do it"
workspace.directory = "work"
rules.max_rounds = 1
{more}
[[tasks]]
id = "t1"
title = "The task"
[agents.worker]
call = "agents.py:{worker}"
[agents.reviewer]
call = "agents.py:{reviewer}"
""",
        encoding="utf-8",
    )
    return path


def run(
    *arguments: str | Path, cwd: Path = ROOT, code: int, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the installed command and check its exit code; nothing may look like a traceback."""
    done = subprocess.run(
        [SCRIPT, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == code, (done.stdout, done.stderr)
    if "--debug" not in arguments:
        assert "Traceback" not in done.stdout + done.stderr
    return done


def start(arguments: Sequence[str | Path]) -> subprocess.Popen[str]:
    """Start the installed command."""
    return subprocess.Popen(
        [SCRIPT, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(is_true: Callable[[], Any]) -> None:
    """Wait for something that another process brings about."""
    deadline = time.monotonic() + LIMIT
    while not is_true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def only_json(text: str) -> Any:
    """Return the one JSON object that the text is."""
    assert text.endswith("}\n")
    assert text.count("\n") == 1
    return json.loads(text)


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_the_example_mission_ends_green(tmp_path: Path, loop: str) -> None:
    """The mission of the README works on both loops: in parallel, with one second round."""
    workspace = tmp_path / "copy"
    done = run(
        "run", EXAMPLE / "mission.toml", "--dir", workspace, "--loop", loop, "--json", code=0
    )
    report = report_from_json(only_json(done.stdout))
    assert {task.state.value for task in report.tasks} == {"accepted"}
    assert {task.id: task.rounds for task in report.tasks if task.rounds > 1} == {"loans": 2}
    assert "placeholder" in report.tasks[2].reasons[0]
    assert [(line.argv[0], line.exit_code) for line in report.commands] == [("python3", 0)]
    workers = [span for span in report.timeline if span.name == "worker"]
    assert any(
        one.started < other.ended and other.started < one.ended
        for one in workers
        for other in workers
        if one is not other
    )
    verdicts = [span.outcome for span in report.timeline if span.name == "reviewer"]
    assert sorted(verdicts) == ["accepted"] * 7 + ["rejected"]
    before = {path.relative_to(EXAMPLE / "sample") for path in (EXAMPLE / "sample").rglob("*.py")}
    after = {path.relative_to(workspace) for path in workspace.rglob("*") if path.is_file()}
    left = {path for path in after if path.parts[0] != ".orchestra"}
    assert left == before | {Path("TODO.md")}
    assert (workspace / "shelf" / "loans.py").read_text().startswith('"""Offers due and borrow."""')
    assert "TODO" not in (workspace / "shelf" / "loans.py").read_text()


def test_lines_when_piped(work: Path) -> None:
    """Without a terminal the progress is plain lines on stdout, and the outcome the last ones."""
    done = run("run", mission_file(work), code=0)
    lines = done.stdout.splitlines()
    assert lines[0] == f"workspace: {work}"
    assert "s  t1 accepted" in done.stdout
    assert lines[-5].startswith("mission accepted: ")
    assert lines[-3].startswith("time of the tasks: ")
    assert lines[-2].startswith("critical path: ")
    assert lines[-1] == f"report: {work / '.orchestra' / 'report.html'}"
    assert "\x1b" not in done.stdout
    assert done.stderr == ""
    assert sorted(path.name for path in work.iterdir()) == [".orchestra", "TODO.md", "done.txt"]


def test_json_has_stdout_for_itself(work: Path) -> None:
    """With --json stdout is one report object, the same as report.json; lines go to stderr."""
    done = run("run", mission_file(work), "--json", code=0)
    document = only_json(done.stdout)
    assert report_from_json(document).outcome.value == "accepted"
    assert document == json.loads((work / ".orchestra" / "report.json").read_bytes())
    assert "t1 accepted" in done.stderr


def test_a_failed_mission_is_exit_code_1(work: Path) -> None:
    """A mission whose task is rejected to the end fails, and says which task and why."""
    done = run("run", mission_file(work, reviewer="reject"), code=1)
    assert "mission failed: " in done.stdout
    assert "t1 failed: " in done.stdout
    assert "not good enough" in done.stdout
    assert (work / ".orchestra" / "report.html").exists()


def test_a_wrong_file_is_exit_code_2(work: Path) -> None:
    """Every fault of a mission file is one line on stderr, and nothing was started."""
    path = mission_file(work, more="limits.wroker = 3\nrules.deadline = 'soon'")
    done = run("run", path, code=2)
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        f"{path}: limits.wroker: this key is not known; did you mean 'worker'",
        f"{path}: rules.deadline: expected a number of seconds above 0, got 'soon'",
    ]
    assert list(work.iterdir()) == []
    error = only_json(run("run", path, "--json", code=2).stdout)
    assert error["problems"] == done.stderr.splitlines()
    assert error["error"] == error["problems"][0]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "say hello"], "a goal alone has nobody to work on it"),
        (["run", " "], "the goal is empty"),
        (["run", "gone.toml"], "gone.toml: the mission file cannot be read"),
        (["run", "x", "--backend", "cloud"], "invalid choice: 'cloud'"),
        (["run", "x", "--backend", "opencode", "--url", "tcp:1"], "url: expected a server's"),
        (["run", "x", "--backend", "opencode", "--model", "m"], "expected 'provider/model'"),
        (["run", "x", "--max-workers", "0"], "expected a number from 1 to 10,000, got '0'"),
        (["run", EXAMPLE / "mission.toml", "--url", "http://h:1"], "add --backend opencode"),
        (["run", EXAMPLE / "mission.toml", "--dir", ROOT], "is not empty"),
        (["run"], "the following arguments are required"),
        ([], "the following arguments are required"),
        (["walk"], "invalid choice: 'walk'"),
    ],
)
def test_wrong_usage_is_one_sentence(arguments: list[str | Path], expected: str) -> None:
    """Wrong usage is exit code 2 with one line that says what to do; also as JSON."""
    done = run(*arguments, "--json", code=2)
    assert len(done.stderr.splitlines()) == 1
    assert expected in done.stderr
    error = only_json(done.stdout)
    assert expected in error["error"]
    assert error["exit_code"] == 2


def test_a_server_that_is_not_there_is_one_sentence(work: Path) -> None:
    """An unreachable server is exit code 1 and one sentence."""
    pytest.importorskip("httptools")
    arguments = ["run", "x", "--backend", "opencode", "--url", "http://127.0.0.1:9"]
    done = run(*arguments, "--dir", work, code=1)
    assert len(done.stderr.splitlines()) == 1
    assert "127.0.0.1:9" in done.stderr


def test_a_traceback_only_with_debug(work: Path) -> None:
    """Agents that cannot be loaded are one line; with --debug it is shown where it happened."""
    (work.parent / "agents.py").write_text("raise RuntimeError('no')", encoding="utf-8")
    path = mission_file(work)
    done = run("run", path, code=2)
    assert done.stderr.splitlines() == [
        f"{path}: agents.{name}.call: agents.py raised RuntimeError: no"
        for name in ("worker", "reviewer")
    ]
    assert "Traceback" in run("run", path, "--debug", code=2).stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_stops_in_good_order(work: Path, number: signal.Signals) -> None:
    """A signal aborts the sessions; the report is still written and printed, exit code 130."""
    process = start(["run", mission_file(work, worker="hang"), "--json"])
    assert process.stderr is not None
    wait_until(lambda: "t1 working" in process.stderr.readline())  # type: ignore[union-attr]
    process.send_signal(number)
    stdout, stderr = rest_of(process, LIMIT)
    assert process.returncode == 130, stderr
    report = report_from_json(only_json(stdout))
    assert report.outcome.value == "interrupted"
    assert f"interrupted by {number.name}" in report.reason
    assert (work / ".orchestra" / "report.json").exists()
    assert "Traceback" not in stderr


def test_a_signal_before_the_mission_started(work: Path) -> None:
    """Ctrl-C while the server does not answer leaves with exit code 130 and one sentence."""
    pytest.importorskip("httptools")
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}"
        process = start(["run", "x", "--backend", "opencode", "--url", url, "--dir", work])
        mute.settimeout(LIMIT)
        connection, _ = mute.accept()
        with connection:
            process.send_signal(signal.SIGINT)
            _, stderr = rest_of(process, LIMIT)
    assert process.returncode == 130
    assert stderr.splitlines()[-1] == "orchestra: interrupted before the mission started"


@pytest.mark.parametrize("last", [signal.SIGINT, signal.SIGTERM])
def test_the_third_signal_exits_at_once(work: Path, last: signal.Signals) -> None:
    """When nothing stops, the third signal leaves at once and takes child processes along."""
    process = start(["run", mission_file(work, worker="hang_for_good")])
    child = work / "child"
    wait_until(lambda: child.exists() and child.read_text())
    assert process.stderr is not None
    process.send_signal(signal.SIGINT)
    assert "once more to wait no longer" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    assert "once more to exit at once" in process.stderr.readline()
    assert process.poll() is None
    process.send_signal(last)
    rest_of(process, LIMIT)
    assert process.returncode == 128 + last
    if sys.platform == "linux":
        wait_until(lambda: not _is_running(int(child.read_text())))


def test_the_second_signal_waits_for_no_order(work: Path) -> None:
    """It cancels a mission that is slow to stop: exit code 130, and a report of what there is."""
    process = start(["run", mission_file(work, worker="hang_a_moment")])
    assert process.stdout is not None
    assert process.stderr is not None
    wait_until(lambda: "t1 working" in process.stdout.readline())  # type: ignore[union-attr]
    process.send_signal(signal.SIGINT)
    assert "once more to wait no longer" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert "once more to exit at once" in process.stderr.readline()
    _, stderr = rest_of(process, LIMIT)
    assert process.returncode == 130
    assert stderr == ""
    report = report_from_json(json.loads((work / ".orchestra" / "report.json").read_text()))
    assert report.outcome.value == "interrupted"
    assert "interrupted" in run("history", "--dir", work, code=0).stdout


def _is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_reader_that_leaves_does_not_end_the_mission(work: Path) -> None:
    """When nobody reads the lines any more, the mission goes on to its end."""
    process = start(["run", mission_file(work)])
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=LIMIT) == 0
    assert (work / ".orchestra" / "report.html").exists()


def _on_terminal(arguments: Sequence[str | Path]) -> str:
    """Run a command on a pseudo-terminal; returns what it showed."""
    main, end = pty.openpty()
    process = subprocess.Popen(
        [str(word) for word in arguments],
        stdin=subprocess.DEVNULL,
        stdout=end,
        stderr=end,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "24"},
    )
    os.close(end)
    shown = b""
    try:
        while chunk := os.read(main, 65536):
            shown += chunk
    except OSError:
        pass  # how Linux tells that the other end is closed
    finally:
        os.close(main)
    assert process.wait(timeout=LIMIT) == 0, shown
    return shown.decode()


def test_a_table_on_a_terminal(work: Path) -> None:
    """On a terminal there is a live table, and afterwards the cursor is visible again."""
    pytest.importorskip("rich")
    shown = _on_terminal([SCRIPT, "run", mission_file(work)])
    assert "1 of 1 accepted" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")
    assert "mission accepted" in shown


def test_plain_lines_without_rich(work: Path) -> None:
    """Without rich the same mission is shown in plain lines, also on a terminal."""
    program = (
        "import sys; sys.modules['rich'] = None; from orchestra.opencode.cli import main;"
        "sys.exit(main())"
    )
    shown = _on_terminal([sys.executable, "-c", program, "run", mission_file(work)])
    assert "s  t1 accepted" in shown
    assert "\x1b" not in shown


def test_max_workers_bounds_the_workers(tmp_path: Path) -> None:
    """With --max-workers 1 no two workers are ever at work at the same time."""
    copy = tmp_path / "copy"
    done = run(
        "run", EXAMPLE / "mission.toml", "--dir", copy, "--max-workers", "1", "--json", code=0
    )
    report = report_from_json(only_json(done.stdout))
    workers = sorted(
        (span.started, span.ended) for span in report.timeline if span.name == "worker"
    )
    assert len(workers) == 8
    assert all(first[1] <= second[0] for first, second in pairwise(workers))


def test_the_password_is_not_shown(work: Path) -> None:
    """The server's password comes from the environment and is in no output."""
    pytest.importorskip("httptools")
    url = "http://127.0.0.1:9"
    arguments = ["run", "x", "--backend", "opencode", "--url", url, "--dir", str(work)]
    done = run(*arguments, "--debug", code=1, OPENCODE_SERVER_PASSWORD="hunter2-secret")  # noqa: S106
    assert "hunter2-secret" not in done.stdout + done.stderr


def test_version() -> None:
    """--version prints the package's version."""
    assert run("--version", code=0).stdout == f"orchestra {__version__}\n"


def test_doctor_proves_the_embedded_backend() -> None:
    """The doctor runs a mission and says, for people and programs, what is there."""
    lines = run("doctor", code=0).stdout
    assert "a mission of one task was accepted" in lines
    document = only_json(run("doctor", "--json", code=0).stdout)
    assert document["is_usable"] is True
    found = {finding["name"]: finding for finding in document["findings"]}
    assert found["embedded backend"]["status"] == "ok"
    assert found["orchestra"]["detail"].startswith(__version__)


def test_doctor_without_extras() -> None:
    """Where the extras are missing the doctor says how to get them, and is still content."""
    program = (
        "import sys; sys.modules['httptools'] = None; from orchestra.opencode.cli import main;"
        "sys.exit(main(['doctor', '--json']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    found = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert "pip install 'orchestra[opencode]'" in found["opencode"]["advice"]


def test_the_command_line_loads_no_extra() -> None:
    """Starting the command imports neither the HTTP client nor the terminal library."""
    program = (
        "import sys, orchestra.opencode.cli;"
        "assert not {'httptools', 'msgspec', 'rich', 'h11'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
