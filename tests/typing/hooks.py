"""What type checkers must see of hooks; mypy and pyright read it.

Nothing here is run. Every ``type: ignore`` is an error that must be found: where one is not, the
checker reports the comment as unused.
"""

from __future__ import annotations

from typing import assert_type

from orchestra import Block, HookPoint, HookRegistry, Modify, SyncHookPoint
from orchestra.opencode import BEFORE_PROMPT, MissionPrompt

TEXT = HookPoint[str]("text")
SIZE = SyncHookPoint[int]("size")
hooks = HookRegistry()


def allow(value: str) -> None: ...


def block(value: str) -> Block | None:
    return Block("no") if value else None


async def change(value: str) -> Modify[str] | None:
    return Modify(value.upper()) if value else None


def prompt(draft: MissionPrompt) -> Modify[MissionPrompt]:
    return Modify(draft)


def wants_a_number(value: int) -> None: ...


def gives_a_number(value: str) -> Modify[int]:
    return Modify(len(value))


def gives_a_text(value: str) -> str:
    return value


async def what_fits_is_taken() -> None:
    hooks.register(TEXT, allow, name="allow")
    hooks.register(TEXT, block, name="block")
    hooks.register(TEXT, change, name="change")
    hooks.register(SIZE, wants_a_number, name="number")
    hooks.register(BEFORE_PROMPT, prompt, name="prompt")
    assert_type(await hooks.run(TEXT, "a"), str)
    assert_type(hooks.call(SIZE, 1), int)


async def what_does_not_fit_is_refused() -> None:
    hooks.register(TEXT, wants_a_number, name="a")  # type: ignore[arg-type]
    hooks.register(TEXT, gives_a_number, name="b")  # type: ignore[arg-type]
    hooks.register(TEXT, gives_a_text, name="c")  # type: ignore[arg-type]
    hooks.register(TEXT, allow, name="d", on_error="retry")  # type: ignore[arg-type]
    hooks.register(BEFORE_PROMPT, allow, name="e")  # type: ignore[arg-type]
    hooks.call(TEXT, "a")  # type: ignore[arg-type]
    await hooks.run(SIZE, 1)  # type: ignore[arg-type]
