from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestra import CommandAgent
from orchestra.errors import ConfigurationError
from orchestra.opencode.agents import ROLE_AGENTS
from orchestra.opencode.mission.file import (
    AgentCall,
    AgentCommand,
    MissionFile,
    parse_mission,
    read_mission_file,
)
from orchestra.opencode.mission.isolation import Isolation
from orchestra.opencode.mission.loading import load_agents
from orchestra.opencode.mission.plan import LoopLimits, MissionSettings, Role

FULL: dict[str, Any] = {
    "goal": "Give every module a docstring",
    "workspace": {"directory": "."},
    "limits": {"worker": 4, "reviewer": 2},
    "rules": {
        "max_rounds": 2,
        "max_iterations": 4,
        "command_timeout": 10,
        "turn_timeout": 2.5,
        "deadline": 60.0,
        "retry_delay": 0.5,
        "todo_file": "",
        "evidence": False,
    },
    "acceptance": {"commands": ["python3 -m unittest -q"], "allow": [["pytest", "*"]]},
    "tasks": [
        {"id": "t1", "title": "One", "files": ["a.py"], "acceptance": ["python3 'a b.py'"]},
        {"id": "t2", "title": "Two", "instructions": "more", "depends": ["t1"]},
    ],
    "backend": {"kind": "embedded"},
    "agents": {
        "fixer": {"command": ["sh", "{here}/fix.sh"], "timeout": 5},
        "reviewer": {"call": "agents.py:review"},
    },
    "roles": {"worker": {"agent": "fixer", "model": "some/model"}},
}


def toml(value: object) -> str:
    """Write a value as inline TOML."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    # JSON leaves DEL as it is; TOML wants every control character escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def document(values: Mapping[str, object]) -> str:
    """Write a whole TOML document."""
    return "".join(f"{json.dumps(key)} = {toml(value)}\n" for key, value in values.items())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file of agents, as a mission file would have beside it."""
    (tmp_path / "agents.py").write_text(
        "def review(turn):\n    return '{}'\n\n\nANSWER = 42\n", encoding="utf-8"
    )
    return tmp_path


def parse(folder: Path, values: Mapping[str, object]) -> MissionFile:
    """Check a document as if it were a file of that folder."""
    return parse_mission(document(values), folder / "mission.toml")


def problems(folder: Path, values: Mapping[str, object]) -> list[str]:
    """Check a document that is wrong, and return what is said about it."""
    with pytest.raises(ConfigurationError) as caught:
        parse(folder, values)
    prefix = f"{folder / 'mission.toml'}: "
    assert all(line.startswith(prefix) for line in caught.value.problems)
    assert not any("\n" in line for line in caught.value.problems)
    return [line.removeprefix(prefix) for line in caught.value.problems]


def test_every_key_is_read(folder: Path) -> None:
    """A file that uses every section becomes the mission it describes."""
    mission = parse(folder, FULL)
    assert mission.goal == "Give every module a docstring"
    assert mission.directory == folder
    assert mission.template is None
    assert mission.settings == MissionSettings(
        limits={"commander": 1, "planner": 10, "worker": 4, "reviewer": 2},
        loop=LoopLimits(rounds=2, iterations=4),
        acceptance=(("python3", "-m", "unittest", "-q"),),
        allow=(
            ("python3", "-m", "unittest", "-q"),
            ("python3", "a b.py"),
            ("pytest", "*"),
        ),
        command_timeout=10.0,
        turn_timeout=2.5,
        deadline=60.0,
        retry_delay=0.5,
        todo_file=None,
        has_evidence=False,
    )
    assert mission.plan is not None
    first, second = mission.plan.tasks
    assert (first.id, first.files, first.acceptance) == (
        "t1",
        ("a.py",),
        (("python3", "a b.py"),),
    )
    assert (second.instructions, second.depends) == ("more", ("t1",))
    assert mission.agents == {
        "fixer": AgentCommand(("sh", f"{folder}/fix.sh"), 5.0),
        "reviewer": AgentCall(folder / "agents.py", "review"),
    }


