from __future__ import annotations

import sys

import pytest
from tool_processes import children


@pytest.fixture
def others() -> set[int]:
    """The child processes that tests which are over have left: none of this one's business."""
    return children() if sys.platform == "linux" else set()
