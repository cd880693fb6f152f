from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestra._core.pool import PoolPlan, PoolRules

ages = st.floats(0, 1000)


@st.composite
def plans(draw: st.DrawFn) -> tuple[PoolRules, PoolPlan[int], float]:
    """A plan with some entries that idle, and the time."""
    size = draw(st.integers(1, 6))
    rules = PoolRules(
        max_size=size,
        min_idle=draw(st.integers(0, size)),
        idle_timeout=draw(st.sampled_from([None, 100.0, 300.0])),
        max_lifetime=draw(st.sampled_from([None, 200.0, 500.0])),
        health_interval=draw(st.sampled_from([None, 60.0])),
    )
    plan: PoolPlan[int] = PoolPlan(rules)
    now = 1000.0
    for number, idle_since in enumerate(sorted(draw(st.lists(ages, max_size=size)))):
        entry = plan.enter(number, draw(st.floats(0, idle_since)), draw(st.floats(0, 1)))
        entry.idle_since = idle_since
        entry.checked_at = draw(st.floats(idle_since, now))
        plan.idle.append(entry)
    return rules, plan, now


@given(plans(), st.integers(0, 2), st.integers(0, 6))
def test_chores(drawn: tuple[PoolRules, PoolPlan[int], float], coming: int, others: int) -> None:
    """What is to be done is due, nothing that is due is forgotten, and the rest has its moment."""
    rules, plan, now = drawn
    live = min(rules.max_size, len(plan.idle) + coming + others)
    chores = plan.chores(now, live=live, coming=coming)
    done = [*chores.outdated, *chores.surplus, *chores.unchecked]
    assert len({id(entry) for entry in done}) == len(done)
    assert all(entry.expires_at <= now for entry in chores.outdated)
    staying = [entry for entry in plan.idle if entry not in (*chores.outdated, *chores.surplus)]
    if chores.surplus:
        assert rules.idle_timeout is not None
        assert all(entry.idle_since + rules.idle_timeout <= now for entry in chores.surplus)
        assert len(staying) + coming >= rules.min_idle
    assert all(entry.expires_at > now for entry in staying)
    if rules.idle_timeout is not None and len(staying) + coming > rules.min_idle:
        old = [entry for entry in staying if entry.idle_since + rules.idle_timeout <= now]
        assert len(old) <= len(chores.outdated)  # they count as too many until they are gone
    assert chores.next_at > now
    assert 0 <= chores.missing <= max(0, rules.max_size - live)
    assert chores.missing == 0 or len(staying) + coming + chores.missing <= rules.min_idle


def test_back_off() -> None:
    """After each failure the next try is twice as far away, up to a minute; a success ends that."""
    plan: PoolPlan[int] = PoolPlan(PoolRules(max_size=2, min_idle=1))
    assert plan.chores(0.0, live=0, coming=0).missing == 1
    assert [plan.failed(0.0) for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    waiting = plan.chores(59.0, live=0, coming=0)
    assert (waiting.missing, waiting.next_at) == (0, 60.0)
    assert plan.chores(60.0, live=0, coming=0).missing == 1
    plan.enter(1, 60.0, 0.0)
    assert plan.failed(61.0) == 1
