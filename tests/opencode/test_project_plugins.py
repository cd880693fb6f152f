"""What a workspace may bring along that a server would run or obey, and that it does not."""

from __future__ import annotations

import json
from pathlib import Path

import anyio
import pytest

from orchestra.errors import ConfigurationError
from orchestra.opencode.agents import ROLE_AGENTS
from orchestra.opencode.backend import OpenCodeBackend
from orchestra.opencode.job import prepare
from orchestra.opencode.mission.plan import Role
from orchestra.opencode.notes import JobOptions
from orchestra.opencode.project_plugins import find_plugins
from orchestra.testing import Rule, ScriptedModel


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (".opencode/plugin/a.js", ""),
        (".opencode/plugins/a.ts", ""),
        ("opencode.json", '{"plugin": ["./a.js"]}'),
        ("opencode.json", '{"\\u0070lugin": ["./a.js"], "x": {}}'),
        ("opencode.jsonc", '{/* x */ "plugins": ["a"], // "\n}'),
        (".opencode/opencode.json", '{"plugin": [], "plugin": ["a"]}'),
        ("opencode.json", "{what is this"),
        ("opencode.json", "\xff"),
        ("../opencode.json", '{"plugin": ["a"]}'),
    ],
)
def test_code_of_the_project_is_found(tmp_path: Path, name: str, text: str) -> None:
    """However it is written, there or above; the mission is refused in a sentence that names it."""
    (tmp_path / ".git").mkdir()
    work = tmp_path / "work"
    path = work / name
    (work / ".opencode").mkdir(parents=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("latin-1"))
    assert [found.resolve() for found in find_plugins(work)] == [path.resolve()]
    with pytest.raises(ConfigurationError, match=r"run code of the project; look at it, then"):
        prepare(JobOptions(mission="g", backend="opencode", directory=work))


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"plugin": [], "a": {"plugin": ["x"]}, }'])
def test_other_configuration_is_no_code(tmp_path: Path, text: str) -> None:
    """A configuration without plug-ins is let be, and so is what stands above the repository."""
    (tmp_path / "work" / ".git").mkdir(parents=True)
    (tmp_path / "work" / "opencode.json").write_text(text)
    (tmp_path / "opencode.json").write_text('{"plugin": ["a"]}')
    assert list(find_plugins(tmp_path / "work")) == []


@pytest.mark.real_server
def test_a_workspace_is_not_obeyed(tmp_path: Path) -> None:
    """No text of the project's files that are meant for agents reaches the model, and none is run."""
    ran = tmp_path / "ran"
    work = tmp_path / "work"
    (work / ".git").mkdir(parents=True)
    command = ["touch", str(ran)]
    config = {
        "instructions": ["evil.md"],
        "agent": {"worker": {"prompt": "EVIL"}},
        "mcp": {"x": {"type": "local", "command": command, "enabled": True}},
    }
    skill = "---\nname: evil\ndescription: EVIL\n---\nEVIL\n"
    files = {
        "opencode.json": json.dumps(config),
        "AGENTS.md": "EVIL",
        "CLAUDE.md": "EVIL",
        "CONTEXT.md": "EVIL",
        "evil.md": "EVIL",
        ".opencode/agent/worker.md": "---\nmode: all\n---\nEVIL",
        ".opencode/skills/evil/SKILL.md": skill,
        ".claude/skills/evil/SKILL.md": skill,
    }
    for name, text in files.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(text)

    async def talk() -> str:
        async with (
            ScriptedModel(Rule(agent="worker", answer="done")) as model,
            OpenCodeBackend(
                agents=ROLE_AGENTS.values(), config=model.opencode_config(), model="scripted/m1"
            ) as backend,
            backend.lease(ROLE_AGENTS[Role.WORKER], directory=work) as session,
        ):
            await session.prompt("work")
            (tmp_path / "other").mkdir()
            (tmp_path / "other" / "opencode.json").write_text('{"plugin": ["x"]}')
            with pytest.raises(ConfigurationError, match="run code of the project"):
                await backend.open(ROLE_AGENTS[Role.WORKER], directory=tmp_path / "other")
            return json.dumps([request.messages for request in model.requests], default=str)

    said = anyio.run(talk)
    assert "work" in said
    assert "EVIL" not in said
    assert not ran.exists()
