"""Helpers: modules of this package that run in a process of their own, where they can be killed."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from orchestra.processes import run_command
from orchestra.tools.root import Root

__all__ = ("BAD_REQUEST", "run_helper")

BAD_REQUEST = 3
"""The exit code of a helper that cannot do what it is asked; the reason is on standard error."""
_SLACK = 2.0


async def run_helper(
    module: str,
    root: Root,
    request: Mapping[str, Any],
    *,
    timeout: float,
    on_text: Callable[[str], Awaitable[object]],
) -> bool:
    """Run a helper, which reads a request as JSON and prints its answer. Always a checkpoint.

    Args:
        module: Its name in this package.
        root: The folder that it works in, and from which it imports nothing.
        request: What it is asked; ``root`` and ``timeout`` are added.
        timeout: Seconds until it is killed.
        on_text: Awaited with what it prints.

    Returns:
        Whether it was killed because its time was over.

    Raises:
        ValueError: It refused the request.
        OSError: It cannot be started, or has failed.
    """
    # Should this process be gone by then, it ends itself.
    asked = {**request, "root": str(root.path), "timeout": timeout + _SLACK}
    done = await run_command(
        [sys.executable, "-P", "-m", f"orchestra.tools.{module}"],
        directory=Path(root.path.anchor),
        stdin=json.dumps(asked),
        timeout=timeout,
        output_limit=8_192,
        on_text=on_text,
    )
    if done.exit_code == BAD_REQUEST:
        raise ValueError(done.stderr)
    if done.exit_code and not done.is_timed_out:
        last = done.stderr.strip().rpartition("\n")[2][-500:]
        raise OSError(f"the {module} process ended with exit code {done.exit_code}: {last}")
    return done.is_timed_out
