"""The engines of the MVCC store, and what another engine is made of.

`StoreEngine` is the part that differs: bytes in namespaces. `EngineStore` makes a whole
`orchestra.MVCCStore` of one.
"""

from __future__ import annotations

from orchestra.revisions import Footprint, Link, Logged, Stored
from orchestra.stores.engine import Body, Pin, StoreEngine
from orchestra.stores.store import EngineStore

__all__ = (
    "Body",
    "EngineStore",
    "Footprint",
    "Link",
    "Logged",
    "Pin",
    "StoreEngine",
    "Stored",
)
