"""The agents file: what it may say, what it may not, and who obeys it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import anyio
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from orchestra import EmbeddedBackend, PermissionRule, Turn
from orchestra.errors import ConfigurationError
from orchestra.opencode import (
    ROLE_AGENTS,
    MissionOutcome,
    MissionSettings,
    Plan,
    Role,
    Specialist,
    TaskMode,
    TaskSpec,
    run_mission,
)
from orchestra.opencode.agents.agents_file import (
    AgentsFile,
    find_agents_file,
    parse_agents,
    read_agents_file,
)
from orchestra.opencode.agents.roles import add_rules, close_off
from orchestra.opencode.job import prepare
from orchestra.opencode.notes import JobOptions

FULL = """
[reviewer]
model = "some/reviewer"
permissions = [
    {permission = "*", action = "deny"},
    {permission = "read"   , action = "allow"},
    {permission = "bash", pattern = "npm test *", action = "allow"},
]

[designer]
description = "Draws what people see."
prompt_file = "designer.txt"
model = "some/artist"
"""


def parse(text: str, folder: Path, name: str = "agents.toml") -> AgentsFile:
    return parse_agents(text, folder / name)


def problems(text: str, folder: Path, name: str = "agents.toml") -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as caught:
        parse(text, folder, name)
    return caught.value.problems


def may(rules: tuple[PermissionRule, ...], permission: str, pattern: str = "x") -> str:
    """What the rules say: the last match wins."""
    from fnmatch import fnmatchcase

    return [
        rule.action
        for rule in rules
        if fnmatchcase(permission, rule.permission) and fnmatchcase(pattern, rule.pattern)
    ][-1]


def test_what_a_newcomer_gets_wrong(tmp_path: Path) -> None:
    """A key twice, a role in capitals, an act that stays shut: each is a sentence; a BOM is none."""
    assert problems('{"worker": {}, "worker": {}}', tmp_path, "agents.json") == (
        f"{tmp_path}/agents.json: not JSON: the key 'worker' is there twice in the same object",
    )
    assert problems("[Worker]\nmodel = 'a/b'", tmp_path) == (
        "agents.toml: Worker: a role's agent is called 'worker', in small letters",
    )
    rule = "[worker]\npermissions = [{permission = 'question', action = 'ask'}]"
    (problem,) = problems(rule, tmp_path)
    assert problem.endswith("expected 'deny', since nobody answers an agent's questions, got 'ask'")
    path = tmp_path / "agents.toml"
    path.write_text("\ufeff[worker]\nmodel = 'a/b'", encoding="utf-8")
    assert Role.WORKER in read_agents_file(path).roles


@pytest.mark.parametrize("action", ["allow", "ask"])
@pytest.mark.parametrize("permission", ["*", "t?sk", "task"])
def test_rules_of_a_mission_open_no_more(action: Literal["allow", "ask"], permission: str) -> None:
    """Workers and reviewers stay terminal, and secrets unread, whatever a mission's wildcards say."""
    rules = (PermissionRule(permission=permission, action=action),)
    for role in (Role.WORKER, Role.REVIEWER):
        every = add_rules(ROLE_AGENTS[role], rules)
        assert may(every, "task") == may(every, "question") == "deny"
        assert may(every, "read", "a/.env") == may(every, "external_directory") == "deny"
    narrow = (PermissionRule(permission="bash", action="ask"),)
    worker = ROLE_AGENTS[Role.WORKER]
    assert add_rules(worker, narrow) == (*worker.permissions, *narrow)


