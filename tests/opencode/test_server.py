"""A server process of our own, with a shell script in the place of the real program."""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from orchestra.errors import ConfigurationError, TransportError
from orchestra.opencode import reaper
from orchestra.opencode.client import locate
from orchestra.opencode.client.locate import check_version, find_opencode, locate_opencode
from orchestra.opencode.client.server import ManagedServer

pytestmark = pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")

READY = "echo 'opencode server listening on http://127.0.0.1:4711'"

MakeProgram = Callable[..., Path]


@pytest.fixture
def program(tmp_path: Path) -> MakeProgram:
    """Makes a program out of shell lines."""

    def make(*lines: str) -> Path:
        path = tmp_path / "opencode"
        path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
        path.chmod(0o700)
        return path

    return make


@asynccontextmanager
async def running(
    program: Path, *, config: Mapping[str, Any] | None = None, **options: Any
) -> AsyncIterator[ManagedServer]:
    """A server that is started and, whatever happens, stopped."""
    server = ManagedServer(program, config=config or {}, **{"start_timeout": 20.0, **options})
    await server.start()
    try:
        yield server
    finally:
        with anyio.CancelScope(shield=True):
            await server.stop()


def is_alive(pid: int) -> bool:
    """Whether a process is there and not a zombie."""
    return reaper._read_stat(pid) is not None


def read(path: Path) -> str:
    """A file's text; nothing when there is no file."""
    return path.read_text() if path.exists() else ""


async def read_pids(path: Path, count: int) -> list[int]:
    """Wait until a file holds so many process ids."""
    with anyio.fail_after(20):
        while True:
            found = [int(word) for word in read(path).split()]
            if len(found) == count:
                return found
            await anyio.sleep(0.02)


