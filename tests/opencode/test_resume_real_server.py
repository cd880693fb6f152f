"""The command line killed with SIGKILL, on a real server, and resumed."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from anyio.from_thread import start_blocking_portal
from benchmarks.kill_and_resume import Run, asked, kill_run, rules, wanted
from benchmarks.killable import KillableServer

from orchestra import SQLiteStore
from orchestra.opencode.cli import main
from orchestra.opencode.mission.ownership import find_owner
from orchestra.opencode.records import RECORDS
from orchestra.testing import ScriptedModel

pytestmark = pytest.mark.real_server

TASKS = 4


def test_nothing_is_paid_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Killed three times, a mission asks for each task's work once and makes the same files."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(ScriptedModel(*rules(TASKS))) as model,
        KillableServer(tmp_path / "server", model.opencode_config()) as server,
    ):
        run, _, code = kill_run(
            tmp_path,
            server,
            kills=3,
            victim="orchestrator",
            workers=2,
            longest=4.0,
            dice=random.Random(7),
            tell=print,
        )
        assert code == 0
        assert run.files() == wanted(TASKS)
        assert run.leftovers() == []
        assert set(asked(model).values()) == {1}
        assert len(asked(model)) == 2 + TASKS * 3
    assert main(["why", "t1", "--dir", str(run.workspace)]) == 0
    assert "it would not run again" in capsys.readouterr().out
    assert main(["resume", "--dir", str(run.workspace)]) == 2
    assert "has come to its end" in capsys.readouterr().err


def test_an_owner_that_slept_is_followed(tmp_path: Path) -> None:
    """Stopped, taken for dead and woken, a process says who followed it, and touches nothing."""
    go = threading.Event()
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(ScriptedModel(*rules(2, wait=go.wait))) as model,
        KillableServer(tmp_path / "server", model.opencode_config()) as server,
    ):
        run = Run(tmp_path, server, workers=2)
        sleeper = run.start(is_first=True)
        processes = [sleeper]
        try:
            _wait(lambda: len(asked(model)) == 4)
            _settle(run.workspace)  # else it may be stopped while it has the records to itself
            sleeper.send_signal(signal.SIGSTOP)
            follower = run.start(is_first=False, is_blind=True)
            processes.append(follower)
            _wait(lambda: anyio.run(_look, run.workspace)[0] == follower.pid)
            sleeper.send_signal(signal.SIGCONT)
            go.set()
            told, _ = sleeper.communicate(timeout=120)
            output, _ = follower.communicate(timeout=120)
        finally:
            go.set()
            for process in processes:
                process.kill()
                process.communicate()
        assert follower.returncode == 0, output
        assert sleeper.returncode == 1, told
        assert f"which process {follower.pid} on" in told
        assert "report:" not in told
        assert run.files() == wanted(2)
        assert set(asked(model).values()) == {1}
        assert len(asked(model)) == 2 + 2 * 3


async def _look(workspace: Path) -> tuple[int, int]:
    """Return the owner's process, and how often a mission has written."""
    async with SQLiteStore(workspace / ".orchestra" / RECORDS, read_only=True) as store:
        owner = await find_owner(store, workspace)
        names = [name for name in await store.namespaces() if name.startswith("mission_")]
        written = await store.namespace(names[0]).revision()
        return 0 if owner is None else owner.pid, written


def _settle(workspace: Path) -> None:
    """Wait until the mission writes nothing any more."""
    before = -1
    while (written := anyio.run(_look, workspace)[1]) != before:
        before = written
        time.sleep(1.5)


def _wait(is_done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not is_done():
        assert time.monotonic() < deadline
        time.sleep(0.05)
