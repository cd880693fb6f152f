from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestra import MemoryStore, SQLiteStore
from orchestra.stores._file import Durability
from orchestra.testing import check_store


async def test_the_memory_store_keeps_the_contract() -> None:
    """The store in memory passes the contract suite."""
    await check_store(MemoryStore)


@pytest.mark.parametrize("durability", ["full", "process"])
async def test_the_sqlite_store_keeps_the_contract(tmp_path: Path, durability: Durability) -> None:
    """The store in a file passes the contract suite, in a new file and in one used before."""
    for _ in range(1 + (durability == "process")):
        await check_store(lambda: SQLiteStore(tmp_path / "store.db", durability=durability))
    assert os.listdir(tmp_path) == ["store.db"]  # noqa: PTH208  (blocks no more than a Path)
