"""What model calls cost, and what the next one may cost."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra import Amount, CostEstimator, Price, PriceList
from orchestra.errors import UnknownPriceError
from orchestra.events import Usage

counts = st.integers(0, 10**9)
dollars = st.decimals(0, 1000, places=4) | st.integers(0, 100) | st.sampled_from([0.1, 0.0375, 1.1])
usages = st.builds(
    Usage,
    input_tokens=counts,
    output_tokens=counts,
    reasoning_tokens=counts,
    cache_read_tokens=counts,
    cache_write_tokens=counts,
)


@given(
    price=st.builds(
        Price,
        input=dollars,
        output=dollars,
        cache_read=st.none() | dollars,
        cache_write=st.none() | dollars,
        reasoning=st.none() | dollars,
    ),
    usage=usages,
)
def test_costs_are_exact(price: Price, usage: Usage) -> None:
    """A cost is the exact sum, rounded up once; what has no price costs as input or output does."""

    def rate(own: object, other: object) -> Fraction:
        return Fraction(str(other if own is None else own))

    exact = (
        usage.input_tokens * Fraction(str(price.input))
        + usage.output_tokens * Fraction(str(price.output))
        + usage.cache_read_tokens * rate(price.cache_read, price.input)
        + usage.cache_write_tokens * rate(price.cache_write, price.input)
        + usage.reasoning_tokens * rate(price.reasoning, price.output)
    )
    cost = price.cost(usage)
    assert cost.microdollars == math.ceil(exact)
    assert cost.tokens == (
        usage.input_tokens
        + usage.output_tokens
        + usage.cache_read_tokens
        + usage.cache_write_tokens
        + usage.reasoning_tokens
    )


def test_an_unknown_price_is_a_policy() -> None:
    """A model without a price is refused, free, or costs what is assumed; a reported cost counts."""
    usage = Usage(input_tokens=10, output_tokens=2)
    listed = {"a/b": Price(input=1, output=2)}
    assert PriceList(listed).cost("a/b", usage) == Amount(tokens=12, microdollars=14)
    with pytest.raises(UnknownPriceError, match="'a/c' has no price"):
        PriceList(listed).cost("a/c", usage)
    assert PriceList(listed, unknown="free").cost("a/c", usage) == Amount(tokens=12)
    assumed = PriceList(listed, unknown=Price(input=10, output=20))
    assert assumed.cost("a/c", usage).microdollars == 140
    told = Usage(input_tokens=10, cost=0.25)
    assert PriceList().cost("a/c", told) == Amount(tokens=10, microdollars=250_000)
    assert PriceList(listed).cost("a/b", told) == Amount(tokens=10, microdollars=10)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Price(input=-1, output=1), ValueError, "input must be at least 0"),
        (lambda: Price(input=1, output="2"), TypeError, "output must be a number"),  # type: ignore[arg-type]
        (lambda: Price(input=1, output=2, reasoning=math.inf), ValueError, "reasoning must be fin"),
        (lambda: PriceList({"m": 3}), TypeError, r"prices\['m'\] must be a Price, not 3"),  # type: ignore[dict-item]
        (lambda: PriceList(unknown="ask"), ValueError, "unknown must be 'refuse', 'free' or"),  # type: ignore[arg-type]
        (lambda: CostEstimator(spread=-1), ValueError, "spread must be at least 0"),
        (lambda: CostEstimator(weight=0.7), ValueError, "'weight' must be <= 0.5"),
        (lambda: CostEstimator(first=20), TypeError, "first must be of type Amount"),  # type: ignore[arg-type]
    ],
)
def test_what_is_wrong_is_named(make: Any, error: type[Exception], message: str) -> None:
    """Wrong prices and settings raise at once and name the field."""
    with pytest.raises(error, match=message):
        make()


def test_an_estimate_covers_most_requests() -> None:
    """After a few requests the estimate lies above nine in ten, and not above twice the average."""
    rng = Random(7)
    estimator = CostEstimator()
    covered, estimates = 0, []
    for number in range(400):
        actual = max(0, int(rng.gauss(20_000, 4_000)))
        prompt = rng.randrange(5_000)
        estimate = estimator.estimate("worker", prompt=Amount(tokens=prompt))
        if number >= 20:
            covered += estimate.tokens >= actual + prompt
            estimates.append(estimate.tokens - prompt)
        estimator.observe("worker", Amount(tokens=actual + prompt), prompt=Amount(tokens=prompt))
    assert covered >= 0.9 * len(estimates)
    assert sum(estimates) / len(estimates) < 40_000


def test_an_estimate_follows_a_change() -> None:
    """When requests become five times as large, ten of them are enough to know."""
    estimator = CostEstimator(first=Amount.of(tokens=9, dollars=1))
    assert estimator.estimate("worker", prompt=Amount(tokens=5)) == Amount.of(tokens=14, dollars=1)
    for _ in range(50):
        estimator.observe("worker", Amount(tokens=10_000, microdollars=100))
    steady = estimator.estimate("worker")
    assert 10_000 <= steady.tokens < 10_100
    assert 100 <= steady.microdollars < 102
    for _ in range(10):
        estimator.observe("worker", Amount(tokens=50_000, microdollars=500))
    assert estimator.estimate("worker").tokens >= 50_000
    assert estimator.estimate("worker").microdollars >= 500
    assert estimator.estimate("reviewer").tokens == 9


def test_what_was_learned_is_plain_data() -> None:
    """An estimator that is restored says what the other one said, of every role."""
    estimator = CostEstimator()
    for role, cost in (("worker", 10), ("worker", 30), ("planner", 5)):
        estimator.observe(role, Amount(tokens=cost, microdollars=3 * cost))
    other = CostEstimator()
    other.observe("gone", Amount())
    other.restore(json.loads(json.dumps(estimator.snapshot())))
    for role in ("worker", "planner", "gone"):
        assert other.estimate(role) == estimator.estimate(role)
    assert other.snapshot() == estimator.snapshot()
