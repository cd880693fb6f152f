"""``orchestra approve``, ``cancel`` and ``clean``: what people do beside a mission, or after it."""

from __future__ import annotations

import argparse
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from getpass import getuser
from pathlib import Path
from typing import Any, Final, Protocol

import anyio
from attrs import asdict, evolve, frozen

from orchestra import Agent, MVCCStore, SessionBackend, SQLiteStore, Transaction
from orchestra.errors import ConfigurationError, OrchestraError, SessionLostError
from orchestra.opencode.housekeeping import clean_workspace
from orchestra.opencode.mission.file import read_mission_file
from orchestra.opencode.mission.report_files import REPORT_FOLDER
from orchestra.opencode.mission.saved import SavedMission, load_mission
from orchestra.opencode.people.cancelling import (
    QUIET,
    Quiescence,
    confirm_quiet,
    is_unseen,
    read_quiet,
    wish_cancel,
    write_quiet,
)
from orchestra.opencode.people.questions import PersonAnswer, list_questions, write_answer
from orchestra.opencode.records import MISSION, RECORDS, find_absence, find_mission
from orchestra.opencode.resume import end_leftovers

__all__ = ("add_people_commands", "answer_question", "cancel_mission")

_SCHEMA: Final = 1
_LOOK = 0.1
_OWNER_PATIENCE = 5.0
"""Seconds after which an owner that has not seen the wish counts as gone."""
_QUIET_LIMIT = 10.0


class Console(Protocol):
    """Where a command writes."""

    is_json: bool

    def line(self, text: str) -> None:
        """Print a line for people."""

    def document(self, values: dict[str, Any]) -> None:
        """Print the one JSON object."""


def add_people_commands(
    commands: Any, add_common: Callable[[argparse.ArgumentParser], None]
) -> None:
    """Add the subcommands.

    Args:
        commands: What `argparse.ArgumentParser.add_subparsers` has returned.
        add_common: Adds the options that all commands have.
    """
    approve = commands.add_parser(
        "approve", help="answer a mission that waits for somebody's word", allow_abbrev=False
    )
    approve.add_argument(
        "mission", nargs="?", default="last", metavar="MISSION", help="default: the last one"
    )
    approve.add_argument("--reject", action="store_true", help="say no")
    approve.add_argument("--note", default="", metavar="TEXT", help="why, or what to change")
    approve.add_argument("--question", metavar="ID", help="which question; default: the plan")
    approve.add_argument("--show", action="store_true", help="only show what is asked")
    approve.add_argument("--dir", type=Path, metavar="DIR", help="the workspace; default: here")
    add_common(approve)
    approve.set_defaults(function=_approve)

    cancel = commands.add_parser(
        "cancel", help="end a mission, and see that nothing of it runs any more", allow_abbrev=False
    )
    cancel.add_argument(
        "mission", nargs="?", default="last", metavar="MISSION", help="default: the last one"
    )
    cancel.add_argument(
        "--wait", type=_seconds, default=60.0, metavar="SECONDS", help="how long; default: 60"
    )
    cancel.add_argument("--url", help="the server it runs on, when its orchestrator is gone")
    cancel.add_argument("--dir", type=Path, metavar="DIR", help="the workspace; default: here")
    add_common(cancel)
    cancel.set_defaults(function=_cancel)

    clean = commands.add_parser(
        "clean", help="remove what old missions have left in .orchestra", allow_abbrev=False
    )
    clean.add_argument("--dir", type=Path, metavar="DIR", help="the workspace; default: here")
    add_common(clean)
    clean.set_defaults(function=_clean)


def _clean(options: argparse.Namespace, console: Console) -> int:
    cleaning = anyio.run(clean_workspace, options.dir or Path())
    if console.is_json:
        console.document({"schema": _SCHEMA, **asdict(cleaning)})
    console.line(str(cleaning))
    for problem in cleaning.problems:
        console.line(f"  {problem}")
    return 1 if cleaning.problems else 0


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"expected a number of seconds above 0, got {text!r}")
    return seconds


# --- approve ---


def _approve(options: argparse.Namespace, console: Console) -> int:
    directory = options.dir or Path()
    if options.show:
        mission, questions = anyio.run(_read_questions, directory, options.mission)
        if console.is_json:
            document = {"schema": _SCHEMA, "mission": mission, "questions": questions}
            console.document(document)
        for name, question in questions.items():
            console.line(f"{mission} {name} (asked {question['asked_at']})")
            console.line(question["text"])
        if not questions:
            console.line(f"{mission} asks nothing")
        return 0
    answer = PersonAnswer(is_approved=not options.reject, note=options.note, by=_who())
    mission, chosen = anyio.run(
        answer_question, directory, options.mission, options.question, answer
    )
    if console.is_json:
        console.document(
            {
                "schema": _SCHEMA,
                "mission": mission,
                "question": chosen,
                "is_approved": answer.is_approved,
                "note": answer.note,
            }
        )
    word = "approved" if answer.is_approved else "rejected"
    console.line(
        f"{word} {chosen} of {mission}; a mission that does not run any more takes the answer "
        f"with: orchestra resume {mission}"
    )
    return 0