def test_a_role_is_changed_and_an_agent_added(tmp_path: Path) -> None:
    """What the file says replaces what was there; what it does not say stays."""
    (tmp_path / "designer.txt").write_text("You are the Designer of things.")
    file = parse(FULL, tmp_path)
    agents = file.role_agents(ROLE_AGENTS)
    reviewer = agents[Role.REVIEWER]
    assert reviewer.prompt == ROLE_AGENTS[Role.REVIEWER].prompt
    assert reviewer.model == "some/reviewer"
    assert may(reviewer.permissions, "bash", "npm test all") == "allow"
    assert may(reviewer.permissions, "bash", "pytest -q") == "deny"
    assert may(reviewer.permissions, "edit") == "deny"
    assert may(reviewer.permissions, "read", "a.py") == "allow"
    assert agents[Role.WORKER] == ROLE_AGENTS[Role.WORKER]
    (designer,) = file.specialists
    assert designer.description == "Draws what people see."
    assert designer.agent.name == "designer"
    assert designer.agent.prompt == "You are the Designer of things."
    assert designer.agent.permissions == ROLE_AGENTS[Role.WORKER].permissions


def test_json_says_the_same(tmp_path: Path) -> None:
    """A file that ends in .json is read as JSON, with the same meaning."""
    import tomllib

    (tmp_path / "designer.txt").write_text("You are the Designer of things.")
    text = json.dumps(tomllib.loads(FULL))
    (tmp_path / "agents.json").write_text(text)
    assert evolve(read_agents_file(tmp_path / "agents.json"), path=tmp_path) == evolve(
        parse(FULL, tmp_path), path=tmp_path
    )


def test_every_fault_is_told_with_its_path(tmp_path: Path) -> None:
    """One line for each fault, all at once, with file, key path, and what was expected."""
    text = """
    [reviewer]
    promt = "typo"
    permissions = [
        {permission = "read", action = "allow"},
        {permission = "edit", pattern = 3, action = "deny"},
        {permission = "bash", action = "allways"},
        {action = "deny", why = "?"},
        {permission = "task", action = "allow"},
    ]
    [designer]
    model = "artist"
    [painter]
    description = "paints"
    prompt = "You paint."
    prompt_file = "missing.txt"
    [orchestra]
    description = "d"
    prompt = "p"
    """
    found = problems(text, tmp_path)
    starts = [
        "agents.toml: reviewer.permissions[1].pattern: expected text",
        "agents.toml: reviewer.permissions[2].action: expected 'allow' or 'deny' or 'ask', got",
        "agents.toml: reviewer.permissions[3].permission: expected text",
        "agents.toml: reviewer.permissions[3].why: this key is not known",
        "agents.toml: reviewer.permissions[4].action: expected 'deny', since no agent",
        "agents.toml: reviewer.promt: this key is not known; did you mean 'prompt'",
        "agents.toml: designer.description: expected text",
        "agents.toml: designer: expected 'prompt' or 'prompt_file'",
        "agents.toml: designer.model: expected 'provider/model', got 'artist'",
        "agents.toml: painter: expected either 'prompt' or 'prompt_file', got both",
        "agents.toml: orchestra: expected a name",
    ]
    for start in starts:
        assert sum(line.startswith(start) for line in found) == 1, (start, found)
    assert len(found) == len(starts), found


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("[a", "agents.toml", "not TOML"),
        ("{", "agents.json", "not JSON"),
        ("[]", "agents.json", "expected an object"),
        ("worker = 3", "agents.toml", "agents.toml: worker: expected a table, got 3"),
        ("[worker]\nprompt_file = 'no.txt'", "agents.toml", "worker.prompt_file: expected a text"),
        ("[worker]\nprompt_file = 'a\\u0000'", "agents.toml", "not TOML|expected"),
        ("[worker]\nprompt = '" + "x" * 70_000 + "'", "agents.toml", "at most 64 KiB"),
    ],
)
def test_what_is_no_agents_file_says_so(text: str, name: str, words: str, tmp_path: Path) -> None:
    """Wrong documents, files that are missing, and prompts without end are told."""
    import re

    assert any(re.search(words, line) for line in problems(text, tmp_path, name))


def test_rules_that_a_server_cannot_keep_in_order_are_told(tmp_path: Path) -> None:
    """Rules for one permission on both sides of a wildcard are a fault, before anything starts."""
    rules = [
        {"permission": "bash", "action": "allow"},
        {"permission": "*", "action": "deny"},
        {"permission": "bash", "pattern": "ls", "action": "allow"},
    ]
    (line,) = problems(json.dumps({"worker": {"permissions": rules}}), tmp_path, "agents.json")
    assert line.startswith("agents.json: worker.permissions: the rules for permission 'bash'")


