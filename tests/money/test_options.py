"""Budgets, prices, providers and fallbacks as people write them down."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest

from orchestra import Price
from orchestra.errors import ConfigurationError
from orchestra.opencode.cli import main
from orchestra.opencode.mission.allowances import Allowance, BudgetSettings, ProviderSettings
from orchestra.opencode.mission.file import parse_mission
from orchestra.opencode.mission.plan import MissionSettings

HEAD = """
goal = "spend"
[[tasks]]
id = "t1"
title = "spend"
[agents.worker]
call = "agents.py:work"
[agents.reviewer]
call = "agents.py:work"
"""


def parse(text: str, folder: Path) -> MissionSettings:
    (folder / "agents.py").write_text(AGENTS)
    return parse_mission(HEAD + text, folder / "mission.toml").settings


AGENTS = """
from orchestra.events import Usage

async def work(turn):
    for _ in range(1_000):
        await turn.usage(Usage(output_tokens=1_000))
    return "done"
"""


def test_what_a_mission_file_says_about_money_and_models(tmp_path: Path) -> None:
    """Every key has its place in the settings."""
    settings = parse(
        """
        [models.fallbacks]
        worker = ["p/m2", "q/m"]
        [providers]
        failure_threshold = 2
        recovery_timeout = 9
        patience = 1
        [budget]
        tokens = 1_000_000
        dollars = 2.5
        seconds = 60
        wrap_up = 0.2
        unknown_price = "free"
        [budget.task]
        tokens = 1000
        [budget.attempt]
        dollars = 1
        [prices."p/m"]
        input = 1
        output = 2.5
        cache_read = 0.1
        """,
        tmp_path,
    )
    assert settings.fallbacks == {"worker": ("p/m2", "q/m")}
    assert settings.providers == ProviderSettings(
        failure_threshold=2, recovery_timeout=9.0, patience=1.0
    )
    assert settings.budget == BudgetSettings(
        mission=Allowance(tokens=1_000_000, dollars=2.5, seconds=60.0),
        task=Allowance(tokens=1000),
        attempt=Allowance(dollars=1.0),
        wrap_up=0.2,
        unknown_price="free",
        prices={"p/m": Price(input=1, output=2.5, cache_read=0.1)},
    )


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('[models.fallbacks]\nworker = ["m2"]', "models.fallbacks.worker[0]: expected"),
        ("[models.fallbacks]\nwroker = []", "models.fallbacks.wroker: this key is not known"),
        ("[budget]\ntokens = 0", "budget.tokens: expected an integer from 1"),
        ("[budget]\ndollars = -1", "budget.dollars: expected a number above 0"),
        ("[budget]\nwrap_up = 1", "budget.wrap_up: expected a share"),
        ("[budget.task]\nseconds = 0", "budget.task.seconds: expected"),
        ('[budget]\nunknown_price = "guess"', "budget.unknown_price: expected 'refuse' or 'free'"),
        ('[prices."p/m"]\ninput = 1', "output: expected dollars per million tokens"),
        ('[prices."p/m"]\ninput = -1\noutput = 1', "input: expected dollars per million tokens"),
        ("[prices.m]\ninput = 1\noutput = 1", "prices.m: expected the name of a model"),
        ("[providers]\npatience = 0", "providers.patience: expected"),
    ],
)
def test_faults_are_told_by_their_path(text: str, fault: str, tmp_path: Path) -> None:
    """What is wrong is one line with the key path, and nothing starts."""
    with pytest.raises(ConfigurationError) as caught:
        parse(text, tmp_path)
    assert any(fault in problem for problem in caught.value.problems), caught.value.problems


def test_a_budget_from_the_command_line_ends_the_mission_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``--max-tokens`` holds: a report, a reason that names the budget, exit code 1."""
    parse("", tmp_path)
    (tmp_path / "mission.toml").write_text(HEAD)
    work = tmp_path / "work"
    work.mkdir()
    words = ["run", str(tmp_path / "mission.toml"), "--dir", str(work), "--json"]
    assert main([*words, "--max-tokens", "50_000", "--max-time", "600"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert "budget" in report["reason"]
    assert 0 < report["costs"]["tokens"] <= 51_000
    assert "Cost" in (work / ".orchestra" / "report.html").read_text()


LOOP = """
goal = "spend"
[agents.commander]
call = "agents.py:lead"
[agents.planner]
call = "agents.py:lead"
[agents.worker]
call = "agents.py:work"
[agents.reviewer]
call = "agents.py:refuse"
"""
LOOPING = """
import json
import anyio
from itertools import count
from orchestra.events import Usage

NUMBERS, PATIENT = count(), %r

async def lead(turn):
    return json.dumps({"tasks": [{"id": f"t{next(NUMBERS)}", "title": "do it"}]})

async def work(turn):
    if PATIENT:
        await anyio.sleep_forever()
    await turn.usage(Usage(input_tokens=100, output_tokens=100, cost=0.0003))
    (turn.directory / f"file{next(NUMBERS)}.txt").write_text("work")
    return "done"

async def refuse(turn):
    await turn.usage(Usage(input_tokens=100, output_tokens=10, cost=0.0001))
    return '{"verdict": "reject", "reasons": ["once more"]}'
"""


@pytest.mark.parametrize(
    ("goal", "rules", "words", "named"),
    [
        ("loop", "[rules]\nmax_rounds = 2\nmax_iterations = 2", [], "limited to 2 iterations"),
        ("loop", "", ["--max-tokens", "3_000"], "budget .* of 3,000"),
        (
            "loop",
            "[budget]\nunknown_price = 'free'",
            ["--max-cost", "0.004"],
            r"budget .* of \$?0\.004",
        ),
        ("patient", "", ["--max-time", "0.5"], r"budget .* 0\.5 s"),
        ("patient", "[rules]\ndeadline = 0.5", [], r"deadline of 0\.5 s is over"),
    ],
)
def test_each_limit_ends_the_loop_with_1_and_is_named(
    goal: str,
    rules: str,
    words: list[str],
    named: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Iterations, tokens, money and time: exit code 1, and a report that says which it was."""
    (tmp_path / "agents.py").write_text(LOOPING % (goal == "patient"))
    (tmp_path / "mission.toml").write_text(LOOP.replace("spend", goal) + rules)
    work = tmp_path / "work"
    work.mkdir()
    code = main(["run", str(tmp_path / "mission.toml"), "--dir", str(work), "--json", *words])
    report = json.loads(capsys.readouterr().out)
    assert code == 1
    assert report["outcome"] == "failed"
    assert re.search(named, report["reason"])
    assert html.escape(report["reason"]) in (work / ".orchestra" / "report.html").read_text()


@pytest.mark.parametrize(
    "words",
    [["--max-tokens", "0"], ["--max-cost", "-1"], ["--max-cost", "x"], ["--max-time", "inf"]],
)
def test_wrong_limits_are_usage_errors(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A limit that is none is told before anything starts."""
    assert main(["run", "goal", *words]) == 2
    assert "above 0" in capsys.readouterr().err
