"""The error tree.

A message is one sentence: the facts, then what to do. `RejectedError` means that the work was
*not* started, so repeating the call is safe. Where anyio or the standard library already has the
right error it is reused: ``anyio.BusyResourceError``, ``anyio.ClosedResourceError``,
``anyio.WouldBlock``, ``TimeoutError``, ``ValueError`` and ``TypeError`` for bad configuration.
Every error pickles.
"""

from __future__ import annotations

__all__ = (
    "AgentNotFoundError",
    "ConfigurationError",
    "MissionError",
    "ModelNotFoundError",
    "OrchestraError",
    "PlanError",
    "RejectedError",
    "RemoteProtocolError",
    "ServerError",
    "SessionError",
    "SessionLostError",
    "TransportError",
)


class OrchestraError(Exception):
    """Base of every error of this package; never raised itself."""

    def __init__(self, *args: object) -> None:
        if type(self) is OrchestraError:
            raise TypeError("OrchestraError is abstract: raise one of its subclasses")
        super().__init__(*args)


class RejectedError(OrchestraError):
    """The work was not started; repeating the call is safe.

    Args:
        message: What happened and what to do.
        retry_after: Seconds until trying again makes sense; None when unknown.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message, retry_after)
        self.message = message
        self.retry_after = retry_after

    def __str__(self) -> str:
        return self.message


class ConfigurationError(OrchestraError, ValueError):
    """Configuration from outside is wrong; ``problems`` has one sentence per fault.

    Args:
        problems: One sentence for each fault, all of them, in reading order.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(self.problems)


class SessionError(OrchestraError):
    """Something went wrong between us and an agent session."""


class SessionLostError(SessionError):
    """The backend no longer knows the session; open a new one."""


class AgentNotFoundError(SessionError):
    """The backend has no agent of that name."""


class ModelNotFoundError(SessionError):
    """The backend has no model of that name."""


class TransportError(SessionError):
    """The connection to the backend could not be made, or broke."""


class RemoteProtocolError(SessionError):
    """The server answered with something that is not its protocol."""


class ServerError(SessionError):
    """The server answered, with an error.

    Args:
        message: What happened and what to do.
        status: The HTTP status code.
        body: The start of the answer's body, for the log.
    """

    def __init__(self, message: str, status: int, body: str = "") -> None:
        super().__init__(message, status, body)
        self.message = message
        self.status = status
        self.body = body

    def __str__(self) -> str:
        return self.message


class MissionError(OrchestraError):
    """A mission cannot go on."""


class PlanError(MissionError):
    """A plan is not usable; the message names every fault."""
