"""A small library that keeps track of who has borrowed which book."""

from __future__ import annotations
