"""The language-server client: with a real server that is asked, and an odd one that publishes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from text_tools import write_files
from tool_processes import children, until

from orchestra import Diagnostic, LanguageServer, Severity
from orchestra.errors import (
    ToolLostError,
    ToolProtocolError,
    ToolResponseError,
    ToolStartError,
    ToolTimeoutError,
)
from orchestra.tools.language import _characters

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the tools are POSIX")

RUFF = str(Path(sys.executable).with_name("ruff"))
ODD = str(Path(__file__).with_name("odd_language_server.py"))


@asynccontextmanager
async def odd(folder: Path, mode: str, **options: Any) -> AsyncIterator[LanguageServer]:
    """Run the odd server, with a folder in which a.txt is, for a bounded time."""
    write_files(folder, {"work/a.txt": "one\ntwo 2\n"})
    argv = [sys.executable, "-IS", ODD, mode, str(folder / "log")]
    with anyio.fail_after(30):
        async with LanguageServer(argv, folder / "work", **options) as server:
            yield server


def log(folder: Path) -> list[list[Any]]:
    return [json.loads(line) for line in (folder / "log").read_text().splitlines()]


# ---- a real one ----


async def test_ruff(tmp_path: Path, others: set[int]) -> None:
    """A real server tells what is wrong, at the right characters, and again after a change."""
    write_files(tmp_path, {"a.py": "x = ('🙂é', undefined)\n", "ruff.toml": ""})
    with anyio.fail_after(30):
        async with LanguageServer([RUFF, "server"], tmp_path) as server:
            (found,) = await server.diagnose("a.py")
            place = (found.path, found.line, found.column, found.end_line, found.end_column)
            assert place == ("a.py", 1, 12, 1, 21)
            assert (found.severity, found.code, found.source) == (Severity.ERROR, "F821", "Ruff")
            write_files(tmp_path, {"a.py": "x = 1\n"})
            assert await server.diagnose("a.py") == ()
            (found,) = await server.diagnose("new.py", text="import os\n")
            assert (found.path, found.code) == ("new.py", "F401")
            assert not (tmp_path / "new.py").exists()
            statistics = server.statistics()
            assert (statistics.diagnosed, statistics.open_documents) == (3, 2)
            assert statistics.is_pulling
            assert repr(server).endswith(", pull>")
    assert repr(server) == "<LanguageServer 'ruff' not running>"
    assert sys.platform != "linux" or children() <= others


async def test_ruff_for_many(tmp_path: Path) -> None:
    """Many files at once, and one file many times at once, each get their own answer."""
    write_files(tmp_path, {f"f{number}.py": f"undefined_{number}\n" for number in range(10)})
    write_files(tmp_path, {"ruff.toml": '[lint]\nselect = ["F"]\n'})
    told: list[tuple[int, str]] = []

    async def ask(number: int) -> None:
        (found,) = await server.diagnose(f"f{number}.py")
        told.append((number, found.message))

    with anyio.fail_after(30):
        async with LanguageServer([RUFF, "server"], tmp_path, max_open=3) as server:
            async with anyio.create_task_group() as group:
                for number in (*range(10), 0, 0, 1):
                    group.start_soon(ask, number)
            assert server.statistics().open_documents <= 3 + 1
    assert len(told) == 13
    assert all(f"`undefined_{number}`" in message for number, message in told)


# ---- one that publishes ----


@pytest.mark.parametrize(
    ("mode", "messages"),
    [
        ("plain", ["10 characters"]),
        ("late", ["new"]),
        ("twice", ["syntax", "types"]),
        ("escaped", ["plain"]),
        ("pull", ["pulled"]),
        ("pull-busy", ["pulled"]),
    ],
)
async def test_ways_to_tell(tmp_path: Path, mode: str, messages: list[str]) -> None:
    """What counts is told for this file and this version, and is the last of it."""
    async with odd(tmp_path, mode, settle=0.3 if mode == "twice" else 0.0) as server:
        for _ in range(2):
            found = await server.diagnose("a.txt")
            assert [one.message for one in found] == messages
    methods = [entry[0] for entry in log(tmp_path)]
    assert methods.count("textDocument/didOpen") == methods.count("textDocument/didChange") == 1
    assert ["language", "txt"] in log(tmp_path)
    assert methods[-2:] == ["shutdown", "exit"]


async def test_a_diagnostic_is_complete(tmp_path: Path) -> None:
    """Places count from 1, and what the server leaves out has its default."""
    async with odd(tmp_path, "twice", settle=0.3) as server:
        found = await server.diagnose("a.txt", language="english")
    assert found[1] == Diagnostic(
        path="a.txt",
        line=2,
        column=5,
        end_line=2,
        end_column=6,  # past the end of the line: its end
        severity=Severity.ERROR,
        code="",
        source="",
        message="types",
    )
    assert ["language", "english"] in log(tmp_path)


async def test_the_server_may_ask(tmp_path: Path) -> None:
    """Settings are given by section, edits are refused, and an unknown request is told so."""
    async with odd(tmp_path, "asks", settings={"odd": {"level": 7}}) as server:
        assert [one.message for one in await server.diagnose("a.txt")] == ["asked"]
    asked = [entry for entry in log(tmp_path) if len(entry) == 3]
    assert asked[0] == ["workspace/configuration", [7, None], None]
    assert asked[1][1]["applied"] is False
    assert asked[2:] == [["client/registerCapability", None, None], ["nothing/known", None, -32601]]


async def test_old_documents_are_closed(tmp_path: Path) -> None:
    """No more files are held open than wanted; one that was closed is opened anew."""
    write_files(tmp_path, {"work/b.txt": "x", "work/c.txt": "x"})
    async with odd(tmp_path, "plain", settle=0.0, max_open=2) as server:
        for name in ("a", "b", "c", "a"):
            await server.diagnose(f"{name}.txt")
        assert server.statistics().open_documents == 2
        await server.files_changed("b.txt", "gone.txt")
    methods = [entry[0] for entry in log(tmp_path)]
    assert methods.count("textDocument/didOpen") == 4
    assert methods.count("textDocument/didClose") == 2
    assert "workspace/didChangeWatchedFiles" in methods


async def test_a_document_that_is_closed_while_somebody_waits_for_it(tmp_path: Path) -> None:
    """Who waited opens it anew, and does not wait for what is told of the old one."""
    async with odd(tmp_path, "plain", settle=0.0, timeout=5.0) as server:
        await server.diagnose("a.txt")
        document = server._documents["a.txt"]
        async with anyio.create_task_group() as group, document.lock:
            group.start_soon(server.diagnose, "a.txt")
            await until(lambda: document.lock.statistics().tasks_waiting == 1)
            del server._documents["a.txt"]
        assert server._documents["a.txt"] is not document


# ---- what goes wrong ----


@pytest.mark.parametrize("path", ["../log", "/etc/passwd", "link"])
async def test_no_path_leads_out(tmp_path: Path, path: str) -> None:
    """The server is told of no file outside the workspace, given text or not."""
    write_files(tmp_path, {"work/a.txt": ""})
    (tmp_path / "work/link").symlink_to(tmp_path / "log")
    async with odd(tmp_path, "plain") as server:
        with pytest.raises(ValueError, match="leads out of the root"):
            await server.diagnose(path)
        with pytest.raises(ValueError, match="leads out of the root"):
            await server.diagnose("../x.txt", text="")
    assert not [entry for entry in log(tmp_path) if entry[0] == "textDocument/didOpen"]


async def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    """A large file, a folder and bytes that are no UTF-8 are ValueErrors, and the server lives."""
    write_files(tmp_path, {"work/bytes": b"\xff", "work/large": "x" * 100, "work/d/x": ""})
    async with odd(tmp_path, "plain", settle=0.0, max_file_size=50) as server:
        for path in ("bytes", "large", "d"):
            with pytest.raises(ValueError, match=r"no text in UTF-8|no file of at most 50 bytes"):
                await server.diagnose(path)
        with pytest.raises(FileNotFoundError, match="does not exist"):
            await server.diagnose("nothing")
        assert await server.diagnose("a.txt")


async def test_a_silent_server_is_not_waited_for(tmp_path: Path) -> None:
    """Without an answer in time there is an error that says so; cancelling works as well."""
    async with odd(tmp_path, "silent", timeout=0.1) as server:
        with pytest.raises(ToolTimeoutError, match=r"did not tell the diagnostics of 'a.txt'"):
            await server.diagnose("a.txt")
    async with odd(tmp_path, "silent") as server:
        with anyio.move_on_after(0.05) as scope:
            await server.diagnose("a.txt")
        assert scope.cancelled_caught


async def test_a_server_that_dies_fails_who_waits(tmp_path: Path) -> None:
    """The error comes at once, with the server's last words, and so does every later one."""
    async with odd(tmp_path, "die") as server:
        for _ in range(2):
            with pytest.raises(ToolLostError, match=r"exit status 3.*out of memory"):
                await server.diagnose("a.txt")


