"""Nothing is left after missions, also after cancelled ones; `benchmarks/leaks.py` runs many more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def measure(*arguments: str) -> None:
    """In a process of its own: what other tests hold open is not of these missions."""
    command = [sys.executable, "-m", "benchmarks.leaks", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_embedded_missions_leave_nothing(loop: str) -> None:
    """As many descriptors, threads, children, tasks, sessions as before, also when tools are killed."""
    measure("9", "embedded", loop)


@pytest.mark.real_server
@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_missions_on_a_server_leave_nothing(loop: str) -> None:
    """The same on the real server, which is asked for its own sessions."""
    measure("3", "opencode", loop)
