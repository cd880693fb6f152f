"""Signals for an event loop, with a way out that works when the loop does not."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any, NoReturn, TypeAlias

import anyio

__all__ = ("BeforeExit", "received_signals")

BeforeExit: TypeAlias = Callable[[signal.Signals], object]

_PATIENCE = 2
"""So many signals are the program's to handle; the next one ends it."""


@contextmanager
def received_signals(
    numbers: Sequence[signal.Signals], before_exit: BeforeExit | None
) -> Iterator[AsyncIterator[signal.Signals]]:
    """Yield the first two signals as they come; the third exits with 128 plus its number.

    The receiver of asyncio leaves default handlers behind, and delivers nothing while something
    blocks the loop. So the handlers are put back here, and counting is not left to the loop: the
    third signal is handled by the interpreter, between two instructions of whatever it executes.

    Args:
        numbers: Which signals.
        before_exit: Called before exiting.

    Raises:
        RuntimeError: This is not the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError(
            "signals can only be handled in the main thread: leave signals out, and have the main "
            "thread call request()"
        )
    original = {number: signal.getsignal(number) for number in numbers}
    count = 0

    def handle(deliver: Callable[[int, FrameType | None], Any], number: int, frame: Any) -> None:
        nonlocal count
        count += 1
        if count > _PATIENCE:
            _exit(signal.Signals(number), before_exit)
        deliver(number, frame)

    try:
        with anyio.open_signal_receiver(*numbers) as signals:
            for number in original:
                deliver = signal.getsignal(number)
                if callable(deliver):
                    signal.signal(number, partial(handle, deliver))
            yield signals
    finally:
        for number, handler in original.items():
            if handler is not None:  # it is None when it was not set from Python
                signal.signal(number, handler)


def _exit(number: signal.Signals, before_exit: BeforeExit | None) -> NoReturn:
    try:
        if before_exit is not None:
            before_exit(number)
    finally:
        os._exit(128 + number)
