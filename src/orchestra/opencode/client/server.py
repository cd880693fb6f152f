"""An OpenCode server process of our own: started, watched, and ended with all its children."""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, final

import anyio
from anyio.abc import Process

from orchestra.errors import ConfigurationError, TransportError
from orchestra.opencode.reaper import ProcessId, find_processes, kill

__all__ = ("ManagedServer",)

_LOG = logging.getLogger(__name__)

_READY = "opencode server listening on "
_GRACE = 2.0
"""Seconds between SIGTERM and SIGKILL."""
_SWEEPS = 20
"""How often is looked for processes left behind, 0.05 s apart."""
_LONGEST_VARIABLE = 100_000
"""Bytes that one environment variable may hold; Linux allows 128 KiB."""


@final
class ManagedServer:
    """``opencode serve`` on a free port of the loopback interface, in a home of its own.

    Its home, configuration, database and temporary files are in a private directory that is
    removed at the end. It gets a random password, by environment. It does not see the user's
    OpenCode configuration and logins; provider keys in the environment it does see.

    Args:
        executable: The ``opencode`` program.
        config: OpenCode's configuration.
        environment: Further environment variables; they win.
        project_config: Whether ``opencode.json`` and ``.opencode`` of a project count.
        start_timeout: Seconds until it must listen.
    """

    def __init__(
        self,
        executable: Path,
        *,
        config: Mapping[str, Any],
        environment: Mapping[str, str] | None = None,
        project_config: bool = False,
        start_timeout: float = 60.0,
    ) -> None:
        self.url: str = ""
        self.password: str = secrets.token_urlsafe(24)
        self._executable = executable
        self._config = json.dumps(config)
        self._environment = dict(environment or {})
        self._project_config = project_config
        self._start_timeout = start_timeout
        self._marker = f"ORCHESTRA_SERVER_ID={secrets.token_hex(16)}"
        self._process: Process | None = None
        self._home = Path()

    def __repr__(self) -> str:
        process = self._process
        if process is None:
            state = "not started"
        elif process.returncode is None:
            state = f"pid {process.pid}"
        else:
            state = f"ended with {process.returncode}"
        return f"<ManagedServer {self.url or self._executable} {state}>"

    @property
    def pid(self) -> int | None:
        """The server's process id; None before it was started."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start the server and wait until it listens.

        Raises:
            ConfigurationError: The program cannot be run.
            TransportError: The server did not come up.
        """
        self._home = Path(tempfile.mkdtemp(prefix="orchestra-opencode-"))  # mode 0700
        try:
            # Files, not pipes: nobody has to drain them, and waiting for the server's end does
            # not turn into waiting for every process that has inherited a pipe.
            with self._output.open("wb") as output, self._errors.open("wb") as errors:
                self._process = await anyio.open_process(
                    [str(self._executable), *_ARGUMENTS],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=errors,
                    cwd=self._home,
                    env=self._make_environment(),
                    start_new_session=True,
                )
            with anyio.move_on_after(self._start_timeout):
                await self._wait_ready(self._process)
            if not self.url:
                raise TransportError(
                    f"the OpenCode server did not listen after {self._start_timeout:g} s"
                    f"{self._last_words()}; give it more time or look at its configuration"
                )
        except BaseException as exc:
            with anyio.CancelScope(shield=True):
                await self.stop()
            if isinstance(exc, OSError):
                raise ConfigurationError(f"cannot run {self._executable}: {exc}") from exc
            raise

    async def wait_ended(self) -> str:
        """Wait until the process ends. A checkpoint.

        Returns:
            How it ended, in words.
        """
        if self._process is None:
            raise RuntimeError("the server has not been started")
        code = await self._process.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit status {code}"
        return f"the OpenCode server (pid {self._process.pid}) {how}{self._last_words()}"

    async def stop(self) -> None:
        """End the server and everything it has started, and remove its files.

        To be called in a shield; takes a few seconds at most. Sessions should be idle by now.
        """
        process = self._process
        if process is not None:
            find = partial(find_processes, self._marker, process.pid)
            descendants = await anyio.to_thread.run_sync(find)  # while there still is an ancestor
            await self._end(process)
            await self.reap(descendants)
        await anyio.to_thread.run_sync(partial(shutil.rmtree, self._home, ignore_errors=True))

    async def reap(self, known: Iterable[ProcessId] = ()) -> None:
        """Kill what the server has started and left behind. To be called when it has ended.

        Args:
            known: Processes that were seen to descend from it.
        """
        left = set(known)
        for _ in range(_SWEEPS):
            left = {process for process in left if kill(process)}
            left |= await anyio.to_thread.run_sync(find_processes, self._marker)
            if not left:
                return
            await anyio.sleep(0.05)
        _LOG.warning("could not end %s, which the server left behind", sorted(left))

    # --- inside ---

    @property
    def _output(self) -> Path:
        return self._home / "stdout"

    @property
    def _errors(self) -> Path:
        return self._home / "stderr"

    async def _wait_ready(self, process: Process) -> None:
        while not self.url:
            is_over = process.returncode is not None
            for line in self._output.read_text(errors="replace").splitlines(keepends=True):
                if line.startswith(_READY) and line.endswith("\n"):
                    self.url = line.removeprefix(_READY).strip()
            if is_over and not self.url:
                raise TransportError(f"{await self.wait_ended()}; it never listened")
            await anyio.sleep(0.02)

    async def _end(self, process: Process) -> None:
        """SIGTERM, then SIGKILL, to the server's process group."""
        for number, patience in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, 5.0)):
            if process.returncode is not None:
                return
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with anyio.move_on_after(patience):
                await process.wait()

    def _last_words(self) -> str:
        """The end of what the server wrote to stderr, on one line."""
        try:
            text = self._errors.read_bytes()[-2000:].decode("utf-8", "replace")
        except OSError:
            return ""
        words = " ".join(text.split())[-500:]
        return f", having said: {words}" if words else ""

    def _make_environment(self) -> dict[str, str]:
        # An agent may itself run under OpenCode: what was meant for that one must not leak in.
        env = {name: value for name, value in os.environ.items() if not name.startswith("OPENCODE")}
        for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME",
                     "XDG_CACHE_HOME", "TMPDIR"):  # fmt: skip
            place = self._home / name.lower().removesuffix("_home")
            place.mkdir()
            env[name] = str(place)
        _seed(Path(env["XDG_CONFIG_HOME"]) / "opencode")
        env |= {
            "OPENCODE_SERVER_USERNAME": "opencode",
            "OPENCODE_SERVER_PASSWORD": self.password,
            "OPENCODE_CLIENT": "orchestra",
            "OPENCODE_DISABLE_AUTOUPDATE": "1",
            # Otherwise a project's plugin makes the first request wait 70 s without a network.
            "npm_config_fetch_retries": "0",
        }
        if len(self._config) < _LONGEST_VARIABLE:
            env["OPENCODE_CONFIG_CONTENT"] = self._config
        else:
            path = self._home / "config.json"
            path.write_text(self._config)
            env["OPENCODE_CONFIG"] = str(path)
        if not self._project_config:
            env["OPENCODE_DISABLE_PROJECT_CONFIG"] = "1"
            env["OPENCODE_DISABLE_EXTERNAL_SKILLS"] = "1"  # .claude/skills, which the other lets in
        name, _, value = self._marker.partition("=")
        return env | self._environment | {name: value}


def _seed(directory: Path) -> None:
    """Make OpenCode believe that its helper package for plugins is installed there.

    Otherwise every new home makes it fetch 24 MB from the npm registry, beside the first prompt,
    and while npm is at work SIGTERM does not end the server. Plugins that are plain JavaScript do
    not need the package.
    """
    lock = {"packages": {"": {"dependencies": {"@opencode-ai/plugin": "*"}}}}
    (directory / "node_modules").mkdir(parents=True)
    (directory / "package-lock.json").write_text(json.dumps(lock))


_ARGUMENTS = ("serve", "--port", "0", "--hostname", "127.0.0.1", "--log-level", "ERROR")
