"""Pure rules: no clock, no I/O, no threads."""

from __future__ import annotations
