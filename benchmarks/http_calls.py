"""What a short call to a server on this machine costs: our connections beside httpx.

The server is a process of its own that sends the same 300 bytes of JSON to everybody; what is
measured is the CPU time of this one. Both clients keep their connections, send the same headers
and read the whole body; the rounds take turns.

Run it with ``python -m benchmarks.http_calls [--rounds N] [--calls N]``.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from importlib.metadata import version
from statistics import median
from urllib.parse import urlsplit

import anyio
import httpx2
from anyio.abc import ByteStream, SocketAttribute

from orchestra.opencode.client.connections import Connections

BODY = b'"' + b"x" * 298 + b'"'
ANSWER = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nvary: Origin\r\n"
    b"date: Fri, 20 Nov 2026 12:00:00 GMT\r\ncontent-length: 300\r\n\r\n" + BODY
)
HEADERS = {"x-opencode-directory": "/home/somebody/project"}
AT_ONCE = (1, 20)
BOUND = 0.5
"""Our CPU time per call, as a part of httpx's."""

Call = Callable[[], Awaitable[None]]


async def serve() -> None:
    """Answer everybody, until stdin is closed."""

    async def answer(stream: ByteStream) -> None:
        async with stream:
            try:
                while True:
                    head = await stream.receive()
                    while not head.endswith(b"\r\n\r\n"):
                        head += await stream.receive()
                    await stream.send(ANSWER)
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                pass

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, answer)
        print(listener.extra(SocketAttribute.local_port), flush=True)  # noqa: S610 - not Django
        await anyio.to_thread.run_sync(sys.stdin.read)
        tasks.cancel_scope.cancel()


async def take(call: Call, calls: int, at_once: int) -> float:
    """Return the microseconds of CPU that a call takes.

    Args:
        call: What to call.
        calls: How often.
        at_once: How many at a time.
    """

    async def some() -> None:
        for _ in range(calls // at_once):
            await call()

    started = time.process_time()
    async with anyio.create_task_group() as tasks:
        for _ in range(at_once):
            tasks.start_soon(some)
    return (time.process_time() - started) / (calls // at_once * at_once) * 1e6


async def compare(url: str, rounds: int, calls: int) -> dict[int, list[tuple[float, float]]]:
    """Return what a call took with ours and with httpx, by how many there were at once.

    Args:
        url: The server.
        rounds: How often both are measured.
        calls: How many calls a round has.
    """
    async with AsyncExitStack() as stack:
        ours = Connections(
            urlsplit(url),
            url=url,
            username="opencode",
            password="secret",  # noqa: S106
            timeout=30,
        )
        stack.push_async_callback(ours.aclose)
        theirs = await stack.enter_async_context(
            httpx2.AsyncClient(
                base_url=url,
                auth=httpx2.BasicAuth("opencode", "secret"),
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=20),
                trust_env=False,
            )
        )

        async def with_ours() -> None:
            async with ours.call("GET", "/session/ses_1/message", headers=HEADERS) as reply:
                assert await reply.read() == BODY

        async def with_theirs() -> None:
            async with theirs.stream("GET", "/session/ses_1/message", headers=HEADERS) as reply:
                assert await reply.aread() == BODY

        found: dict[int, list[tuple[float, float]]] = {}
        for at_once in AT_ONCE:
            for each in (with_ours, with_theirs):
                await take(each, calls // 5, at_once)
            found[at_once] = [
                (await take(with_ours, calls, at_once), await take(with_theirs, calls, at_once))
                for _ in range(rounds)
            ]
        return found


def main(options: argparse.Namespace) -> int:
    """Measure, print, and compare with the bound.

    Args:
        options: The command line's.

    Returns:
        The exit code: 1 when the bound is broken.
    """
    print(
        f"{platform.python_implementation()} {platform.python_version()}, "
        f"httpx2 {version('httpx2')}, httptools {version('httptools')}, {options.rounds} rounds"
    )
    is_broken = False
    words = [sys.executable, "-m", "benchmarks.http_calls", "--serve"]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            url = f"http://127.0.0.1:{int(server.stdout.readline())}"
            for loop in ("asyncio", "trio"):
                found = anyio.run(compare, url, options.rounds, options.calls, backend=loop)
                for at_once, times in found.items():
                    ratios = [ours / theirs for ours, theirs in times]
                    print(
                        f"{loop:<8} {at_once:>3} at once: {min(o for o, _ in times):.0f} us "
                        f"({min(t for _, t in times):.0f} us with httpx): {median(ratios):.2f}x "
                        f"(min {min(ratios):.2f}, max {max(ratios):.2f}; bound {BOUND}x)"
                    )
                    is_broken |= median(ratios) > BOUND
        finally:
            server.stdin.close()  # which ends it
    print("BROKEN" if is_broken else "bounds kept")
    return int(is_broken)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        anyio.run(serve)
    else:
        parser = argparse.ArgumentParser(description=__doc__)
        parser.add_argument("--rounds", type=int, default=5)
        parser.add_argument("--calls", type=int, default=2_000)
        sys.exit(main(parser.parse_args()))
