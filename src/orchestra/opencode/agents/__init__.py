"""The agents: their standing instructions and what they may do."""

from __future__ import annotations
