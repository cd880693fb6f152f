"""A multi-agent orchestrator, assembled from the public primitives of `orchestra`."""

from __future__ import annotations
