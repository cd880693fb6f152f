"""The table of what is done about failed turns, as properties over any sequence of failures."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from orchestra.events import FinishReason, TurnError
from orchestra.opencode.mission.orders import AgentAnswered
from orchestra.opencode.mission.recovery import (
    MAX_DELAY,
    MAX_RETRY_AFTER,
    MAX_TROUBLES,
    RULES,
    Action,
    ErrorClass,
    Recovery,
    Troubles,
    asks_for_rest,
    classify,
)

FINAL = {Action.GIVE_UP, Action.STOP, Action.WIND_DOWN}
SHARES = st.floats(0, 1, exclude_max=True)
WISHES = st.none() | st.floats(0, 10_000)


def answer(
    reason: FinishReason = FinishReason.FAILED, error: TurnError | None = None
) -> AgentAnswered:
    return AgentAnswered(ticket=1, reason=reason, error=error)


@given(
    failures=st.lists(
        st.tuples(st.sampled_from(sorted(ErrorClass, key=str)), WISHES), min_size=40, max_size=60
    ),
    models=st.integers(0, 5),
    first=st.floats(0, 60),
    share=SHARES,
)
def test_any_sequence_of_failures_is_bounded(
    failures: list[tuple[ErrorClass, float | None]], models: int, first: float, share: float
) -> None:
    """Whatever fails how often in which order, the work ends, and nobody waits too long."""
    recovery = Recovery(first, lambda: share)
    troubles = Troubles()
    per_model: dict[tuple[int, ErrorClass], int] = {}
    for turns, (error, wish) in enumerate(failures, 1):
        model = troubles.model
        remedy = recovery.remedy(error, troubles, models=models, retry_after=wish)
        assert remedy.error is error
        if remedy.action in FINAL:
            assert remedy.action is RULES[error].action or remedy.action is Action.GIVE_UP
            break
        per_model[model, error] = per_model.get((model, error), 0) + 1
        if remedy.action is Action.NEXT_MODEL:
            assert troubles.model == model + 1 <= models
        else:
            assert remedy.action is RULES[error].action
            assert per_model[model, error] <= RULES[error].tries
        if wish is None:
            assert 0 <= remedy.delay <= MAX_DELAY
        else:
            assert remedy.delay <= MAX_RETRY_AFTER + first
        assert turns <= MAX_TROUBLES + models
    else:
        raise AssertionError("it never ends")


def test_a_further_model_does_not_make_failures_undone() -> None:
    """Whoever changes the model has failed as often as before: the bound of all turns holds."""
    recovery, troubles = Recovery(0.0, lambda: 0.0), Troubles()
    classes = [ErrorClass.NETWORK] * 5 + [ErrorClass.INTERRUPTED] * 3 + [ErrorClass.RATE_LIMIT] * 4
    classes += [ErrorClass.CONTEXT_OVERFLOW, ErrorClass.TOOL]
    actions = [recovery.remedy(each, troubles, models=1).action for each in classes]
    assert actions[4] is Action.NEXT_MODEL
    assert troubles.total == len(classes) == MAX_TROUBLES + 2
    assert [action is Action.GIVE_UP for action in actions] == [False] * 13 + [True]


@given(wish=st.floats(0, 10_000), first=st.floats(0.01, 60), share=SHARES)
def test_retry_after_is_obeyed_with_jitter(wish: float, first: float, share: float) -> None:
    """Nobody comes back before the provider said, up to 600 s, nor all at the same moment."""
    remedies = [
        Recovery(first, lambda part=part: part).remedy(  # type: ignore[misc]
            ErrorClass.RATE_LIMIT, Troubles(), models=0, retry_after=wish
        )
        for part in (share, (share + 0.5) % 1.0)
    ]
    assert all(remedy.delay >= min(wish, MAX_RETRY_AFTER) for remedy in remedies)
    assert all(remedy.delay <= min(wish, MAX_RETRY_AFTER) + first for remedy in remedies)
    assert remedies[0].delay != remedies[1].delay


@given(
    reason=st.sampled_from([reason for reason in FinishReason if reason is not FinishReason.DONE]),
    error=st.none()
    | st.builds(
        TurnError,
        name=st.text(max_size=20)
        | st.sampled_from(["APIError", "BudgetExceededError", "LoopError", "TimeoutError"]),
        message=st.text(max_size=50) | st.just("insufficient_quota"),
        status=st.none() | st.integers(-1, 1_000),
        is_retryable=st.booleans(),
        retry_after=st.none() | st.floats(),
    ),
)
def test_every_end_of_a_turn_has_a_class_and_every_class_a_rule(
    reason: FinishReason, error: TurnError | None
) -> None:
    """An error always reaches the mission: nothing that a turn may end with is without a rule."""
    found = classify(answer(reason, error))
    assert found in RULES
    if reason is FinishReason.LOST:
        assert found is ErrorClass.BACKEND_LOST
    assert set(RULES) == set(ErrorClass)


def test_quota_goes_to_the_next_model_at_once_and_never_back() -> None:
    """omo#7161, omo#3937: a quota is not retried on the same model, and the chain has an end."""
    message = "You exceeded your current quota. Rate limit: stop, and try again in 5 days."
    error = TurnError(name="APIError", message=message, status=429, retry_after=1.0)
    troubles = Troubles()
    recovery = Recovery(1.0, lambda: 0.0)
    chain = ("b/m", "c/m")
    used, remedies = [], []
    for _ in range(3):
        used.append(troubles.pick(chain))
        remedies.append(recovery.decide(answer(error=error), troubles, models=len(chain)))
    assert used == [None, "b/m", "c/m"]
    assert [remedy.delay for remedy in remedies] == [0.0, 0.0, 0.0]
    assert remedies[-1].action is Action.GIVE_UP


def test_what_a_model_writes_about_quotas_is_no_quota() -> None:
    """The words count in a provider's refusal only."""
    error = TurnError(name="SomeError", message="the code has a billing bug: usage limit")
    assert classify(answer(error=error)) is ErrorClass.UNKNOWN


def test_sentences_that_ask_everybody_to_wait() -> None:
    """A server's own retry is an early sign for the others when it is about too many requests."""
    assert asks_for_rest("Too Many Requests")
    assert asks_for_rest("rate limit: slow down")
    assert not asks_for_rest("the connection was reset")


def test_the_page_shows_the_table() -> None:
    """docs/recovery.rst has one row for each rule, with its action and how often it is taken."""
    page = Path(__file__).parents[2] / "docs" / "recovery.rst"
    rows = {
        columns[0]: columns[1:]
        for line in page.read_text("utf-8").splitlines()
        if len(columns := re.split(r"\s{2,}", line.strip())) == 4
    }
    for error, rule in RULES.items():
        action, often, then = rows[error.value]
        assert action == rule.action.value
        assert often == (str(rule.tries) if rule.tries else "at once")
        can_change = rule.is_model_bound and rule.action not in {*FINAL, Action.NEXT_MODEL}
        assert then == ("-" if rule.action in FINAL else "next model, or give up" if can_change
                        else "give up")  # fmt: skip
