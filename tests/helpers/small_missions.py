"""Small missions of agents that are functions, with a plan that is given."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio

from orchestra import EmbeddedAgent, EmbeddedBackend, MemoryStore, Turn
from orchestra.opencode.mission.events import MissionEvent
from orchestra.opencode.mission.plan import MissionSettings, Plan, TaskSpec
from orchestra.opencode.mission.report import MissionReport
from orchestra.opencode.mission.run import run_mission

RULES = MissionSettings(retry_delay=0, todo_file=None)
ACCEPT = '{"verdict": "accept"}'
REJECT = '{"verdict": "reject", "reasons": ["no"]}'


async def accept(turn: Turn) -> str:
    return ACCEPT


async def run(
    directory: Path,
    worker: EmbeddedAgent,
    *tasks: TaskSpec,
    settings: MissionSettings = RULES,
    reviewer: EmbeddedAgent = accept,
    store: MemoryStore | None = None,
    listener: Callable[[MissionEvent], object] | None = None,
) -> MissionReport:
    with anyio.fail_after(60):
        return await run_mission(
            "the goal",
            backend=EmbeddedBackend({"worker": worker, "reviewer": reviewer}),
            directory=directory,
            plan=Plan(tasks),
            settings=settings,
            store=store,
            listener=listener,
        )


def task(name: str, *files: str, **more: Any) -> TaskSpec:
    return TaskSpec(id=name, title=name, files=files, **more)


def repository(root: Path) -> None:
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(
            ["git", "-c", "user.name=t", "-c", "user.email=t@t", *words],  # noqa: S607
            cwd=root,
            check=True,
        )