def test_only_the_goal_is_needed_for_a_server(folder: Path) -> None:
    """A goal and the backend are a mission; everything else has the library's defaults."""
    mission = parse(folder, {"goal": "x", "backend": {"kind": "opencode", "model": "a/b"}})
    assert mission.settings == MissionSettings()
    assert mission.plan is None
    agents = mission.role_agents()
    assert {agent.model for agent in agents.values()} == {"a/b"}
    assert agents[Role.WORKER].prompt == ROLE_AGENTS[Role.WORKER].prompt


def test_configuration_of_the_server_is_passed_on(folder: Path) -> None:
    """What is meant for OpenCode is kept as it stands, if it is JSON and the server is ours."""
    config = {"provider": {"mine": {"options": {"baseURL": "http://127.0.0.1:1/v1"}}}}
    backend = {"kind": "opencode", "config": config, "project_config": True}
    mission = parse(folder, {"goal": "x", "backend": backend})
    assert mission.config == config
    assert mission.project_config
    assert problems(folder, {"goal": "x", "backend": {**backend, "url": "http://h"}}) == [
        "backend: expected 'url', or 'config' and 'project_config' for a server of our own"
    ]
    with pytest.raises(ConfigurationError, match="without dates"):
        parse_mission("goal = 'x'\nbackend = {config.a = 2024-01-01}", folder / "m.toml")


def test_a_named_agent_keeps_its_own_prompt(folder: Path) -> None:
    """A role that names an agent gets it by name only, with the role's own model."""
    agent = parse(folder, FULL).role_agents()[Role.WORKER]
    assert (agent.name, agent.model, agent.prompt, agent.permissions) == (
        "fixer",
        "some/model",
        "",
        (),
    )


def test_the_caller_may_choose_another_backend(folder: Path) -> None:
    """The backend from the command line wins, and its needs are the ones that are checked."""
    text = document({"goal": "x"})
    path = folder / "mission.toml"
    with pytest.raises(ConfigurationError, match=r"agents\.commander: expected a table"):
        parse_mission(text, path)
    assert parse_mission(text, path, backend="opencode").backend == "opencode"


