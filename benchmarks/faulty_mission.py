"""A mission whose model fails in every tenth call, on the real OpenCode server.

60 tasks, 50 workers at once, 200 ms per model call. Every tenth call fails, in turn by a 429 with
and without ``Retry-After``, a 500, silence, a stream that is cut, a malformed tool call, a
permission request, or an empty answer. Every task must be accepted; at no moment may more worker
sessions be busy than the limit says, counted in the model and by the server's own list; and no
prompt may be sent into a busy session. The exit code says whether all of this held.

Run it with ``python benchmarks/faulty_mission.py [--tasks N] [--workers N] [--loop asyncio|trio]``.
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import httpx2
from attrs import define, evolve, field

from orchestra.abc import PermissionRule
from orchestra.events import PermissionReply, PermissionRequest
from orchestra.opencode import (
    ROLE_AGENTS,
    MissionReport,
    MissionSettings,
    OpenCodeBackend,
    ProviderSettings,
    Role,
    read_task,
    run_mission,
)
from orchestra.opencode.mission.report import MissionOutcome, TaskState
from orchestra.testing import (
    CutStream,
    Failure,
    Hang,
    ModelRequest,
    Reply,
    Rule,
    ScriptedModel,
    Step,
    ToolCall,
)

LATENCY = 0.2
EVERY = 10
"""Every so many-th model call fails."""
FAULTS = ("429 later", "429", "500", "hang", "cut", "malformed", "ask", "empty")
AGENTS = {
    **ROLE_AGENTS,
    Role.WORKER: evolve(
        ROLE_AGENTS[Role.WORKER],
        permissions=(
            *ROLE_AGENTS[Role.WORKER].permissions,
            PermissionRule(permission="bash", action="ask"),
        ),
    ),
}


@define
class Tally:
    """What was seen.

    Attributes:
        calls: Model calls.
        faults: How often each fault was given.
        working: Sessions whose worker's model call is under way, with how many calls each has.
        most: The most sessions of each role under way at once, in the model.
        doubled: Model calls that came for a session which had one under way.
        busy: The most busy sessions on the server's list, at once.
        looks: How often that list was read.
        asked: Permission requests that were answered.
    """

    calls: int = 0
    faults: collections.Counter[str] = field(factory=collections.Counter)
    working: collections.Counter[tuple[str, str]] = field(factory=collections.Counter)
    most: collections.Counter[str] = field(factory=collections.Counter)
    doubled: int = 0
    busy: int = 0
    looks: int = 0
    asked: int = 0

    def allow(self, _request: PermissionRequest) -> PermissionReply:
        """Answer a permission request."""
        self.asked += 1
        return PermissionReply(is_allowed=True)

    def script(
        self, answer: Callable[[ModelRequest], Step]
    ) -> Callable[[ModelRequest], Awaitable[Step]]:
        """Make an answer slow, and wrong every tenth time.

        Args:
            answer: What a model without faults says.
        """

        async def reply(request: ModelRequest) -> Step:
            self.calls += 1
            fault = ""
            if self.calls % EVERY == 0:
                fault = FAULTS[self.calls // EVERY % len(FAULTS)]
                if request.agent != "worker" and fault in {"malformed", "ask"}:
                    fault = "500"  # only workers have tools
                self.faults[fault] += 1
            key = request.agent, request.session_id
            self.working[key] += 1
            self.doubled += self.working[key] > 1
            busy = sum(count > 0 for (role, _), count in self.working.items() if role == key[0])
            self.most[key[0]] = max(self.most[key[0]], busy)
            try:
                await anyio.sleep(LATENCY)
            finally:
                self.working[key] -= 1
            return self.wrong(fault) if fault else answer(request)

        return reply

    def wrong(self, fault: str) -> Step:
        """Return a step that is wrong.

        Args:
            fault: In which way.
        """
        steps: dict[str, Step] = {
            "429 later": Failure(429, "rate limit: slow down", retry_after=0.5),
            "429": Failure(429, "rate limit: slow down"),
            "500": Failure(500, "something broke"),
            "hang": Hang("I am thinking"),
            "cut": CutStream("I wi"),
            "malformed": ToolCall("write", '{"filePath": '),
            "ask": ToolCall("bash", {"command": "true", "description": "Ask"}),
            "empty": Reply(""),
        }
        return steps[fault]


def plan(tasks: int) -> str:
    """Return a plan of tasks that do not wait for each other."""
    return json.dumps(
        {
            "tasks": [
                {"id": f"t{n}", "title": f"Write t{n}.txt", "files": [f"t{n}.txt"]}
                for n in range(tasks)
            ]
        }
    )


def rules(directory: Path, tasks: int, tally: Tally) -> tuple[Rule, ...]:
    """Return what the model answers.

    Args:
        directory: The workspace.
        tasks: How many tasks there are.
        tally: What is seen goes there.
    """

    def work(request: ModelRequest) -> Step:
        task = read_task(request.prompt)
        if "Wrote file" in str(request.messages[-1].get("content")):
            return "Written."
        path = directory / task.files[0]
        return ToolCall("write", {"filePath": str(path), "content": f"{task.id}\n"})

    return (
        Rule(agent="commander", answer=lambda _: "Files, one task each."),
        Rule(agent="planner", answer=lambda _: plan(tasks)),
        Rule(agent="worker", answer=tally.script(work)),
        Rule(agent="reviewer", answer=tally.script(lambda _: '{"verdict": "accept"}')),
    )


async def watch(backend: OpenCodeBackend, directory: Path, tally: Tally) -> None:
    """Read again and again from the server which sessions are busy."""
    server = backend._server  # noqa: SLF001 - the password is nobody else's business
    assert server is not None
    assert backend.url is not None
    client = httpx2.AsyncClient(
        base_url=backend.url, auth=("opencode", server.password), trust_env=False, timeout=60
    )
    headers = {"x-opencode-directory": str(directory)}
    async with client:
        while True:
            answer = await client.get("/session/status", headers=headers)
            tally.busy = max(tally.busy, len(answer.json()))
            tally.looks += 1
            await anyio.sleep(0.1)


def limits(workers: int) -> dict[str, int]:
    """Return how many of each role work at once."""
    return {"commander": 1, "planner": 1, "worker": workers, "reviewer": 10}


async def run(tasks: int, workers: int, directory: Path) -> tuple[MissionReport, Tally, int]:
    """Run the mission once.

    Args:
        tasks: How many tasks.
        workers: How many workers at once.
        directory: The workspace.

    Returns:
        The report, what was seen, and how many model calls there were.
    """
    tally = Tally()
    settings = MissionSettings(
        limits=limits(workers),
        providers=ProviderSettings(recovery_timeout=2.0),
    )
    async with ScriptedModel(*rules(directory, tasks, tally)) as model:
        backend = OpenCodeBackend(
            model="scripted/m1",
            agents=AGENTS.values(),
            config=model.opencode_config(header_timeout=10.0, chunk_timeout=3.0),
            permission_policy=tally.allow,
        )
        async with backend, anyio.create_task_group() as group:
            group.start_soon(watch, backend, directory, tally)
            report = await run_mission(
                f"write {tasks} files",
                backend=backend,
                directory=directory,
                agents=AGENTS,
                settings=settings,
            )
            group.cancel_scope.cancel()
        return report, tally, model.statistics().requests


def most_at_once(report: MissionReport, name: str) -> int:
    """Count from the report how many turns of a role ran at once.

    Args:
        report: The report.
        name: The role.
    """
    changes = sorted(
        (at, change)
        for span in report.timeline
        if span.name == name
        for at, change in ((span.started, 1), (span.ended, -1))
    )
    running = most = 0
    for _, change in changes:
        running += change
        most = max(most, running)
    return most


def problems(report: MissionReport, tally: Tally, workers: int, directory: Path) -> list[str]:
    """Return what was promised and did not hold.

    Args:
        report: The report.
        tally: What was seen.
        workers: The limit of workers.
        directory: The workspace.
    """
    found = []
    if report.outcome is not MissionOutcome.ACCEPTED:
        found.append(f"{report.outcome.value}: {report.reason}")
    found += [f"{t.id} is {t.state}" for t in report.tasks if t.state is not TaskState.ACCEPTED]
    found += [
        f"{task.id}.txt was not written"
        for task in report.tasks
        if not (directory / f"{task.id}.txt").is_file()
    ]
    for role, limit in limits(workers).items():
        for where, most in (
            ("by the report", most_at_once(report, role)),
            ("in the model", tally.most[role]),
        ):
            if most > limit:
                found.append(f"{most} {role}s at once {where}, with a limit of {limit}")
    if tally.busy > sum(limits(workers).values()):
        found.append(f"{tally.busy} sessions were busy on the server")
    if tally.doubled:
        found.append(f"{tally.doubled} calls came for a session that had one under way")
    return found


def main() -> int:
    """Run it, print the figures, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=60)
    parser.add_argument("--workers", type=int, default=50)
    parser.add_argument("--loop", choices=("asyncio", "trio"), default="asyncio")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name).resolve()
        started, cpu = time.monotonic(), time.process_time()
        report, tally, calls = anyio.run(
            run, options.tasks, options.workers, directory, backend=options.loop
        )
        took, cpu = time.monotonic() - started, time.process_time() - cpu
        found = problems(report, tally, options.workers, directory)
    accepted = sum(task.state is TaskState.ACCEPTED for task in report.tasks)
    print(
        f"{options.loop}: {accepted} of {options.tasks} accepted in {took:.1f} s, "
        f"{options.workers} workers; {calls} model calls, {sum(tally.faults.values())} faults "
        f"({', '.join(f'{name} {count}' for name, count in sorted(tally.faults.items()))}); "
        f"{report.statistics['retries']} turns again, {tally.asked} permission requests; "
        f"at once at most {most_at_once(report, 'worker')} workers, "
        f"{most_at_once(report, 'reviewer')} reviewers; calls at once in the model: "
        f"{tally.most['worker']} workers', {tally.most['reviewer']} reviewers'; {tally.busy} "
        f"sessions busy on the server ({tally.looks} looks); {tally.doubled} prompts into a busy session; "
        f"{cpu:.1f} s CPU here, the model's included"
    )
    for problem in found:
        print(f"BROKEN: {problem}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
