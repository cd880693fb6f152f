"""Nothing is left after missions, also after cancelled ones; `benchmarks/leaks.py` runs many more."""

from __future__ import annotations

import pytest
from benchmarks.leaks import measure


async def test_embedded_missions_leave_nothing() -> None:
    """As many descriptors, threads, children, tasks, sessions as before, also when tools are killed."""
    found = await measure(9, "embedded")
    assert not found["failed"]
    assert not found["sessions"]
    assert found["before"] == found["after"]


@pytest.mark.real_server
async def test_missions_on_a_server_leave_nothing() -> None:
    """The same on the real server, which is asked for its own sessions."""
    found = await measure(6, "opencode")
    assert not found["failed"]
    assert not found["sessions"]
    assert found["before"] == found["after"]
