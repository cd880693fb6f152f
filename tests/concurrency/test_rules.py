from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra._core.deadlines import Deadlines
from orchestra._core.gates import Cooldown, RateLimit, RateState
from orchestra._core.limits import AIMD, Fixed, Limit, LimitRule, LimitState, Streak


def succeed(state: LimitState, times: int, *, in_use: int | None = None) -> None:
    """Report successes, by default while the limit is reached."""
    for _ in range(times):
        state.succeeded(epoch=state.epoch, in_use=state.limit if in_use is None else in_use)


outcomes = st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.integers(0, 30)), max_size=200)


@given(
    outcomes=outcomes,
    initial=st.integers(1, 20),
    below=st.integers(0, 19),
    above=st.integers(0, 20),
    rule=st.sampled_from([Fixed(), AIMD(), AIMD(backoff=0.5), Streak(), Streak(up_after=1)]),
)
def test_limit_stays_between_its_bounds(
    outcomes: list[tuple[bool, int, int]], initial: int, below: int, above: int, rule: LimitRule
) -> None:
    """Whatever is reported, in whatever order, the limit stays between minimum and maximum."""
    limit = Limit(initial, minimum=max(1, initial - below), maximum=initial + above, rule=rule)
    state = rule.start(limit)
    for is_success, back, in_use in outcomes:
        epoch = state.epoch - back
        if is_success:
            state.succeeded(epoch=epoch, in_use=in_use)
        else:
            state.dropped(epoch=epoch)
        assert limit.minimum <= state.limit <= limit.ceiling


def test_fixed_never_moves() -> None:
    """A fixed limit is deaf."""
    state = Fixed().start(Limit(3, maximum=9, rule=Fixed()))
    succeed(state, 100)
    state.dropped(epoch=0)
    assert (state.limit, state.epoch) == (3, 0)


def test_aimd_doubles_per_round_until_the_first_cut() -> None:
    """In slow start every success adds one."""
    state = AIMD().start(Limit(10, maximum=100))
    succeed(state, 10)
    assert state.limit == 20
    state.dropped(epoch=0)
    assert state.limit == 14


def test_aimd_adds_one_per_round_after_a_cut() -> None:
    """After the first cut it takes as many successes as the limit is high to add one."""
    state = AIMD().start(Limit(10, maximum=100))
    state.dropped(epoch=0)
    assert state.limit == 7
    succeed(state, 6)
    assert state.limit == 7
    succeed(state, 1)
    assert state.limit == 8
    succeed(state, 8)
    assert state.limit == 9


def test_aimd_cuts_once_per_epoch() -> None:
    """Refusals of requests that began before the cut do not cut again, nor do successes raise."""
    state = AIMD().start(Limit(100))
    for _ in range(50):
        state.dropped(epoch=0)
    assert (state.limit, state.epoch) == (70, 1)
    for _ in range(200):
        state.succeeded(epoch=0, in_use=100)
    assert state.limit == 70
    state.dropped(epoch=1)
    assert (state.limit, state.epoch) == (49, 2)


def test_aimd_does_not_grow_while_the_limit_is_not_reached() -> None:
    """A limit that is no bottleneck says nothing about what the other side could bear."""
    state = AIMD().start(Limit(10, maximum=100))
    succeed(state, 1000, in_use=9)
    assert state.limit == 10
    state.dropped(epoch=0)
    succeed(state, 1000, in_use=6)
    assert state.limit == 7


def test_aimd_looks_at_the_whole_round() -> None:
    """A round counts as used when the limit was reached at any moment of it."""
    state = AIMD().start(Limit(10, maximum=100))
    state.dropped(epoch=0)
    state.succeeded(epoch=1, in_use=7)
    succeed(state, 6, in_use=1)
    assert state.limit == 8
    succeed(state, 8, in_use=1)
    assert state.limit == 8, "the round before does not count"


def test_aimd_always_takes_at_least_one() -> None:
    """A cut of a small limit is a cut."""
    state = AIMD(backoff=0.99).start(Limit(2))
    state.dropped(epoch=0)
    assert state.limit == 1
    state.dropped(epoch=1)
    assert state.limit == 1


def test_streak_counts_in_a_row() -> None:
    """Three successes in a row add one, two drops in a row take one; the other kind starts anew."""
    state = Streak().start(Limit(5, maximum=9))
    succeed(state, 2)
    state.dropped(epoch=0)
    succeed(state, 2)
    state.dropped(epoch=0)
    assert state.limit == 5
    state.dropped(epoch=0)
    assert state.limit == 4
    succeed(state, 6)
    assert state.limit == 6


