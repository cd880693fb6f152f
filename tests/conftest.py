from __future__ import annotations

import asyncio
from typing import Any

import pytest


def _debug_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = 60.0
    return loop


@pytest.fixture(
    params=[
        pytest.param(("asyncio", {"loop_factory": _debug_loop}), id="asyncio"),
        pytest.param(("trio", {}), id="trio"),
    ]
)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Every async test runs on both event loops."""
    backend: tuple[str, dict[str, Any]] = request.param
    return backend
