"""Commands: what they get, what they leave, and that nothing of them stays behind."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import pytest
from tool_processes import is_running, until

from orchestra import CommandOutput, processes, run_command

pytestmark = pytest.mark.skipif(os.name != "posix", reason="process groups are POSIX")


def shell(script: str) -> tuple[str, ...]:
    return ("sh", "-c", script)


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def pid_in(path: Path) -> int | None:
    text = path.read_text() if path.exists() else ""
    return int(text) if text.endswith("\n") else None


async def read_pid(path: Path) -> int:
    """Wait for the file in which a child says that it runs."""
    await until(lambda: pid_in(path) is not None)
    pid = pid_in(path)
    assert pid is not None
    return pid


async def wait_gone(pid: int) -> None:
    await until(lambda: not is_running(pid))


async def run_too_long(script: str, directory: Path) -> CommandOutput:
    """Run a script that never ends; with more time if it did not come to touch ``ready``."""
    ready = directory / "ready"
    for timeout in (0.3, 3.0, 20.0):
        with anyio.fail_after(timeout + 20):
            output = await run_command(shell(script), directory=directory, timeout=timeout)
        assert output.is_timed_out
        if ready.exists():
            return output
    raise AssertionError("it never came so far")


@asynccontextmanager
async def outcast(directory: Path) -> AsyncIterator[Path]:
    """Yield the file in which a child in a group of its own leaves its pid; end it at last."""
    path = directory / "outcast.pid"
    try:
        yield path
    finally:
        if (pid := pid_in(path)) is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def leave_group(path: Path, code: str) -> tuple[str, ...]:
    """Return a command that ends with 3 as soon as its child has left the group."""
    child = (
        f"import os, time; print(os.getpid(), file=open({str(path)!r}, 'w'), flush=True); {code}"
    )
    return python(
        "import os, subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-uc', {child!r}], start_new_session=True)\n"
        f"while not os.path.exists({str(path)!r}) or not os.path.getsize({str(path)!r}):\n"
        "    time.sleep(0.005)\n"
        "sys.exit(3)\n"
    )


async def test_output_and_exit_code_come_back(tmp_path: Path) -> None:
    """Both outputs and the exit code are the command's own."""
    output = await run_command(shell("echo out; echo err >&2; exit 7"), directory=tmp_path)
    assert (output.exit_code, output.stdout, output.stderr) == (7, "out\n", "err\n")
    assert not output.is_truncated
    assert not output.is_timed_out
    assert output.elapsed > 0


async def test_a_signal_is_a_negative_exit_code(tmp_path: Path) -> None:
    """A command that a signal ended says which."""
    output = await run_command(shell("kill -KILL $$"), directory=tmp_path)
    assert output.exit_code == -signal.SIGKILL


async def test_merged_output_keeps_the_order(tmp_path: Path) -> None:
    """With ``merge_output`` both outputs are one text, in the order of writing."""
    script = "echo 1; echo 2 >&2; echo 3; echo 4 >&2"
    output = await run_command(shell(script), directory=tmp_path, merge_output=True)
    assert (output.stdout, output.stderr) == ("1\n2\n3\n4\n", "")


async def test_there_is_no_shell_and_the_directory_counts(tmp_path: Path) -> None:
    """Arguments reach the program as they are, and it runs where it was told to."""
    output = await run_command(
        (*python("import os, sys; print(os.getcwd(), *sys.argv[1:])"), "$HOME", "; exit 9", "*"),
        directory=tmp_path,
    )
    assert output.stdout == f"{tmp_path} $HOME ; exit 9 *\n"
    assert output.exit_code == 0


async def test_the_environment_is_what_was_given(tmp_path: Path) -> None:
    """A given environment is the whole one."""
    output = await run_command(("/usr/bin/env",), directory=tmp_path, environment={"ONLY": "this"})
    assert output.stdout == "ONLY=this\n"


@pytest.mark.parametrize("text", ["", "hello", "ä" * 300_000])
async def test_the_input_ends(text: str, tmp_path: Path) -> None:
    """A command that reads all of its input gets it, and then its end."""
    code = "import sys; print(len(sys.stdin.buffer.read()))"
    output = await run_command(python(code), directory=tmp_path, stdin=text)
    assert int(output.stdout) == len(text.encode())


