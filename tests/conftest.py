from __future__ import annotations

import asyncio
import functools
import os
import signal
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("brief", max_examples=50, deadline=None)
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


def pytest_configure() -> None:
    """A shell lets what it starts in the background ignore Ctrl-C; the tests send some."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@functools.cache
def _why_no_opencode() -> str:
    from orchestra.errors import ConfigurationError
    from orchestra.opencode.client.locate import locate_opencode

    try:
        locate_opencode()
    except ConfigurationError as exc:
        return str(exc)
    return ""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip the tests marked real_server where there is no OpenCode; in CI that is a failure."""
    if item.get_closest_marker("real_server") is None or not (reason := _why_no_opencode()):
        return
    if os.environ.get("CI"):
        pytest.fail(f"{reason} (in CI these tests are never skipped)", pytrace=False)
    pytest.skip(reason)
