"""Amounts of tokens and money, and how much of a limit is used. Pure; whole numbers only."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final, final

from attrs import Attribute, field, frozen

__all__ = ("NOTHING", "Amount", "Meter", "Overruns", "microdollars")

_MICRO = 1_000_000


def _natural(_instance: object, attribute: Attribute[Any], value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{attribute.name} must be an int, not {value!r}")
    if value < 0:
        raise ValueError(f"{attribute.name} must be at least 0, not {value!r}")


def microdollars(name: str, dollars: object) -> int:
    """Convert dollars into whole millionths, rounded up.

    Args:
        name: What to call them.
        dollars: A number; a float counts as the decimal number that it is shown as.

    Raises:
        TypeError: It is no number.
        ValueError: It is negative or not finite.
    """
    if not isinstance(dollars, int | float | Decimal) or isinstance(dollars, bool):
        raise TypeError(f"{name} must be a number, not {dollars!r}")
    if not math.isfinite(dollars):
        raise ValueError(f"{name} must be finite, not {dollars!r}")
    if dollars < 0:
        raise ValueError(f"{name} must be at least 0, not {dollars!r}")
    # As a ratio of integers: what the decimal context's precision is must not matter.
    top, bottom = Decimal(str(dollars)).as_integer_ratio()
    return -(-top * _MICRO // bottom)


@final
@frozen(kw_only=True)
class Amount:
    """What work costs, or may cost; whole numbers, so that nothing is lost in sums.

    Attributes:
        tokens: Model tokens of every kind.
        microdollars: Millionths of a US dollar.

    Raises:
        TypeError: A field is no int.
        ValueError: A field is negative.
    """

    tokens: int = field(default=0, validator=_natural)
    microdollars: int = field(default=0, validator=_natural)

    @classmethod
    def of(cls, *, tokens: int = 0, dollars: float | Decimal = 0) -> Amount:
        """Make an amount from dollars.

        Args:
            tokens: Model tokens.
            dollars: US dollars, rounded up to whole millionths.
        """
        return cls(tokens=tokens, microdollars=microdollars("dollars", dollars))

    @property
    def dollars(self) -> Decimal:
        """US dollars, exactly."""
        return Decimal(self.microdollars).scaleb(-6)

    def or_more(self, other: Amount) -> Amount:
        """Return the larger of both, in each resource."""
        tokens = max(self.tokens, other.tokens)
        micros = max(self.microdollars, other.microdollars)
        if tokens == self.tokens and micros == self.microdollars:
            return self
        return Amount(tokens=tokens, microdollars=micros)

    def __add__(self, other: Amount) -> Amount:
        return Amount(
            tokens=self.tokens + other.tokens, microdollars=self.microdollars + other.microdollars
        )

    def __str__(self) -> str:
        return f"{self.tokens:,} tokens, ${self.dollars:,}"


NOTHING: Final = Amount()


@final
class Meter:
    """One resource of one account.

    Attributes:
        limit: How much there is; None: no limit.
        kept: How much of it only wrap-up may use.
        spent: How much was used, descendants included; never less than before.
        held: How much those in flight may use.
    """

    __slots__ = ("held", "kept", "limit", "spent")

    def __init__(self, limit: int | None, wrap_up: float) -> None:
        self.spent = 0
        self.held = 0
        self.change(limit, wrap_up)

    def change(self, limit: int | None, wrap_up: float) -> None:
        """Replace the limit.

        Args:
            limit: The new one.
            wrap_up: Which share of it only wrap-up may use.
        """
        self.limit = limit
        self.kept = 0 if limit is None else math.ceil(limit * Fraction(str(wrap_up)))

    def has(self, amount: int, *, wrap_up: bool) -> bool:
        """Whether so much fits above what is spent and held."""
        limit = self.limit
        if limit is None:
            return True
        return self.spent + self.held + amount <= (limit if wrap_up else limit - self.kept)

    def could_have(self, amount: int, *, wrap_up: bool) -> bool:
        """Whether so much would fit if everything held came back."""
        return self.limit is None or self.has(amount - self.held, wrap_up=wrap_up)


@final
class Overruns:
    """The most that a request cost beyond its estimate, in one resource of the whole tree.

    Attributes:
        worst: In absolute terms.
        permille: Relative to the estimate; None: without bound, an estimate was 0.
    """

    __slots__ = ("_prior", "permille", "worst")

    def __init__(self, prior: int) -> None:
        self._prior = prior
        self.permille: int | None = prior
        self.worst = 0

    def expect(self, estimate: int) -> None:
        """Until more is seen, an estimate may be wrong by the share that is assumed of all."""
        self.worst = max(self.worst, -(-estimate * self._prior // 1000))

    def note(self, estimate: int, actual: int) -> None:
        """Learn from one request."""
        excess = actual - estimate
        if excess <= 0:
            return
        self.worst = max(self.worst, excess)
        if estimate == 0:
            self.permille = None
        elif self.permille is not None:
            self.permille = max(self.permille, -(-excess * 1000 // estimate))

    def margin(self, count: int, held: int) -> int:
        """What some requests may cost beyond their estimates: both bounds hold, the lower counts.

        Args:
            count: How many requests.
            held: The sum of what they hold.
        """
        absolute = count * self.worst
        if self.permille is None:
            return absolute
        return min(absolute, -(-held * self.permille // 1000))
