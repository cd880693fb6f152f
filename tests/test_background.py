"""Background tasks: they end with their block, and the block's errors stay as they are."""

from __future__ import annotations

import anyio
import pytest

from orchestra import background_tasks


async def test_leaving_cancels_the_tasks_and_waits_for_them() -> None:
    """Tasks end with the block, after their clean-up."""
    told: list[str] = []

    async def work() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
                told.append("cleaned up")

    with anyio.fail_after(30):
        async with background_tasks() as tasks:
            tasks.start_soon(work)
            await anyio.wait_all_tasks_blocked()
            told.append("leaving")
    assert told == ["leaving", "cleaned up"]


@pytest.mark.parametrize("error", [LookupError("mine"), KeyboardInterrupt(), SystemExit(3)])
async def test_what_the_block_raises_comes_out_as_it_is(error: BaseException) -> None:
    """The block's own error is not wrapped, and is the very object that was raised."""
    ended = anyio.Event()

    async def work() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    with pytest.raises(type(error)) as caught:  # noqa: PT012
        async with background_tasks() as tasks:
            tasks.start_soon(work)
            await anyio.wait_all_tasks_blocked()
            raise error
    assert caught.value is error
    assert caught.value.__cause__ is None
    assert ended.is_set()


async def test_a_group_that_the_block_raises_is_not_wrapped_again() -> None:
    """An ExceptionGroup of the block comes out as it is."""
    error = ExceptionGroup("mine", [LookupError()])
    with pytest.raises(ExceptionGroup) as caught:
        async with background_tasks():
            raise error
    assert caught.value is error


async def test_a_failing_task_cancels_the_block() -> None:
    """What a background task raises ends the block, and is raised as a group."""
    with anyio.fail_after(30), pytest.raises(ExceptionGroup) as caught:  # noqa: PT012
        async with background_tasks() as tasks:
            tasks.start_soon(fail)
            await anyio.sleep_forever()
    assert [type(error) for error in caught.value.exceptions] == [LookupError]


async def fail() -> None:
    raise LookupError("task")


async def test_neither_of_two_errors_is_lost() -> None:
    """When a task and the block fail, both errors come out."""

    async def fail_in_the_end() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise LookupError("task")

    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012
        async with background_tasks() as tasks:
            tasks.start_soon(fail_in_the_end)
            await anyio.wait_all_tasks_blocked()
            raise ValueError("block")
    assert {str(error) for error in caught.value.exceptions} == {"task", "block"}


async def test_cancellation_passes() -> None:
    """A cancelled block is cancelled, and its tasks with it."""
    ended = anyio.Event()

    async def work() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    with anyio.CancelScope() as scope:
        async with background_tasks() as tasks:
            tasks.start_soon(work)
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
            await anyio.lowlevel.checkpoint()
            pytest.fail("unreachable")
    assert scope.cancelled_caught
    assert ended.is_set()


async def test_an_error_in_a_cancelled_block_is_not_lost() -> None:
    """What a block raises while it is being cancelled comes out, as from any other block."""
    with pytest.raises(LookupError, match="clean-up"):  # noqa: PT012
        with anyio.CancelScope() as scope:
            async with background_tasks() as tasks:
                tasks.start_soon(anyio.sleep_forever)
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
                try:
                    await anyio.sleep_forever()
                finally:
                    raise LookupError("clean-up")


async def test_leaving_is_a_checkpoint() -> None:
    """A block that did nothing still notices that it is cancelled."""
    with anyio.CancelScope() as scope:
        async with background_tasks():
            scope.cancel()
    assert scope.cancelled_caught