@pytest.mark.parametrize(
    ("make", "fields", "error", "named"),
    [
        (Limit, {"initial": 0}, ValueError, "initial"),
        (Limit, {"initial": True}, TypeError, "initial"),
        (Limit, {"initial": 1.5}, TypeError, "initial"),
        (Limit, {"initial": 5, "minimum": 6}, ValueError, "minimum"),
        (Limit, {"initial": 5, "minimum": 0}, ValueError, "minimum"),
        (Limit, {"initial": 5, "maximum": 4}, ValueError, "maximum"),
        (Limit, {"initial": 5, "maximum": 9.5}, ValueError, "maximum"),
        (Limit, {"initial": 5, "max_waiting": -1}, ValueError, "max_waiting"),
        (Limit, {"initial": 5, "rule": AIMD}, TypeError, "rule"),
        (AIMD, {"backoff": 1}, ValueError, "backoff"),
        (AIMD, {"backoff": 0}, ValueError, "backoff"),
        (AIMD, {"backoff": "x"}, TypeError, "backoff"),
        (Streak, {"up_after": 0}, ValueError, "up_after"),
        (Streak, {"down_after": 0}, ValueError, "down_after"),
        (RateLimit, {"requests_per_minute": 0}, ValueError, "requests_per_minute"),
        (RateLimit, {"tokens_per_minute": -1}, ValueError, "tokens_per_minute"),
        (RateLimit, {"tokens_per_minute": math.inf}, ValueError, "tokens_per_minute"),
        (RateLimit, {"requests_per_minute": 1, "burst": 0}, ValueError, "burst"),
        (RateLimit, {}, ValueError, "requests_per_minute or tokens_per_minute"),
    ],
    ids=str,
)
def test_bad_configuration(
    make: type[object], fields: dict[str, object], error: type[Exception], named: str
) -> None:
    """A field out of its range is an error that names it."""
    with pytest.raises(error, match=named):
        make(**fields)


def test_ceiling() -> None:
    """Without a maximum the limit never rises above where it started."""
    assert Limit(7).ceiling == 7
    assert Limit(7, maximum=9).ceiling == 9


@given(wishes=st.lists(st.tuples(st.floats(0, 100), st.floats(0.001, 100)), min_size=1))
def test_longest_cooldown_wins(wishes: list[tuple[float, float]]) -> None:
    """A cooldown ends when the last of all wishes ends, plus the spread of that one."""
    cooldown = Cooldown()
    now, end, spread = 0.0, -math.inf, 0.0
    for step, retry_after in wishes:
        now += step
        if now + retry_after > end:
            end, spread = now + retry_after, retry_after / 10
        cooldown.extend(now, retry_after)
        assert cooldown.until == end
        assert cooldown.delay(now) == pytest.approx(max(0.0, end - now), abs=1e-9)
        assert cooldown.delay(now, 1.0) == pytest.approx(max(0.0, end + spread - now), abs=1e-9)
    assert not cooldown.is_over
    cooldown.end()
    assert cooldown.is_over
    assert cooldown.delay(now, 1.0) == 0.0


@given(
    seed=st.integers(0, 1 << 32),
    rpm=st.floats(1, 6000),
    tpm=st.floats(100, 1e6),
    burst=st.floats(0.1, 60),
)
def test_rate_is_kept_in_every_window(seed: int, rpm: float, tpm: float, burst: float) -> None:
    """In no window do more start than the bucket holds plus what it gains in that time."""
    random = Random(seed)
    state = RateState(RateLimit(requests_per_minute=rpm, tokens_per_minute=tpm, burst=burst))
    now, starts = 1000.0, []
    for _ in range(60):
        now += random.choice((0.0, 0.0, random.uniform(0, 120 / rpm)))
        tokens = random.randrange(0, 200)
        now += state.delay(now, tokens)
        assert state.delay(now, tokens) == 0.0
        state.take(tokens)
        starts.append((now, tokens))
    for first in range(len(starts)):
        for last in range(first, len(starts)):
            length = starts[last][0] - starts[first][0]
            window = starts[first : last + 1]
            assert len(window) <= max(1.0, rpm / 60 * burst) + rpm / 60 * length + 1e-6
            spent = sum(tokens for _, tokens in window)
            # The last one may be larger than the bucket: it leaves a debt.
            assert spent - window[-1][1] <= max(1.0, tpm / 60 * burst) + tpm / 60 * length + 1e-3


def test_request_larger_than_the_bucket() -> None:
    """It starts with a full bucket, and those after it pay the debt."""
    state = RateState(RateLimit(tokens_per_minute=60, burst=10))
    assert state.delay(0.0, 50) == 0.0
    state.take(50)
    assert state.delay(0.0, 10) == pytest.approx(50.0)
    assert state.delay(0.0, 1) == pytest.approx(41.0)


@given(
    holders=st.lists(
        st.tuples(st.floats(0, 10), st.sampled_from([1.0, 5.0, 60.0]), st.booleans()), max_size=40
    )
)
def test_deadlines_equal_a_sorted_list(holders: list[tuple[float, float, bool]]) -> None:
    """Exactly those whose time has come expire, and the next deadline is the earliest."""
    deadlines = Deadlines[int]()
    expected: dict[int, float] = {}
    now = 0.0
    for number, (step, lifetime, is_forgotten) in enumerate(holders):
        now += step
        due = {holder for holder, deadline in expected.items() if deadline <= now}
        assert set(deadlines.expire(now)) == due
        expected = {holder: at for holder, at in expected.items() if holder not in due}
        expected[number] = deadlines.add(number, now, lifetime)
        assert expected[number] == now + lifetime
        if is_forgotten:
            deadlines.discard(number, lifetime)
            deadlines.discard(number, lifetime)
            del expected[number]
        assert deadlines.next_at() == min(expected.values(), default=math.inf)
    assert set(deadlines.expire(math.inf)) == set(expected)
    assert deadlines.next_at() == math.inf
