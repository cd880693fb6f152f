"""Tool servers and language servers: child processes that speak JSON-RPC over their pipes."""

from __future__ import annotations