@asynccontextmanager
async def _open(directory: Path, reference: str) -> AsyncIterator[tuple[str, MVCCStore]]:
    """Open the records of a mission for writing, which are there."""
    async with _open_all(directory, reference) as (mission, _, store):
        yield mission, store


@asynccontextmanager
async def _open_all(
    directory: Path, reference: str
) -> AsyncIterator[tuple[str, MVCCStore, MVCCStore]]:
    """Open those of the whole workspace beside."""
    mission = await find_mission(directory, reference)
    async with SQLiteStore(directory / REPORT_FOLDER / RECORDS, durability="process") as store:
        yield mission, store, store.namespace(mission).using(author=f"person {_who()}")


async def _read_questions(
    directory: Path, reference: str
) -> tuple[str, dict[str, Mapping[str, Any]]]:
    async with _open(directory, reference) as (mission, store):
        return mission, await list_questions(store)


async def answer_question(
    directory: Path, reference: str, question: str | None, answer: PersonAnswer
) -> tuple[str, str]:
    """Answer an open question of a mission.

    Args:
        directory: The workspace.
        reference: The mission's id, the beginning of it, or ``last``.
        question: The question's id; None: the plan's.
        answer: What is said.

    Returns:
        The ids of the mission and of the question.

    Raises:
        ConfigurationError: There is no such mission or question, or somebody was quicker.
        StoreError: The answer cannot be written.
    """
    async with _open(directory, reference) as (mission, store):
        questions = await list_questions(store)
        chosen = question
        if chosen is None:
            chosen = next((name for name in questions if name.startswith("plan-")), None)
        if chosen is None or chosen not in questions:
            asked = ", ".join(questions) or "nothing"
            raise ConfigurationError(
                f"{mission} does not ask for {question or 'its plan'} to be approved; "
                f"it asks: {asked}"
            )
        if not await write_answer(store, chosen, answer):
            raise ConfigurationError(f"somebody has answered {chosen} of {mission} already")
        return mission, chosen


def _who() -> str:
    try:
        return getuser()
    except (OSError, KeyError, ImportError):  # no such user, as in many containers
        return "command line"


# --- cancel ---


@frozen(kw_only=True)
class CancelOutcome:
    """What became of the wish to end a mission.

    Attributes:
        mission: The mission's id.
        state: How it ended.
        quiescence: What still runs; None: nobody has told in time.
        absence: That its owner was gone; empty: it ended itself.
    """

    mission: str
    state: str
    quiescence: Quiescence | None
    absence: str = ""

    @property
    def is_quiet(self) -> bool:
        """Whether nothing of it is known to run any more."""
        return self.quiescence is not None and self.quiescence.is_quiet


def _cancel(options: argparse.Namespace, console: Console) -> int:
    outcome = anyio.run(
        cancel_mission, options.dir or Path(), options.mission, options.url, options.wait
    )
    quiescence = outcome.quiescence
    if console.is_json:
        console.document(
            {
                "schema": _SCHEMA,
                "mission": outcome.mission,
                "state": outcome.state,
                "is_quiet": outcome.is_quiet,
                "sessions": None if quiescence is None else quiescence.sessions,
                "busy": [] if quiescence is None else list(quiescence.busy),
                "why": "no word in time" if quiescence is None else quiescence.why,
                "absence": outcome.absence,
            }
        )
    if outcome.absence:
        console.line(f"{outcome.mission}: {outcome.absence}")
    if quiescence is None:
        console.line(
            f"{outcome.mission} {outcome.state}: nobody has said within {options.wait:g} s that its "
            "sessions are idle; ask again"
        )
    else:
        why = f" ({quiescence.why})" if quiescence.why else ""
        console.line(f"{outcome.mission} {outcome.state}: {quiescence}{why}")
    return 0 if outcome.is_quiet else 1


