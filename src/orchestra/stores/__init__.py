"""The engines of the MVCC store: in memory, and in an SQLite file that processes share."""

from __future__ import annotations

__all__ = ()
