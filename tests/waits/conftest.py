from __future__ import annotations

from typing import Any

import pytest

from orchestra.testing import virtual_time_options


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Every async test here runs on both event loops, in virtual time."""
    return request.param, virtual_time_options(request.param)
