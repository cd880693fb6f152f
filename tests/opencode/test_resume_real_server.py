"""The command line killed with SIGKILL, on a real server, and resumed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal
from benchmarks.kill_and_resume import asked, kill_run, rules, wanted
from benchmarks.killable import KillableServer

from orchestra.opencode.cli import main
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
