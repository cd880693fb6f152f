"""Parts of the orchestrator."""

from __future__ import annotations
