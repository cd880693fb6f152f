"""Event log, readable log, toasts and notifications: each event once, no secret, nothing that hangs."""

from __future__ import annotations

import gzip
import json
import logging
import os
from pathlib import Path
from typing import Any

import anyio
import pytest

from orchestra import Redactor
from orchestra.errors import TransportError
from orchestra.events import ToolCalled, ToolStatus
from orchestra.opencode.event_log import EventLog
from orchestra.opencode.log_files import keep_log, log_path
from orchestra.opencode.mission.events import AgentActed, MissionStarted, WarningRaised
from orchestra.opencode.mission.plan import Role
from orchestra.opencode.mission.scrubbing import Scrubber
from orchestra.opencode.notification import find_program, notification_command, notify
from orchestra.opencode.toasts import Toast, Toasts
from orchestra.testing import virtual_time_options

SECRET = "ghp_" + "a1B2" * 9
virtual = pytest.mark.parametrize(
    "anyio_backend",
    [(name, virtual_time_options(name)) for name in ("asyncio", "trio")],
    ids=["asyncio", "trio"],
)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_each_event_is_one_line_without_secrets(tmp_path: Path) -> None:
    """Lines are numbered, typed and flushed; a secret in an event is not in the file."""
    path = tmp_path / "events.jsonl"
    log = EventLog(path, mission="m1", scrubber=Scrubber(Redactor()))
    log.handle(MissionStarted(at=0.0, goal=f"use {SECRET}\nwell"))
    call = ToolCalled(
        session_id="s", call_id="c", tool="bash", input={"n": 1}, status=ToolStatus.COMPLETED
    )
    log.handle(AgentActed(at=1.5, role=Role.WORKER, task_id="t", event=call))
    found = lines(path)
    log.close()
    assert [line["n"] for line in found] == [1, 2]
    assert {(line["schema"], line["mission"]) for line in found} == {(1, "m1")}
    assert SECRET not in path.read_text("utf-8")
    assert found[1]["kind"] == "AgentActed"
    assert (found[1]["role"], found[1]["event"]["kind"]) == ("worker", "ToolCalled")
    assert path.stat().st_mode & 0o077 == 0


def test_a_full_disk_costs_lines_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What was torn stays on a line of its own; the next line says how many are missing."""
    path = tmp_path / "events.jsonl"
    log = EventLog(path, mission="m1")
    log.handle(WarningRaised(at=0.0, message="one"))
    file = log._file

    class Full:
        def write(self, data: bytes) -> int:
            if file.closed or len(data) < 10:
                raise OSError(28, "No space left on device")
            return file.write(data[:10])

    monkeypatch.setattr(log, "_file", Full())
    log.handle(WarningRaised(at=1.0, message="two"))
    log.handle(WarningRaised(at=2.0, message="three"))
    monkeypatch.setattr(log, "_file", file)
    log.handle(WarningRaised(at=3.0, message="four"))
    log.close()
    whole = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    assert [(line["n"], line.get("dropped")) for line in whole] == [(1, None), (4, 2)]
    assert (log.written, log.dropped) == (2, 2)
    assert caplog.text.count("could not be written") == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
def test_a_device_that_is_full(caplog: pytest.LogCaptureFixture) -> None:
    """A real ENOSPC is counted and survived."""
    log = EventLog(Path("/dev/full"), mission="m")
    log.handle(WarningRaised(at=0.0, message="x"))
    log.close()
    assert log.dropped == 1
    assert "No space left" in caplog.text


def test_the_readable_log_rotates_and_packs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in the platform's folder, for its owner only, bounded, packed, without secrets."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr("orchestra.opencode.log_files._MAX_BYTES", 2_000)
    logger = logging.getLogger("orchestra.mission")
    with keep_log(tmp_path, redactor=Redactor()) as path:
        assert path == log_path(tmp_path)
        for number in range(200):
            logger.info("line %d with %s", number, SECRET)
    assert path is not None
    parts = sorted(path.parent.iterdir())
    assert len(parts) == 5
    assert {part.stat().st_mode & 0o077 for part in parts} == {0}
    text = path.read_text() + gzip.decompress(parts[1].read_bytes()).decode()
    assert "line 199" in text
    assert SECRET not in text
    assert logging.getLogger("orchestra").handlers == []


def test_no_log_is_no_reason_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the folder cannot be made, there is no log, and no error."""
    (tmp_path / "state").write_text("a file")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with keep_log(tmp_path) as path:
        assert path is None


def make_program(folder: Path, name: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(
        '#!/bin/sh\nfor word in "$@"; do echo "$word" >> "$(dirname "$0")/told"; done\n'
    )
    path.chmod(0o755)
    return path


def test_no_program_comes_from_the_workspace(tmp_path: Path) -> None:
    """A program in the workspace, by a relative entry or by a link into it is not run."""
    work = tmp_path / "work"
    evil = make_program(work, "notify-send")
    make_program(tmp_path / "bin", "other")
    (tmp_path / "bin" / "notify-send").symlink_to(evil)
    for path in (str(work), ".", "", f"work:{work}", str(tmp_path / "bin")):
        assert find_program("notify-send", outside=work, path=path) is None


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_words_stay_words(tmp_path: Path, platform: str) -> None:
    """Title and text are arguments; what looks like an option, a script or a control is text."""
    for name in ("notify-send", "osascript"):
        make_program(tmp_path / "bin", name)
    command = notification_command(
        '-u"; rm', '$(id) `id` " \\\n\x1b[2J', directory=tmp_path / "w", platform=platform,
        path=str(tmp_path / "bin"),
    )  # fmt: skip
    assert command is not None
    assert command[-2:] == ('-u"; rm', '$(id) `id` " \\ \ufffd[2J')
    if platform == "linux":
        assert command[-3] == "--"


async def test_a_notification_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program gets title and text; without a program nothing happens."""
    monkeypatch.setattr("sys.platform", "linux")
    make_program(tmp_path / "bin", "notify-send")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    assert await notify("over", "it's done", directory=tmp_path / "w")
    assert (tmp_path / "bin" / "told").read_text().splitlines()[-2:] == ["over", "it's done"]
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert not await notify("over", "it's done", directory=tmp_path / "w")


@virtual
async def test_toasts_are_rare_and_the_last_one_wins() -> None:
    """A thousand events in a moment are two toasts: the first, and the newest one later."""
    sent: list[Toast] = []

    async def send(toast: Toast) -> None:
        sent.append(toast)

    toasts = Toasts(send, interval=0.2)
    async with anyio.create_task_group() as group:
        group.start_soon(toasts.run)
        for number in range(1_000):
            toasts.handle(MissionStarted(at=0.0, goal=f"g{number}"))
            if number == 0:
                await anyio.wait_all_tasks_blocked()
        await anyio.sleep(0.5)
        group.cancel_scope.cancel()

    assert [toast.message for toast in sent] == ["mission: g0", "mission: g999"]


@virtual
async def test_toasts_give_up() -> None:
    """Three failures in a row end the toasts, not the mission."""
    tries: list[Toast] = []

    async def send(toast: Toast) -> None:
        tries.append(toast)
        if len(tries) == 1:
            raise TimeoutError
        raise TransportError("gone")

    toasts = Toasts(send, interval=0.01)
    async with anyio.create_task_group() as group:
        group.start_soon(toasts.run)
        for _ in range(20):
            toasts.handle(MissionStarted(at=0.0, goal="g"))
            await anyio.sleep(0.02)

    assert len(tries) == 3
