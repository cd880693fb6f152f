from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from orchestra.breaker import TRANSITIONS

DOCS = Path(__file__).parents[1] / "docs"


def test_diagrams_are_current() -> None:
    """The pictures in the documentation are what the tables of the code give today."""
    script = DOCS / "make_diagrams.py"
    run = subprocess.run(
        [sys.executable, script, "--check"], capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")


def test_breaker_diagram_names_every_transition() -> None:
    """Every state and every cause of the table is in the picture."""
    picture = (DOCS / "breaker.svg").read_text("utf-8")
    for state, row in TRANSITIONS.items():
        assert f">{state.value}<" in picture
        for cause in row:
            assert f">{cause.value}<" in picture
