"""The sections of a mission file about money, prices and providers."""

from __future__ import annotations

import math
from collections.abc import Callable

from attrs import evolve

from orchestra import Price, UnknownPrice
from orchestra.opencode.mission.allowances import Allowance, BudgetSettings, ProviderSettings
from orchestra.opencode.mission.plan import Role
from orchestra.opencode.mission.tables import Table

__all__ = ("read_budget", "read_fallbacks", "read_providers")

_MOST_TOKENS = 10**12
_MOST_FAILURES = 1_000
_RATES = ("input", "output", "cache_read", "cache_write", "reasoning")


def read_budget(root: Table) -> BudgetSettings:
    """Read ``[budget]`` and ``[prices]``.

    Args:
        root: The document.
    """
    table = root.table("budget")
    task, attempt = table.table("task"), table.table("attempt")
    default = BudgetSettings()
    wrap_up = table.number("wrap_up", default.wrap_up)
    if not 0 <= wrap_up < 1:
        table.wrong("wrap_up", "a share from 0, below 1")
        wrap_up = default.wrap_up
    settings = BudgetSettings(
        mission=_allowance(table),
        task=_allowance(task),
        attempt=_allowance(attempt),
        wrap_up=wrap_up,
        unknown_price=_unknown_price(table),
        prices=_prices(root),
    )
    for each in (task, attempt, table):
        each.close()
    return settings


def _allowance(table: Table) -> Allowance:
    tokens = table.integer("tokens", 0, minimum=1, maximum=_MOST_TOKENS)
    dollars = table.number("dollars")
    if "dollars" in table and not 0 < dollars < math.inf:
        table.wrong("dollars", "a number above 0")
        dollars = 0.0
    seconds = table.seconds("seconds", 0.0)
    return Allowance(tokens=tokens or None, dollars=dollars or None, seconds=seconds or None)


def _unknown_price(table: Table) -> UnknownPrice:
    return "free" if table.choice("unknown_price", ("refuse", "free")) == "free" else "refuse"


def _prices(root: Table) -> dict[str, Price]:
    table = root.table("prices")
    prices = {}
    for model in table:
        rates = table.table(model)
        for name in ("input", "output"):
            if name not in rates:
                rates.problem(name, "expected dollars per million tokens, but it is missing")
        found = {name: rates.number(name) for name in _RATES if name in rates}
        rates.close()
        for name, value in found.items():
            if not 0 <= value < math.inf:
                rates.wrong(name, "dollars per million tokens")
                found[name] = 0.0
        if "/" not in model:
            table.problem(model, "expected the name of a model, as 'provider/model'")
        prices[model] = evolve(Price(input=0, output=0), **found)
    return prices


def read_fallbacks(root: Table, parse: Callable[[str], str]) -> dict[str, tuple[str, ...]]:
    """Read ``[models.fallbacks]``.

    Args:
        root: The document.
        parse: Checks the name of a model.
    """
    models = root.table("models")
    table = models.table("fallbacks")
    fallbacks = {}
    for role in Role:
        names = table.texts(role.value)
        for index, name in enumerate(names):
            try:
                parse(name)
            except ValueError as error:
                problem = str(error).removeprefix("model: ")
                table.problem(role.value, problem, index=index)
        if names:
            fallbacks[role.value] = names
    table.close()
    models.close()
    return fallbacks


def read_providers(root: Table) -> ProviderSettings:
    """Read ``[providers]``.

    Args:
        root: The document.
    """
    table = root.table("providers")
    default = ProviderSettings()
    settings = ProviderSettings(
        failure_threshold=table.integer(
            "failure_threshold", default.failure_threshold, minimum=1, maximum=_MOST_FAILURES
        ),
        recovery_timeout=table.seconds("recovery_timeout", default.recovery_timeout),
        patience=table.seconds("patience", default.patience),
    )
    table.close()
    return settings
