"""What a server says that its models cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.opencode.conftest import Answer

from orchestra.opencode.backend import OpenCodeBackend

if TYPE_CHECKING:
    from tests.opencode.conftest import FakeServer, RealServer


async def test_prices_come_from_the_servers_list(fake_server: FakeServer, tmp_path: Path) -> None:
    """Those that are known, with the cache's; a model that costs nothing has no price."""
    costs: dict[str, object] = {
        "full": {"input": 3, "output": 15, "cache": {"read": 0.3, "write": 3.75}},
        "plain": {"input": 0.5, "output": 1, "cache": {"read": 0, "write": 0}},
        "free": {"input": 0, "output": 0},
        "odd": {"input": "cheap", "output": None, "cache": 7},
        "negative": {"input": -1, "output": -2},
    }
    models: dict[str, object] = {name: {"cost": cost} for name, cost in costs.items()}
    models |= {"none": {}, "strange": {"cost": [1]}}
    listed = Answer({"providers": [{"id": "p", "models": models}], "default": {}})
    fake_server.faults["GET /config/providers"] = [listed]
    async with OpenCodeBackend(fake_server.url, model="p/full") as backend:
        assert backend.model == "p/full"
        prices = await backend.prices(tmp_path)
        assert await backend.prices(tmp_path) == prices, "they are asked for once"
    assert prices == {
        "p/full": {"input": 3.0, "output": 15.0, "cache_read": 0.3, "cache_write": 3.75},
        "p/plain": {"input": 0.5, "output": 1.0},
    }


@pytest.mark.real_server
async def test_prices_of_the_real_server(real_server: RealServer, tmp_path: Path) -> None:
    """The real list is read: the scripted model costs what its configuration says."""
    async with real_server.backend() as backend:
        assert (await backend.prices(tmp_path))["scripted/m1"] == {"input": 1.0, "output": 2.0}
