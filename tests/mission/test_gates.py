"""What a change must show before anybody may call it done."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra import WorkStealingPool
from orchestra.opencode.mission.diagnostics import Diagnostics
from orchestra.opencode.mission.gates import Gates, describe_receipt, judge
from orchestra.opencode.mission.orders import RunGates
from orchestra.opencode.mission.plan import GateSettings, MissionSettings
from orchestra.opencode.mission.report import CommandResult, Finding, Receipt
from orchestra.opencode.mission.workplaces import Change

KEY = "AKIA" + "A1B2" * 4
RUFF = str(Path(sys.executable).with_name("ruff"))
PASSED = CommandResult(argv=("true",), exit_code=0)
FAILED = CommandResult(argv=("false",), exit_code=1)
REFUSED = CommandResult(argv=("rm",), refusal="no")


class Folder:
    """A place whose change is what is in its folder now and was not before."""

    def __init__(self, directory: Path, before: dict[str, str] | None = None) -> None:
        self.directory = directory
        self.old = before or {}
        self.working = 0
        self.looks = 0
        self.problems: tuple[str, ...] = ()

    @asynccontextmanager
    async def checking(self) -> AsyncIterator[None]:
        self.working += 1
        yield
        self.working -= 1

    async def look(self) -> Change:
        await anyio.lowlevel.checkpoint()
        self.looks += 1
        now = {path.name: path.read_bytes() for path in sorted(self.directory.iterdir())}
        changed = [
            name
            for name, data in now.items()
            if name not in self.old or self.old[name].encode() != data
        ]
        return Change(
            tree=sha256(repr(now).encode()).hexdigest(),
            directory=self.directory,
            changed=tuple(changed),
            problems=self.problems,
            diff="".join(f"+++ {name}\n" for name in changed),
        )

    async def before(self, path: str) -> bytes | None:
        await anyio.lowlevel.checkpoint()
        return self.old[path].encode() if path in self.old else None


Act = Callable[[], object]


class Commands:
    """Runs nothing: a command comes to what the test says, after doing what the test says."""

    def __init__(self, site: Folder, results: Sequence[CommandResult] = (), act: Act = int) -> None:
        self.site = site
        self.results = results
        self.act = act
        self.runs = 0

    async def __call__(self, _order: RunGates, directory: Path) -> Sequence[CommandResult]:
        await anyio.lowlevel.checkpoint()
        assert self.site.working == 1
        assert directory == self.site.directory
        self.runs += 1
        self.act()
        return self.results


def order_for(*commands: CommandResult, **fields: object) -> RunGates:
    about: dict[str, object] = {"stage": "unit", "task_id": "t", "files": ("a.py",), **fields}
    return RunGates(ticket=1, commands=tuple(each.argv for each in commands), **about)  # type: ignore[arg-type]  # the fields vary


async def check(
    site: Folder, order: RunGates, commands: Commands, settings: MissionSettings | None = None
) -> tuple[Receipt, str]:
    settings = settings or MissionSettings()
    warnings: list[str] = []
    with anyio.fail_after(30):
        async with (
            WorkStealingPool(1) as pool,
            Diagnostics(
                settings.gates.diagnostics, workspace=site.directory, warn=warnings.append
            ) as diagnostics,
        ):
            found = await Gates(settings, pool, diagnostics, commands).check(order, site)
    assert not warnings
    return found


# --- what is checked ---


async def test_a_good_change_passes(tmp_path: Path) -> None:
    """The receipt names the tree, what changed and what ran; the evidence shows it."""
    (tmp_path / "a.py").write_text("x = 1\n")
    site = Folder(tmp_path)
    receipt, evidence = await check(site, order_for(PASSED), Commands(site, [PASSED]))
    assert receipt.is_passed
    assert (receipt.stage, receipt.changed, receipt.commands) == ("unit", ("a.py",), (PASSED,))
    assert receipt.tree == (await site.look()).tree
    assert evidence.splitlines() == ["changed: a.py", "succeeded: true", "diff:", "+++ a.py"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [("x = \n", "a.py:1: it does not parse"), (f"\nx = '{KEY}'\n", "a.py:2: it looks like")],
)
async def test_cheap_checks_come_first(text: str, problem: str, tmp_path: Path) -> None:
    """Where a file does not parse or holds a key, no command is run, and the reason says where."""
    (tmp_path / "a.py").write_text(text)
    site = Folder(tmp_path)
    commands = Commands(site, [PASSED])
    receipt, evidence = await check(site, order_for(PASSED), commands)
    assert not receipt.is_passed
    assert receipt.problems[0].startswith(problem)
    assert commands.runs == 0
    assert len(receipt.findings) == 1
    assert KEY not in evidence


async def test_what_was_wrong_before_is_told_only(tmp_path: Path) -> None:
    """An old fault of a file is a finding, which the reviewer sees, and no problem."""
    (tmp_path / "a.py").write_text("x = \n# more\n")
    site = Folder(tmp_path, {"a.py": "x = \n"})
    receipt, evidence = await check(site, order_for(), Commands(site))
    assert receipt.is_passed
    assert len(receipt.findings) == 1
    assert "look at a.py:1: it does not parse" in evidence


async def test_new_errors_of_a_language_server_are_refused(tmp_path: Path) -> None:
    """What the server told before is not; what it tells now keeps the commands from running."""
    settings = MissionSettings(gates=GateSettings(diagnostics={".py": (RUFF, "server")}))
    (tmp_path / "a.py").write_text("old()\n")
    (tmp_path / "b.txt").write_text("new()\n")
    site = Folder(tmp_path, {"a.py": "x = old()\n"})
    receipt, _ = await check(site, order_for(), Commands(site), settings)
    assert receipt.is_passed
    (tmp_path / "a.py").write_text("old()\nnew()\n")
    commands = Commands(site, [PASSED])
    receipt, _ = await check(site, order_for(PASSED), commands, settings)
    assert [problem.partition(":")[0] for problem in receipt.problems] == ["a.py"]
    assert "new error from Ruff F821" in receipt.problems[0]
    assert commands.runs == 0


async def test_what_the_place_objects_to_is_a_problem(tmp_path: Path) -> None:
    """A lost lease, say: nothing is run for it."""
    (tmp_path / "a.py").write_text("")
    site = Folder(tmp_path)
    site.problems = ("the lease has moved on",)
    commands = Commands(site, [PASSED])
    receipt, _ = await check(site, order_for(PASSED), commands)
    assert receipt.problems == site.problems
    assert commands.runs == 0


# --- one receipt, one tree ---


async def test_a_change_under_the_check_is_checked_again(tmp_path: Path) -> None:
    """A command that formats the file once is run on what it has made, and that is the receipt's."""
    path = tmp_path / "a.py"
    path.write_text("x=1\n")
    site = Folder(tmp_path)
    commands = Commands(site, [PASSED], lambda: path.write_text("x = 1\n"))
    receipt, _ = await check(site, order_for(PASSED), commands)
    assert receipt.is_passed
    assert commands.runs == 2
    assert receipt.tree == (await site.look()).tree


