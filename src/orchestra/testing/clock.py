"""Virtual time: hours pass in no time, and in the same order on every run."""

from __future__ import annotations

import asyncio
import selectors
import sys
from typing import Any, Literal, final

import anyio

__all__ = ("settle", "virtual_time_options")


def virtual_time_options(backend: Literal["asyncio", "trio"] | str) -> dict[str, Any]:  # noqa: PYI051
    """Return ``backend_options`` with which sleeping takes no real time.

    ::

        anyio.run(main, backend="trio", backend_options=virtual_time_options("trio"))

    or, for every asynchronous test of a module, by the fixture of anyio's pytest plugin::

        @pytest.fixture(params=["asyncio", "trio"])
        def anyio_backend(request):
            return request.param, virtual_time_options(request.param)

    Whenever every task waits, the clock of the event loop (``anyio.current_time()``) jumps to the
    next deadline. It does so too while a worker thread, a process or a socket is busy, because it
    cannot know of them: a test that waits for such a thing needs the real clock.

    Args:
        backend: ``"asyncio"`` or ``"trio"``.

    Raises:
        ValueError: It is another one.
    """
    if backend == "trio":
        from trio.testing import MockClock  # noqa: PLC0415 - trio is optional

        return {"clock": MockClock(autojump_threshold=0)}
    if backend == "asyncio":
        return {"loop_factory": VirtualTimeLoop}
    raise ValueError(f"backend must be 'asyncio' or 'trio', not {backend!r}")


async def settle() -> None:
    """Return when every other task waits for something that it does not do itself.

    In virtual time no time passes; in real time it takes what the other tasks take.
    """
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_task():
        await trio.testing.wait_all_tasks_blocked()
        return
    loop = asyncio.get_running_loop()
    if isinstance(loop, VirtualTimeLoop):
        await loop.wait_idle()
    else:
        await anyio.wait_all_tasks_blocked()


@final
class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An asyncio event loop that jumps to the next timer instead of waiting for it."""

    def __init__(self) -> None:
        self._now = 0.0
        self._idlers: list[asyncio.Future[None]] = []
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        """Return the virtual time, 0.0 at the start."""
        return self._now

    async def wait_idle(self) -> None:
        """Return when nothing is ready to run; before the clock moves."""
        idler = self.create_future()
        self._idlers.append(idler)
        await idler

    def pass_time(self, seconds: float | None) -> bool:
        """Wake those who wait for this moment, else jump; tell whether to look for I/O as usual."""
        idlers, self._idlers = self._idlers, []
        for idler in idlers:
            if not idler.done():
                idler.set_result(None)
        if not idlers and seconds is not None:
            self._now += seconds
        return not idlers and seconds is None


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        is_busy = timeout is not None and timeout <= 0
        ready: list[tuple[selectors.SelectorKey, int]] = super().select(0)
        if is_busy or ready or not self._loop.pass_time(timeout):
            return ready
        return super().select(timeout)  # no timer: only I/O is left
