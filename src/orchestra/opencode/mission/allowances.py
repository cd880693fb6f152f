"""What a mission may spend, and how it treats the providers of its models: configuration."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

from attrs import field, frozen, validators

from orchestra import Price, UnknownPrice

__all__ = ("Allowance", "BudgetSettings", "ProviderSettings")

_AMOUNT = validators.optional([validators.instance_of(int), validators.gt(0)])
_NUMBER = validators.optional(validators.gt(0))


@frozen(kw_only=True)
class Allowance:
    """What something may cost; None: no limit of its own.

    Attributes:
        tokens: Model tokens of every kind, those from a cache included.
        dollars: US dollars.
        seconds: Seconds from its beginning.
    """

    tokens: int | None = field(default=None, validator=_AMOUNT)
    dollars: float | Decimal | None = field(default=None, validator=_NUMBER)
    seconds: float | None = field(default=None, validator=_NUMBER)


@frozen(kw_only=True)
class BudgetSettings:
    """What a mission may spend. All limits hold together; a smaller one counts first.

    Attributes:
        mission: For the whole mission. When it is used up nothing new begins, and the mission
            has failed.
        task: For each task, with its reviews; a task that has used it up has failed. What a task
            is split into is paid from the task's.
        attempt: For each round of a task, with its review; it is tried once more.
        wrap_up: Which share of each only commander and reviewers may use, so that what was worked
            for can still be judged; from 0.0, below 1.0.
        first_tokens: What a turn is expected to cost as long as none of its role has ended; at
            most a tenth of the smallest limit counts.
        prices: What models cost, by ``provider/model``; they win over what the backend says.
        unknown_price: What is done about a model that nobody knows the price of, when there is a
            limit in dollars: refuse it, take it for free, or assume a `Price`.
    """

    mission: Allowance = field(factory=Allowance)
    task: Allowance = field(factory=Allowance)
    attempt: Allowance = field(factory=Allowance)
    wrap_up: float = field(default=0.05, validator=[validators.ge(0), validators.lt(1)])
    first_tokens: int = field(default=20_000, validator=validators.ge(1))
    prices: Mapping[str, Price] = field(factory=dict)
    unknown_price: UnknownPrice = "refuse"

    @property
    def levels(self) -> tuple[Allowance, Allowance, Allowance]:
        """The three of them, from the mission down."""
        return self.mission, self.task, self.attempt

    @property
    def has_dollars(self) -> bool:
        """Whether money is limited anywhere."""
        return any(level.dollars is not None for level in self.levels)


@frozen(kw_only=True)
class ProviderSettings:
    """How a mission treats the providers of its models.

    Attributes:
        failure_threshold: So many failed model calls in a row, of all its turns together, and a
            provider is left alone.
        recovery_timeout: Seconds for which it is; afterwards one turn tries whether it works.
        spacing: Seconds between two turns, on average, that begin when it may be asked again.
        patience: Seconds that a turn waits for its provider when there is a model of another one
            to fall back on; without such a model it waits as long as it takes.
    """

    failure_threshold: int = field(default=5, validator=validators.ge(1))
    recovery_timeout: float = field(default=30.0, validator=validators.gt(0))
    spacing: float = field(default=0.05, validator=validators.ge(0))
    patience: float = field(default=5.0, validator=validators.ge(0))
