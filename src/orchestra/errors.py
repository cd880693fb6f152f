"""The error tree.

A message is one sentence: the facts, then what to do. `RejectedError` means that the work was
*not* started, so repeating the call is safe. Where anyio or the standard library already has the
right error it is reused: ``anyio.BusyResourceError``, ``anyio.ClosedResourceError``,
``anyio.WouldBlock``, ``TimeoutError``, ``ValueError`` and ``TypeError`` for bad configuration.
Every error pickles.
"""

from __future__ import annotations

from orchestra.events import CircuitState

__all__ = (
    "AgentNotFoundError",
    "CircuitOpenError",
    "CapacityError",
    "ConfigurationError",
    "MissionError",
    "ModelNotFoundError",
    "OrchestraError",
    "PlanError",
    "PressureError",
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


class CapacityError(RejectedError):
    """There is no room to wait in: the queue is full, or its owner is closed."""


class PressureError(RejectedError):
    """Work of low priority was turned away because memory is short.

    Args:
        message: What happened and what to do.
        usage: How much of the memory was in use, from 0.0 to 1.0.
        retry_after: Seconds until trying again makes sense.
    """

    def __init__(self, message: str, usage: float, retry_after: float | None = None) -> None:
        super().__init__(message, retry_after)
        self.args = (message, usage, retry_after)
        self.usage = usage


class CircuitOpenError(RejectedError):
    """A circuit breaker did not let the call through.

    Args:
        breaker_name: The breaker's name.
        state: OPEN, HALF_OPEN (every probe is out) or FORCED_OPEN.
        retry_after: Seconds until the next probe is let through; None unless ``state`` is OPEN.
        failures: How many failures opened the circuit; 0 when slow calls did.
    """

    def __init__(
        self,
        breaker_name: str,
        state: CircuitState,
        retry_after: float | None = None,
        failures: int = 0,
    ) -> None:
        if state is CircuitState.FORCED_OPEN:
            facts = "is held open by isolate(); call reset() to close it"
        elif state is CircuitState.HALF_OPEN:
            facts = "is half-open and its probes are out; call again when they have ended"
        else:
            reason = f"{failures} failures" if failures else "slow calls"
            facts = f"is open after {reason}; next probe in {retry_after or 0.0:.1f} s"
        super().__init__(f"circuit {breaker_name!r} {facts}", retry_after)
        self.args = (breaker_name, state, retry_after, failures)
        self.breaker_name = breaker_name
        self.state = state
        self.failures = failures


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
