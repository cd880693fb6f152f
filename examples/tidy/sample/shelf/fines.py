"""What a late return costs, in cents."""

from __future__ import annotations

from datetime import date

PER_DAY = 10
HIGHEST = 500


def fine(due: date, returned: date) -> int:
    return max(0, min((returned - due).days * PER_DAY, HIGHEST))
