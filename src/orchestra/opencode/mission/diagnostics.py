"""Asks language servers whether a change has brought errors that were not there before.

A server is started when a file of its kind is first looked at, in the folder that the file is in,
and kept: a mission has few folders and many changes.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path, PurePosixPath
from typing import final

import anyio
from anyio import AsyncContextManagerMixin
from anyio.abc import TaskGroup

from orchestra import Diagnostic, LanguageServer, Severity, background_tasks
from orchestra.errors import ConfigurationError, ToolError
from orchestra.opencode.mission.acceptance import command_environment
from orchestra.opencode.mission.report import Finding

__all__ = ("Diagnostics", "find_program")

_MOST_KEPT = 4
"""Servers that are kept while nobody asks them; a large project's server takes a gigabyte."""


def find_program(name: str, workspace: Path, search_path: str | None = None) -> str | None:
    """Return where a program is, unless that is in the workspace: an agent could have put it there.

    Args:
        name: Its name, or an absolute path.
        workspace: Where agents write.
        search_path: The folders to look in, as in ``PATH``; None: that variable.
    """
    workspace = workspace.resolve()
    if os.sep in name and not Path(name).is_absolute():
        return None  # relative to whatever the current folder is
    named = os.environ.get("PATH", os.defpath) if search_path is None else search_path
    places = [Path(place) for place in named.split(os.pathsep)]
    outside = [
        str(place)
        for place in places
        if place.is_absolute() and not place.resolve().is_relative_to(workspace)
    ]
    found = shutil.which(name, path=os.pathsep.join(outside))
    if found is None or Path(found).resolve().is_relative_to(workspace):
        return None
    return found


class _Kept:
    """A server that runs, or is being started."""

    def __init__(self) -> None:
        self.users = 0
        self.server: LanguageServer | None = None
        self.problem = ""
        self.is_ready = anyio.Event()
        self.is_unwanted = anyio.Event()
        self.is_over = anyio.Event()


@final
class Diagnostics(AsyncContextManagerMixin):
    """The language servers of a mission.

    What cannot be asked (a server that does not start, dies, or does not answer in time) is told as
    a warning and refuses nothing: that a server is ill is not the fault of the change.

    Args:
        servers: A command line for each suffix.
        workspace: Where agents write.
        warn: Told what could not be asked.

    Raises:
        ConfigurationError: On entering: a program is not there, or only in the workspace.
    """

    def __init__(
        self,
        servers: Mapping[str, Sequence[str]],
        *,
        workspace: Path,
        warn: Callable[[str], object],
    ) -> None:
        self._servers = servers
        self._workspace = workspace
        self._warn = warn
        self._commands: dict[str, tuple[str, ...]] = {}
        self._kept: dict[tuple[tuple[str, ...], Path], _Kept] = {}
        self._running: set[_Kept] = set()
        self._tasks: TaskGroup

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncIterator[Diagnostics]:
        for suffix, (name, *arguments) in self._servers.items():
            if (program := find_program(name, self._workspace)) is None:
                raise ConfigurationError(
                    f"gates.diagnostics.{suffix!r}: there is no program {name!r} on PATH outside "
                    "the workspace; install it, or leave the entry out"
                )
            self._commands[suffix] = (program, *arguments)
        async with background_tasks() as self._tasks:
            try:
                yield self
            finally:
                for kept in self._running:
                    kept.is_unwanted.set()
                for kept in list(self._running):
                    await kept.is_over.wait()  # cancelled, they end in a less friendly way

    def covers(self, path: str) -> bool:
        """Whether some server is to be asked about such a file.

        Args:
            path: The file.
        """
        return PurePosixPath(path).suffix.lower() in self._commands

    async def new_errors(self, directory: Path, path: str, before: bytes | None) -> list[Finding]:
        """Return the errors of a file that it did not have before. A checkpoint.

        Args:
            directory: Where the file is now.
            path: The file, relative to that.
            before: What it held earlier; None: it is new.
        """
        command = self._commands[PurePosixPath(path).suffix.lower()]
        for attempt in (1, 2):
            try:
                async with self._server(command, directory) as server:
                    return await _compare(server, path, before)
            except (ToolError, anyio.ClosedResourceError) as exc:
                if attempt == 2:
                    self._warn(f"{path}: its diagnostics are not known: {exc}")
            except (ValueError, OSError) as exc:  # not a text, too large, gone
                self._warn(f"{path}: its diagnostics are not known: {exc}")
                break
        return []

    @asynccontextmanager
    async def _server(
        self, command: tuple[str, ...], directory: Path
    ) -> AsyncIterator[LanguageServer]:
        key = (command, directory)
        kept = self._kept.pop(key, None)
        if kept is None:
            kept = _Kept()
            self._tasks.start_soon(self._keep, command, directory, kept)
        self._kept[key] = kept  # at the end: it was used last
        kept.users += 1
        self._let_go()
        try:
            await kept.is_ready.wait()
            if kept.server is None:
                raise ToolError(kept.problem)
            yield kept.server
        except (ToolError, anyio.ClosedResourceError):
            kept.is_unwanted.set()
            if self._kept.get(key) is kept:
                del self._kept[key]
            raise
        finally:
            kept.users -= 1
            self._let_go()

    async def _keep(self, command: tuple[str, ...], directory: Path, kept: _Kept) -> None:
        """Run a server in a task of its own: whoever asks first may leave before the others."""
        self._running.add(kept)
        try:
            async with LanguageServer(
                command, directory, environment=command_environment(os.environ)
            ) as server:
                kept.server = server
                kept.is_ready.set()
                await kept.is_unwanted.wait()
        except (ToolError, OSError) as exc:
            kept.problem = str(exc)
        finally:
            kept.is_ready.set()
            kept.is_over.set()
            self._running.discard(kept)

    def _let_go(self) -> None:
        idle = [key for key, kept in self._kept.items() if not kept.users]
        for key in idle[: max(len(self._kept) - _MOST_KEPT, 0)]:
            self._kept.pop(key).is_unwanted.set()

    def __repr__(self) -> str:
        return f"<Diagnostics {', '.join(self._servers) or 'off'} servers={len(self._kept)}>"


async def _compare(server: LanguageServer, path: str, before: bytes | None) -> list[Finding]:
    await server.files_changed(path)
    found = [one for one in await server.diagnose(path) if one.severity is Severity.ERROR]
    if not found:
        return []
    known: Counter[tuple[str, str]] = Counter()
    if before is not None:
        earlier = await server.diagnose(path, text=before.decode("utf-8", errors="replace"))
        known.update(_what(one) for one in earlier if one.severity is Severity.ERROR)
    new = []
    for one in found:  # lines move, so that an error is known by what it says
        if known[_what(one)]:
            known[_what(one)] -= 1
        else:
            who = one.source or "the language server"
            code = f" {one.code}" if one.code else ""
            message = f"new error from {who}{code}: {one.message}"[:500]
            new.append(Finding(path=path, line=one.line, message=message))
    return new


def _what(one: Diagnostic) -> tuple[str, str]:
    return one.code, one.message
