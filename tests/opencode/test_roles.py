from __future__ import annotations

import subprocess
import sys

import pytest

from orchestra.opencode.agents import ROLE_AGENTS
from orchestra.opencode.mission.plan import Role


def _action(role: Role, permission: str, pattern: str) -> str:
    """What the rules say: the last match wins, as on the server."""
    from fnmatch import fnmatchcase

    action = "none"
    for rule in ROLE_AGENTS[role].permissions:
        if fnmatchcase(permission, rule.permission) and fnmatchcase(pattern, rule.pattern):
            action = rule.action
    return action


@pytest.mark.parametrize("role", Role)
def test_prompt_is_short_and_names_its_role(role: Role) -> None:
    """Each role has a prompt under 4 kB whose first words say who the agent is."""
    prompt = ROLE_AGENTS[role].prompt
    assert prompt.startswith(f"You are the {role.value.title()} ")
    assert len(prompt.encode()) < 4000


@pytest.mark.parametrize("role", Role)
def test_nothing_can_wait_for_a_person(role: Role) -> None:
    """No rule asks, and what the server would ask about is denied at the end."""
    assert all(rule.action != "ask" for rule in ROLE_AGENTS[role].permissions)
    for permission in ("question", "external_directory", "doom_loop", "task"):
        assert _action(role, permission, "anything") == "deny"
    assert _action(role, "read", "config/.env") == "deny"
    assert _action(role, "read", ".env.production") == "deny"
    assert _action(role, "read", ".env.example") == "allow"


@pytest.mark.parametrize(
    ("role", "edit", "shell"),
    [
        (Role.COMMANDER, "deny", "allow"),
        (Role.PLANNER, "deny", "deny"),
        (Role.WORKER, "allow", "allow"),
        (Role.REVIEWER, "deny", "deny"),
    ],
)
def test_only_workers_write(role: Role, edit: str, shell: str) -> None:
    """Only a worker may edit, and a planner or reviewer has no free shell."""
    assert _action(role, "edit", "src/parser.py") == edit
    assert _action(role, "bash", "rm -rf build") == shell
    assert _action(role, "read", "src/parser.py") == "allow"


def test_reviewer_may_run_checks() -> None:
    """A reviewer's shell permits the test runner and the diff only."""
    assert _action(Role.REVIEWER, "bash", "pytest -q tests") == "allow"
    assert _action(Role.REVIEWER, "bash", "git diff HEAD") == "allow"
    assert _action(Role.REVIEWER, "bash", "git push") == "deny"


def test_prompts_are_read_on_first_use() -> None:
    """Importing the agents opens no prompt file; asking for one opens exactly that one."""
    program = (
        "import sys\n"
        "opened = []\n"
        "sys.addaudithook(lambda name, args: opened.append(str(args[0]))"
        " if name == 'open' and str(args[0]).endswith('.txt') else None)\n"
        "from orchestra.opencode.agents import ROLE_AGENTS\n"
        "assert opened == [] and len(ROLE_AGENTS) == 4 and opened == [], opened\n"
        "from orchestra.opencode.mission.plan import Role\n"
        "ROLE_AGENTS[Role.WORKER], ROLE_AGENTS[Role.WORKER]\n"
        "assert len(opened) == 1 and opened[0].endswith('worker.txt'), opened\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
