"""Real signals, sent to real child processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from signal import SIGINT, SIGTERM, Signals
from typing import Any

import anyio
import pytest
from talking import rest_of

from orchestra.shutdown import ShutdownManager

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")

BOTH = ("asyncio", "trio")

# A child says what happens on stdout, a line each, and is told by signals what to do.
PROGRAM = """
import signal, sys, time
from functools import partial
from signal import SIGINT, SIGTERM

import anyio
from orchestra.events import ShutdownPhase
from orchestra.shutdown import ShutdownManager

say = partial(print, flush=True)

def told(event):
    say(f"{event.phase.value}{', cut' if event.is_cut else ''}: {event.reason}")

async def close():
    say("closing")
    await anyio.sleep(float(sys.argv[3]))
    say("closed")

async def resist():
    with anyio.CancelScope(shield=True):
        say("resisting")
        await anyio.sleep(600)

def block_the_loop():
    say("blocking")
    while True:
        time.sleep(600)

async def block():
    block_the_loop()

before = [signal.getsignal(SIGTERM), signal.getsignal(SIGINT)]

async def main(scene):
    manager = ShutdownManager(
        signals=(SIGINT, SIGTERM),
        listener=told,
        before_exit=lambda number: say(f"leaving because of {number.name}"),
    )
    try:
        async with manager as shutdown:
            if scene == "resist":
                shutdown.register(resist, priority=1)
            if scene == "block":
                shutdown.register(block, priority=1)
            shutdown.register(close, timeout=60)
            say("ready")
            await shutdown.wait_requested()
            if scene == "work":
                await anyio.sleep(600)
    except* TimeoutError as group:
        say(*group.exceptions)
    say(f"signal {shutdown.report.signal.name}, code {shutdown.report.exit_code}")
    return shutdown.report.exit_code

code = anyio.run(main, sys.argv[2], backend=sys.argv[1])
say(before == [signal.getsignal(SIGTERM), signal.getsignal(SIGINT)])
sys.exit(code)
"""


@contextmanager
def child(loop: str, scene: str, seconds: float, path: Path) -> Iterator[subprocess.Popen[str]]:
    """A child process that is ready."""
    program = path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, program, loop, scene, str(seconds)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert line_of(process) == "ready"
        yield process
    finally:
        process.kill()
        rest_of(process)


def line_of(process: subprocess.Popen[str]) -> str:
    """The next line that a child says."""
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


@pytest.mark.parametrize("loop", BOTH)
@pytest.mark.parametrize("number", [SIGINT, SIGTERM])
def test_the_first_signal_drains_and_cleans_up(loop: str, number: Signals, tmp_path: Path) -> None:
    """One signal ends everything in order; the handlers of before are back afterwards."""
    with child(loop, "plain", 0, tmp_path) as process:
        process.send_signal(number)
        rest, _ = rest_of(process)
    assert rest.splitlines() == [
        f"draining: received {number.name}",
        f"cleaning up: received {number.name}",
        "closing",
        "closed",
        f"finished: received {number.name}",
        f"signal {number.name}, code {128 + number}",
        "True",
    ]
    assert process.returncode == 128 + number


@pytest.mark.parametrize("loop", BOTH)
def test_the_second_signal_cuts_the_grace(loop: str, tmp_path: Path) -> None:
    """Two signals, of whatever kind: work is cancelled, and handlers get the last call."""
    with child(loop, "work", 600, tmp_path) as process:
        process.send_signal(SIGTERM)
        assert line_of(process) == "draining: received SIGTERM"
        process.send_signal(SIGINT)
        assert line_of(process) == "draining, cut: received SIGTERM"
        rest, _ = rest_of(process)
    lines = rest.splitlines()
    assert lines[:3] == [
        "cleaning up, cut: received SIGTERM",
        "closing",
        "finished, cut: received SIGTERM",
    ]
    assert "close was cancelled after" in lines[3]
    assert lines[4:] == ["signal SIGTERM, code 143", "True"]
    assert process.returncode == 143


@pytest.mark.parametrize("loop", BOTH)
def test_the_third_signal_exits_at_once(loop: str, tmp_path: Path) -> None:
    """Three signals exit with 128 plus the number of the third, whatever resists."""
    with child(loop, "resist", 0, tmp_path) as process:
        process.send_signal(SIGTERM)
        while line_of(process) != "resisting":
            pass
        process.send_signal(SIGTERM)
        assert line_of(process) == "cleaning up, cut: received SIGTERM"
        process.send_signal(SIGINT)
        rest, _ = rest_of(process)
    assert rest.splitlines()[-1] == "leaving because of SIGINT"
    assert process.returncode == 130


@pytest.mark.parametrize("loop", BOTH)
def test_the_third_signal_works_while_the_loop_is_blocked(loop: str, tmp_path: Path) -> None:
    """A handler that blocks the event loop cannot keep the third signal from exiting."""
    with child(loop, "block", 0, tmp_path) as process:
        process.send_signal(SIGTERM)
        while line_of(process) != "blocking":
            pass
        # One at a time: two of the same that wait are one.
        process.send_signal(SIGINT)
        process.send_signal(SIGTERM)
        rest, _ = rest_of(process)
    assert rest.splitlines()[-1].startswith("leaving because of SIG")
    assert process.returncode in (130, 143)


@pytest.mark.parametrize("loop", BOTH)
def test_handlers_are_restored_whatever_happens(loop: str) -> None:
    """A handler that was set before is back after the block, after an error in it too."""

    def mine(*_: Any) -> None:
        """Nothing."""

    async def main(*, fails: bool) -> None:
        async with ShutdownManager(signals=(SIGTERM, SIGINT)):
            assert signal.getsignal(SIGTERM) is not mine
            if fails:
                raise LookupError

    old = signal.signal(SIGTERM, mine)
    interrupt = signal.getsignal(SIGINT)
    try:
        anyio.run(partial(main, fails=False), backend=loop)
        assert signal.getsignal(SIGTERM) is mine
        with pytest.raises(LookupError):
            anyio.run(partial(main, fails=True), backend=loop)
        assert signal.getsignal(SIGTERM) is mine
        assert signal.getsignal(SIGINT) is interrupt
    finally:
        signal.signal(SIGTERM, old)


@pytest.mark.parametrize("loop", BOTH)
def test_signals_need_the_main_thread(loop: str) -> None:
    """In another thread signals are a clear error, and a manager without them works."""
    raised: list[BaseException] = []

    async def main() -> None:
        async with ShutdownManager() as shutdown:
            assert shutdown.signal is None
        with pytest.raises(RuntimeError, match="only be handled in the main thread") as caught:
            async with ShutdownManager(signals=(SIGTERM,)):
                raise AssertionError("unreachable")
        raised.append(caught.value)

    before = signal.getsignal(SIGTERM)
    thread = threading.Thread(target=partial(anyio.run, main, backend=loop))
    thread.start()
    thread.join()
    assert len(raised) == 1
    assert signal.getsignal(SIGTERM) is before


@pytest.mark.parametrize("loop", BOTH)
def test_without_signals_none_is_touched(loop: str) -> None:
    """Handling signals is opt-in."""

    async def main() -> None:
        before = signal.getsignal(SIGTERM), signal.getsignal(SIGINT)
        async with ShutdownManager():
            assert (signal.getsignal(SIGTERM), signal.getsignal(SIGINT)) == before

    anyio.run(main, backend=loop)
