"""What a mission adds to what agents are told, as the agents get it."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st

from orchestra import EmbeddedBackend, Turn
from orchestra.abc import SessionBackend
from orchestra.opencode import ROLE_AGENTS, LoopLimits, MissionSettings, Role, run_mission
from orchestra.opencode.mission.messages import read_task
from orchestra.opencode.mission.prompt_limits import (
    MAX_ADDED,
    MAX_REASONS,
    MAX_SYSTEM,
    system_room,
    with_system_text,
)

if TYPE_CHECKING:
    from tests.opencode.conftest import RealServer

    from orchestra.testing import ModelRequest

GOAL = "Make the two files agree."
BRIEF = "Two files disagree."
LONG_REASON = "a.txt, line {}: it says <a> & the task asks for <b>; write what is asked for. " * 20
SETTINGS = MissionSettings(
    loop=LoopLimits(rounds=9, iterations=2, stagnation=2), retry_delay=0.0, todo_file=None
)


def plan() -> str:
    task = {
        "id": "t1",
        "title": "make them agree",
        "instructions": "Write 'same' into <both> files. " * 20,
        "files": ["a.txt", "b.txt"],
        "mode": "fractal",
    }
    return json.dumps({"tasks": [task]})


def verdict(number: int) -> str:
    reasons = [LONG_REASON.replace("{}", str(line)) for line in range(number, number + 6)]
    return json.dumps({"verdict": "reject", "reasons": reasons})


@frozen
class Said:
    """What one agent was told at once."""

    role: Role
    system: str
    message: str


class Fleet:
    """Answers for every role in such a way that each kind of message comes up."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.said: list[Said] = []
        self.reviews = 0

    def answer(self, role: Role, system: str, message: str) -> str:
        self.said.append(Said(role, system, message))
        if role is Role.REVIEWER:
            self.reviews += 1
            return verdict(self.reviews)
        if role is Role.WORKER:  # the same again and again: enough for the gates, no progress
            (self.directory / "a.txt").write_text("two")
        return {Role.COMMANDER: BRIEF, Role.PLANNER: plan(), Role.WORKER: "done"}[role]

    def check(self) -> None:
        """Check the limits, and that each kind of message was among them."""
        for one in self.said:
            if one.role is Role.WORKER:
                assert added(one.message) <= MAX_ADDED, one.message
        workers = [one.message for one in self.said if one.role is Role.WORKER]
        assert "<reasons>" not in workers[0]
        assert '{"split": [task, ...]}' in workers[0]
        assert "<reasons>" in workers[1]
        assert any("changed neither the files" in message for message in workers)
        assert any("Earlier workers did not move this task" in message for message in workers)
        commander = [one.message for one in self.said if one.role is Role.COMMANDER]
        assert len(commander) == 2
        assert GOAL in commander[1]
        report = commander[1].partition("<evidence>")[2].partition("</evidence>")[0]
        assert len(commander[1]) - len(report) <= len(GOAL) + MAX_ADDED


def texts(value: object) -> int:
    """Return how many characters of text there are in JSON."""
    if isinstance(value, dict):
        return sum(texts(one) for one in value.values())
    if isinstance(value, list):
        return sum(texts(one) for one in value)
    return len(json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")) - 2


def added(message: str) -> int:
    """Return how many characters of a worker's message are neither task nor reasons."""
    content = texts(json.loads(message.partition("<task>")[2].partition("</task>")[0]))
    assert read_task(message).instructions
    if "<reasons>" in message:
        reasons = json.loads(message.partition("<reasons>")[2].partition("</reasons>")[0])
        assert sum(map(len, reasons)) <= MAX_REASONS
        content += texts(reasons)
    return len(message) - content


async def run(backend: SessionBackend, directory: Path) -> None:
    (directory / "a.txt").write_text("one")
    with anyio.fail_after(60):
        await run_mission(GOAL, backend=backend, directory=directory, settings=SETTINGS)


async def test_on_the_embedded_backend(tmp_path: Path) -> None:
    """First and later rounds, notes, leave to split, a new plan: all within the limits."""
    fleet = Fleet(tmp_path)

    def agent(role: Role) -> Callable[[Turn], str]:
        return lambda turn: fleet.answer(role, turn.agent.prompt, turn.prompt)

    async with EmbeddedBackend({role.value: agent(role) for role in Role}) as backend:
        await run(backend, tmp_path)
    fleet.check()
    for one in fleet.said:
        assert 0 < len(one.system.encode()) <= MAX_SYSTEM


@asynccontextmanager
async def scripted(real_server: RealServer, fleet: Fleet) -> AsyncIterator[None]:
    """Let the fleet answer for the model."""

    def answer(role: Role) -> Callable[[ModelRequest], str]:
        return lambda request: fleet.answer(role, request.system, request.prompt)

    real_server.scripts.update({role.value: answer(role) for role in Role})
    try:
        yield
    finally:
        real_server.scripts.clear()


@pytest.mark.real_server
async def test_on_the_real_server(real_server: RealServer, tmp_path: Path) -> None:
    """The same in the requests that the model gets; our system text is in each one once."""
    fleet = Fleet(tmp_path)
    async with scripted(real_server, fleet), real_server.backend() as backend:
        before = len(real_server.model.requests)
        await run(backend, tmp_path)
        requests = real_server.model.requests[before:]
    fleet.check()
    rests: dict[str, set[str]] = {}
    for request in requests:
        prompt = ROLE_AGENTS[Role(request.agent)].prompt.strip()
        assert request.system.count(prompt) == 1
        notes = re.findall(r"Notes from earlier work.*?</memory>", request.system, re.DOTALL)
        assert len("".join([prompt, *notes]).encode()) <= MAX_SYSTEM
        rest = request.system.replace(prompt, "")
        for block in notes:
            rest = rest.replace(block, "")
        rests.setdefault(request.agent, set()).add(rest.strip())
    # What is left is the server's own, the same for all who have the same tools.
    assert rests["worker"] == rests["commander"]
    assert rests["planner"] == rests["reviewer"]
    assert all(len(each) == 1 for each in rests.values())


# --- the helper ---


@given(prompt=st.text(max_size=3000), addition=st.text(max_size=3000))
def test_system_text_never_grows_past_its_limit(prompt: str, addition: str) -> None:
    """What joins the instructions joins them whole or not at all, and never past the limit."""
    joined = with_system_text(prompt, addition)
    assert joined.startswith(prompt)
    if joined != prompt:
        assert joined.endswith(addition)
        assert len(joined.encode()) <= MAX_SYSTEM
    else:
        assert not addition.strip() or len(addition.encode()) > system_room(prompt)


@pytest.mark.parametrize("role", Role)
def test_every_role_leaves_room(role: Role) -> None:
    """The shipped instructions leave at least 1,000 bytes for what a mission remembers."""
    assert system_room(ROLE_AGENTS[role].prompt) >= 1_000


def test_limits_hold_whatever_the_notes() -> None:
    """The two notes together with leave to split still fit."""
    from orchestra.opencode.mission.messages import (
        CHANGED_STRATEGY,
        stagnation_note,
        worker_message,
    )
    from orchestra.opencode.mission.plan import TaskSpec

    task = TaskSpec(id="t", title="t", instructions="i", files=("a", "b"), depends=("x",))
    for note in (CHANGED_STRATEGY, stagnation_note(1_000_000)):
        message = worker_message(task, 1_000_000, ["r"] * 20, note, may_split=True)
        assert added(message) <= MAX_ADDED
