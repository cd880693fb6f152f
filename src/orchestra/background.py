"""Background tasks whose owner block keeps its own errors."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

__all__ = ("background_tasks",)


@asynccontextmanager
async def background_tasks() -> AsyncIterator[TaskGroup]:
    """Own background tasks for the length of a block; leaving cancels them and waits for them.

    A plain task group waits for its tasks and wraps what the block raises in an
    ``ExceptionGroup``. An object that hides a task group behind ``async with`` wants neither:
    what the block raises comes out as it is, also while it is being cancelled. A background task
    that fails cancels the block and is raised as an ``ExceptionGroup``, as by a task group.

    Leaving is a checkpoint.
    """
    failure: BaseException | None = None
    try:
        async with anyio.create_task_group() as group:
            try:
                yield group
            except (Exception, KeyboardInterrupt, SystemExit) as exc:  # noqa: BLE001  (raised below)
                failure = exc
            finally:
                group.cancel_scope.cancel()
    except BaseExceptionGroup as group_error:
        if failure is None:
            raise
        raise BaseExceptionGroup(group_error.message, [*group_error.exceptions, failure]) from None
    except anyio.get_cancelled_exc_class():
        if failure is None:
            raise
    if failure is not None:
        try:
            raise failure
        finally:
            del failure
    await anyio.lowlevel.checkpoint()
