"""The C boundary: the only package that knows the extension, imported by `orchestra.stealing` only.

Without the extension (no C compiler at installation, another platform), or with
``ORCHESTRA_PURE_PYTHON=1`` in the environment, the fallback takes its place.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

from orchestra._native._statistics import DequeStatistics

__all__ = (
    "IMPLEMENTATION",
    "REASON",
    "DequeStatistics",
    "EventCount",
    "Stealer",
    "WorkStealingDeque",
    "scan_files",
)

IMPLEMENTATION: Literal["native", "fallback"] = "native"
"""Which one is active."""

REASON: str | None = None
"""Why the fallback is active; None when the extension is."""

if TYPE_CHECKING:
    from orchestra._native._fallback import EventCount, Stealer, WorkStealingDeque
    from orchestra._native._scan import scan_files_fallback as scan_files
else:
    try:
        if os.environ.get("ORCHESTRA_PURE_PYTHON", "0") not in {"", "0"}:
            raise ImportError("ORCHESTRA_PURE_PYTHON is set")
        from orchestra._native._loader import EventCount, objects
        from orchestra._native._scan import scan_files_native as scan_files

        Stealer = objects.Stealer
        WorkStealingDeque = objects.WorkStealingDeque
    except ImportError as error:
        from orchestra._native._fallback import EventCount, Stealer, WorkStealingDeque
        from orchestra._native._scan import scan_files_fallback as scan_files

        IMPLEMENTATION = "fallback"
        REASON = str(error)
        if isinstance(error, ModuleNotFoundError):
            REASON = "the extension was not built; reinstall with a C compiler to have it"
