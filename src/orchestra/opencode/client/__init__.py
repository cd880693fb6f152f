"""The wire side of the OpenCode backend: HTTP, event stream, server process, one prompt's life."""

from __future__ import annotations

try:
    import httptools  # noqa: F401 - only to say early, and once, what is missing
    import msgspec  # noqa: F401
except ImportError as _missing:
    raise ImportError(
        "the OpenCode backend needs httptools and msgspec: pip install 'orchestra[opencode]'"
    ) from _missing