async def test_a_server_has_a_home_of_its_own_that_is_removed(
    program: MakeProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Private directory, secrets by environment and not in argv, nothing inherited by accident."""
    monkeypatch.setenv("OPENCODE_CONFIG_DIR", "/from/outside")
    monkeypatch.setenv("PROVIDER_KEY", "stays")
    report = tmp_path / "report"
    script = program(f'env > {report}; echo "$@" > {report}.args; {READY}; exec sleep 100')
    async with running(script, config={"a": "ü"}, environment={"EXTRA": "1"}) as server:
        env = dict(line.split("=", 1) for line in read(report).splitlines())
        home = Path(env["HOME"]).parent
        assert server.url == "http://127.0.0.1:4711"
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        assert env["OPENCODE_SERVER_PASSWORD"] == server.password
        assert json.loads(env["OPENCODE_CONFIG_CONTENT"]) == {"a": "ü"}
        assert env["OPENCODE_DISABLE_PROJECT_CONFIG"] == "1"
        assert (env["PROVIDER_KEY"], env["EXTRA"]) == ("stays", "1")
        assert "OPENCODE_CONFIG_DIR" not in env
        for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "TMPDIR"):
            assert Path(env[name]).parent == home
        arguments = read(tmp_path / "report.args")
        assert server.password not in arguments + repr(server)
        assert "--port 0" in arguments
        assert server.pid is not None
        assert is_alive(server.pid)
    assert not is_alive(server.pid)
    assert not home.exists()


async def test_a_large_configuration_goes_by_file(program: MakeProgram, tmp_path: Path) -> None:
    """An environment variable has a limit; prompts of any length work."""
    report = tmp_path / "report"
    script = program(f"cat $OPENCODE_CONFIG > {report}; {READY}; exec sleep 100")
    async with running(script, config={"prompt": "x" * 200_000}, project_config=True):
        pass
    assert len(json.loads(read(report))["prompt"]) == 200_000


async def test_a_server_that_ends_at_once_is_told_with_its_last_words(
    program: MakeProgram,
) -> None:
    """Exit status and the end of stderr stand in the error."""
    with pytest.raises(TransportError, match=r"exit status 3, having said: it is broken"):
        async with running(program("echo it is broken >&2; exit 3")):
            raise AssertionError("started")


async def test_a_server_that_never_listens_is_ended(program: MakeProgram, tmp_path: Path) -> None:
    """After the deadline the process is gone and the error says so."""
    script = program(f"echo $$ > {tmp_path}/pid; echo hello; exec sleep 100")
    for seconds in (0.5, 5.0, 20.0):  # where a shell takes longer to start, it is given more
        with pytest.raises(TransportError, match="did not listen"):
            async with running(script, start_timeout=seconds):
                raise AssertionError("started")
        if (tmp_path / "pid").exists():
            break
    (pid,) = await read_pids(tmp_path / "pid", 1)
    assert not is_alive(pid)


async def test_a_start_that_is_cancelled_leaves_nothing(
    program: MakeProgram, tmp_path: Path
) -> None:
    """Cancelled while waiting for the server, the process is ended all the same."""
    script = program(f"echo $$ > {tmp_path}/pid; exec sleep 100")

    async def cancel_when_started(scope: anyio.CancelScope) -> None:
        await read_pids(tmp_path / "pid", 1)
        scope.cancel()

    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as scope:
            tasks.start_soon(cancel_when_started, scope)
            async with running(script):
                raise AssertionError("started")
    (pid,) = await read_pids(tmp_path / "pid", 1)
    assert not is_alive(pid)


async def test_a_program_that_cannot_run_is_a_configuration_error(tmp_path: Path) -> None:
    """What is not a program is told in one sentence, not as an OSError."""
    path = tmp_path / "opencode"
    path.write_bytes(b"\x00 not a program")
    path.chmod(0o700)
    with pytest.raises(ConfigurationError, match="cannot run"):
        async with running(path):
            raise AssertionError("started")


async def test_children_in_sessions_of_their_own_are_ended_too(
    program: MakeProgram, tmp_path: Path
) -> None:
    """By the marker when reparented, by ancestry when the environment was scrubbed."""
    pids = tmp_path / "pids"
    script = program(
        f"setsid sh -c 'echo $$ >> {pids}; exec sleep 100' &",
        f"(setsid sh -c 'echo $$ >> {pids}; exec sleep 100' &) &",
        f"env -i /usr/bin/setsid /bin/sh -c 'echo $$ >> {pids}; exec sleep 100' &",
        f"{READY}; wait",
    )
    async with running(script):
        children = await read_pids(pids, 3)
        assert all(is_alive(pid) for pid in children)
    assert not any(is_alive(pid) for pid in children)


async def test_children_of_a_killed_server_are_ended(program: MakeProgram, tmp_path: Path) -> None:
    """After kill -9 of the server there is no ancestor left, but the marker is."""
    pids = tmp_path / "pids"
    script = program(f"setsid sh -c 'echo $$ >> {pids}; exec sleep 100' & {READY}; wait")
    async with running(script) as server:
        (child,) = await read_pids(pids, 1)
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        with anyio.fail_after(30):
            assert "killed by signal 9" in await server.wait_ended()
        assert is_alive(child)
        await server.reap()
        assert not is_alive(child)


async def test_a_server_that_ignores_sigterm_is_killed(program: MakeProgram) -> None:
    """Patience is bounded."""
    with anyio.fail_after(20):
        async with running(program(f"trap '' TERM; {READY}; while :; do sleep 1; done")) as server:
            pass
    assert server.pid is not None
    assert not is_alive(server.pid)


async def test_the_processes_of_others_are_left_alone(program: MakeProgram) -> None:
    """Neither a process of the same name nor another server's children are touched."""
    other = await anyio.open_process(
        ["sleep", "100"], env={**os.environ, "ORCHESTRA_SERVER_ID": "another"}
    )
    try:
        async with running(program(f"{READY}; exec sleep 100")):
            pass
        assert is_alive(other.pid)
    finally:
        other.kill()
        await other.aclose()


def test_a_number_that_was_given_to_another_process_is_not_killed() -> None:
    """A process is its number and its start; our own number with another start is not us."""
    found = reaper._read_stat(os.getpid())
    assert found is not None
    me, _ = found
    assert not reaper.kill(reaper.ProcessId(me.pid, me.start + 1), signal.SIGTERM)


# --- finding the program ---


def test_the_program_is_looked_for_in_four_places(
    program: MakeProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The argument, the variable, the checkout's own, the path, in this order."""
    path = program("exit 0")
    checkout = tmp_path / "checkout"
    local = checkout / ".opencode-cli" / "node_modules" / ".bin" / "opencode"
    local.parent.mkdir(parents=True)
    local.symlink_to(path)
    monkeypatch.setattr(locate, "CHECKOUT", checkout)
    on_path = {"PATH": str(tmp_path)}
    named = {**on_path, "ORCHESTRA_OPENCODE": str(local)}
    assert locate_opencode(path, environment=named) == path
    assert locate_opencode(environment=named) == local
    assert locate_opencode(environment=on_path) == local
    monkeypatch.setattr(locate, "CHECKOUT", tmp_path / "elsewhere")
    assert locate_opencode(environment=on_path) == path


def test_a_missing_program_is_told_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence that says how to install it, also for a name that is wrong."""
    monkeypatch.setattr(locate, "CHECKOUT", tmp_path)
    nowhere = {"PATH": "/nonexistent"}
    with pytest.raises(ConfigurationError, match=r"not installed.*npm install") as missing:
        locate_opencode(environment=nowhere)
    assert "\n" not in str(missing.value)
    with pytest.raises(ConfigurationError, match="no-such-program"):
        locate_opencode("no-such-program", environment=nowhere)


async def test_a_program_is_asked_for_its_version(program: MakeProgram) -> None:
    """A version other than the tested one is found, with a warning."""
    found = await find_opencode(program("echo 1.18.33"))
    assert (found.version, found.warning) == ("1.18.33", "")
    assert "2.0.0" in (await find_opencode(program("echo 2.0.0"))).warning
    with pytest.raises(ConfigurationError, match="version"):
        await find_opencode(program("exit 1"))
    assert check_version("1.18.33") == ""


@pytest.mark.parametrize("name", ["httptools", "msgspec"])
async def test_without_its_extra_the_backend_says_what_to_install(name: str) -> None:
    """The import fails with the command that mends it."""
    code = f"import sys; sys.modules['{name}'] = None; import orchestra.opencode.backend"
    result = await anyio.run_process([sys.executable, "-c", code], check=False)
    assert b"pip install 'orchestra[opencode]'" in result.stderr
