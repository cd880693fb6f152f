from __future__ import annotations

import inspect
from math import inf
from types import ModuleType
from typing import Any, ClassVar

import pytest
from attrs import frozen
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from orchestra import FailureRate
from orchestra._core import breaker as breaker_module
from orchestra._core import tally as tally_module
from orchestra._core.breaker import TRANSITIONS, Breaker, BreakerConfig
from orchestra._core.tally import FAILED, SLOW, SUCCEEDED
from orchestra.events import CircuitCause, CircuitState

CLOSED, OPEN, HALF_OPEN = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN


class Model:
    """The breaker as its documentation tells it: with a log instead of counters, and slow."""

    def __init__(self, config: BreakerConfig) -> None:
        self.config = config
        self.state = CLOSED
        self.period = 0
        self.log: list[tuple[float, int]] = []
        self.probes: list[float] = []
        self.passed = self.failed_recoveries = self.late = 0
        self.until = self.not_before = -inf
        self.changes: list[tuple[CircuitState, CircuitCause]] = []

    def go(self, cause: CircuitCause, state: CircuitState, now: float) -> None:
        self.changes.append((self.state, cause))
        self.state = state
        self.period += 1
        self.probes, self.passed = [], 0
        if state is OPEN:
            self.failed_recoveries += 1
            pause = self.config.recovery_timeout
            if callable(pause):
                pause = 3.0 * self.failed_recoveries
            self.until = max(now + pause, self.not_before)
        if state is CLOSED:
            self.log, self.failed_recoveries, self.not_before = [], 0, -inf

    def admit(self, now: float) -> int | None:
        if self.state in {CLOSED, CircuitState.DISABLED}:
            return self.period
        if self.state is OPEN and now >= self.until:
            self.go(CircuitCause.BREAK_OVER, HALF_OPEN, now)
        if self.state is HALF_OPEN:
            if len(self.probes) < self.config.half_open_max:
                self.probes.append(now)
                return self.period
            if now >= max(self.probes) + self.config.half_open_timeout:
                self.go(CircuitCause.PROBES_OVERDUE, OPEN, now)
        return None

    def end(self, period: int, outcome: int | None, now: float, retry_after: float | None) -> None:
        if period != self.period:
            self.late += 1
            return
        if self.state is HALF_OPEN:
            # Probes are alike but for their age; the bound is on the youngest, see admit().
            self.probes.remove(min(self.probes)) if len(self.probes) > 1 else self.probes.clear()
        if outcome is None:
            return
        if retry_after is not None:
            self.not_before = max(self.not_before, now + retry_after)
        if self.state is HALF_OPEN:
            self.passed += 1
            if outcome != SUCCEEDED:
                self.go(CircuitCause.PROBE_FAILED, OPEN, now)
            elif self.passed == self.config.success_threshold:
                self.go(CircuitCause.PROBES_PASSED, CLOSED, now)
        elif self.state is CLOSED:
            self.log.append((now, outcome))
            if self.is_threshold_reached(now):
                self.go(CircuitCause.THRESHOLD_REACHED, OPEN, now)

    def is_threshold_reached(self, now: float) -> bool:
        threshold = self.config.failure_threshold
        if isinstance(threshold, int):
            last = [outcome & FAILED for _, outcome in self.log[-threshold:]]
            return sum(last) == threshold
        if threshold.calls is not None:
            window = [outcome for _, outcome in self.log[-threshold.calls :]]
        else:
            step = (threshold.seconds or 0.0) / 10
            window = [outcome for at, outcome in self.log if at // step > now // step - 10]
        failed = sum(bool(outcome & FAILED) for outcome in window) / len(window)
        slow = sum(bool(outcome & SLOW) for outcome in window) / len(window)
        return len(window) >= threshold.minimum_calls and (
            failed >= threshold.rate or slow >= threshold.slow_rate
        )


rates = st.sampled_from([0.25, 0.5, 0.6, 1.0])
thresholds = st.one_of(
    st.integers(1, 4),
    st.builds(
        FailureRate,
        rates,
        calls=st.integers(3, 8),
        minimum_calls=st.integers(1, 3),
        slow_after=st.just(1.0),
        slow_rate=rates,
    ),
    st.builds(
        FailureRate,
        rates,
        seconds=st.sampled_from([5.0, 10.0, 20.0]),
        minimum_calls=st.integers(1, 4),
        slow_after=st.just(1.0),
        slow_rate=rates,
    ),
)
configs = st.builds(
    BreakerConfig,
    failure_threshold=thresholds,
    recovery_timeout=st.sampled_from([1.0, 5.0, lambda trip: 3.0 * trip.attempt]),
    success_threshold=st.integers(1, 3),
    half_open_max=st.integers(1, 3),
    half_open_timeout=st.sampled_from([4.0, 8.0]),
)
failures = st.sampled_from([FAILED, FAILED | SLOW])


class BreakerMachine(RuleBasedStateMachine):
    """Drives the breaker and the model with the same calls and compares all that can be seen."""

    breaker_type: ClassVar[type[Any]] = Breaker
    configs: ClassVar[st.SearchStrategy[BreakerConfig]] = configs
    permits = Bundle("permits")

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        config = data.draw(self.configs)
        self.changes: list[tuple[CircuitState, CircuitCause]] = []
        self.breaker: Breaker = self.breaker_type(
            config, lambda previous, cause: self.changes.append((previous, cause))
        )
        self.model = Model(config)
        self.now = 100.0
        self.out = self.admitted = 0

    def admit(self) -> tuple[int, int] | None:
        permit, expected = self.breaker.admit(self.now), self.model.admit(self.now)
        assert (permit is None) == (expected is None)
        if permit is None or expected is None:
            return None
        self.out += 1
        self.admitted += 1
        return permit, expected

    @rule(target=permits)
    def call(self) -> Any:
        return self.admit() or multiple()

    @rule(outcomes=st.lists(st.sampled_from([SUCCEEDED, FAILED, None]), min_size=2, max_size=12))
    def call_and_end(self, outcomes: list[int | None]) -> None:
        for outcome in outcomes:
            if permits := self.admit():
                self.end(permits, outcome)

    def end(
        self, permits: tuple[int, int], outcome: int | None, retry_after: float | None = None
    ) -> None:
        permit, period = permits
        self.out -= 1
        if outcome is None:
            self.breaker.ignore(permit)
        elif outcome == SUCCEEDED and permit == self.breaker.quiet_pass:
            self.breaker.succeeded += 1
        else:
            self.breaker.record(permit, outcome, self.now, retry_after)
        self.model.end(period, outcome, self.now, retry_after)

    @rule(permits=consumes(permits))
    def succeed(self, permits: tuple[int, int]) -> None:
        self.end(permits, SUCCEEDED)

    @rule(permits=consumes(permits))
    def succeed_slowly(self, permits: tuple[int, int]) -> None:
        is_windowed = isinstance(self.model.config.failure_threshold, FailureRate)
        self.end(permits, SLOW if is_windowed else SUCCEEDED)

    @rule(permits=consumes(permits), outcome=failures)
    def fail(self, permits: tuple[int, int], outcome: int) -> None:
        self.end(permits, outcome)

    @rule(permits=consumes(permits), retry_after=st.sampled_from([0.0, 2.0, 30.0]))
    def fail_with_retry_after(self, permits: tuple[int, int], retry_after: float) -> None:
        self.end(permits, FAILED, retry_after)

    @rule(waits=st.lists(st.sampled_from([0.0, 2.0, 30.0]), min_size=2, max_size=4))
    def fail_in_a_row_with_retry_after(self, waits: list[float]) -> None:
        for retry_after in waits:
            if permits := self.admit():
                self.end(permits, FAILED, retry_after)

    @rule(permits=consumes(permits))
    def cancel(self, permits: tuple[int, int]) -> None:
        self.end(permits, None)

    @rule(halves=st.integers(1, 24))
    def wait(self, halves: int) -> None:
        self.now += halves / 2

    @rule()
    def wait_for_the_break_to_end(self) -> None:
        self.now += self.breaker.retry_after(self.now) or 0.0

    @rule(share=st.sampled_from([0.5, 1.0]))
    def wait_for_the_probes_to_be_overdue(self, share: float) -> None:
        self.now += self.model.config.half_open_timeout * share

    @rule(
        cause=st.sampled_from(
            [CircuitCause.ISOLATE, CircuitCause.DISABLE, *[CircuitCause.RESET] * 3]
        )
    )
    def command(self, cause: CircuitCause) -> None:
        self.breaker.take(cause, self.now)
        self.model.go(cause, TRANSITIONS[CLOSED][cause], self.now)

    @invariant()
    def they_agree(self) -> None:
        breaker, model = self.breaker, self.model
        assert breaker.state is model.state
        assert breaker.generation == model.period
        assert self.changes == model.changes
        assert breaker.probes_out == len(model.probes) <= model.config.half_open_max
        assert breaker.probes_passed == model.passed
        assert breaker.late == model.late
        expected = max(model.until - self.now, 0.0) if model.state is OPEN else None
        assert breaker.retry_after(self.now) == expected

    @invariant()
    def every_permit_is_accounted_for(self) -> None:
        ended = self.breaker.succeeded + self.breaker.failed + self.breaker.ignored
        assert ended + self.out == self.admitted

    @invariant()
    def every_change_is_in_the_table(self) -> None:
        states = [*(previous for previous, _ in self.changes), self.breaker.state]
        assert states[0] is CLOSED
        for (previous, cause), state in zip(self.changes, states[1:], strict=True):
            assert TRANSITIONS[previous][cause] is state


TestBreakerMachine = BreakerMachine.TestCase


@frozen
class Mutant:
    """One planted bug: a piece of source and what is put in its place."""

    name: str
    module: ModuleType
    old: str
    new: str
    configs: st.SearchStrategy[BreakerConfig] = configs

    def build(self) -> type[Any]:
        modules = {}
        for module in (tally_module, breaker_module):
            source = inspect.getsource(module)
            if module is self.module:
                assert source.count(self.old) == 1, f"{self.name}: the source has changed"
                source = source.replace(self.old, self.new)
            mutant = ModuleType(module.__name__)
            exec(compile(source, self.name, "exec"), mutant.__dict__)  # noqa: S102 - our own source
            modules[module] = mutant
        made: Any = modules[breaker_module]
        made.make_tally = modules[tally_module].make_tally
        breaker_type: type[Any] = made.Breaker
        return breaker_type


def config(threshold: int | FailureRate) -> st.SearchStrategy[BreakerConfig]:
    """Where a bug shows only under one rule, it need not be searched for under the others."""
    return st.builds(
        BreakerConfig,
        failure_threshold=st.just(threshold),
        recovery_timeout=st.just(1.0),
        half_open_timeout=st.just(4.0),
    )


FRAGILE, STUBBORN = config(1), config(3)
LAST_CALLS = config(FailureRate(0.6, calls=3, minimum_calls=2, slow_after=1.0, slow_rate=0.6))
LAST_SECONDS = config(FailureRate(0.6, seconds=5.0, minimum_calls=2))

MUTANTS = [
    Mutant(
        "unlimited probes",
        breaker_module,
        "if self.state is _HALF_OPEN and self.probes_out < self._config.half_open_max:",
        "if self.state is _HALF_OPEN:",
        FRAGILE,
    ),
    Mutant(
        "cancellation counted as a failure",
        breaker_module,
        "        self.ignored += 1\n        if permit",
        "        return self.record(permit, FAILED, 0.0)\n        if permit",
    ),
    Mutant(
        "cancelled probe keeps its permit",
        breaker_module,
        "        elif self.state is _HALF_OPEN:\n            self.probes_out -= 1\n\n",
        "        elif self.state is _HALF_OPEN:\n            pass\n\n",
        FRAGILE,
    ),
    Mutant(
        "stale results decide",
        breaker_module,
        "            self.late += 1\n            return\n",
        "            self.late += 1\n",
    ),
    Mutant("permits without a generation", breaker_module, "        self.generation += 1\n", ""),
    Mutant(
        "one success closes",
        breaker_module,
        "self.probes_passed >= self._config.success_threshold",
        "self.probes_passed >= 1",
        FRAGILE,
    ),
    Mutant(
        "failed probe does not re-open",
        breaker_module,
        "            if outcome:\n",
        "            if outcome and self.probes_passed:\n",
        FRAGILE,
    ),
    Mutant(
        "break ends late",
        breaker_module,
        "now >= self.reopens_at",
        "now > self.reopens_at",
        FRAGILE,
    ),
    Mutant(
        "Retry-After ignored",
        breaker_module,
        "max(now + pause, self._not_before)",
        "now + pause",
        FRAGILE,
    ),
    Mutant(
        "last Retry-After wins",
        breaker_module,
        "max(self._not_before, now + retry_after)",
        "now + retry_after",
        config(2),
    ),
    Mutant(
        "lost probes block for ever",
        breaker_module,
        "now - self._probed_at >= self._config.half_open_timeout",
        "now < self._probed_at",
        FRAGILE,
    ),
    Mutant(
        "closed again with old failures",
        breaker_module,
        "                self._tally = make_tally(self._config.failure_threshold)\n",
        "",
        STUBBORN,
    ),
    Mutant("attempts never start again", breaker_module, "                self._attempt = 0\n", ""),
    Mutant(
        "quiet pass while failures are remembered",
        breaker_module,
        "permit if self._tally.is_blank else None",
        "permit",
        STUBBORN,
    ),
    Mutant(
        "quiet pass outlives its period",
        breaker_module,
        "        self.quiet_pass = None\n        self.probes_out",
        "        self.probes_out",
        STUBBORN,
    ),
    Mutant(
        "ring never forgets", tally_module, "self.failures -= forgotten & 1", "pass", LAST_CALLS
    ),
    Mutant("time window never forgets", tally_module, "<= number - _SLICES", "< 0", LAST_SECONDS),
    Mutant(
        "no minimum", tally_module, "self.calls >= rule.minimum_calls and", "True and", LAST_CALLS
    ),
    Mutant(
        "success does not break a run of failures",
        tally_module,
        "        self.failures = self.calls = 0\n        return False",
        "        return False",
        STUBBORN,
    ),
    Mutant(
        "slow calls not counted",
        tally_module,
        "or self.slow_calls / self.calls >= rule.slow_rate",
        "or False",
        LAST_CALLS,
    ),
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_planted_bug_is_caught(mutant: Mutant) -> None:
    """The machine finds each of these bugs when it is planted."""
    machine = type(
        "MutantMachine",
        (BreakerMachine,),
        {"breaker_type": mutant.build(), "configs": mutant.configs},
    )
    with pytest.raises(AssertionError):
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=4000,
                derandomize=True,
                database=None,
                deadline=None,
                phases=(Phase.generate,),
            ),
        )
