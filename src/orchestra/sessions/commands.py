"""Agents that are command lines."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from attrs import field, frozen, validators

from orchestra.processes import run_command

if TYPE_CHECKING:
    from orchestra.sessions.embedded import Turn

__all__ = ("CommandAgent",)


class _CommandFailedError(Exception):
    """The command ended with an exit code other than 0, or ran out of time."""


@frozen
class CommandAgent:
    """An agent that is a command line: prompt on standard input, answer on standard output.

    Standard input is closed after the prompt. The command runs without a shell in the session's
    directory, in a process group that ends with the turn. An exit code other than 0 ends the turn
    with ``FinishReason.FAILED``.

    Attributes:
        argv: The program and its arguments.
        environment: Added to this process's environment.
        timeout: Seconds that a turn may take; None: no limit.
    """

    argv: tuple[str, ...] = field(validator=validators.min_len(1))
    environment: Mapping[str, str] = field(factory=dict, kw_only=True)
    timeout: float | None = field(
        default=None, validator=validators.optional(validators.gt(0)), kw_only=True
    )

    async def __call__(self, turn: Turn) -> None:
        """Run the command for one turn. A checkpoint.

        Args:
            turn: The turn.
        """
        result = await run_command(
            self.argv,
            directory=turn.directory,
            stdin=turn.prompt,
            environment={**os.environ, **self.environment},
            timeout=self.timeout,
            on_text=turn.text,
        )
        if result.is_timed_out:
            raise _CommandFailedError(f"{self.argv[0]} was stopped after {self.timeout:g} s")
        if result.exit_code != 0:
            lines = result.stderr.strip().splitlines()
            detail = f": {lines[-1][:500]}" if lines else ""
            raise _CommandFailedError(
                f"{self.argv[0]} ended with exit code {result.exit_code}{detail}"
            )