async def test_files_that_never_rest_prove_nothing(tmp_path: Path) -> None:
    """Something that keeps writing is given up on, with its reason, after three checks."""
    path = tmp_path / "a.py"
    path.write_text("0\n")
    site = Folder(tmp_path)
    commands = Commands(site, [PASSED], lambda: path.write_text(f"{commands.runs}\n"))
    receipt, _ = await check(site, order_for(PASSED), commands)
    assert commands.runs == 3
    assert receipt.problems == (
        "its files changed under every check: something still writes there",
    )


async def test_what_commands_leave_beside_does_not_disturb_the_whole(tmp_path: Path) -> None:
    """Reports and caches change each time; of the whole only what tasks changed must rest."""
    (tmp_path / "a.py").write_text("")
    site = Folder(tmp_path)
    log = tmp_path / "log"
    commands = Commands(site, [PASSED], lambda: log.write_text(f"{commands.runs}"))
    whole = order_for(PASSED, stage="integration", task_id=None)
    receipt, _ = await check(site, whole, commands)
    assert receipt.is_passed
    assert commands.runs == 1
    assert receipt.tree == (await site.look()).tree
    commands.act = lambda: (tmp_path / "a.py").write_text(f"{commands.runs}")
    receipt, _ = await check(site, whole, commands)
    assert not receipt.is_passed