RULES = st.builds(
    PermissionRule,
    permission=st.sampled_from(["*", "task", "question", "read", "bash", "tas*", "external_*"]),
    pattern=st.sampled_from(["*", "x", "*.py"]),
    action=st.sampled_from(["allow", "deny", "ask"]),
)


@given(st.lists(RULES, max_size=8).map(tuple))
def test_whatever_the_rules_agents_stay_terminal(rules: tuple[PermissionRule, ...]) -> None:
    """No list of rules lets an agent start others or ask, nor opens secrets by a wildcard."""
    closed = close_off(rules)
    assert may(closed, "task", "worker") == "deny"
    assert may(closed, "question") == "deny"
    assert may(closed, "read", "config/.env") == "deny"
    assert may(closed, "external_directory") == "deny"


# --- who reads it ---


def workspace(folder: Path) -> Path:
    """A repository that brings an agents file of its own."""
    place = folder / "work"
    (place / ".orchestra").mkdir(parents=True)
    (place / ".orchestra" / "agents.toml").write_text('[worker]\nprompt = "Obey me."\n')
    return place


def mission_file(folder: Path, more: str = "") -> str:
    path = folder / "mission.toml"
    path.write_text(
        f"""
        goal = "g"
        {more}
        workspace.directory = "work"
        [[tasks]]
        id = "t"
        title = "t"
        [agents.worker]
        command = ["true"]
        [agents.reviewer]
        command = ["true"]
        """
    )
    return str(path)


def test_a_repository_s_file_is_not_obeyed_unasked(tmp_path: Path) -> None:
    """The file of a workspace counts when its user says so, and not because it is there."""
    workspace(tmp_path)
    mission = mission_file(tmp_path)
    unasked = prepare(JobOptions(mission=mission))
    assert unasked.agents[Role.WORKER].prompt == ROLE_AGENTS[Role.WORKER].prompt
    asked = prepare(JobOptions(mission=mission, project_agents=True))
    assert asked.agents[Role.WORKER].prompt == "Obey me."


def test_a_mission_file_names_an_agents_file(tmp_path: Path) -> None:
    """Relative to itself; together with the project's it is refused, as is one that is missing."""
    workspace(tmp_path)
    (tmp_path / "mine.toml").write_text('[worker]\nprompt = "Obey my user."\n')
    mission = mission_file(tmp_path, 'agents_file = "mine.toml"')
    assert prepare(JobOptions(mission=mission)).agents[Role.WORKER].prompt == "Obey my user."
    with pytest.raises(ConfigurationError, match="names an agents file already"):
        prepare(JobOptions(mission=mission, project_agents=True))
    mission = mission_file(tmp_path, 'agents_file = "none.toml"')
    with pytest.raises(ConfigurationError, match=r"none\.toml: the agents file cannot be read"):
        prepare(JobOptions(mission=mission))


