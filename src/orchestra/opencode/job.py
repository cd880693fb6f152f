"""From the words of a command line to a mission that runs: checks first, then signals and all."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, final

import anyio
import anyio.to_thread
import attrs
from attrs import frozen

from orchestra import (
    Agent,
    EmbeddedBackend,
    MVCCStore,
    SessionBackend,
    ShutdownManager,
    SQLiteStore,
    background_tasks,
)
from orchestra.errors import ConfigurationError, StoreError, WorkspaceOwnedError
from orchestra.events import ShutdownChanged, ShutdownPhase
from orchestra.opencode.housekeeping import clean_workspace
from orchestra.opencode.mission.allowances import Allowance
from orchestra.opencode.mission.file import (
    MissionFile,
    parse_model,
    parse_url,
    read_mission_file,
)
from orchestra.opencode.mission.loading import load_agents
from orchestra.opencode.mission.plan import MissionSettings, Plan, Role
from orchestra.opencode.mission.report import MissionReport
from orchestra.opencode.mission.report_files import make_folder, make_private
from orchestra.opencode.mission.runner import Mission
from orchestra.opencode.mission.saved import SavedMission
from orchestra.opencode.mission.scrubbing import Scrubber
from orchestra.opencode.notes import JobOptions, environment, take_notes
from orchestra.opencode.outlets import OutletOptions, Outlets, open_outlets, tell_end
from orchestra.opencode.people.permissions import MissionPermissions
from orchestra.opencode.people.questions import Person
from orchestra.opencode.progress import Progress
from orchestra.opencode.project_plugins import check_no_plugins
from orchestra.opencode.reaper import find_processes, kill
from orchestra.opencode.records import RECORDS
from orchestra.opencode.staff import Staff, find_staff

__all__ = ("Job", "prepare", "run_job")


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
        permissions: What the agents may do; the backend asks it.
        outlets: Where to tell what happens.
        notes: What is kept for going on with it.
        saved: The mission to go on with.
    """

    goal: str
    backend: SessionBackend
    directory: Path
    plan: Plan | None
    agents: Mapping[Role, Agent]
    settings: MissionSettings
    permissions: MissionPermissions
    outlets: OutletOptions
    notes: Mapping[str, Any] = attrs.field(factory=dict)
    saved: SavedMission | None = None