async def test_an_input_that_nobody_reads(tmp_path: Path) -> None:
    """An input larger than a pipe that the command ignores, or closes, harms nothing."""
    for script in ("exit 0", "exec 0<&-; exit 0"):
        output = await run_command(shell(script), directory=tmp_path, stdin="x" * 1_000_000)
        assert output.exit_code == 0


async def test_an_input_that_is_no_utf8(tmp_path: Path) -> None:
    """A text that cannot be encoded reaches the command with replacements."""
    output = await run_command(("cat",), directory=tmp_path, stdin="a\ud800b")
    assert output.stdout == "a?b"


async def test_output_is_bounded(tmp_path: Path) -> None:
    """Of a long output the end is kept, to the byte, and it is said that the start is missing."""
    code = "import sys; sys.stdout.write('x' * 3_000_000 + 'end')"
    output = await run_command(python(code), directory=tmp_path, output_limit=1_000)
    assert output.stdout == "x" * 997 + "end"
    assert output.is_truncated


async def test_output_of_just_the_limit_is_whole(tmp_path: Path) -> None:
    """An output as long as the limit is not said to be truncated."""
    output = await run_command(("printf", "12345"), directory=tmp_path, output_limit=5)
    assert (output.stdout, output.is_truncated) == ("12345", False)


async def test_undecodable_output_is_replaced(tmp_path: Path) -> None:
    """Bytes that are no UTF-8 are replaced, in the result and in what the listener gets."""
    heard: list[str] = []

    async def listen(text: str) -> None:
        heard.append(text)

    output = await run_command(
        ("printf", r"a\377b\303"), directory=tmp_path, merge_output=True, on_text=listen
    )
    assert output.stdout == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}"
    assert "".join(heard) == output.stdout


async def test_a_listener_hears_while_the_command_runs(tmp_path: Path) -> None:
    """What a command prints is heard before it ends, and characters are not cut."""
    heard: list[str] = []
    go = tmp_path / "go"
    code = (
        "import os, sys, time\n"
        "out = sys.stdout.buffer\n"
        "out.write(b'one \\xc3'); out.flush()\n"
        f"while not os.path.exists({str(go)!r}): time.sleep(0.005)\n"
        "out.write(b'\\xa4'); out.flush()\n"
    )

    async def listen(text: str) -> None:
        heard.append(text)
        go.touch()

    with anyio.fail_after(20):
        output = await run_command(python(code), directory=tmp_path, on_text=listen)
    assert heard == ["one ", "ä"]
    assert output.stdout == "one ä"


async def test_a_slow_listener_gets_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listener slower than the grace loses nothing of what the command left in the pipe."""
    monkeypatch.setattr(processes, "_GRACE", 0.05)
    size = 0

    async def listen(text: str) -> None:
        nonlocal size
        size += len(text)
        await anyio.sleep(0.06)

    code = "import sys; sys.stdout.write('x' * 300_000)"
    output = await run_command(python(code), directory=tmp_path, on_text=listen)
    assert output.exit_code == 0
    assert size == 300_000


async def test_what_a_listener_raises_comes_out_as_it_is(tmp_path: Path) -> None:
    """A listener's error ends the command and is not wrapped into a group."""
    pids: list[int] = []

    async def listen(text: str) -> None:
        pids.append(int(text))
        raise LookupError("enough")

    with anyio.fail_after(20), pytest.raises(LookupError, match="enough"):
        await run_command(shell("echo $$; exec sleep 1000"), directory=tmp_path, on_text=listen)
    await wait_gone(pids[0])


async def test_time_out_ends_the_group(tmp_path: Path) -> None:
    """A time-out ends the command with its children, and keeps what was printed until then."""
    pid = tmp_path / "pid"
    script = f"echo started; sleep 1000 & echo $! > {pid}; touch ready; wait"
    output = await run_too_long(script, tmp_path)
    assert output.stdout == "started\n"
    assert output.exit_code != 0
    await wait_gone(await read_pid(pid))


