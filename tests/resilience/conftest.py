from __future__ import annotations

import pytest
from tests.resilience.support import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()
