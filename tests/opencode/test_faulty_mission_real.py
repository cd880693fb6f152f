"""A mission on the real server whose model fails in mixed ways; the long run is a benchmark."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from benchmarks.faulty_mission import problems, run


@pytest.mark.real_server
@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_a_faulty_model_brings_every_task_to_acceptance(tmp_path: Path) -> None:
    """All tasks accepted, never more busy than the limit, no prompt into a busy session."""
    with anyio.fail_after(120):
        report, tally, _ = await run(8, 6, tmp_path)
    assert problems(report, tally, 6, tmp_path) == []
    assert sum(tally.faults.values()) >= 2
    assert tally.looks > 0
