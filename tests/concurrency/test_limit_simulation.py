from __future__ import annotations

import pytest
from benchmarks.limit_simulation import PHASES, Tail, simulate

from orchestra import AIMD, Fixed, Limit, Streak


def test_the_default_rule_is_the_one_that_was_measured() -> None:
    """An adaptive limit uses the rule that the simulation below is about."""
    assert Limit(10, maximum=50).rule == AIMD()


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("tail", ["light", "heavy"])
def test_default_finds_a_changing_capacity(tail: Tail, seed: int) -> None:
    """In every phase it reaches 97 % of the ideal throughput and is refused 5 % at most."""
    phases = simulate(AIMD(), tail=tail, seed=seed)
    assert len(phases) == len(PHASES)
    for phase in phases:
        assert phase.throughput >= 0.97
        assert phase.refused <= 0.05


@pytest.mark.parametrize("tail", ["light", "heavy"])
def test_what_the_other_rules_cost(tail: Tail) -> None:
    """Streak has a third of its requests refused; a fixed limit leaves half of the capacity idle."""
    assert min(phase.refused for phase in simulate(Streak(), tail=tail, seed=0)) > 0.33
    assert simulate(Fixed(), tail=tail, seed=0)[0].throughput < 0.55