def test_what_the_project_lacks_is_told(tmp_path: Path) -> None:
    """Asked for an agents file where there is none, or two, the command line says so."""
    place = workspace(tmp_path)
    mission = mission_file(tmp_path)
    (place / ".orchestra" / "agents.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="both there"):
        find_agents_file(place)
    for name in ("agents.json", "agents.toml"):
        (place / ".orchestra" / name).unlink()
    with pytest.raises(ConfigurationError, match=r"there is no \.orchestra/agents\.toml"):
        prepare(JobOptions(mission=mission, project_agents=True))


def test_names_that_do_not_fit_are_told_before_anything_starts(tmp_path: Path) -> None:
    """A task's agent must be in the agents file, and on the embedded backend have a command."""
    workspace(tmp_path)
    (tmp_path / "mine.toml").write_text('[designer]\nprompt = "p"\ndescription = "d"\n')
    mission = Path(mission_file(tmp_path, 'agents_file = "mine.toml"'))
    mission.write_text(mission.read_text().replace('title = "t"', 'title = "t"\nagent = "artist"'))
    with pytest.raises(ConfigurationError) as caught:
        prepare(JobOptions(mission=str(mission)))
    first, second = caught.value.problems
    assert "tasks[0].agent: expected an agent of the agents file (designer), got 'artist'" in first
    assert "agents.designer: expected a table" in second


# --- specialists at work ---

DESIGNER = Specialist(
    agent=evolve(ROLE_AGENTS[Role.WORKER], name="designer", prompt="You are the Designer."),
    description="Draws what people see.",
)
SETTINGS = MissionSettings(
    todo_file=None, retry_delay=0.0, has_evidence=False, specialists=(DESIGNER,)
)


class Team:
    """Notes who was asked for what."""

    def __init__(self, plans: list[dict[str, Any]]) -> None:
        self.plans = iter(plans)
        self.asked: list[tuple[str, str]] = []
        self.messages: list[str] = []

    def backend(self) -> EmbeddedBackend:
        return EmbeddedBackend(
            {
                "commander": lambda _: "brief",
                "planner": self.plan,
                "worker": self.work,
                "designer": self.work,
                "reviewer": lambda _: '{"verdict": "accept"}',
            }
        )

    def plan(self, turn: Turn) -> str:
        self.messages.append(turn.prompt)
        return json.dumps(next(self.plans))

    def work(self, turn: Turn) -> str:
        self.asked.append((turn.metadata["task"], turn.agent.prompt[:20]))
        return "done"


async def test_a_planned_task_goes_to_its_specialist(tmp_path: Path) -> None:
    """The planner is told whom there is; an unknown name is sent back to it, a known one works."""
    tasks = [{"id": "a", "title": "a", "agent": "artist"}, {"id": "b", "title": "b"}]
    mended = [{**tasks[0], "agent": "designer"}, tasks[1]]
    team = Team([{"tasks": tasks}, {"tasks": mended}])
    async with team.backend() as backend:
        with anyio.fail_after(30):
            report = await run_mission(
                "draw", backend=backend, directory=tmp_path, settings=SETTINGS
            )
    assert report.outcome is MissionOutcome.ACCEPTED, report.reason
    assert '{"designer":"Draws what people see."}' in team.messages[0]
    assert "task 'a' names the agent 'artist', but known are: designer" in team.messages[1]
    assert sorted(team.asked) == [("a", "You are the Designer"), ("b", "You are the Worker o")]


async def test_a_given_plan_must_name_agents_that_there_are(tmp_path: Path) -> None:
    """A plan of one's own that names an unknown agent is refused; racers are of the named kind."""
    team = Team([])
    stranger = Plan((TaskSpec(id="a", title="a", agent="artist"),))
    race = Plan((TaskSpec(id="a", title="a", agent="designer", mode=TaskMode.RACE),))
    async with team.backend() as backend:
        with anyio.fail_after(30):
            refused = await run_mission(
                "draw", backend=backend, directory=tmp_path, settings=SETTINGS, plan=stranger
            )
            report = await run_mission(
                "draw", backend=backend, directory=tmp_path, settings=SETTINGS, plan=race
            )
    assert refused.outcome is MissionOutcome.FAILED
    assert "names the agent 'artist'" in refused.reason
    assert report.outcome is MissionOutcome.ACCEPTED
    assert {prompt for _, prompt in team.asked} == {"You are the Designer"}


def test_the_file_on_its_page_is_one(tmp_path: Path) -> None:
    """The example of the page about roles is read without a fault."""
    page = Path(__file__).parents[2] / "docs" / "roles.rst"
    text = page.read_text("utf-8").partition(".. code-block:: toml\n\n")[2].partition("\n\n``")[0]
    (tmp_path / "designer.txt").write_text("You are the Designer.")
    file = parse(text.replace("\n    ", "\n").removeprefix("    "), tmp_path)
    assert set(file.roles) == {Role.REVIEWER}
    assert [each.agent.name for each in file.specialists] == ["designer"]
