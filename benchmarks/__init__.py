"""The benchmark suite: ``python -m benchmarks``, or ``nox -s bench``."""

from __future__ import annotations
