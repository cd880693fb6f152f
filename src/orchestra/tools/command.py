"""How to start a tool server, and how it wants to be talked to."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import final

from attrs import field, frozen

from orchestra._core.checks import count, not_negative, of_type, optional_seconds
from orchestra._core.jsonrpc import Framing

__all__ = ("CancelStyle", "Framing", "ToolCommand")


class CancelStyle(Enum):
    """What a server is told when an answer is not wanted any more."""

    NONE = "none"
    """Nothing. It goes on, and its answer is dropped."""

    LANGUAGE_SERVER = "$/cancelRequest"
    """A notification of language servers, which then answer the request at once, with a result or
    an error."""

    CONTEXT_PROTOCOL = "notifications/cancelled"
    """A notification of the Model Context Protocol, whose servers do not answer the request. So
    they are asked for a ``ping`` too: its answer, even an error, proves that they are not stuck."""


def _as_argv(argv: Sequence[str]) -> tuple[str, ...]:
    if isinstance(argv, str):
        raise TypeError(f"argv must be a sequence of texts, not the text {argv!r}")
    return tuple(map(os.fspath, argv))


def _check_argv(_instance: object, _attribute: object, argv: tuple[str, ...]) -> None:
    if not argv or not argv[0]:
        raise ValueError("argv must begin with a program")
    if os.path.dirname(argv[0]) and not Path(argv[0]).is_absolute():  # noqa: PTH120 - no path yet
        raise ValueError(
            f"argv must begin with a plain name or an absolute path, not {argv[0]!r}, which "
            "depends on the directory"
        )


@final
@frozen(kw_only=True)
class ToolCommand:
    """How to start and talk to a tool server or a language server.

    A program that is given by name is looked for on ``PATH``, but never in the working directory:
    a repository must not get a program of its own run by being worked on. (A Python that is
    started with ``-m`` looks there for modules; ``-P`` stops it.)

    Attributes:
        argv: The program and its arguments; there is no shell.
        directory: Its working directory.
        environment: Its whole environment; None: this process's.
        framing: How its messages are told apart.
        cancel_style: What it is told when an answer is not wanted any more.
        request_timeout: Seconds a request may take, when it does not say itself; None: for ever.
        grace: Seconds it gets to settle a request that was given up, to end after its input has
            ended, and to end after it was asked to.
        message_limit: Bytes that one message from it may have.
        stderr_limit: Bytes it may write to its standard error between two messages.
        name: What errors call it; by default the program's name.

    Raises:
        TypeError: A field is of the wrong type.
        ValueError: ``argv`` is empty or begins with a relative path, or a number is too small.
    """

    argv: tuple[str, ...] = field(converter=_as_argv, validator=_check_argv)
    directory: Path = field(converter=Path)
    environment: Mapping[str, str] | None = field(default=None, repr=False)
    framing: Framing = field(default=Framing.LINES, validator=of_type(Framing))
    cancel_style: CancelStyle = field(default=CancelStyle.NONE, validator=of_type(CancelStyle))
    request_timeout: float | None = field(default=60.0, validator=optional_seconds)
    grace: float = field(default=2.0, validator=not_negative)
    message_limit: int = field(default=16 * 1024 * 1024, validator=count)
    stderr_limit: int = field(default=64 * 1024 * 1024, validator=count)
    name: str = ""

    @property
    def label(self) -> str:
        """The name, for people."""
        return self.name or os.path.basename(self.argv[0])  # noqa: PTH119 - a name, no path


Framing.__module__ = __name__  # users import it from here or from `orchestra`
