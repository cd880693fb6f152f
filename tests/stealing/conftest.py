from __future__ import annotations

from types import ModuleType

import pytest

from orchestra import _native
from orchestra._native import _fallback


def _native_types() -> ModuleType:
    if _native.IMPLEMENTATION != "native":
        pytest.skip(f"the native extension is not active: {_native.REASON}")
    return _native


@pytest.fixture(params=["native", "fallback"])
def deques(request: pytest.FixtureRequest) -> ModuleType:
    """A module with `WorkStealingDeque`, `Stealer` and `EventCount`: both are tested alike."""
    return _native_types() if request.param == "native" else _fallback


@pytest.fixture
def native() -> ModuleType:
    """The native types; skips where they are not there."""
    return _native_types()


@pytest.fixture(params=["native", "fallback"])
def pools(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Makes pools use that implementation; returns its name."""
    name: str = request.param
    types = _native_types() if name == "native" else _fallback
    monkeypatch.setattr("orchestra._scheduler.WorkStealingDeque", types.WorkStealingDeque)
    monkeypatch.setattr("orchestra._scheduler.EventCount", types.EventCount)
    return name