async def test_a_server_that_tells_garbage_is_ended(tmp_path: Path) -> None:
    """Diagnostics that cannot be read are a protocol error, and the server is closed."""
    async with odd(tmp_path, "garbage", settle=0.0) as server:
        with pytest.raises(ToolProtocolError, match="told diagnostics that cannot be read"):
            await server.diagnose("a.txt")
        with pytest.raises(anyio.ClosedResourceError):
            await server.diagnose("a.txt")


async def test_an_error_of_the_server_comes_out(tmp_path: Path) -> None:
    """A refusal that is not about being busy is raised, with its code."""
    async with odd(tmp_path, "pull-refused") as server:
        with pytest.raises(ToolResponseError) as caught:
            await server.diagnose("a.txt")
        assert caught.value.code == -32000


async def test_a_handshake_that_fails(tmp_path: Path, others: set[int]) -> None:
    """A server that does not answer, answers nonsense, or is not there is not entered."""
    with pytest.raises(ToolTimeoutError, match=r"did not answer 'initialize' within 0.2 s"):
        async with odd(tmp_path, "mute", start_timeout=0.2):
            raise AssertionError("unreachable")
    with pytest.raises(ToolProtocolError, match="told initialize that cannot be read"):
        async with odd(tmp_path, "rude"):
            raise AssertionError("unreachable")
    with pytest.raises(ToolStartError):
        async with LanguageServer(["no-such-language-server"], tmp_path):
            raise AssertionError("unreachable")
    assert sys.platform != "linux" or children() <= others


@pytest.mark.parametrize(
    "options", [{"timeout": 0}, {"start_timeout": -1}, {"settle": -1}, {"max_open": 0}]
)
def test_configuration_is_checked(tmp_path: Path, options: dict[str, Any]) -> None:
    """A number out of range is refused at construction, and named."""
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        LanguageServer(["x"], tmp_path, **options)


@pytest.mark.parametrize(
    ("encoding", "units", "characters"),
    [("utf-32", 3, 3), ("utf-16", 3, 2), ("utf-8", 6, 2), ("utf-16", 99, 4), ("utf-8", 99, 4)],
)
def test_columns_are_characters(encoding: str, units: int, characters: int) -> None:
    """Whatever the server counts in, a column is a number of characters."""
    assert _characters("🙂éab", units, encoding) == characters