def prepare(options: JobOptions, saved: SavedMission | None = None) -> Job:
    """Check everything that can be checked before anything starts, and make the workspace.

    Args:
        options: What the command line asks for.
        saved: The mission to go on with, in its own workspace.

    Raises:
        ConfigurationError: Something is wrong; one line per fault.
    """
    mission = _read(options)
    place = mission.template or options.directory or mission.directory or Path()
    if saved is not None:
        place = saved.directory
    staff = find_staff(mission, place, reads_project=options.project_agents)
    notes = take_notes(options)
    settings = attrs.evolve(mission.settings, specialists=staff.specialists)
    if options.must_approve:
        settings = attrs.evolve(settings, must_approve=True)
    permissions = MissionPermissions(settings.people, scrubber=Scrubber(settings.redactor))
    backend = _make_backend(mission, options, permissions, notes, staff)
    if options.max_workers is not None:
        limits = {**settings.limits, Role.WORKER.value: options.max_workers}
        settings = attrs.evolve(settings, limits=limits)
    if options.isolation is not None:
        isolation = attrs.evolve(settings.isolation, kind=options.isolation)
        settings = attrs.evolve(settings, isolation=isolation)
    limit = settings.budget.mission
    limit = Allowance(
        tokens=options.max_tokens or limit.tokens,
        dollars=options.max_cost or limit.dollars,
        seconds=options.max_time or limit.seconds,
    )
    budget = attrs.evolve(settings.budget, mission=limit)
    settings = attrs.evolve(settings, budget=budget)
    if saved is not None:
        directory = saved.directory
    else:
        directory = _make_workspace(mission, options.directory)
    if mission.backend == "opencode" and mission.url is None and not mission.project_config:
        check_no_plugins(directory)
    return Job(
        goal=mission.goal if saved is None else saved.goal,
        backend=backend,
        directory=directory,
        plan=mission.plan,
        agents=staff.agents,
        settings=settings,
        notes=notes,
        saved=saved,
        permissions=permissions,
        outlets=OutletOptions(
            event_log=options.event_log,
            notify=options.notify or mission.notify,
            has_toasts=mission.backend == "opencode" and mission.url is not None,
        ),
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


def _make_backend(
    mission: MissionFile,
    options: JobOptions,
    permissions: MissionPermissions,
    notes: Mapping[str, Any],
    staff: Staff,
) -> SessionBackend:
    if mission.backend == "embedded":
        return EmbeddedBackend(load_agents(mission), permission_policy=permissions)
    try:
        from orchestra.opencode.backend import OpenCodeBackend  # noqa: PLC0415  (an extra)
    except ImportError as error:
        raise ConfigurationError(str(error)) from error
    return OpenCodeBackend(
        mission.url,
        password=options.password,
        model=mission.model,
        agents=staff.configured,
        config=mission.config,
        project_config=mission.project_config,
        environment=environment(notes),
        permission_policy=permissions,
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


_GRACE = 60.0
"""Seconds from the first signal until a mission that does not stop is cancelled, and unwinds."""
_DRAIN_SHARE = 0.9
"""A mission that is cancelled is not looked at once more, so it gets nearly all of them."""


def _end_signals() -> tuple[signal.Signals, ...]:
    """Return what ends a mission in good order; a closed terminal does not under ``nohup``."""
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is None or signal.getsignal(hangup) is not signal.SIG_DFL:
        return (signal.SIGINT, signal.SIGTERM)
    return (signal.SIGINT, signal.SIGTERM, hangup)


@final
class _Interruption:
    """What happens when somebody presses Ctrl-C: stop in good order, wait no longer, exit."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._is_hurried = False
        self.shutdown = ShutdownManager(
            grace_period=_GRACE,
            drain_share=_DRAIN_SHARE,
            signals=_end_signals(),
            listener=self._hear,
            before_exit=self._leave,
        )
        self.starting = anyio.CancelScope()
        """Around everything; cancelled when there is no mission yet that could be stopped."""
        self.mission: Mission | None = None

    async def stop(self) -> None:
        """End the mission; called as soon as a signal came, and when all is over anyway."""
        number = self.shutdown.signal
        if self.mission is None:
            self.starting.cancel()
        elif number is not None:
            self.mission.stop(f"interrupted by {number.name}")

    def _hear(self, event: ShutdownChanged) -> None:
        if self.shutdown.signal is None:
            return
        if event.is_cut and not self._is_hurried:
            self._is_hurried = True
            self._tell("orchestra: waiting no longer; once more to exit at once")
        elif event.phase is ShutdownPhase.DRAINING:
            self._tell("orchestra: stopping every session; once more to wait no longer")

    def _leave(self, number: signal.Signals) -> None:
        """Leave no process of ours behind."""
        # No environment has an entry that starts like this: ancestry alone counts.
        for process in find_processes("=", ancestor=os.getpid()):
            kill(process)
        self._tell(f"orchestra: exiting at once because of {number.name}")


async def run_job(
    job: Job,
    progress: Progress,
    tell: Callable[[str], None],
    person: Person | None = None,
) -> MissionReport:
    """Run the mission, show it, and let SIGINT and SIGTERM stop it in good order.

    Args:
        job: What to run.
        progress: Shows it.
        tell: Takes lines for people about signals.
        person: Answers what the mission and its agents ask, beside those who look into the store.

    Raises:
        KeyboardInterrupt: It was interrupted before the mission had started, or for the second
            time before it had stopped.
        OrchestraError: The backend cannot be entered.
    """
    interruption = _Interruption(tell)
    async with interruption.shutdown as shutdown:
        shutdown.register_drain(interruption.stop, name="the mission's end")
        with interruption.starting:
            await _tidy(job.directory, tell)
            async with _open_records(job.directory, tell) as store:
                report = await _run_mission(job, store, interruption, progress, tell, person)
                if job.outlets.notify:
                    await tell_end(report)
            await _tidy(job.directory, tell)
            return report
    mission = interruption.mission
    if mission is None:
        raise KeyboardInterrupt("interrupted before the mission started")
    if mission.report is None:
        raise KeyboardInterrupt("interrupted before the mission could be closed: it has no report")
    return mission.report


async def _tidy(directory: Path, tell: Callable[[str], None]) -> None:
    """Keep our folder in the workspace small; that this fails is no reason not to run a mission."""
    try:
        cleaning = await clean_workspace(directory)
    except OSError as exc:
        tell(f"orchestra: cannot clean up: {exc}")
    else:
        for problem in (*cleaning.notes, *cleaning.problems):
            tell(f"orchestra: {problem}")


async def _run_mission(
    job: Job,
    store: MVCCStore | None,
    interruption: _Interruption,
    progress: Progress,
    tell: Callable[[str], None],
    person: Person | None,
) -> MissionReport:
    outlets = Outlets(progress)
    mission = Mission(
        job.goal,
        backend=job.backend,
        directory=job.directory,
        plan=job.plan,
        agents=job.agents,
        settings=job.settings,
        listener=outlets.handle,
        store=store,
        approve=person,
        notes=job.notes,
        saved=job.saved,
    )
    async with AsyncExitStack() as stack:
        if store is not None:
            stack.enter_context(job.permissions.asking(store, person))
        await stack.enter_async_context(
            open_outlets(
                outlets,
                job.outlets,
                mission=mission.id,
                directory=job.directory,
                backend=job.backend,
                redactor=job.settings.redactor,
                tell=tell,
            )
        )
        await stack.enter_async_context(mission)
        interruption.mission = mission
        async with background_tasks() as showing:
            showing.start_soon(progress.run)
            report = await mission.wait_finished()
            await outlets.flush()
            if mission.is_lost:  # the report is the new owner's to write
                raise WorkspaceOwnedError(report.reason)
            return report


@asynccontextmanager
async def _open_records(
    directory: Path, tell: Callable[[str], None]
) -> AsyncIterator[MVCCStore | None]:
    """Open the workspace's records; a mission runs without them, but is not remembered."""
    async with AsyncExitStack() as stack:
        store: MVCCStore | None = None
        try:
            folder = await anyio.to_thread.run_sync(make_folder, directory)
            path = await anyio.to_thread.run_sync(make_private, folder / RECORDS)
            store = await stack.enter_async_context(SQLiteStore(path, durability="process"))
        except (OSError, StoreError) as exc:
            tell(f"orchestra: this mission will have no history: {exc}")
        yield store