def test_all_faults_are_told_at_once(folder: Path) -> None:
    """Every fault is one line with its key path and what was expected, in one error."""
    values = {
        "gaol": "x",
        "workspace": {"directory": "nowhere", "template": "."},
        "limits": {"worker": 0, "reviewer": True, "wroker": 3},
        "rules": {"deadline": "soon", "turn_timeout": -1, "todo_file": "../x"},
        "acceptance": {"commands": ["echo 'x", 3, []], "allow": "all"},
        "tasks": [
            {"id": "a", "title": "A", "depends": ["b", "zz"]},
            {"id": "b", "depends": ["a"], "files": ["/etc/passwd", 3]},
            {"id": "a", "title": " "},
            {"id": "no spaces", "title": "T"},
            "task",
        ],
        "agents": {"worker": {"call": "agents.py"}, "x": {}, "y": {"call": "gone.py:f"}, "z": 1},
        "roles": {"worker": {"model": "gpt"}, "reviewer": {"agent": "nobody"}, "planner": 1},
        "backend": {
            "kind": "opencod",
            "url": "127.0.0.1",
            "model": 1,
            "config": [],
            "project_config": "no",
        },
    }
    assert problems(folder, values) == [
        "goal: expected text that is not empty, but it is missing",
        f"workspace.directory: expected an existing folder (relative to '{folder}'), got 'nowhere'",
        "workspace: expected either 'directory' or 'template', got both",
        "limits.worker: expected an integer from 1 to 10,000, got 0",
        "limits.reviewer: expected an integer from 1 to 10,000, got true",
        "limits.wroker: this key is not known; did you mean 'worker'",
        "tasks[4]: expected a table, got 'task'",
        "tasks[1].files[1]: expected text that is not empty, got 3",
        "tasks[1].files[0]: expected a path inside the workspace, got '/etc/passwd'",
        "tasks[1].title: expected text that is not empty, but it is missing",
        "tasks[2].title: expected text that is not empty, got ' '",
        "tasks[3].id: expected 1 to 64 letters, digits, '.', '_' or '-', got 'no spaces'",
        "tasks[2].id: expected an id that no other task has, got 'a'",
        "tasks[0].depends[1]: expected the id of a task, got 'zz'",
        "tasks[0].depends: expected no circle, got a -> b -> a",
        "acceptance.commands[0]: expected a command line, but there is no closing quotation",
        "acceptance.commands[1]: expected a command line (text, or an array of words), got 3",
        "acceptance.commands[2]: expected a command line (text, or an array of words), got an array",
        "acceptance.allow: expected an array of command lines, got 'all'",
        "rules.turn_timeout: expected a number of seconds above 0 and at most a year, got -1",
        "rules.deadline: expected a number of seconds above 0, got 'soon'",
        "rules.todo_file: expected a path inside the workspace, or '' for no file, got '../x'",
        "backend.kind: expected 'embedded' or 'opencode', got 'opencod'",
        "backend.url: expected a server's address such as 'http://127.0.0.1:4096', got '127.0.0.1'",
        "backend.model: expected text that is not empty, got 1",
        "backend.config: expected a table of OpenCode configuration, got an array",
        "backend.project_config: expected true or false, got 'no'",
        "agents.worker.call: expected 'file.py:function', got 'agents.py'",
        "agents.x: expected either 'command' or 'call', got neither",
        f"agents.y.call: expected an existing file (relative to '{folder}'), got 'gone.py:f'",
        "agents.z: expected a table, got 1",
        "roles.planner: expected a table, got 1",
        "roles.worker.model: expected 'provider/model', got 'gpt'",
        "roles.reviewer.agent: expected the name of an [agents.NAME] table, got 'nobody'",
        "gaol: this key is not known; did you mean 'goal'",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("goal = ", "not TOML: Invalid value (at end of document)"),
        ("x = " + "[" * 100_000, "not TOML that can be read: nested too deeply"),
        ("x = 2024-99-99", "not TOML: Expected newline"),
        (f"x = {'9' * 5000}", "not TOML: "),
    ],
)
def test_what_is_not_toml_is_one_sentence(tmp_path: Path, text: str, expected: str) -> None:
    """Text that is not TOML at all gives one line with the place."""
    with pytest.raises(ConfigurationError) as caught:
        parse_mission(text, tmp_path / "m.toml")
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(f"{tmp_path / 'm.toml'}: {expected}")


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    """A missing file, a folder and bytes that are not UTF-8 are told in one line each."""
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b"goal = '\xe4'")
    for path, expected in [
        (tmp_path / "gone.toml", "cannot be read (No such file or directory)"),
        (tmp_path, "cannot be read (Is a directory)"),
        (Path("nul\0.toml"), "cannot be read (embedded null byte)"),
        (latin, "expected UTF-8 text, but byte 8 is not"),
    ]:
        with pytest.raises(ConfigurationError) as caught:
            read_mission_file(path)
        assert expected in str(caught.value)
        assert len(caught.value.problems) == 1


