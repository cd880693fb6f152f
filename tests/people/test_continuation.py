"""Going on: who is told to, with what, and that words and ticks of a model end nothing."""

from __future__ import annotations

import json
from pathlib import Path

import anyio

from orchestra import EmbeddedBackend, Turn
from orchestra.opencode.mission.plan import LoopLimits, MissionSettings
from orchestra.opencode.mission.report import MissionOutcome
from orchestra.opencode.mission.run import run_mission


async def test_ticks_and_words_do_not_end_the_loop(tmp_path: Path) -> None:
    """The commander, and nobody else, is told to go on, although the model says it is done."""
    prompts: list[tuple[str, str, str]] = []
    busy: set[str] = set()
    answers = {
        "commander": "Everything is done. Nothing is left.",
        "worker": "Done! - [x] everything",
        "reviewer": json.dumps({"verdict": "reject", "reasons": ["nothing was done"]}),
    }

    async def agent(turn: Turn) -> str:
        role = turn.metadata["role"]
        assert turn.session_id not in busy
        busy.add(turn.session_id)
        prompts.append((role, turn.session_id, turn.prompt))
        todo = anyio.Path(tmp_path, "TODO.md")
        if await todo.exists():
            text = await todo.read_text("utf-8")
            await todo.write_text(text.replace("[ ]", "[x]").replace("[>]", "[x]"), "utf-8")
        await anyio.lowlevel.checkpoint()
        busy.remove(turn.session_id)
        if role == "planner":
            task = {"id": f"t{len(prompts)}", "title": "Do it"}
            return json.dumps({"tasks": [task]})
        return answers[role]

    backend = EmbeddedBackend(dict.fromkeys(("commander", "planner", "worker", "reviewer"), agent))
    settings = MissionSettings(loop=LoopLimits(iterations=3, rounds=1), retry_delay=0)
    with anyio.fail_after(30):
        report = await run_mission("g", backend=backend, directory=tmp_path, settings=settings)
    assert report.outcome is MissionOutcome.FAILED
    told = [(role, session) for role, session, text in prompts if "<progress>" in text]
    commander = [session for role, session, _ in prompts if role == "commander"]
    assert told
    assert {role for role, _ in told} == {"commander"}
    assert commander[0] == told[0][1]
    for role, _, text in prompts:
        if "<progress>" in text:
            assert "<mission>" in text
            assert "<evidence>" in text
        elif role in {"worker", "reviewer"}:
            assert "<mission>" not in text
