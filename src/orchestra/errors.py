"""The error tree.

A message is one sentence: the facts, then what to do. `RejectedError` means that the work was
*not* started, so repeating the call is safe. Where anyio or the standard library already has the
right error it is reused: ``anyio.BusyResourceError``, ``anyio.ClosedResourceError``,
``anyio.WouldBlock``, ``TimeoutError``, ``ValueError`` and ``TypeError`` for bad configuration.
Every error pickles.
"""

from __future__ import annotations

from decimal import Decimal
from functools import partial
from typing import Literal

from orchestra.events import CircuitState

__all__ = (
    "AgentNotFoundError",
    "AmbiguousCommitError",
    "AmbiguousItemError",
    "BlockedError",
    "BudgetExceededError",
    "CapacityError",
    "CircuitOpenError",
    "CompactedError",
    "ConfigurationError",
    "ConflictError",
    "HookError",
    "HookOrderError",
    "ItemNotFoundError",
    "LeaseLostError",
    "MissionError",
    "ModelNotFoundError",
    "OrchestraError",
    "PlanError",
    "PressureError",
    "RejectedError",
    "RemoteProtocolError",
    "SchemaError",
    "ServerError",
    "SessionError",
    "SessionLostError",
    "ShuttingDownError",
    "StoreBusyError",
    "StoreCorruptError",
    "StoreError",
    "StoreFullError",
    "StoreReadOnlyError",
    "ToolError",
    "ToolLostError",
    "ToolProtocolError",
    "ToolResponseError",
    "ToolStartError",
    "ToolTimeoutError",
    "TransportError",
    "UnknownPriceError",
    "WorkspaceOwnedError",
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
        self.retry_after = retry_after

    @property
    def message(self) -> str:
        """What happened and what to do."""
        return str(self.args[0])

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
        self.usage = usage

    def __reduce__(self) -> tuple[type[PressureError], tuple[str, float, float | None]]:
        return type(self), (self.message, self.usage, self.retry_after)


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
        # A breaker that is open must cost less than the call it saves: the sentence is made when
        # it is read, and the base classes have nothing to add.
        self.retry_after = retry_after
        self.breaker_name = breaker_name
        self.state = state
        self.failures = failures

    def __reduce__(
        self,
    ) -> tuple[type[CircuitOpenError], tuple[str, CircuitState, float | None, int]]:
        return type(self), (self.breaker_name, self.state, self.retry_after, self.failures)

    @property
    def message(self) -> str:
        """The facts, and what to do."""
        if self.state is CircuitState.FORCED_OPEN:
            facts = "is held open by isolate(); call reset() to close it"
        elif self.state is CircuitState.HALF_OPEN:
            facts = "is half-open and its probes are out; call again when they have ended"
        else:
            reason = f"{self.failures} failures" if self.failures else "slow calls"
            facts = f"is open after {reason}; next probe in {self.retry_after or 0.0:.1f} s"
        return f"circuit {self.breaker_name!r} {facts}"


class BudgetExceededError(RejectedError):
    """A budget cannot pay for the work, and will not be able to as long as its limit stays.

    Args:
        budget: The path of the budget that is short, which may be one above the one asked.
        resource: What it is short of.
        asked: How much was asked for; 0.0 seconds for time.
        spent: How much of it was used, by descendants too.
        held: How much those in flight hold.
        limit: How much there is.
        kept: How much of that is kept for wrap-up, and was out of reach.
    """

    def __init__(
        self,
        budget: str,
        resource: Literal["tokens", "dollars", "seconds"],
        *,
        asked: float | Decimal,
        spent: float | Decimal,
        held: float | Decimal,
        limit: float | Decimal,
        kept: float | Decimal = 0,
    ) -> None:
        self.budget = budget
        self.resource = resource
        self.asked = asked
        self.spent = spent
        self.held = held
        self.limit = limit
        self.kept = kept
        super().__init__(self._sentence())

    def _sentence(self) -> str:
        kept = f", {self.kept:,} of them kept for wrap-up" if self.kept else ""
        if self.resource == "seconds":
            return (
                f"the time of budget {self.budget!r} is over after {self.spent:,.1f} of "
                f"{self.limit:,} seconds{kept}; give it more with extend()"
            )
        return (
            f"budget {self.budget!r} cannot pay {self.asked:,} {self.resource}: of {self.limit:,}"
            f"{kept}, {self.spent:,} are spent and {self.held:,} held; "
            f"ask for less or give it more with extend()"
        )

    def __reduce__(self) -> tuple[partial[BudgetExceededError], tuple[str, str]]:
        facts = {name: getattr(self, name) for name in ("asked", "spent", "held", "limit", "kept")}
        return partial(type(self), **facts), (self.budget, self.resource)


class UnknownPriceError(RejectedError, LookupError):
    """A model has no price, so nobody can say whether a budget could pay for it.

    Args:
        model: Which model.
    """

    def __init__(self, model: str) -> None:
        super().__init__(
            f"model {model!r} has no price; put it on the price list, or give the list another "
            f"rule for unknown prices"
        )
        self.model = model

    def __reduce__(self) -> tuple[type[UnknownPriceError], tuple[str]]:
        return type(self), (self.model,)


class BlockedError(OrchestraError):
    """A hook did not let something pass.

    Args:
        point: The name of the hook point.
        hook: The hook's name.
        reason: Why, in the hook's words.
    """

    def __init__(self, point: str, hook: str, reason: str) -> None:
        super().__init__(point, hook, reason)
        self.point = point
        self.hook = hook
        self.reason = reason

    def __str__(self) -> str:
        return f"hook {self.hook!r} of {self.point!r} does not let this pass: {self.reason}"


class HookError(OrchestraError):
    """A hook raised, and its error policy does not let the others go on; see ``__cause__``.

    Args:
        point: The name of the hook point.
        hook: The hook's name.
        attempts: How often it was called for this value.
    """

    def __init__(self, point: str, hook: str, attempts: int = 1) -> None:
        super().__init__(point, hook, attempts)
        self.point = point
        self.hook = hook
        self.attempts = attempts

    def __str__(self) -> str:
        tries = "" if self.attempts == 1 else f" {self.attempts} times"
        return (
            f"hook {self.hook!r} of {self.point!r} raised{tries}; mend it, or register it with "
            "on_error='continue'"
        )


class HookOrderError(OrchestraError, ValueError):
    """Hooks cannot be put in an order that all of them want; nothing was registered.

    Args:
        message: What is wrong and what to do.
        members: The names of the hooks that cannot agree.
    """

    def __init__(self, message: str, members: tuple[str, ...]) -> None:
        super().__init__(message, members)
        self.members = members

    def __str__(self) -> str:
        return str(self.args[0])


class ShuttingDownError(RejectedError):
    """A shutdown has been requested, and no new work is begun.

    Args:
        reason: Why it was requested.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"shutting down ({reason}): begin no new work here")
        self.reason = reason

    def __reduce__(self) -> tuple[type[ShuttingDownError], tuple[str]]:
        return type(self), (self.reason,)


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


class WorkspaceOwnedError(RejectedError, MissionError):
    """Somebody else runs a mission in the workspace; the message says who, and since when."""


class ItemNotFoundError(MissionError, LookupError):
    """No item of the list is meant by the reference; nothing was changed."""


class AmbiguousItemError(MissionError, LookupError):
    """Several items of the list could be meant by the reference; nothing was changed."""


class StoreError(OrchestraError):
    """A store did not do what it was asked; nothing that was committed is lost."""


class ConflictError(StoreError):
    """Somebody else changed what the transaction relies on; nothing of it was committed.

    Args:
        keys: The keys that changed, sorted; none when ``outcome()`` has settled the id.
        read_revision: The revision that the transaction had read.
        revision: The store's revision when the transaction was refused.
    """

    def __init__(self, keys: tuple[str, ...], read_revision: int, revision: int) -> None:
        super().__init__(keys, read_revision, revision)
        self.keys = keys
        self.read_revision = read_revision
        self.revision = revision

    def __str__(self) -> str:
        if not self.keys:
            return "outcome() has settled that this transaction is not committed; begin a new one"
        names = ", ".join(map(repr, self.keys[:3])) + (", ..." if len(self.keys) > 3 else "")
        return (
            f"{names} changed between revision {self.read_revision}, which the transaction read, "
            f"and revision {self.revision}; read again and repeat, as transact() does"
        )


class CompactedError(StoreError):
    """The revision is older than what the store has kept.

    Args:
        revision: What was asked for.
        compacted: The oldest revision that can still be read.
    """

    def __init__(self, revision: int, compacted: int) -> None:
        super().__init__(revision, compacted)
        self.revision = revision
        self.compacted = compacted

    def __str__(self) -> str:
        return (
            f"revision {self.revision} has been compacted, the oldest one kept is "
            f"{self.compacted}; take a new snapshot and go on from its revision"
        )


class AmbiguousCommitError(StoreError):
    """It is not known whether the transaction was committed.

    Args:
        transaction_id: Ask the store's ``outcome()`` for it, or commit it again under this id.
        reason: What happened, as the end of a sentence.
    """

    def __init__(self, transaction_id: str, reason: str) -> None:
        super().__init__(transaction_id, reason)
        self.transaction_id = transaction_id
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"it is not known whether transaction {self.transaction_id} was committed: "
            f"{self.reason}; ask outcome() with its id"
        )


class LeaseLostError(StoreError):
    """The lease is somebody else's by now; what its holder still does must not count.

    Args:
        name: The lease.
        fence: The fencing number that is out of date.
    """

    def __init__(self, name: str, fence: int) -> None:
        super().__init__(name, fence)
        self.name = name
        self.fence = fence

    def __str__(self) -> str:
        return (
            f"lease {self.name!r} with fencing number {self.fence} is over; "
            "give up what was done under it and take a new lease"
        )


class StoreFullError(StoreError):
    """There is no room on the disk; nothing of the transaction was committed."""


class StoreReadOnlyError(StoreError):
    """The store can be read but not written."""


class StoreCorruptError(StoreError):
    """The file is damaged, or is not a store."""


class SchemaError(StoreError):
    """The data was written by a newer program, or has a form that its codec does not take."""


class StoreBusyError(RejectedError, StoreError):
    """Another process holds the store's lock; nothing was started, so trying again is safe."""


class ToolError(OrchestraError):
    """A tool process did not do what it was asked.

    Args:
        message: What happened and what to do.
        stderr: The end of what the process wrote to its standard error.
    """

    def __init__(self, message: str, stderr: str = "") -> None:
        super().__init__(message, stderr)
        self.message = message
        self.stderr = stderr

    def __str__(self) -> str:
        return self.message


class ToolStartError(ToolError):
    """The tool process could not be started; nothing was asked of it."""


class ToolLostError(ToolError):
    """The tool process ended, or closed its pipes; what was asked may have been done or not."""


class ToolProtocolError(ToolError):
    """The tool process wrote what is not its protocol, and was ended for it."""


class ToolTimeoutError(ToolError, TimeoutError):
    """The tool process did not answer in time, and was told that the answer is not wanted."""


class ToolResponseError(ToolError):
    """The tool process answered, with an error.

    Args:
        message: What happened and what to do.
        code: The JSON-RPC error code.
        data: What the error carries.
        stderr: The end of what the process wrote to its standard error.
    """

    def __init__(self, message: str, code: int, data: object = None, stderr: str = "") -> None:
        super().__init__(message, stderr)
        self.code = code
        self.data = data

    def __reduce__(self) -> tuple[type[ToolResponseError], tuple[str, int, object, str]]:
        return type(self), (self.message, self.code, self.data, self.stderr)
