"""The command line: ``orchestra run`` and ``orchestra doctor``.

Exit codes: 0 the mission was accepted, 1 it failed, 2 wrong usage or configuration, 130 somebody
interrupted it.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TextIO, final

import anyio
from attrs import asdict

import orchestra
from orchestra.errors import ConfigurationError, OrchestraError
from orchestra.opencode.doctor import examine
from orchestra.opencode.job import Job, prepare, run_job
from orchestra.opencode.mission.isolation import ISOLATIONS
from orchestra.opencode.mission.report import MissionOutcome, MissionReport
from orchestra.opencode.mission.report_files import ReportFiles, write_report
from orchestra.opencode.mission.report_json import SCHEMA, report_to_json
from orchestra.opencode.notes import JobOptions, marked_children
from orchestra.opencode.people.approval import how_to_answer
from orchestra.opencode.people.commands import add_people_commands
from orchestra.opencode.people.questions import Person, PersonQuestion
from orchestra.opencode.people.terminal import TerminalPerson
from orchestra.opencode.progress import LiveProgress, PlainProgress, Progress, summary_lines
from orchestra.opencode.records import list_missions, list_steps, verify_records
from orchestra.opencode.remembering import add_memory_commands
from orchestra.opencode.resume import prepare_resume
from orchestra.opencode.why import explain_task

__all__ = ("main",)

EXIT_ACCEPTED = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

_EXIT_CODES = {
    MissionOutcome.ACCEPTED: EXIT_ACCEPTED,
    MissionOutcome.FAILED: EXIT_FAILED,
    MissionOutcome.INTERRUPTED: EXIT_INTERRUPTED,
}


class _Parser(argparse.ArgumentParser):
    """Raises instead of printing and leaving, so that ``--json`` holds for usage errors too."""

    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"{message}; see {self.prog} --help")


@final
class _Console:
    """Where this command writes: results on stdout, and people's lines where they fit.

    With ``--json`` stdout belongs to the one object. A reader that goes away ends the output, not
    the mission.
    """

    def __init__(self, *, is_json: bool) -> None:
        self.is_json = is_json
        self.stream: TextIO = sys.stderr if is_json else sys.stdout
        self._is_broken = False
        for stream in (sys.stdout, sys.stderr):
            reconfigure = getattr(stream, "reconfigure", None)
            if reconfigure is not None:
                reconfigure(errors="replace")

    def line(self, text: str) -> None:
        self._write(self.stream, text)

    def document(self, values: dict[str, Any]) -> None:
        self._write(sys.stdout, json.dumps(values, allow_nan=False))

    def problem(self, text: str) -> None:
        self._write(sys.stderr, text)

    def _write(self, stream: TextIO, text: str) -> None:
        if self._is_broken and stream is self.stream:
            return
        try:
            print(text, file=stream, flush=True)
        except (OSError, ValueError):
            self._is_broken = self._is_broken or stream is self.stream

    def close(self) -> None:
        """Keep the interpreter from complaining about a pipe that nobody reads."""
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

    def make_person(self, progress: Progress, directory: Path) -> Person:
        """Return who answers questions: whoever is at the terminal, or else somebody elsewhere."""
        hint = partial(how_to_answer, directory=directory)
        if sys.stdin is not None and sys.stdin.isatty() and self.stream.isatty():
            return TerminalPerson(sys.stdin, self.line, progress.paused, hint)

        def tell(question: PersonQuestion) -> None:
            self.line(question.text)
            self.line(hint(question))

        return tell

    def make_progress(self) -> Progress:
        """Return a table when people look and rich is there, else plain lines."""
        if not self.stream.isatty() or os.environ.get("TERM") == "dumb":
            return PlainProgress(self.line)
        try:
            from rich.console import Console  # noqa: PLC0415  (an extra)
        except ImportError:
            return PlainProgress(self.line)
        return LiveProgress(Console(file=self.stream, highlight=False, markup=False))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: Without the program's name; None: those of this process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    console = _Console(is_json="--json" in words)
    # Changed files are parsed, and what Python thinks of their style is not our output.
    warnings.simplefilter("ignore", SyntaxWarning)
    is_debug = "--debug" in words
    try:
        options = _parser().parse_args(words)
        shown = logging.StreamHandler()
        shown.setLevel(logging.DEBUG if is_debug else logging.ERROR)  # the log file gets more
        logging.basicConfig(
            level=shown.level, format="%(levelname)s %(name)s: %(message)s", handlers=[shown]
        )
        return int(options.function(options, console))
    except ConfigurationError as error:
        return _tell(console, error, EXIT_USAGE, is_debug=is_debug)
    except KeyboardInterrupt as error:
        return _tell(console, error, EXIT_INTERRUPTED, is_debug=is_debug)
    except Exception as error:  # noqa: BLE001  (the last place: people get a sentence)
        return _tell(console, error, EXIT_FAILED, is_debug=is_debug)
    finally:
        console.close()


def _tell(console: _Console, error: BaseException, code: int, *, is_debug: bool) -> int:
    """Say what went wrong, in a sentence; where it happened only when asked for."""
    problems = _sentences(error)
    if is_debug:
        console.problem("".join(traceback.format_exception(error)).rstrip())
    prefix = "" if isinstance(error, ConfigurationError) else "orchestra: "
    for problem in problems:
        console.problem(f"{prefix}{problem}")
    if console.is_json:
        console.document(
            {
                "schema": SCHEMA,
                "error": problems[0],
                "problems": problems,
                "kind": type(error).__name__,
                "exit_code": code,
            }
        )
    return code


def _sentences(error: BaseException) -> list[str]:
    if isinstance(error, BaseExceptionGroup):
        return [line for inner in error.exceptions for line in _sentences(inner)]
    if isinstance(error, ConfigurationError):
        return list(error.problems)
    if isinstance(error, KeyboardInterrupt):
        return [str(error) or "interrupted before the mission started"]
    text = " ".join(str(error).split())
    if isinstance(error, OrchestraError | OSError) and text:
        return [text]
    kind = type(error).__name__
    return [f"{kind}: {text or 'no details'}; repeat with --debug to see where it happened"]


def _parser() -> _Parser:
    parser = _Parser(
        prog="orchestra",
        description="Run a mission with a fleet of coding agents.",
        epilog="exit codes: 0 accepted, 1 failed, 2 usage or configuration, 130 interrupted",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"orchestra {orchestra.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    run = commands.add_parser("run", help="run a mission", allow_abbrev=False)
    run.add_argument(
        "mission", metavar="GOAL-or-MISSION.toml", help="what is wanted, or a mission file"
    )
    run.add_argument("--backend", choices=("embedded", "opencode"), help="where the agents run")
    run.add_argument(
        "--url",
        help="attach to this OpenCode server (password: OPENCODE_SERVER_PASSWORD); default: start one",
    )
    run.add_argument("--model", metavar="PROVIDER/MODEL", help="the model of every role")
    run.add_argument("--dir", type=Path, metavar="DIR", help="the workspace; default: here")
    run.add_argument(
        "--max-workers", type=_at_least_one, metavar="N", help="workers at once; default: 10"
    )
    run.add_argument(
        "--isolation",
        choices=ISOLATIONS,
        help="all workers in the workspace, or each in a git worktree; default: shared",
    )
    run.add_argument(
        "--project-agents",
        action="store_true",
        help="obey the workspace's .orchestra/agents.toml or agents.json",
    )
    run.add_argument(
        "--max-tokens", type=_whole, metavar="N", help="model tokens of the whole mission"
    )
    run.add_argument(
        "--max-cost", type=_above_zero, metavar="DOLLARS", help="US dollars of the whole mission"
    )
    run.add_argument(
        "--max-time", type=_above_zero, metavar="SECONDS", help="how long the mission may take"
    )
    run.add_argument(
        "--loop", choices=("asyncio", "trio"), default="asyncio", help="the event loop to run on"
    )
    run.add_argument(
        "--approve-plan",
        action="store_true",
        help="start nothing before somebody approves the plan",
    )
    run.add_argument(
        "--notify", action="store_true", help="tell people by notification and bell when it is over"
    )
    run.add_argument(
        "--event-log", type=Path, metavar="FILE", help="append each event to FILE as a line of JSON"
    )
    _add_common(run)
    run.set_defaults(function=_run)

    resume = commands.add_parser(
        "resume", help="go on with a mission that was killed or interrupted", allow_abbrev=False
    )
    resume.add_argument(
        "mission",
        nargs="?",
        metavar="MISSION",
        help="a mission's id or its beginning; default: the last one that has not ended",
    )
    resume.add_argument("--dir", type=Path, metavar="DIR", help="the workspace; default: here")
    resume.add_argument("--url", help="where the OpenCode server is now; default: where it was")
    resume.add_argument(
        "--loop", choices=("asyncio", "trio"), default="asyncio", help="the event loop to run on"
    )
    _add_common(resume)
    resume.set_defaults(function=_resume)

    why = commands.add_parser(
        "why", help="say why a task ran, waits or would run again", allow_abbrev=False
    )
    why.add_argument("task", metavar="TASK", help="the task's id")
    why.add_argument(
        "--mission", default="last", help="a mission's id or its beginning; default: the last"
    )
    why.add_argument("--dir", type=Path, metavar="DIR", help="the workspace; default: here")
    _add_common(why)
    why.set_defaults(function=_why)

    history = commands.add_parser(
        "history", help="list this workspace's missions, or tell what one did", allow_abbrev=False
    )
    history.add_argument(
        "mission", nargs="?", metavar="MISSION", help="a mission's id, its beginning, or 'last'"
    )
    history.add_argument("--dir", type=Path, metavar="DIR", help="the workspace; default: here")
    _add_common(history)
    history.set_defaults(function=_history)

    verify = commands.add_parser(
        "verify", help="check that no mission's history was altered", allow_abbrev=False
    )
    verify.add_argument("--dir", type=Path, metavar="DIR", help="the workspace; default: here")
    _add_common(verify)
    verify.set_defaults(function=_verify)

    add_people_commands(commands, _add_common)
    add_memory_commands(commands, _add_common)

    doctor = commands.add_parser(
        "doctor", help="say what is installed, found and missing", allow_abbrev=False
    )
    _add_common(doctor)
    doctor.set_defaults(function=_doctor)
    return parser


def _add_common(parser: argparse.ArgumentParser, default: object = False) -> None:  # noqa: FBT002
    parser.add_argument(
        "--json",
        action="store_true",
        default=default,
        help="print one JSON object on stdout, and nothing else",
    )
    parser.add_argument(
        "--debug", action="store_true", default=default, help="show tracebacks and debug logs"
    )


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 10_000:
        raise argparse.ArgumentTypeError(f"expected a number from 1 to 10,000, got {text!r}")
    return int(text)


def _whole(text: str) -> int:
    digits = text.replace("_", "")
    if not digits.isdecimal() or not 0 < int(digits) <= 10**12:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(digits)


def _above_zero(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def _run(options: argparse.Namespace, console: _Console) -> int:
    job = prepare(
        JobOptions(
            mission=options.mission,
            backend=options.backend,
            url=options.url,
            model=options.model,
            directory=options.dir,
            max_workers=options.max_workers,
            isolation=options.isolation,
            project_agents=options.project_agents,
            max_tokens=options.max_tokens,
            max_cost=options.max_cost,
            max_time=options.max_time,
            password=os.environ.get("OPENCODE_SERVER_PASSWORD") or None,
            must_approve=options.approve_plan,
            notify=options.notify,
            event_log=options.event_log,
        )
    )
    return _run_job(job, console, options.loop)


def _resume(options: argparse.Namespace, console: _Console) -> int:
    ask = partial(
        prepare_resume,
        (options.dir or Path()).resolve(),
        options.mission,
        url=options.url,
        password=os.environ.get("OPENCODE_SERVER_PASSWORD") or None,
    )
    job = anyio.run(ask)
    if job.saved is not None:
        console.line(f"going on with {job.saved.id}: {job.goal}")
    return _run_job(job, console, options.loop)


def _run_job(job: Job, console: _Console, loop: str) -> int:
    console.line(f"workspace: {job.directory}")
    report = _run_on_loop(job, console, loop)
    files = _write(report, console)
    for line in summary_lines(report):
        console.line(line)
    if files is not None:
        console.line(f"report: {files.html}")
    if console.is_json:
        console.document(report_to_json(report))
    return _EXIT_CODES[report.outcome]


def _run_on_loop(job: Job, console: _Console, loop: str) -> MissionReport:
    try:
        progress = console.make_progress()
        person = console.make_person(progress, job.directory)
        with marked_children(job.notes):
            return anyio.run(run_job, job, progress, console.problem, person, backend=loop)
    except ModuleNotFoundError as error:
        if error.name != "trio":
            raise
        raise ConfigurationError(
            "trio is not installed; install it with: pip install trio, or leave --loop out"
        ) from None


def _write(report: MissionReport, console: _Console) -> ReportFiles | None:
    """Write the report's files; that they cannot be written does not change how it ended."""
    try:
        return write_report(report, Path(report.directory))
    except OSError as error:
        console.problem(f"orchestra: the report cannot be written: {error}")
        return None


