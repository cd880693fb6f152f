"""What a mission spends: each turn reserves what it may cost, and settles for what it has cost.

Budgets nest: the mission's, in it each task's, in that each attempt's. A turn holds its estimate in
all of them before it begins; while it runs, what it has used counts; at its end it pays once.

What was paid is told piece by piece (`Spending.take_news`), so that the store gets one small record
per turn, however long the mission. `Spending.restore` takes them all back.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, final

import anyio

from orchestra import (
    Agent,
    Amount,
    Budget,
    CostEstimator,
    CostTree,
    Price,
    PriceList,
    Priority,
    Reservation,
    SessionBackend,
)
from orchestra.errors import BudgetExceededError, OrchestraError, UnknownPriceError
from orchestra.events import TurnError, Usage
from orchestra.opencode.mission.allowances import Allowance, BudgetSettings
from orchestra.opencode.mission.orders import Ask
from orchestra.opencode.mission.plan import Role
from orchestra.opencode.mission.report import CostNode

__all__ = ("Bill", "Spending", "as_cost_node")

_CHARACTERS_PER_TOKEN = 3
"""Few: an estimate had better be too high."""
_WRAP_UP = frozenset({Role.COMMANDER, Role.REVIEWER})
"""Who may use what is kept for bringing to an end what was worked for."""
_ROOT = "mission"
_ATTEMPT = "attempt "
_CLOCK = "clock"


@final
class Bill:
    """What one turn costs; from `Spending.turn`.

    Args:
        spending: The mission's.
        budget: The budget that pays.
        reservation: What is held for it; None: it was paid before a restart.
        ask: What the turn is about.
        model: Which model answers.
        prompt: What the prompt itself is expected to cost.
        paid: What was paid for it before a restart.
    """

    def __init__(
        self,
        spending: Spending,
        budget: Budget,
        reservation: Reservation | None,
        *,
        ask: Ask,
        model: str | None,
        prompt: Amount,
        paid: Amount,
    ) -> None:
        self._spending = spending
        self._budget = budget
        self._reservation = reservation
        self._ask = ask
        self._model = model
        self._prompt = prompt
        self._paid = paid
        self._used = Amount()
        self._step = Amount()
        self._is_cut = False

    @property
    def is_wrap_up(self) -> bool:
        """Whether it may use what is kept."""
        return self._ask.role in _WRAP_UP

    @property
    def seconds_left(self) -> float:
        """How long the turn may take; infinity where no time is limited."""
        left = self._budget.seconds_left(wrap_up=self.is_wrap_up)
        return math.inf if left is None else left

    def record(self, usage: Usage) -> TurnError | None:
        """Take in what the turn has used so far.

        Args:
            usage: All of it.

        Returns:
            Why the turn must end now; None when it may go on.
        """
        try:
            so_far = self._spending.prices.cost(self._model or "", usage)
        except UnknownPriceError as exc:
            return TurnError(name="UnknownPriceError", message=str(exc), is_retryable=False)
        before, self._used = self._used, so_far.or_more(self._used)
        step = self._step = Amount(
            tokens=self._used.tokens - before.tokens,
            microdollars=self._used.microdollars - before.microdollars,
        )
        # When a model call is told, the next one has begun: there must be room for another one.
        if self._reservation is None or self._reservation.record(self._used, steps=2):
            return None
        return self._spending.shortage(
            self._budget, self._reservation, step, wrap_up=self.is_wrap_up
        )

    def cut(self) -> None:
        """The turn ends during a model call, of which nobody will tell what it has cost.

        It is paid as much as for the one before.
        """
        self._is_cut = True

    def time_over(self) -> TurnError:
        """Return why a turn ends whose time is over."""
        return self._spending.time_over(self._budget, wrap_up=self.is_wrap_up)

    def settle(self, usage: Usage) -> None:
        """Pay, once; a repetition does nothing.

        Args:
            usage: What the whole turn has used.
        """
        try:
            actual = self._spending.prices.cost(self._model or "", usage).or_more(self._used)
        except UnknownPriceError:
            actual = self._used.or_more(Amount(tokens=_tokens(usage)))
        if self._is_cut:
            actual = actual.or_more(self._used + self._step)
        self._spending.pay(
            self._budget, self._reservation, self._ask, actual, prompt=self._prompt, paid=self._paid
        )

    def __repr__(self) -> str:
        return f"<Bill of {self._ask.key!r} {self._used}>"


@final
class Spending:
    """The budgets of a mission.

    Args:
        settings: What may be spent.
        clock: Gives monotonic seconds.

    Attributes:
        prices: What the models cost.
    """

    def __init__(
        self, settings: BudgetSettings, *, clock: Callable[[], float] = anyio.current_time
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._parents: dict[str, str] = {}
        self._paid: dict[str, Amount] = {}
        self._news: dict[str, Any] = {}
        self._used_before = 0.0
        self._began = 0.0
        self._budget: Budget | None = None
        self.prices: PriceList = self._price_list({})
        self._estimator = CostEstimator(first=self._first_estimate(()))

    def _price_list(self, found: Mapping[str, Price]) -> PriceList:
        rule = self._settings.unknown_price if self._settings.has_dollars else "free"
        return PriceList({**found, **self._settings.prices}, unknown=rule)

    # --- the mission's beginning ---

    async def begin(
        self, backend: SessionBackend, directory: Path, team: Iterable[Agent] = ()
    ) -> str:
        """Start the time, and ask the backend for prices if money is limited. A checkpoint then.

        Args:
            backend: Where the agents run.
            directory: The workspace.
            team: Who will be asked.

        Returns:
            Why the backend's prices are not known; empty: they are, or do not count.
        """
        self._began = self._clock()
        problem = ""
        if self._settings.has_dollars:
            try:
                rates = await backend.prices(directory)
            except (OrchestraError, OSError) as exc:
                problem = f"the backend does not say what its models cost: {exc}"
            else:
                found = {model: Price(**rate) for model, rate in rates.items()}
                self.prices = self._price_list(found)
        models = {agent.model or backend.model or "" for agent in team}
        self._estimator = CostEstimator(first=self._first_estimate(models))
        return problem

    def _first_estimate(self, models: Iterable[str]) -> Amount:
        limits = [level.tokens for level in self._settings.levels if level.tokens is not None]
        tokens = min([self._settings.first_tokens, *(limit // 10 for limit in limits)])
        # Three quarters are read, a quarter is written, by the dearest model that may be asked.
        guess = Usage(input_tokens=tokens - tokens // 4, output_tokens=tokens // 4)
        found = (self.prices.prices.get(model) for model in models)
        costs = (price.cost(guess).microdollars for price in found if price is not None)
        dearest = max(costs, default=0)
        money = [level.dollars for level in self._settings.levels if level.dollars is not None]
        least = min((int(float(limit) * 100_000) for limit in money), default=dearest)
        return Amount(tokens=tokens, microdollars=min(dearest, least))

    @property
    def _root(self) -> Budget:
        if self._budget is None:
            limit = self._settings.mission
            seconds = limit.seconds
            if seconds is not None:  # what was used before a restart is used
                seconds = max(seconds - self._used_before, 0.001)
            self._budget = Budget(
                _ROOT,
                tokens=limit.tokens,
                dollars=limit.dollars,
                seconds=seconds,
                wrap_up=self._settings.wrap_up,
                clock=self._clock,
            )
        return self._budget

    def add_part(self, task_id: str, parent: str) -> None:
        """Let a part of a task be paid from the task's budget.

        Args:
            task_id: The part.
            parent: The task.
        """
        self._parents[task_id] = parent

    def seconds_left(self) -> float | None:
        """Return how long the mission may still take; None: no limit."""
        return self._root.seconds_left(wrap_up=True)

    # --- one turn ---

    def _task_budget(self, task_id: str) -> Budget:
        parent = self._parents.get(task_id)
        above = self._root if parent is None else self._task_budget(parent)
        return self._child(above, f"task {_name(task_id).replace('/', '~')}", self._settings.task)

    def _child(self, above: Budget, name: str, limit: Allowance) -> Budget:
        return above.child(
            name,
            tokens=limit.tokens,
            dollars=limit.dollars,
            seconds=limit.seconds,
            wrap_up=self._settings.wrap_up,
        )

    def _budget_of(self, ask: Ask) -> Budget:
        if ask.task_id is None:
            return self._root.child(ask.role.value)
        task = self._task_budget(ask.task_id)
        return self._child(task, f"{_ATTEMPT}{ask.round}", self._settings.attempt)

    @asynccontextmanager
    async def turn(self, ask: Ask, model: str | None) -> AsyncIterator[Bill]:
        """Reserve what a turn may cost, wait for room if need be, and give back what is left.

        Entering is a checkpoint.

        Args:
            ask: What the turn is about.
            model: Which model will answer; None: nobody knows.

        Raises:
            BudgetExceededError: A budget cannot pay for it.
            UnknownPriceError: The model has no price, and that is not permitted.
        """
        if model is not None and self.prices.prices and not self.prices.prices.get(model):
            self.prices.cost(model, Usage())
        budget = self._budget_of(ask)
        prompt = Amount(tokens=len(ask.message) // _CHARACTERS_PER_TOKEN)
        name = _name(ask.key)
        paid = self._paid.get(name)
        reservation = None
        if paid is None:
            reservation = await budget.reserve(
                self._estimate(ask, prompt),
                wrap_up=ask.role in _WRAP_UP,
                priority=Priority.HIGH if ask.role in _WRAP_UP else ask.priority,
                id=name,
            )
        try:
            yield Bill(
                self,
                budget,
                reservation,
                ask=ask,
                model=model,
                prompt=prompt,
                paid=paid or Amount(),
            )
        finally:
            if reservation is not None and reservation.is_open:
                reservation.release()

    def _estimate(self, ask: Ask, prompt: Amount) -> Amount:
        estimate = self._estimator.estimate(ask.role.value, prompt=prompt)
        if ask.task_id is None:
            return estimate
        # What others have cost must not keep a task from its own budget: it is stopped at its end.
        share = 1.0 if ask.role in _WRAP_UP else 1.0 - self._settings.wrap_up
        tokens, micros = estimate.tokens, estimate.microdollars
        for limit in (self._settings.task, self._settings.attempt):
            if limit.tokens is not None:
                tokens = min(tokens, int(limit.tokens * share))
            if limit.dollars is not None:
                micros = min(micros, int(float(limit.dollars) * 1_000_000 * share))
        return Amount(tokens=tokens, microdollars=micros)

    def pay(
        self,
        budget: Budget,
        reservation: Reservation | None,
        ask: Ask,
        actual: Amount,
        *,
        prompt: Amount,
        paid: Amount,
    ) -> None:
        """Settle a turn's bill, and keep the news of it.

        Args:
            budget: Who pays.
            reservation: What was held for it.
            ask: What the turn was about.
            actual: What it has cost altogether.
            prompt: What its prompt was expected to cost.
            paid: What was paid for it before a restart.
        """
        name = _name(ask.key)
        if reservation is None:
            # The end of a turn that was paid for may be told again; another turn costs again.
            if actual == paid or not budget.settle(f"{name}+", actual):
                return
            name = f"{name}+"
        elif not reservation.settle(actual):
            return
        self._estimator.observe(ask.role.value, actual, prompt=prompt)
        self._news[name] = {
            "path": budget.path.split("/")[1:],
            "tokens": actual.tokens,
            "microdollars": actual.microdollars,
        }

    # --- what is short ---

    def explain(self, error: BudgetExceededError) -> TurnError:
        """Return a refusal as the end of a turn, which tells whose budget it was.

        Args:
            error: The refusal.
        """
        name = _error_name(error.budget)
        return TurnError(name=name, message=str(error), is_retryable=False)

    def shortage(
        self, budget: Budget, reservation: Reservation, step: Amount, *, wrap_up: bool
    ) -> TurnError:
        """Return why a turn that has run past its estimate cannot go on.

        Args:
            budget: Who pays.
            reservation: What is held for the turn.
            step: What its last step has cost.
            wrap_up: Whether it may use what is kept.
        """
        need = reservation.held + step
        for each in self._line(budget):
            now = each.statistics()
            share = 1.0 if wrap_up else 1.0 - self._settings.wrap_up
            tokens = math.inf if now.limit_tokens is None else now.limit_tokens * share
            dollars = math.inf if now.limit_dollars is None else float(now.limit_dollars) * share
            limit = ""
            if now.spent.tokens + need.tokens > tokens:
                limit = f"{now.limit_tokens:,} tokens"
            elif float(now.spent.dollars + need.dollars) > dollars:
                limit = f"${now.limit_dollars:f}"
            if limit:
                message = (
                    f"budget {each.path!r} cannot pay for another step of this turn: of {limit}, "
                    f"{now.spent} are spent, and the turn holds {reservation.held}"
                )
                return TurnError(name=_error_name(each.path), message=message, is_retryable=False)
        return TurnError(
            name="OverspentError",
            message=(
                f"the turn has used more than expected, and beside the others there is no room "
                f"for another step; it holds {reservation.held}"
            ),
        )

    def time_over(self, budget: Budget, *, wrap_up: bool) -> TurnError:
        """Return why a turn ends whose time is over.

        Args:
            budget: Who pays.
            wrap_up: Whether it may use what is kept.
        """
        line = self._line(budget)
        over = min(
            line, key=lambda each: _or_infinity(each.seconds_left(wrap_up=wrap_up)), default=budget
        )
        return TurnError(
            name=_error_name(over.path),
            message=f"the time of budget {over.path!r} is over; give it more seconds",
            is_retryable=False,
        )

    def _line(self, budget: Budget) -> list[Budget]:
        line = [self._root]
        for name in budget.path.split("/")[1:]:
            line.append(line[-1].child(name))
        return line

    # --- what is known ---

    def tree(self) -> CostTree:
        """Return who has spent what."""
        return self._root.tree()

    def take_news(self) -> dict[str, Any]:
        """Return what was paid since the last call, in plain form, and the time that was used."""
        if not self._news:
            return {}
        news, self._news = self._news, {}
        return {**news, _CLOCK: self._used_before + self._clock() - self._began}

    def restore(self, paid: Mapping[str, Any]) -> None:
        """Take over what was paid before a restart; to be called before anything else.

        Args:
            paid: All that `take_news` ever returned.
        """
        self._used_before = float(paid.get(_CLOCK, 0.0))
        for name, plain in paid.items():
            if name == _CLOCK:
                continue
            budget = self._root
            for part in plain["path"]:
                budget = self._child(budget, part, self._limit_of(part))
            amount = Amount(tokens=plain["tokens"], microdollars=plain["microdollars"])
            budget.settle(name, amount)
            self._paid[name] = amount

    def _limit_of(self, name: str) -> Allowance:
        if name.startswith(_ATTEMPT):
            return self._settings.attempt
        return self._settings.task if name.startswith("task ") else Allowance()

    def __repr__(self) -> str:
        return f"<Spending {self._root!r}>"


def _name(text: str) -> str:
    """Return a text that may name a budget, or a reservation."""
    return text.replace("#", "~")


def _error_name(path: str) -> str:
    if "/" not in path:
        return "BudgetExceededError"
    last = path.rpartition("/")[2]
    return "AttemptBudgetError" if last.startswith(_ATTEMPT) else "TaskBudgetError"


def _or_infinity(value: float | None) -> float:
    return math.inf if value is None else value


def _tokens(usage: Usage) -> int:
    return (
        usage.input_tokens
        + usage.output_tokens
        + usage.reasoning_tokens
        + usage.cache_read_tokens
        + usage.cache_write_tokens
    )


def as_cost_node(tree: CostTree) -> CostNode:
    """Return a tree of costs as it stands in a report.

    Args:
        tree: Who has spent what.
    """
    return CostNode(
        name=tree.name,
        tokens=tree.spent.tokens,
        dollars=float(tree.spent.dollars),
        own_tokens=tree.own.tokens,
        own_dollars=float(tree.own.dollars),
        parts=tuple(map(as_cost_node, tree.children)),
    )
