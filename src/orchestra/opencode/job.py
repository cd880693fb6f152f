"""From the words of a command line to a mission that runs: checks first, then signals and all."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import NoReturn, final

import anyio
import anyio.to_thread
import attrs
from anyio.abc import TaskStatus
from attrs import frozen

from orchestra import (
    Agent,
    EmbeddedBackend,
    MVCCStore,
    SessionBackend,
    SQLiteStore,
    background_tasks,
)
from orchestra.errors import ConfigurationError, StoreError
from orchestra.opencode.mission.file import (
    BackendKind,
    MissionFile,
    parse_model,
    parse_url,
    read_mission_file,
)
from orchestra.opencode.mission.loading import load_agents
from orchestra.opencode.mission.plan import MissionSettings, Plan, Role
from orchestra.opencode.mission.report import MissionReport
from orchestra.opencode.mission.report_files import make_folder
from orchestra.opencode.mission.runner import Mission
from orchestra.opencode.progress import Progress
from orchestra.opencode.records import RECORDS

__all__ = ("Job", "JobOptions", "prepare", "run_job")


@frozen(kw_only=True)
class JobOptions:
    """What the command line asks for.

    Attributes:
        mission: A goal, or the name of a mission file.
        backend: Where the agents run; None: what the mission file says.
        url: The server to attach to.
        model: The model of every role.
        directory: The workspace.
        max_workers: Workers at once.
        password: The server's password.
    """

    mission: str
    backend: BackendKind | None = None
    url: str | None = None
    model: str | None = None
    directory: Path | None = None
    max_workers: int | None = None
    password: str | None = attrs.field(default=None, repr=False)


@frozen(kw_only=True)
class Job:
    """A mission that was checked and can be started.

    Attributes:
        goal: What is asked for.
        backend: Where the agents run, not entered yet.
        directory: The workspace.
        plan: The ready plan, if there is one.
        agents: Whom to talk to, for each role.
        settings: The rules of the run.
    """

    goal: str
    backend: SessionBackend
    directory: Path
    plan: Plan | None
    agents: Mapping[Role, Agent]
    settings: MissionSettings


def prepare(options: JobOptions) -> Job:
    """Check everything that can be checked before anything starts, and make the workspace.

    Args:
        options: What the command line asks for.

    Raises:
        ConfigurationError: Something is wrong; one line per fault.
    """
    mission = _read(options)
    backend = _make_backend(mission, options)
    settings = mission.settings
    if options.max_workers is not None:
        limits = {**settings.limits, Role.WORKER.value: options.max_workers}
        settings = attrs.evolve(settings, limits=limits)
    return Job(
        goal=mission.goal,
        backend=backend,
        directory=_make_workspace(mission, options.directory),
        plan=mission.plan,
        agents=mission.role_agents(),
        settings=settings,
    )


def _read(options: JobOptions) -> MissionFile:
    """Return the mission file, or one made up around a goal, with the command line's changes."""
    url = parse_url(options.url) if options.url else None
    model = parse_model(options.model) if options.model else None
    path = Path(options.mission)
    if options.mission.endswith(".toml") or os.path.isfile(path):  # noqa: PTH113  (never raises)
        mission = read_mission_file(path, backend=options.backend)
    elif not options.mission.strip():
        raise ConfigurationError("the goal is empty; say in a sentence what is wanted")
    elif options.backend != "opencode":
        raise ConfigurationError(
            "a goal alone has nobody to work on it: give a mission file with an [agents] table, "
            "or use --backend opencode"
        )
    else:
        mission = MissionFile(path=Path("command-line"), goal=options.mission, backend="opencode")
    if mission.backend != "opencode" and (url or model):
        raise ConfigurationError(
            "--url and --model belong to a server: add --backend opencode, or leave them out"
        )
    return attrs.evolve(mission, url=url or mission.url, model=model or mission.model)


