"""Runs acceptance commands: by us, never by a model, and only what the mission permits."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestra import run_command
from orchestra.opencode.mission.plan import MissionSettings
from orchestra.opencode.mission.report import CommandResult

__all__ = ("command_environment", "run_acceptance")

_OUTPUT_LIMIT = 65_536
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)


def command_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for a command that may print what it sees: without secrets.

    Args:
        environment: The environment to start from.
    """
    return {name: value for name, value in environment.items() if not _SECRET.search(name)}


async def run_acceptance(
    argv: Sequence[str], *, directory: Path, settings: MissionSettings
) -> CommandResult:
    """Run one command: no shell, no input, with a deadline and bounded output. A checkpoint.

    The allow list is checked here too, right before the start, so that no path through the code
    runs what is not permitted.

    Args:
        argv: The command line.
        directory: The workspace.
        settings: What they permit, and their ``command_timeout``, count.
    """
    line = tuple(argv)
    if not settings.permits(line):
        return CommandResult(argv=line, refusal="it is not on the mission's allow list")
    try:
        output = await run_command(
            line,
            directory=directory,
            environment=command_environment(os.environ),
            timeout=settings.command_timeout,
            output_limit=_OUTPUT_LIMIT,
            merge_output=True,
        )
    except OSError as exc:
        return CommandResult(argv=line, error=f"could not start: {exc.strerror or exc}")
    except ValueError as exc:  # not even a command line, e.g. with a null character
        return CommandResult(argv=line, error=f"could not start: {exc}")
    if output.is_timed_out:
        return CommandResult(
            argv=line,
            output=output.stdout,
            elapsed=output.elapsed,
            error=f"was stopped after {settings.command_timeout:g} s",
        )
    return CommandResult(
        argv=line, exit_code=output.exit_code, output=output.stdout, elapsed=output.elapsed
    )