def test_agents_are_loaded_once_and_leave_nothing_behind(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files are run when the agents are wanted, once each, without a bytecode cache."""
    monkeypatch.setattr("sys.dont_write_bytecode", False)
    (folder / "agents.py").write_text(
        "from pathlib import Path\n"
        "log = Path(__file__).with_name('log')\n"
        "log.write_text(log.read_text() + 'x' if log.exists() else 'x')\n"
        "def one(turn): return 'one'\n"
        "def two(turn): return 'two'\n",
        encoding="utf-8",
    )
    calls = {"worker": {"call": "agents.py:one"}, "reviewer": {"call": "agents.py:two"}}
    command = {"more": {"command": "cat -", "timeout": 3}}
    tasks = [{"id": "t", "title": "T"}]
    mission = parse(folder, {"goal": "x", "tasks": tasks, "agents": {**calls, **command}})
    assert not (folder / "log").exists()
    agents = load_agents(mission)
    assert (folder / "log").read_text() == "x"
    assert [path.name for path in sorted(folder.iterdir())] == ["agents.py", "log"]
    assert [getattr(agents[name], "__name__", "") for name in calls] == ["one", "two"]
    assert agents["more"] == CommandAgent(("cat", "-"), timeout=3.0)


def test_agents_that_cannot_be_loaded_are_told(folder: Path) -> None:
    """A file that raises and a function that is not there are one line each."""
    (folder / "broken.py").write_text("1 / 0\n", encoding="utf-8")
    agents = {"worker": {"call": "broken.py:f"}, "reviewer": {"call": "agents.py:ANSWER"}}
    mission = parse(folder, {"goal": "x", "tasks": [{"id": "t", "title": "T"}], "agents": agents})
    with pytest.raises(ConfigurationError) as caught:
        load_agents(mission)
    path = folder / "mission.toml"
    assert list(caught.value.problems) == [
        f"{path}: agents.worker.call: broken.py raised ZeroDivisionError: division by zero",
        f"{path}: agents.reviewer.call: expected a function 'ANSWER' in agents.py, but there is none",
    ]


_scalars = st.one_of(
    st.text(max_size=8),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.sampled_from(["t1", "t2", "..", ".", "agents.py:review", "a/b", "x" * 5000, "\0", "'"]),
)
_values = st.recursive(
    _scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


def _mangle(node: Any, draw: Any) -> Any:
    """Change one place of a document: replace it, drop it, add to it, or go deeper."""
    act = draw(st.sampled_from(["into", "into", "into", "replace", "drop", "add"]))
    if act == "replace" or not isinstance(node, dict | list) or not node:
        return draw(_values)
    if isinstance(node, dict):
        key = draw(st.sampled_from(sorted(node)))
        if act == "add":
            return {**node, draw(st.text(max_size=8)): draw(_values)}
        rest = {k: v for k, v in node.items() if k != key}
        return rest if act == "drop" else {**rest, key: _mangle(node[key], draw)}
    index = draw(st.integers(0, len(node) - 1))
    if act == "add":
        return [*node, draw(_values)]
    middle = [] if act == "drop" else [_mangle(node[index], draw)]
    return [*node[:index], *middle, *node[index + 1 :]]


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_a_mangled_file_is_a_mission_or_an_error(folder: Path, data: st.DataObject) -> None:
    """Whatever is changed in a file, the outcome is a mission or one line per fault."""
    values: Any = FULL
    for _ in range(data.draw(st.integers(1, 4))):
        values = _mangle(values, data.draw)
    text = document(values) if isinstance(values, dict) else toml(values)
    cut = data.draw(st.none() | st.integers(0, len(text)))
    if cut is not None and data.draw(st.booleans()):
        text = text[:cut] + data.draw(st.text(max_size=3)) + text[cut + 1 :]
    try:
        mission = parse_mission(text, folder / "mission.toml")
    except ConfigurationError as error:
        lines = error.problems
    else:
        lines = ("fine",)
        assert mission.role_agents().keys() == set(Role)
        assert mission.plan is None or mission.plan.tasks
    assert lines
    assert not any("\n" in line for line in lines)


@pytest.mark.parametrize("name", ["mission.toml", "mission-opencode.toml"])
def test_the_example_files_are_valid(name: str) -> None:
    """The mission files of the example are read without a fault."""
    path = Path(__file__).parents[2] / "examples" / "tidy" / name
    mission = read_mission_file(path)
    assert mission.settings.permits(("python3", "-B", "-m", "unittest", "-q"))
    assert mission.template == path.parent / "sample"


def test_isolation(tmp_path: Path) -> None:
    """A mission file says where workers work, and a wrong word is refused."""
    text = 'goal = "g"\n[backend]\nkind = "opencode"\n[workspace]\n'
    chosen = 'isolation = "worktree"\nworktrees = "w"\nmerge_patience = 5\n'
    mission = parse_mission(text + chosen, tmp_path / "m.toml")
    assert mission.settings.isolation == Isolation(
        kind="worktree", folder=tmp_path / "w", patience=5.0
    )
    assert parse_mission(text, tmp_path / "m.toml").settings.isolation == Isolation()
    with pytest.raises(ConfigurationError, match="'shared' or 'worktree'"):
        parse_mission(text + 'isolation = "none"', tmp_path / "m.toml")
