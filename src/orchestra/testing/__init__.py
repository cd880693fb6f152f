"""The public test kit."""

from __future__ import annotations