def _doctor(options: argparse.Namespace, console: _Console) -> int:
    del options
    examination = anyio.run(examine)
    if console.is_json:
        console.document(examination.to_json())
    else:
        for line in examination.lines():
            console.line(line)
    return EXIT_ACCEPTED if examination.is_usable else EXIT_FAILED


def _history(options: argparse.Namespace, console: _Console) -> int:
    directory = options.dir or Path()
    if options.mission is None:
        missions = anyio.run(list_missions, directory)
        if console.is_json:
            console.document({"schema": SCHEMA, "missions": [asdict(each) for each in missions]})
        for mission in missions:
            console.line(str(mission))
        return EXIT_ACCEPTED
    steps = anyio.run(list_steps, directory, options.mission)
    if console.is_json:
        console.document({"schema": SCHEMA, "steps": [asdict(each) for each in steps]})
    for step in steps:
        console.line(str(step))
    return EXIT_ACCEPTED


def _why(options: argparse.Namespace, console: _Console) -> int:
    directory = (options.dir or Path()).resolve()
    explanation = anyio.run(explain_task, directory, options.task, options.mission)
    if console.is_json:
        console.document({"schema": SCHEMA, **asdict(explanation)})
    console.line(str(explanation))
    return EXIT_ACCEPTED


def _verify(options: argparse.Namespace, console: _Console) -> int:
    checks = anyio.run(verify_records, options.dir or Path())
    is_whole = all(not check.fault for check in checks)
    if console.is_json:
        missions = [asdict(each) for each in checks]
        console.document({"schema": SCHEMA, "is_whole": is_whole, "missions": missions})
    for check in checks:
        console.line(str(check))
    return EXIT_ACCEPTED if is_whole else EXIT_FAILED