async def test_who_ignores_the_request_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command that ignores SIGTERM is killed after the grace."""
    monkeypatch.setattr(processes, "_GRACE", 0.1)
    output = await run_too_long("trap '' TERM; touch ready; while :; do sleep 0.05; done", tmp_path)
    assert output.exit_code == -signal.SIGKILL


async def test_who_tidies_up_is_given_the_time(tmp_path: Path) -> None:
    """A command is asked to end before it is killed, so it can tidy up."""
    script = "trap 'echo tidy; exit 5' TERM; echo ready; touch ready; while :; do sleep 0.02; done"
    output = await run_too_long(script, tmp_path)
    assert (output.exit_code, output.stdout) == (5, "ready\ntidy\n")


async def test_children_of_a_command_that_ended_are_ended(tmp_path: Path) -> None:
    """A child in the background does not hold the call up, and does not outlive it."""
    pid = tmp_path / "pid"
    script = f"sleep 1000 & echo $! > {pid}; echo done; exit 4"
    with anyio.fail_after(20):
        output = await run_command(shell(script), directory=tmp_path)
    assert (output.exit_code, output.stdout) == (4, "done\n")
    await wait_gone(await read_pid(pid))


async def test_cancellation_ends_the_group(tmp_path: Path) -> None:
    """A cancelled call ends the command and its children before it returns."""
    leader, child = tmp_path / "leader", tmp_path / "child"
    script = f"sleep 1000 & echo $! > {child}; echo $$ > {leader}; wait"
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: run_command(shell(script), directory=tmp_path))
            leader_pid = await read_pid(leader)
            group.cancel_scope.cancel()
    assert not is_running(leader_pid)
    await wait_gone(await read_pid(child))


async def test_cancelled_before_it_starts(tmp_path: Path) -> None:
    """A call in a cancelled scope leaves no process behind."""
    pid = tmp_path / "pid"
    with anyio.CancelScope() as scope:
        scope.cancel()
        await run_command(shell(f"echo $$ > {pid}; exec sleep 1000"), directory=tmp_path)
    assert scope.cancelled_caught
    started = pid_in(pid)
    assert started is None or not is_running(started)


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("time.sleep(1000)", id="silent"),
        pytest.param(
            "\nwhile True: time.sleep(0.01); print('and on', flush=True)", id="prints-now-and-then"
        ),
        pytest.param("\nwhile True: print('y' * 10000)", id="prints-all-the-time"),
    ],
)
@pytest.mark.parametrize("text", ["", "x" * 1_000_000], ids=["no-input", "input"])
async def test_a_child_that_left_the_group_holds_nothing_up(
    code: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who left the group with the pipes in hand cannot keep the call from ending."""
    monkeypatch.setattr(processes, "_GRACE", 0.2)
    async with outcast(tmp_path) as pid:
        with anyio.fail_after(20):
            output = await run_command(leave_group(pid, code), directory=tmp_path, stdin=text)
        assert output.exit_code == 3


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        ((), ValueError),
        (("a\0b",), ValueError),
        (("echo", "\ud800"), ValueError),
        (("no-such-program-anywhere",), FileNotFoundError),
        (("/",), PermissionError),
    ],
)
async def test_what_cannot_start_is_an_error(
    argv: tuple[str, ...], error: type[Exception], tmp_path: Path
) -> None:
    """A command that cannot be started raises what its docstring says, not a group."""
    with pytest.raises(error):
        await run_command(argv, directory=tmp_path, stdin="text")


async def test_a_directory_that_is_missing_is_an_error(tmp_path: Path) -> None:
    """A working directory that does not exist is an OSError."""
    with pytest.raises(FileNotFoundError):
        await run_command(("true",), directory=tmp_path / "nowhere")


async def test_many_at_once_do_not_mix(tmp_path: Path) -> None:
    """Commands beside each other keep their own output."""
    codes: dict[int, str] = {}

    async def run(number: int) -> None:
        output = await run_command(shell(f"echo {number}"), directory=tmp_path)
        codes[number] = output.stdout

    async with anyio.create_task_group() as group:
        for number in range(10):
            group.start_soon(run, number)
    assert codes == {number: f"{number}\n" for number in range(10)}
