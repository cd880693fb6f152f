"""What the policies must know about a function before they wrap it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from orchestra.abc import Policy

__all__ = ("decorated", "is_async", "refuse_generator")

P = ParamSpec("P")
T = TypeVar("T")


def is_async(fn: object) -> bool:
    """Tell whether calling it gives a coroutine.

    Args:
        fn: A function, a method, a partial of one, or an object with ``__call__``.
    """
    while isinstance(fn, functools.partial):
        fn = fn.func
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(
        getattr(type(fn), "__call__", None)  # noqa: B004 - not whether it is callable, but how
    )


def refuse_generator(fn: object) -> None:
    """Raise for a generator function: its call ends before its work begins.

    Args:
        fn: What shall be decorated.

    Raises:
        TypeError: It is a generator function, or cannot be called.
    """
    if not callable(fn):
        raise TypeError(f"cannot decorate {fn!r}: it cannot be called")
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        raise TypeError(
            f"cannot decorate the generator function {fn!r}: use a `with` block inside it"
        )


def decorated(
    policy: Policy, fn: Callable[P, Coroutine[Any, Any, T]]
) -> Callable[P, Coroutine[Any, Any, T]]:
    """Wrap an async function so that every call of it goes through a policy.

    Args:
        policy: Whose ``call`` is used.
        fn: A coroutine function.

    Raises:
        TypeError: It is no coroutine function.
    """
    refuse_generator(fn)
    if not is_async(fn):
        raise TypeError(f"cannot decorate {fn!r}: it is not an async function")

    @functools.wraps(fn)
    async def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        return await policy.call(fn, *args, **kwargs)

    return wrapper
