"""What model calls cost. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Literal, TypeAlias, final

from attrs import Attribute, field, frozen

from orchestra._core.amounts import Amount, microdollars
from orchestra.errors import UnknownPriceError
from orchestra.events import Usage

__all__ = ("Price", "PriceList", "UnknownPrice")


def _price(_instance: object, attribute: Attribute[float | Decimal], value: object) -> None:
    microdollars(attribute.name, value)


def _optional_price(
    _instance: object, attribute: Attribute[float | Decimal | None], value: object
) -> None:
    if value is not None:
        microdollars(attribute.name, value)


@final
@frozen(kw_only=True)
class Price:
    """What a model costs, in US dollars per million tokens.

    Where a price is not given the dearer one that could apply does: reading from a cache and
    writing to it cost as much as input, reasoning as much as output.

    Attributes:
        input: Tokens sent.
        output: Tokens received.
        cache_read: Tokens taken from the provider's cache; None: as input.
        cache_write: Tokens written to it; None: as input.
        reasoning: Tokens spent on thinking; None: as output.

    Raises:
        TypeError: A price is no number.
        ValueError: A price is negative or not finite.
    """

    input: float | Decimal = field(validator=_price)
    output: float | Decimal = field(validator=_price)
    cache_read: float | Decimal | None = field(default=None, validator=_optional_price)
    cache_write: float | Decimal | None = field(default=None, validator=_optional_price)
    reasoning: float | Decimal | None = field(default=None, validator=_optional_price)

    def cost(self, usage: Usage) -> Amount:
        """Return what was used, in tokens of every kind and in money.

        The sum is exact and rounded up once, to a whole millionth of a dollar.

        Args:
            usage: What one or more calls consumed; ``usage.cost`` does not count.
        """
        # A dollar per million tokens is a millionth of a dollar per token.
        exact = (
            usage.input_tokens * _rate(self.input)
            + usage.output_tokens * _rate(self.output)
            + usage.cache_read_tokens * _rate(self.input, self.cache_read)
            + usage.cache_write_tokens * _rate(self.input, self.cache_write)
            + usage.reasoning_tokens * _rate(self.output, self.reasoning)
        )
        return Amount(tokens=_tokens(usage), microdollars=math.ceil(exact))


def _rate(usual: float | Decimal, own: float | Decimal | None = None) -> Fraction:
    return Fraction(str(usual if own is None else own))


UnknownPrice: TypeAlias = Literal["refuse", "free"] | Price
"""What a model costs that has no price: nothing is done with it, nothing, or an assumed price."""


def _unknown(_instance: object, attribute: Attribute[UnknownPrice], value: object) -> None:
    if value not in ("refuse", "free") and not isinstance(value, Price):
        raise ValueError(f"{attribute.name} must be 'refuse', 'free' or a Price, not {value!r}")


def _copied(prices: Mapping[str, Price]) -> dict[str, Price]:
    prices = dict(prices)
    for model, price in prices.items():
        if not isinstance(price, Price):
            raise TypeError(f"prices[{model!r}] must be a Price, not {price!r}")
    return prices


@final
@frozen
class PriceList:
    """What each model costs, and what is to be done about one that is not listed.

    ::

        prices = PriceList({"anthropic/claude": Price(input=3, output=15, cache_read=0.3)})
        reservation.settle(prices.cost("anthropic/claude", finished.usage))

    Attributes:
        prices: By model, as the mission names it.
        unknown: A model without a price is refused (the default), free, or costs an assumed
            `Price`. Whatever this says, a cost that the backend has reported itself counts.

    Raises:
        TypeError: A price is something else.
        ValueError: ``unknown`` is something else.
    """

    prices: Mapping[str, Price] = field(factory=dict, converter=_copied)
    unknown: UnknownPrice = field(default="refuse", kw_only=True, validator=_unknown)

    def cost(self, model: str, usage: Usage) -> Amount:
        """Return what a model's calls used, in tokens of every kind and in money.

        Args:
            model: Which model.
            usage: What its calls consumed, or are expected to consume.

        Raises:
            UnknownPriceError: The model is not listed, the backend named no cost, and unknown
                prices are refused.
        """
        price = self.prices.get(model)
        if price is None:
            if usage.cost > 0:
                return Amount.of(tokens=_tokens(usage), dollars=usage.cost)
            if self.unknown == "refuse":
                raise UnknownPriceError(model)
            if self.unknown == "free":
                return Amount(tokens=_tokens(usage))
            price = self.unknown
        return price.cost(usage)


def _tokens(usage: Usage) -> int:
    return (
        usage.input_tokens
        + usage.output_tokens
        + usage.reasoning_tokens
        + usage.cache_read_tokens
        + usage.cache_write_tokens
    )
