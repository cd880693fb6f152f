"""A real OpenCode server that can be killed and started again over the same home."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from orchestra.opencode.client.config import server_config
from orchestra.opencode.client.locate import locate_opencode

READY = "opencode server listening on "
PASSWORD = "let me in"  # noqa: S105  (of a server that lives for a test)


@final
class KillableServer:
    """Starts on entering; is ended on leaving, and its tools with it."""

    def __init__(self, home: Path, config: Mapping[str, Any]) -> None:
        self.url = ""
        self._home = home
        self._config = json.dumps(server_config([], model="scripted/m1", extra=config))
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server, on the port that it had before, if it had one."""
        self._home.mkdir(exist_ok=True)
        env = {name: value for name, value in os.environ.items() if "OPENCODE" not in name}
        for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME",
                     "XDG_CACHE_HOME"):  # fmt: skip
            place = self._home / name.lower()
            place.mkdir(exist_ok=True)
            env[name] = str(place)
        helper = Path(env["XDG_CONFIG_HOME"]) / "opencode"
        (helper / "node_modules").mkdir(parents=True, exist_ok=True)
        lock = {"packages": {"": {"dependencies": {"@opencode-ai/plugin": "*"}}}}
        (helper / "package-lock.json").write_text(json.dumps(lock))
        env |= {
            "OPENCODE_SERVER_PASSWORD": PASSWORD,
            "OPENCODE_CLIENT": "orchestra",
            "OPENCODE_DISABLE_AUTOUPDATE": "1",
            "OPENCODE_CONFIG_CONTENT": self._config,
            "npm_config_fetch_retries": "0",
        }
        with (self._home / "stdout").open("wb") as output:
            self._process = subprocess.Popen(
                [locate_opencode(None), "serve", "--port", str(self._port), "--hostname",
                 "127.0.0.1", "--log-level", "ERROR"],
                env=env, cwd=self._home, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + 60
        while not self._is_ready():
            assert time.monotonic() < deadline, "the server does not come up"
            time.sleep(0.02)
        self._port = int(self.url.rpartition(":")[2])

    def _is_ready(self) -> bool:
        for line in (self._home / "stdout").read_text().splitlines(keepends=True):
            if line.startswith(READY) and line.endswith("\n"):
                self.url = line.removeprefix(READY).strip()
                return True
        assert self._process is not None
        assert self._process.poll() is None, "the server has ended"
        return False

    def kill(self) -> None:
        """End the server as a crash does."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)

    def __enter__(self) -> KillableServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
