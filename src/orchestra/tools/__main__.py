"""``python -m orchestra.tools``: a tool server on standard input and output.

Start it with ``python -P -m orchestra.tools``, so that the workspace it is started in cannot bring
modules of its own.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence

import anyio

from orchestra._core.jsonrpc import Framing
from orchestra.background import background_tasks
from orchestra.tools._stdio import Pipes
from orchestra.tools.catalog import shipped_tools
from orchestra.tools.root import Root
from orchestra.tools.server import ToolServer

__all__ = ("main",)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool server.

    Args:
        argv: The arguments; None: the process's.

    Returns:
        0 when the client has closed the input, 128 + the signal's number when one came.
    """
    parser = argparse.ArgumentParser(
        prog="python -m orchestra.tools",
        description="A tool server that speaks JSON-RPC 2.0 (MCP style) on its standard input "
        "and output.",
        allow_abbrev=False,
    )
    parser.add_argument("--root", default=".", help="the folder that no tool leaves (default: .)")
    parser.add_argument(
        "--framing",
        choices=[framing.value for framing in Framing],
        default=Framing.LINES.value,
        help="how messages are told apart (default: lines)",
    )
    parser.add_argument("--no-ripgrep", action="store_true", help="search without ripgrep")
    parser.add_argument(
        "--linger",
        type=float,
        default=1.0,
        metavar="SECONDS",
        help="how long requests may go on when the input has ended (default: 1)",
    )
    options = parser.parse_args(argv)
    logging.basicConfig(stream=sys.stderr)
    try:
        root = Root(options.root)
    except NotADirectoryError as exc:
        parser.error(str(exc))
    # What anything prints by accident goes to standard error.
    pipes = Pipes(os.dup(0), os.dup(1))
    os.dup2(2, 1)
    server = ToolServer(
        shipped_tools(root, is_ripgrep_used=not options.no_ripgrep),
        pipes,
        framing=Framing(options.framing),
        linger=options.linger,
    )
    return anyio.run(_serve, server)


async def _serve(server: ToolServer) -> int:
    received = 0

    async def watch(everything: anyio.CancelScope) -> None:
        nonlocal received
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for number in signals:
                received = number
                everything.cancel()
                return

    with anyio.CancelScope() as scope:
        async with background_tasks() as group:
            group.start_soon(watch, scope)
            await server.serve()
    return 128 + received if received else 0


if __name__ == "__main__":
    sys.exit(main())
