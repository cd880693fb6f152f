"""What the next request will cost, judged by earlier ones. Pure.

A request costs its prompt, whose size is known, and what comes of it, which is not. The second part
is followed, for each role, as TCP follows round-trip times (Jacobson 1988, RFC 6298): a moving
average, and a moving average of how far off it was. Their sum, with a weight, is a bound that most
requests stay below and that follows a changed habit within a few requests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, final

from attrs import field, frozen, validators

from orchestra._core.amounts import Amount
from orchestra._core.checks import not_negative, of_type, share

__all__ = ("CostEstimator",)


@final
@frozen
class _Average:
    """A value followed over time.

    Attributes:
        mean: What it is about.
        deviation: How far off it usually is.
    """

    mean: float
    deviation: float

    def moved(self, value: int, weight: float) -> _Average:
        off = value - self.mean
        return _Average(
            self.mean + weight * off, self.deviation + weight * 2 * (abs(off) - self.deviation)
        )

    def bound(self, spread: float) -> int:
        return max(0, math.ceil(self.mean + spread * self.deviation))


@final
@frozen(kw_only=True)
class CostEstimator:
    """Learns what requests of each role cost, and says what the next one may cost.

    ::

        estimator = CostEstimator(first=Amount(tokens=30_000))
        estimate = estimator.estimate("worker", prompt=Amount(tokens=1_200))
        ...
        estimator.observe("worker", actual, prompt=Amount(tokens=1_200))

    Attributes:
        first: What a request costs beyond its prompt as long as none of its role has been seen.
        spread: How many deviations above the average the estimate lies.
        weight: How much of the newest observation goes into the average; the deviation moves twice
            as fast. Above 0, at most 0.5.

    Raises:
        TypeError: A field has the wrong type.
        ValueError: A field is out of range.
    """

    first: Amount = field(default=Amount(tokens=20_000), validator=of_type(Amount))
    spread: float = field(default=3.0, validator=not_negative)
    weight: float = field(default=0.125, validator=[share, validators.le(0.5)])
    _seen: dict[str, tuple[_Average, _Average]] = field(
        factory=dict, init=False, repr=False, eq=False
    )

    def estimate(self, role: str, *, prompt: Amount = Amount()) -> Amount:  # noqa: B008 - frozen
        """Return what the next request of a role may cost.

        Args:
            role: Whose request.
            prompt: What its prompt costs.
        """
        seen = self._seen.get(role)
        if seen is None:
            return prompt + self.first
        tokens, micros = seen
        return prompt + Amount(
            tokens=tokens.bound(self.spread), microdollars=micros.bound(self.spread)
        )

    def observe(self, role: str, actual: Amount, *, prompt: Amount = Amount()) -> None:  # noqa: B008 - frozen
        """Learn from a request that has ended.

        Args:
            role: Whose request it was.
            actual: What it cost altogether.
            prompt: What its prompt cost.
        """
        tokens = max(0, actual.tokens - prompt.tokens)
        micros = max(0, actual.microdollars - prompt.microdollars)
        seen = self._seen.get(role)
        if seen is None:  # as the RFC begins: nothing is known of the spread but that there is one
            self._seen[role] = _Average(tokens, tokens / 2), _Average(micros, micros / 2)
            return
        self._seen[role] = seen[0].moved(tokens, self.weight), seen[1].moved(micros, self.weight)

    def snapshot(self) -> dict[str, list[float]]:
        """Return what was learned as plain data."""
        return {
            role: [tokens.mean, tokens.deviation, micros.mean, micros.deviation]
            for role, (tokens, micros) in self._seen.items()
        }

    def restore(self, data: Mapping[str, Any]) -> None:
        """Replace what was learned.

        Args:
            data: From `snapshot`.
        """
        self._seen.clear()
        for role, (tokens, off_tokens, micros, off_micros) in data.items():
            self._seen[role] = _Average(tokens, off_tokens), _Average(micros, off_micros)
