from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("quick", max_examples=200, deadline=None)
settings.register_profile("nightly", max_examples=10_000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


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


@pytest.fixture(scope="session")
def opencode_executable() -> Path:
    """The real OpenCode; a test that asks for it is skipped where there is none, but not in CI."""
    from orchestra.errors import ConfigurationError
    from orchestra.opencode.client.locate import locate_opencode

    try:
        return locate_opencode(directory=Path(__file__).parents[1])
    except ConfigurationError as exc:
        if os.environ.get("CI"):
            pytest.fail(f"{exc} (never skipped in CI)", pytrace=False)
        pytest.skip(str(exc))
