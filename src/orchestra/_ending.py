"""Ending one thing: bounded, whatever it does, and never at the expense of the next."""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from threading import Thread
from typing import Any, TypeAlias

import anyio
import anyio.from_thread
import anyio.lowlevel
from attrs import frozen

from orchestra._functions import is_async
from orchestra.events import HandlerOutcome

__all__ = ("Ending", "EndingFunction", "end")

EndingFunction: TypeAlias = Callable[[], Awaitable[object] | object]
"""What ends something; asynchronous or not."""


@frozen
class Ending:
    """How a call went.

    Attributes:
        outcome: In a word.
        duration: Seconds.
        error: What it raised, or a TimeoutError.
    """

    outcome: HandlerOutcome
    duration: float
    error: BaseException | None


async def end(
    fn: EndingFunction, name: str, scope: anyio.CancelScope, *, in_thread: bool
) -> Ending:
    """Call a function until it is over or its scope is cancelled; what it raises is returned.

    Args:
        fn: What to call.
        name: What to call it in an error message.
        scope: Bounds it; nobody has entered it yet.
        in_thread: Whether a function that is not asynchronous may block, and gets a thread.
    """
    started = anyio.current_time()
    error: BaseException | None = None
    with scope:
        try:
            result = await _in_thread(fn) if in_thread and not is_async(fn) else fn()
            if inspect.isawaitable(result):
                await result
        except anyio.get_cancelled_exc_class() as exc:
            if anyio.current_effective_deadline() == -math.inf:
                raise
            # As ``task.cancel(); await task`` of asyncio does: it is about the task, not us.
            error = RuntimeError(f"{name} raised a cancellation that is not its own; catch it")
            error.__cause__ = exc
        # An interrupt ends the program, but only after the rest has been ended too.
        except (Exception, KeyboardInterrupt, SystemExit) as exc:  # noqa: BLE001 (returned)
            error = exc
    duration = anyio.current_time() - started
    if scope.cancelled_caught or (error is not None and scope.cancel_called):
        late = TimeoutError(
            f"{name} was cancelled after {duration:.1f} s; give it more time or less to do"
        )
        late.__cause__ = error
        return Ending(HandlerOutcome.TIMEOUT, duration, late)
    if error is not None:
        return Ending(HandlerOutcome.ERROR, duration, error)
    return Ending(HandlerOutcome.OK, duration, None)


async def _in_thread(fn: Callable[[], Any]) -> Any:
    """Call a blocking function in a thread of its own, which is left alone when cancelled.

    A worker thread of anyio will not do: there may be none free, and on asyncio one that hangs
    keeps the process from exiting.
    """
    over = anyio.Event()
    token = anyio.lowlevel.current_token()
    results: list[object] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            results.append(fn())
        except BaseException as exc:  # noqa: BLE001 (raised where it is waited for)
            errors.append(exc)
        with suppress(RuntimeError):  # nobody waits any more, and the loop has ended
            anyio.from_thread.run_sync(over.set, token=token)

    Thread(target=call, name=f"orchestra ending {fn!r}", daemon=True).start()
    await over.wait()
    if errors:
        raise errors.pop()
    return results.pop()
