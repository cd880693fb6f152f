"""``orchestra approve``, ``cancel`` and ``clean``: what people do beside a mission, or after it."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import anyio
from attrs import asdict

from orchestra import MVCCStore, SQLiteStore
from orchestra.errors import ConfigurationError
from orchestra.opencode.housekeeping import clean_workspace
from orchestra.opencode.mission.report_files import REPORT_FOLDER
from orchestra.opencode.people.ending import cancel_mission, who
from orchestra.opencode.people.questions import (
    ANSWER,
    PersonAnswer,
    list_questions,
    write_answer,
)
from orchestra.opencode.records import MISSION, RECORDS, find_mission

__all__ = ("add_people_commands", "answer_question")

_SCHEMA: Final = 1


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
    for problem in (*cleaning.notes, *cleaning.problems):
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
    answer = PersonAnswer(is_approved=not options.reject, note=options.note, by=who())
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
    mission = await find_mission(directory, reference)
    async with SQLiteStore(directory / REPORT_FOLDER / RECORDS, durability="process") as store:
        yield mission, store.namespace(mission).using(author=f"person {who()}")


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
            raise ConfigurationError(await _why_not(store, mission, question, questions))
        if not await write_answer(store, chosen, answer):
            raise ConfigurationError(f"somebody has answered {chosen} of {mission} already")
        return mission, chosen


async def _why_not(
    store: MVCCStore, mission: str, wanted: str | None, questions: Mapping[str, object]
) -> str:
    """Say in a sentence why there is nothing to answer."""
    async with store.snapshot() as snap:
        answers = await snap.range(ANSWER)
    given = {key.removeprefix(ANSWER): answer for key, answer in answers.items()}
    plans = [name for name in given if name.startswith("plan-")]
    answered = wanted if wanted is not None else max(plans, default=None)
    if answered in given and not questions:
        word = "approved" if given[answered]["is_approved"] else "rejected"
        who = given[answered]["by"] or "somebody"
        about = await store.get(MISSION)
        how = f"if nobody runs it any more, go on with: orchestra resume {mission}"
        if about["is_over"]:
            how = f"the mission has ended as {about['state']}"
        return f"{who} has {word} {answered} of {mission} already; {how}"
    asked = ", ".join(questions)
    if not asked:
        return f"{mission} asks nothing; 'orchestra history' shows how it stands"
    return (
        f"{mission} does not ask for {wanted or 'its plan'} to be approved; answer what it asks "
        f"with --question: {asked}"
    )


# --- cancel ---


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
                "why": outcome.note if quiescence is None else quiescence.why,
                "note": outcome.note,
            }
        )
    console.line(str(outcome))
    return 0 if outcome.is_quiet else 1