def _make_backend(mission: MissionFile, options: JobOptions) -> SessionBackend:
    if mission.backend == "embedded":
        return EmbeddedBackend(load_agents(mission))
    try:
        from orchestra.opencode.backend import OpenCodeBackend  # noqa: PLC0415  (an extra)
    except ImportError as error:
        raise ConfigurationError(str(error)) from error
    return OpenCodeBackend(
        mission.url,
        password=options.password,
        model=mission.model,
        agents=[agent for agent in mission.role_agents().values() if agent.prompt],
        config=mission.config,
        project_config=mission.project_config,
    )


def _make_workspace(mission: MissionFile, wanted: Path | None) -> Path:
    if mission.template is not None:
        return _copy_template(mission.template, wanted)
    directory = wanted or mission.directory or Path()
    if not os.path.isdir(directory):  # noqa: PTH112  (never raises)
        raise ConfigurationError(
            f"the workspace {str(directory)!r} is not a folder; make it, or name another with --dir"
        )
    return directory.resolve()


def _copy_template(template: Path, wanted: Path | None) -> Path:
    """Copy the sample into a new folder, which is then the workspace; it stays for looking at."""
    if wanted is None:
        target = Path(tempfile.mkdtemp(prefix="orchestra-")) / template.resolve().name
    else:
        target = wanted
        if os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir())):
            raise ConfigurationError(
                f"--dir {str(target)!r} is not empty, and the mission's template is copied there; "
                "name a new folder"
            )
    shutil.copytree(
        template,
        target,
        symlinks=True,
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("__pycache__", ".orchestra"),
    )
    return target.resolve()


@final
class _Interruption:
    """What happens when somebody presses Ctrl-C: first stop in good order, then at once."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._reason = ""
        self.scope = anyio.CancelScope()
        """Around everything; cancelled when there is no mission yet that could be stopped."""
        self.mission: Mission | None = None

    async def watch(self, *, task_status: TaskStatus[None]) -> None:
        """Wait for signals until cancelled."""
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for number in signals:
                self._handle(number)

    def _handle(self, number: signal.Signals) -> None:
        if self._reason:
            self._tell("orchestra: exiting at once")
            _exit_at_once()
        self._reason = f"interrupted by {number.name}"
        self._tell("orchestra: stopping every session; once more to exit at once")
        if self.mission is None:
            self.scope.cancel()
        else:
            self.mission.stop(self._reason)


def _exit_at_once() -> NoReturn:
    """Leave without waiting for anything, but leave no process of ours behind."""
    with suppress(ImportError):
        from orchestra.opencode.client.reaper import find_processes, kill  # noqa: PLC0415

        # No environment has an entry that starts like this: ancestry alone counts.
        for process in find_processes("=", ancestor=os.getpid()):
            kill(process)
    os._exit(130)


async def run_job(job: Job, progress: Progress, tell: Callable[[str], None]) -> MissionReport:
    """Run the mission, show it, and let SIGINT and SIGTERM stop it in good order.

    Args:
        job: What to run.
        progress: Shows it.
        tell: Takes lines for people about signals.

    Raises:
        KeyboardInterrupt: It was interrupted before the mission had started.
        OrchestraError: The backend cannot be entered.
    """
    interruption = _Interruption(tell)
    async with background_tasks() as watching:
        await watching.start(interruption.watch)
        with interruption.scope:
            async with (
                _open_records(job.directory, tell) as store,
                Mission(
                    job.goal,
                    backend=job.backend,
                    directory=job.directory,
                    plan=job.plan,
                    agents=job.agents,
                    settings=job.settings,
                    listener=progress.handle,
                    store=store,
                ) as mission,
            ):
                interruption.mission = mission
                async with background_tasks() as showing:
                    showing.start_soon(progress.run)
                    return await mission.wait_finished()
    raise KeyboardInterrupt


@asynccontextmanager
async def _open_records(
    directory: Path, tell: Callable[[str], None]
) -> AsyncIterator[MVCCStore | None]:
    """Open the workspace's records; a mission runs without them, but is not remembered."""
    async with AsyncExitStack() as stack:
        store: MVCCStore | None = None
        try:
            folder = await anyio.to_thread.run_sync(make_folder, directory)
            store = await stack.enter_async_context(
                SQLiteStore(folder / RECORDS, durability="process")
            )
        except (OSError, StoreError) as exc:
            tell(f"orchestra: this mission will have no history: {exc}")
        yield store
