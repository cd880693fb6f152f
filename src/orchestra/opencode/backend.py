"""Agent sessions on an OpenCode server, attached to or owned."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self, final

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from orchestra import background_tasks
from orchestra.abc import (
    Agent,
    BackendStatistics,
    PermissionPolicy,
    Rates,
    Session,
    SessionBackend,
    deny_all,
)
from orchestra.errors import TransportError
from orchestra.opencode.client.catalog import Catalog
from orchestra.opencode.client.config import server_config
from orchestra.opencode.client.http import HttpClient
from orchestra.opencode.client.locate import check_version, locate_opencode
from orchestra.opencode.client.prewarm import prewarm
from orchestra.opencode.client.server import ManagedServer
from orchestra.opencode.client.session import OpenCodeSession
from orchestra.opencode.client.stream import StreamTiming
from orchestra.opencode.client.turn import TurnTiming
from orchestra.opencode.client.workspace import Workspace
from orchestra.opencode.project_plugins import check_no_plugins
from orchestra.opencode.toasts import Toast

__all__ = ("OpenCodeBackend",)

_LOG = logging.getLogger(__name__)

_LEAVE_LIMIT = 10.0
"""Seconds that the running turns get to end when the backend is left."""


@final
class OpenCodeBackend(anyio.AsyncContextManagerMixin, SessionBackend):
    """Sessions on an OpenCode 1.x server: one that runs already, or one of our own.

    ::

        async with OpenCodeBackend(model="anthropic/claude-sonnet-4-5") as backend:
            async with backend.lease("build", directory=Path.cwd()) as session:
                print((await session.prompt("say hello")).text)

    Without ``url`` a server is started for as long as the backend is entered, in a home of its
    own; it and all that its tools have started are gone afterwards. With ``url`` nothing of the
    server is touched but the sessions opened here.

    An agent that the server does not know but whose ``prompt`` is given works too: its prompt is
    sent as additional system text with each message to the server's default agent, and its
    permissions are put on the session.

    Args:
        url: A running server, ``http://host:port``; None: start one.
        password: The running server's password.
        username: The running server's user name.
        model: ``provider/model`` for agents that name none.
        agents: Agents that a server of our own shall know.
        config: Further OpenCode configuration for a server of our own; wins.
        executable: The ``opencode`` program; None: ``ORCHESTRA_OPENCODE``, our own
            checkout, ``PATH``.
        permission_policy: Answers what agents ask; by default everything is refused.
        environment: Further environment variables for a server of our own; they win.
        project_config: Whether a server of our own reads the ``opencode.json`` and ``.opencode``
            of the directories it works in. They can start programs.
        start_timeout: Seconds that a server of our own may take to come up.
        stream_timing: When the event stream counts as broken, and how long it is mended.
        turn_timing: When to look at the server although no event asks for it.

    Raises:
        ConfigurationError: The URL is not one, or the rules of an agent cannot be expressed.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        password: str | None = None,
        username: str = "opencode",
        model: str | None = None,
        agents: Iterable[Agent] = (),
        config: Mapping[str, Any] | None = None,
        executable: str | os.PathLike[str] | None = None,
        permission_policy: PermissionPolicy = deny_all,
        environment: Mapping[str, str] | None = None,
        project_config: bool = False,
        start_timeout: float = 60.0,
        stream_timing: StreamTiming | None = None,
        turn_timing: TurnTiming | None = None,
    ) -> None:
        self._http = None if url is None else HttpClient(url, username=username, password=password)
        self._model = model
        self._agents = {} if url is not None else {agent.name: agent for agent in agents}
        self._config = server_config(self._agents.values(), model=model, extra=config)
        self._executable = executable
        self._policy = permission_policy
        self._environment = environment
        self._project_config = project_config
        self._start_timeout = start_timeout
        self._stream_timing = stream_timing or StreamTiming()
        self._turn_timing = turn_timing or TurnTiming()
        self._server: ManagedServer | None = None
        self._tasks: TaskGroup | None = None
        self._scopes: set[anyio.CancelScope] = set()
        self._workspaces: dict[str, Workspace] = {}
        self._catalogs: dict[str, Catalog] = {}
        self._failure: TransportError | None = None
        self._was_entered = False
        self._is_open = False
        self._opened = 0
        self._running = 0
        self._finished = 0

    @property
    def name(self) -> str:
        """``opencode``."""
        return "opencode"

    @property
    def is_open(self) -> bool:
        """Whether the backend has been entered and not been left."""
        return self._is_open

    @property
    def url(self) -> str | None:
        """Where the server is; None before a server of our own was started."""
        return None if self._http is None else self._http.url

    @property
    def model(self) -> str | None:
        """What agents use that name no model. None where the server's configuration decides."""
        return self._model

    @property
    def server_pid(self) -> int | None:
        """The process id of our own server; None when there is none."""
        return None if self._server is None else self._server.pid

    def __repr__(self) -> str:
        if self._failure is not None:
            state = "lost"
        elif self._is_open:
            state = f"{self._count_sessions()} sessions, {self._running} turns"
        else:
            state = "left" if self._was_entered else "not entered"
        return f"<OpenCodeBackend {self.url or 'own server'} {state}>"

    def statistics(self) -> BackendStatistics:
        """Count what the backend holds and has done."""
        return BackendStatistics(
            sessions_open=self._count_sessions(),
            sessions_opened=self._opened,
            turns_running=self._running,
            turns_finished=self._finished,
        )

    def _count_sessions(self) -> int:
        return sum(len(workspace.sessions) for workspace in self._workspaces.values())

    # --- entering and leaving ---

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        if self._was_entered:
            raise RuntimeError("this OpenCodeBackend has been entered already; create another")
        self._was_entered = True
        try:
            await self._connect()
            async with background_tasks() as tasks:
                self._tasks = tasks
                if self._server is not None:
                    self.spawn(self._watch_server)
                self._is_open = True
                try:
                    yield self
                finally:
                    self._is_open = False
                    with anyio.CancelScope(shield=True):
                        await self._end_sessions()
                    for scope in tuple(self._scopes):
                        scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                if self._http is not None:
                    await self._http.aclose()
                if self._server is not None:
                    await self._server.stop()

    async def _connect(self) -> None:
        if self._http is None:
            executable = locate_opencode(self._executable)
            self._server = ManagedServer(
                executable,
                config=self._config,
                environment=self._environment,
                project_config=self._project_config,
                start_timeout=self._start_timeout,
            )
            await self._server.start()
            self._http = HttpClient(self._server.url, password=self._server.password)
        health = await self._http.health()
        if warning := check_version(health.version):
            _LOG.warning("%s", warning)

    async def _watch_server(self) -> None:
        """Notice at once when our own server dies."""
        assert self._server is not None  # noqa: S101 - only spawned when there is one
        how = await self._server.wait_ended()
        self._failure = TransportError(f"{how}; enter a new backend to go on")
        _LOG.error("%s", self._failure)
        for workspace in self._workspaces.values():
            workspace.lose(self._failure)
        await self._server.reap()

    async def _end_sessions(self) -> None:
        """Abort and close every session; all at once, in bounded time."""
        sessions = [
            session
            for workspace in self._workspaces.values()
            for session in workspace.sessions.values()
        ]
        with anyio.move_on_after(_LEAVE_LIMIT):
            async with anyio.create_task_group() as tasks:
                for session in sessions:
                    tasks.start_soon(session.aclose)

    def spawn(self, function: Callable[[], Awaitable[None]]) -> None:
        """Run a function beside everything else until the backend is left.

        It is shielded, since sessions that are aborted under cancellation still need it; leaving
        the backend is what ends it.

        Args:
            function: What to run.
        """
        if self._tasks is None:
            raise anyio.ClosedResourceError
        scope = anyio.CancelScope(shield=True)
        self._scopes.add(scope)

        async def run() -> None:
            try:
                with scope:
                    await function()
            finally:
                self._scopes.discard(scope)

        self._tasks.start_soon(run)

    def turn_started(self) -> None:
        """Count a turn."""
        self._running += 1

    def turn_finished(self) -> None:
        """Count its end."""
        self._running -= 1
        self._finished += 1

    # --- opening ---

    async def open(
        self,
        agent: Agent | str,
        *,
        directory: Path,
        title: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> Session:
        """Open a session; see `SessionBackend.open`.

        Args:
            agent: Whom to talk to; a string is short for ``Agent(name)``.
            directory: An existing directory in which the agent works.
            title: A line for people.
            metadata: Kept with the session on the server.
        """
        await anyio.lowlevel.checkpoint()
        http = self._check_open()
        agent = Agent(agent) if isinstance(agent, str) else agent
        workspace = await self._enter_workspace(directory)
        template, rules = await self._catalogs[workspace.directory].prepare(
            agent, self._agents.get(agent.name), self._model
        )
        self._check_open()
        with anyio.CancelScope(shield=True):  # a session that nobody knows of must not be left
            info = await http.create_session(
                workspace.directory,
                title=title or f"orchestra: {agent.name}",
                agent=template.get("agent"),
                permission=rules,
                metadata=metadata or {},
            )
            session = OpenCodeSession(workspace, info.id, agent=agent.name, template=template)
            workspace.add(session, metadata=metadata or {}, subagent_depth=agent.subagent_depth)
            self._opened += 1
        try:
            await anyio.lowlevel.checkpoint()
            self._check_open()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await session.aclose()
            raise
        return session

    async def reopen(self, session_id: str, agent: Agent | str, *, directory: Path) -> Session:
        """Return a session that the server has kept; see `SessionBackend.reopen`.

        Args:
            session_id: The server's id of it.
            agent: Whom it was opened for; its prompts go to this agent.
            directory: Where it was opened.
        """
        await anyio.lowlevel.checkpoint()
        http = self._check_open()
        agent = Agent(agent) if isinstance(agent, str) else agent
        workspace = await self._enter_workspace(directory)
        template, _ = await self._catalogs[workspace.directory].prepare(
            agent, self._agents.get(agent.name), self._model
        )
        info = await http.session(session_id)
        self._check_open()
        session = workspace.sessions.get(session_id)
        if session is None:
            session = OpenCodeSession(
                workspace, session_id, agent=agent.name, template=template, is_new=False
            )
            workspace.add(
                session, metadata=info.metadata or {}, subagent_depth=agent.subagent_depth
            )
            self._opened += 1
        return session

    async def find_sessions(
        self, metadata: Mapping[str, str], *, directory: Path
    ) -> tuple[str, ...]:
        """Return the server's sessions with these metadata; see `SessionBackend.find_sessions`.

        Args:
            metadata: What they carry.
            directory: Where they were opened.
        """
        await anyio.lowlevel.checkpoint()
        workspace = await self._enter_workspace(directory)
        infos = await workspace.http.sessions(workspace.directory)
        return tuple(
            info.id
            for info in infos
            if info.directory == workspace.directory
            and metadata.items() <= (info.metadata or {}).items()
        )

    async def find_busy(self, session_ids: Collection[str]) -> frozenset[str]:
        """Return those sessions that the server calls busy; see `SessionBackend.find_busy`.

        A server of our own that has ended does nothing any more.

        Args:
            session_ids: The server's ids of them.
        """
        await anyio.lowlevel.checkpoint()
        if self._failure is not None:
            return frozenset()
        busy: frozenset[str] = frozenset()
        for workspace in tuple(self._workspaces.values()):
            busy |= await workspace.find_busy(session_ids)
        return busy

    async def show_toast(self, toast: Toast, *, directory: Path) -> None:
        """Show a line in every OpenCode interface that is attached there. A checkpoint.

        The server does not tell whether anybody looks.

        Args:
            toast: The line.
            directory: Whose interfaces.

        Raises:
            SessionError: The server cannot be reached, or refuses.
        """
        await anyio.lowlevel.checkpoint()
        place = await anyio.Path(directory).resolve()
        await self._check_open().show_toast(
            str(place),
            title=toast.title,
            message=toast.message,
            variant=toast.variant,
            duration=toast.duration,
        )

    async def prewarm(self, directory: Path) -> None:
        """Make the server load what the directory needs; see `SessionBackend.prewarm`.

        A server of our own is brought as far as the call of the model, by a prompt to a provider
        that nobody can reach; that takes a default model in ``model`` or ``config``. Otherwise it
        is about two thirds of the way: the configuration and the providers.

        Args:
            directory: An existing directory.
        """
        await anyio.lowlevel.checkpoint()
        workspace = await self._enter_workspace(directory)
        if not workspace.is_warm:
            catalog = self._catalogs[workspace.directory]
            await catalog.fetch()
            await prewarm(workspace, catalog.warming_model)

    async def prices(self, directory: Path) -> Mapping[str, Rates]:
        """Read the prices from the server's list of models; see `SessionBackend.prices`.

        Args:
            directory: An existing directory.
        """
        await anyio.lowlevel.checkpoint()
        workspace = await self._enter_workspace(directory)
        return await self._catalogs[workspace.directory].prices()

    def _check_open(self) -> HttpClient:
        if not self._is_open or self._http is None:
            raise anyio.ClosedResourceError
        if self._failure is not None:
            raise TransportError(*self._failure.args)
        return self._http

    async def _enter_workspace(self, path: Path) -> Workspace:
        """The workspace of a directory, with its event stream connected."""
        self._check_open()
        directory = str(path)
        if directory not in self._workspaces:  # which are known by what they are after all links
            place = await anyio.Path(path).resolve()
            if not await place.is_dir():
                raise NotADirectoryError(f"{path} is not a directory")
            directory = str(place)
            if self._server is not None and not self._project_config:
                await anyio.to_thread.run_sync(check_no_plugins, Path(directory))
        workspace = self._workspaces.get(directory)
        if workspace is None or workspace.failure is not None:
            http = self._check_open()
            workspace = Workspace(
                self,
                http,
                directory,
                policy=self._policy,
                stream_timing=self._stream_timing,
                turn_timing=self._turn_timing,
            )
            self._workspaces[directory] = workspace
            self._catalogs[directory] = Catalog(http, directory)
            self.spawn(workspace.stream.run)
        await workspace.stream.wait_connected()
        return workspace