async def test_without_commands_one_look_is_enough(tmp_path: Path) -> None:
    """Nothing of ours runs that could change a file, and taking it over compares once more."""
    (tmp_path / "a.py").write_text("")
    site = Folder(tmp_path)
    assert (await check(site, order_for(), Commands(site)))[0].is_passed
    assert site.looks == 1


# --- what proves nothing ---


def change(*changed: str) -> Change:
    return Change(tree="", directory=Path(), changed=changed)


def test_declared_files_must_change_or_a_command_pass() -> None:
    """A summary is no proof: files that a task named, or a command of its own, must show it."""
    order = order_for(PASSED)
    for commands in ([], [FAILED], [REFUSED], [CommandResult(argv=("x",), error="late")]):
        (problem,) = judge(order, change(), (), commands)
        assert problem.startswith("its files did not change (a.py)")
    assert not judge(order, change(), (), [REFUSED, PASSED])
    assert not judge(order, change("a.py"), (), [])
    assert not judge(order_for(files=()), change(), (), [])
    assert not judge(order_for(task_id=None), change(), (), [])


def test_an_empty_turn_is_not_done() -> None:
    """No answer, no tool call, no change: no success.

    It was one in code-yeongyu/oh-my-openagent#4642 (0 messages) and deftai/directive#3979 (0 tool
    calls in 1.8 s).
    """
    order = order_for(files=(), is_silent=True)
    (problem,) = judge(order, change(), (), [PASSED])
    assert problem.startswith("the turn was empty")
    assert not judge(order, change("a"), (), [])


@given(
    files=st.lists(st.sampled_from(["a", "b"]), unique=True),
    changed=st.lists(st.sampled_from(["a", "b", "c"]), unique=True),
    commands=st.lists(st.sampled_from([PASSED, FAILED, REFUSED])),
    refused=st.integers(0, 50),
    is_silent=st.booleans(),
)
def test_no_proof_no_pass(
    files: list[str],
    changed: list[str],
    commands: list[CommandResult],
    refused: int,
    is_silent: bool,  # noqa: FBT001  (drawn)
) -> None:
    """A receipt without problems has a change, a passed command, or a task that named no file."""
    findings = [Finding(path="a", line=line, message="m") for line in range(refused)]
    order = order_for(files=tuple(files), is_silent=is_silent)
    problems = judge(order, change(*changed), findings, commands)
    assert len(problems) <= 23
    if not problems:
        assert not findings
        assert changed or PASSED in commands or not files
        assert changed or not is_silent


# --- what the reviewer is shown ---


def test_the_evidence_is_bounded_and_complete() -> None:
    """However long the change: all that we saw ourselves comes first, and the cut is told."""
    receipt = Receipt(
        changed=tuple(f"{number}" * 20 for number in range(1_000)),
        strays=("other",),
        commands=(PASSED, FAILED, REFUSED),
        findings=tuple(Finding(path="a", line=1, message="m" * 300) for _ in range(1_000)),
    )
    text = describe_receipt(receipt, "+" * 1_000_000)
    assert len(text) <= 16_000
    for part in ("and 950 more", "put back", "succeeded: true", "failed: false", "not run: rm"):
        assert part in text
    assert text.endswith("[cut: read the rest in the files]")