async def cancel_mission(
    directory: Path, reference: str, url: str | None = None, wait: float = 60.0
) -> CancelOutcome:
    """End a mission from outside, and wait until its sessions are known to be idle.

    A mission whose orchestrator is gone is ended here: its sessions on the server are aborted.

    Args:
        directory: The workspace.
        reference: The mission's id, the beginning of it, or ``last``.
        url: The server it runs on, when its orchestrator is gone.
        wait: Seconds to wait.

    Raises:
        ConfigurationError: There is no such mission.
        StoreError: The records cannot be read or written.
    """
    async with _open_all(directory, reference) as (mission, records, store):
        about = await store.get(MISSION)
        quiet = await store.get(QUIET)
        if about["state"] == "running":
            absence = await find_absence(records, mission, about)
            await wish_cancel(store, f"cancelled by {_who()}")
            quiet = None if absence else await _wait_quiet(store, wait)
            if quiet is None and await is_unseen(store):
                saved = await load_mission(store, mission)
                if url is None and about["backend"] != "embedded":
                    url = _server_of(saved)
                outcome = await _end_abandoned(saved, store, about, url)
                return evolve(outcome, absence=absence.partition(";")[0])
            about = await store.get(MISSION)
        quiescence = None if quiet is None else read_quiet(quiet)
        if quiescence is None and about["state"] != "running" and about["backend"] == "embedded":
            quiescence = Quiescence(sessions=0)
        return CancelOutcome(mission=mission, state=about["state"], quiescence=quiescence)


async def _wait_quiet(store: MVCCStore, wait: float) -> Mapping[str, Any] | None:
    started = anyio.current_time()
    with anyio.move_on_after(wait):
        while True:
            quiet: Mapping[str, Any] | None = await store.get(QUIET)
            if quiet is not None:
                return quiet
            waited = anyio.current_time() - started
            if waited > _OWNER_PATIENCE and await is_unseen(store):
                return None
            await anyio.sleep(_LOOK)
    return None


def _server_of(saved: SavedMission) -> str | None:
    """Return the server that a mission was attached to; None: it had one of its own.

    Raises:
        ConfigurationError: The mission file that would tell cannot be read any more.
    """
    url: str | None = saved.launch.get("url")
    path = saved.launch.get("mission", "")
    if url is None and os.path.isfile(path):  # noqa: PTH113  (never raises)
        url = read_mission_file(Path(path), backend="opencode").url
    return url


async def _end_abandoned(
    saved: SavedMission, store: MVCCStore, about: Mapping[str, Any], url: str | None
) -> CancelOutcome:
    """End a mission that nobody runs any more."""
    mission = saved.id
    if about["backend"] == "embedded":
        quiescence = Quiescence(sessions=0)  # its agents ran in the process that is gone
    elif url is None and saved.launch.get("run"):
        await end_leftovers(saved)  # its server was its own, and is known by a mark
        quiescence = Quiescence(sessions=0)
    elif url is None:
        quiescence = Quiescence(
            sessions=1,
            busy=("unknown",),
            why="its orchestrator is gone; name the server it ran on with --url",
        )
    else:
        quiescence = await _abort_on_server(mission, Path(about["directory"]), url)

    async def close(tx: Transaction) -> str:
        now: dict[str, Any] = dict(await tx.get(MISSION))
        if now["state"] == "running":
            now |= {"state": "interrupted", "reason": "cancelled after its orchestrator was gone"}
            tx.put(MISSION, now)
        return str(now["state"])

    state = await store.transact(close)
    await write_quiet(store, quiescence)
    return CancelOutcome(mission=mission, state=state, quiescence=quiescence)


async def _abort_on_server(mission: str, directory: Path, url: str) -> Quiescence:
    try:
        from orchestra.opencode.backend import OpenCodeBackend  # noqa: PLC0415  (an extra)
    except ImportError as error:
        raise ConfigurationError(str(error)) from error
    password = os.environ.get("OPENCODE_SERVER_PASSWORD") or None
    async with OpenCodeBackend(url, password=password) as backend:
        return await close_sessions(backend, mission, directory)


async def close_sessions(backend: SessionBackend, mission: str, directory: Path) -> Quiescence:
    """Abort and close every session of a mission that the backend still has. A checkpoint.

    Args:
        backend: Where they are; entered.
        mission: The mission's id.
        directory: The workspace.
    """
    found = await backend.find_sessions({"mission": mission}, directory=directory)
    nobody = Agent("orchestra", prompt="Nobody talks in this session any more.")
    failures: list[str] = []

    async def close(session_id: str) -> None:
        try:
            session = await backend.reopen(session_id, nobody, directory=directory)
            await session.aclose()
        except SessionLostError:
            pass  # somebody else has closed it
        except OrchestraError as exc:
            failures.append(f"{session_id}: {exc}")

    async with anyio.create_task_group() as group:
        for session_id in found:
            group.start_soon(close, session_id)
    quiescence = await confirm_quiet(backend, found, limit=_QUIET_LIMIT)
    if failures and quiescence.is_quiet:
        return evolve(quiescence, busy=tuple(failures), why="they could not be closed")
    return quiescence
