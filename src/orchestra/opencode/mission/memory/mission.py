"""A mission's memory: what it is told of, whom it tells what, and where that is written."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, final

from attrs import define, evolve, field

from orchestra import Agent, MVCCStore, Transaction
from orchestra.errors import StoreError
from orchestra.opencode.mission.machine import MissionMachine
from orchestra.opencode.mission.memory.index import MemoryIndex, Question
from orchestra.opencode.mission.memory.lessons import from_accepted, from_brief, from_rejected
from orchestra.opencode.mission.memory.project import ProjectMemory
from orchestra.opencode.mission.memory.rules import (
    Contribution,
    MemoryEntry,
    MemoryTier,
    Tally,
    combine,
    drop_least,
    entry_from_plain,
    entry_to_plain,
    observe,
)
from orchestra.opencode.mission.memory.telling import choose, memory_block
from orchestra.opencode.mission.messages import read_task
from orchestra.opencode.mission.orders import Ask, Command, TaskMoved
from orchestra.opencode.mission.plain import clean
from orchestra.opencode.mission.plan import MissionSettings, Role
from orchestra.opencode.mission.prompt_limits import system_room, with_system_text
from orchestra.opencode.mission.report import MissionOutcome, TaskReport, TaskState
from orchestra.opencode.mission.scrubbing import Scrubber

__all__ = ("MissionMemory",)

_logger = logging.getLogger(__name__)

_ENTRY = "memory/entry/"
_WORK = "memory/work/"
_OWN = frozenset({MemoryTier.MISSION, MemoryTier.TASK})
_ABANDONED = frozenset({TaskState.SKIPPED, TaskState.CANCELLED, TaskState.REPLACED})


async def _allow(_: Transaction) -> None:
    """Say that nobody else can have the mission."""


@define
class _Work:
    """What is kept in mind of a task, or (without a name) of the mission as a whole.

    Attributes:
        seen: How many of its reasons were looked at.
        is_over: Whether it was accepted, or has failed.
        current: The entries that the latest session of each role was told.
        latest: The entries made of the latest reasons, which its next message has anyway.
        sessions: For each of its sessions the entries that it was told.
        characters: What telling them took, with all that stands around them.
        tallies: How the rounds ended in which an entry was told.
    """

    seen: int = 0
    is_over: bool = False
    current: dict[str, list[str]] = field(factory=dict)
    latest: list[str] = field(factory=list)
    sessions: dict[str, list[str]] = field(factory=dict)
    characters: int = 0
    tallies: dict[str, Tally] = field(factory=dict)

    def count(self, tally: Tally) -> set[str]:
        """Count the end of a round for all who were told something, and return what that was."""
        names = {name for told in self.current.values() for name in told}
        for name in names:
            self.tallies[name] = self.tallies.get(name, Tally()).plus(tally)
        return names

    def plain(self) -> dict[str, Any]:
        return {
            "seen": self.seen,
            "is_over": self.is_over,
            "current": self.current,
            "latest": self.latest,
            "sessions": self.sessions,
            "characters": self.characters,
            "tallies": {name: list(tally) for name, tally in self.tallies.items()},
        }

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> _Work:
        tallies = {name: Tally(*counts) for name, counts in plain["tallies"].items()}
        return cls(**{**plain, "tallies": tallies})


@final
class MissionMemory:
    """Learns from a mission, and adds what is relevant to its agents' prompts.

    It never stands in the mission's way: when the store cannot be written, it learns nothing more.

    Args:
        mission_id: The mission; the tiers of the mission are in the namespace of that name.
        directory: The workspace.
        settings: Say whether it remembers, and how much it tells.
        scrubber: Takes secrets out of what is remembered.
    """

    def __init__(
        self, mission_id: str, directory: Path, settings: MissionSettings, scrubber: Scrubber
    ) -> None:
        self._id = mission_id
        self._directory = directory
        self._settings = settings.memory
        self._scrubber = scrubber
        self._is_on = settings.memory.is_on
        self._index = MemoryIndex()
        self._work: dict[str, _Work] = {}
        self._tallies: dict[str, Tally] = {}
        self._number = 0
        self._has_caught_up = False
        self._unwritten: set[str] = set()
        self._unwritten_work: set[str] = set()
        self._store: MVCCStore | None = None
        self._project: ProjectMemory | None = None
        self._check: Callable[[Transaction], Awaitable[None]] = _allow

    def __repr__(self) -> str:
        return f"<MissionMemory {self._index!r} told={self.told}>"

    @property
    def told(self) -> int:
        """How many entries agents were told, counted once per session."""
        return sum(len(names) for work in self._work.values() for names in work.sessions.values())

    @property
    def characters(self) -> int:
        """How many characters that took, with all that stands around them."""
        return sum(work.characters for work in self._work.values())

    # --- life ---

    async def begin(
        self, store: MVCCStore, check: Callable[[Transaction], Awaitable[None]] | None = None
    ) -> None:
        """Read what the project and (after a restart) the mission remember. A checkpoint.

        Args:
            store: The store that holds the mission's namespace; not the namespace itself.
            check: Called with each transaction of the mission's namespace; raises when the mission
                is somebody else's by now.
        """
        if not self._is_on:
            return
        self._store = store.namespace(self._id).using(author="memory")
        self._project = ProjectMemory(store, self._directory)
        self._check = check or _allow
        try:
            self._number, entries = await self._project.begin(self._id)
            async with self._store.snapshot() as snap:
                own = await snap.range(_ENTRY)
                work = await snap.range(_WORK)
        except StoreError as exc:
            self._give_up(exc)
            return
        self._index = MemoryIndex(entries.values())
        for plain in own.values():
            self._index.put(entry_from_plain(plain))
        for key, plain in work.items():
            known = self._work[key.removeprefix(_WORK)] = _Work.of(plain)
            for name, tally in known.tallies.items():
                self._tallies[name] = self._tally(name).plus(tally)

    async def take(self, commands: Iterable[Command], machine: MissionMachine) -> None:
        """Learn from what was decided, and write it. A checkpoint if there is anything.

        Args:
            commands: What the machine ordered.
            machine: Knows the tasks; the first time, all of them are looked at, since a mission
                that goes on may have stopped before everything was learned.
        """
        if self._has_caught_up:
            for command in commands:
                if isinstance(command, TaskMoved):
                    self.look(machine.task_report(command.task_id))
        else:
            self._has_caught_up = True
            for report in machine.task_reports():
                self.look(report)
        await self.flush()

    async def flush(self) -> None:
        """Write what has changed since the last time. A checkpoint if anything has."""
        if self._store is None or not (self._unwritten or self._unwritten_work):
            return
        names, self._unwritten = self._unwritten, set()
        tasks, self._unwritten_work = self._unwritten_work, set()
        entries = {name: self._index.get(name) for name in names}
        work = {name: clean(self._work[name].plain()) for name in tasks}

        async def write(tx: Transaction) -> None:
            await self._check(tx)
            for name, entry in entries.items():
                if entry is None or entry.tier not in _OWN:
                    tx.delete(_ENTRY + name)
                else:
                    tx.put(_ENTRY + name, clean(entry_to_plain(entry)))
            for name, plain in work.items():
                tx.put(_WORK + name, plain)

        try:
            await self._store.transact(write)
        except StoreError as exc:
            self._give_up(exc)

    async def settle(self, outcome: MissionOutcome) -> None:
        """Leave to the project what has proved good. A checkpoint.

        An interrupted mission leaves nothing yet: it may be resumed.

        Args:
            outcome: How the mission ended.
        """
        if outcome is MissionOutcome.INTERRUPTED or self._project is None or not self._is_on:
            return
        self._count("", Tally(helped=1) if outcome is MissionOutcome.ACCEPTED else Tally(hurt=1))
        contribution = Contribution(
            number=self._number,
            learned=tuple(entry for entry in self._index if entry.tier in _OWN),
            tallies=self._tallies,
        )
        try:
            if self._store is not None:
                await self._store.transact(self._check)
            await self._project.settle(self._id, contribution)
        except StoreError as exc:
            self._give_up(exc)

    def _give_up(self, exc: StoreError) -> None:
        self._is_on = False
        self._store = self._project = None
        _logger.warning("nothing more is remembered: %s", self._scrubber.text(str(exc)))

    # --- learning ---

    def look(self, report: TaskReport) -> None:
        """Learn from what became of a task; looking twice at the same changes nothing.

        Args:
            report: What is known of it now.
        """
        if not self._is_on:
            return
        work = self._work.setdefault(report.id, _Work())
        reasons = report.reasons[work.seen :]
        was = (work.seen, work.is_over)
        work.seen = len(report.reasons)
        if report.state in _ABANDONED:
            pass
        elif report.state is TaskState.FAILED:
            if not work.is_over:
                self._count(report.id, Tally(hurt=1))
            work.is_over = True
        else:
            if reasons:
                lessons = from_rejected(report, reasons, self._number)
                work.latest = [lesson.id for lesson in lessons]
                self._learn(lessons)
                self._count(report.id, Tally(hurt=1))
            if report.state is TaskState.ACCEPTED and not work.is_over:
                self._count(report.id, Tally(helped=1))
                self._forget_task(report.id)
                self._learn(from_accepted(report, self._number))
            work.is_over = report.state is TaskState.ACCEPTED
        if was != (work.seen, work.is_over):
            self._unwritten_work.add(report.id)

    def hear(self, ask: Ask, answer: str) -> None:
        """Learn from an agent's answer: the facts of the commander's brief.

        Args:
            ask: What was asked.
            answer: What came back.
        """
        if self._is_on and ask.role is Role.COMMANDER:
            self._learn(from_brief(answer, self._number))

    def _learn(self, lessons: Iterable[MemoryEntry]) -> None:
        for lesson in lessons:
            text = self._scrubber.text(lesson.text)
            entry = evolve(lesson, text=clean(text)[: len(lesson.text)])
            known = self._index.get(entry.id)
            if known is not None and known.tier not in _OWN:
                continue  # the project knows; whether it still holds is for the tallies to say
            self._put(entry if known is None else combine(known, entry))
        _, dropped = drop_least(map(self._current, self._index.over_budget()), self._number)
        for entry in dropped:
            self._drop(entry.id)

    def _forget_task(self, task_id: str) -> None:
        """What was wrong is told by the lessons of the accepted task from now on."""
        for entry in self._index.of_task(task_id):
            if entry.tier is MemoryTier.TASK:
                self._drop(entry.id)

    def _put(self, entry: MemoryEntry) -> None:
        self._index.put(entry)
        self._unwritten.add(entry.id)

    def _drop(self, name: str) -> None:
        self._index.discard(name)
        self._unwritten.add(name)

    def _count(self, task_id: str, tally: Tally) -> None:
        work = self._work.get(task_id)
        names = set() if work is None else work.count(tally)
        for name in names:
            self._tallies[name] = self._tally(name).plus(tally)
        if names:
            self._unwritten_work.add(task_id)

    def _tally(self, name: str) -> Tally:
        return self._tallies.get(name, Tally())

    def _current(self, entry: MemoryEntry) -> MemoryEntry:
        """Return an entry with what this mission has seen of it so far."""
        tally = self._tallies.get(entry.id)
        return entry if tally is None else observe(entry, tally, self._number)

    # --- telling ---

    def equip(self, ask: Ask, agent: Agent) -> Agent:
        """Return the agent with what is relevant in its prompt, as far as there is room.

        The same session is told the same again, so that it can be opened anew.

        Args:
            ask: What the session is asked; what counts is the first time.
            agent: The agent of the role.
        """
        room = min(self._settings.characters, system_room(agent.prompt))
        if not self._is_on or not room:
            return agent
        work = self._work.setdefault(ask.task_id or "", _Work())
        names = work.sessions.get(ask.session)
        if names is None:
            chosen = choose(self._find(ask, set(work.latest)), room)
        else:
            chosen = [entry for name in names if (entry := self._index.get(name)) is not None]
        work.current[ask.role.value] = [entry.id for entry in chosen]
        work.sessions[ask.session] = [entry.id for entry in chosen]
        if chosen:
            self._unwritten_work.add(ask.task_id or "")
        block = memory_block(chosen)
        if names is None:
            work.characters += len(block)
        return evolve(agent, prompt=with_system_text(agent.prompt, block)) if block else agent

    def _find(self, ask: Ask, hidden: set[str]) -> list[MemoryEntry]:
        try:
            task = read_task(ask.message)
        except ValueError:
            question = Question(role=ask.role.value, text=ask.message)
        else:
            commands = [" ".join(argv) for argv in task.acceptance]
            question = Question(
                role=ask.role.value,
                text="\n".join((task.title, task.instructions, *commands)),
                files=task.files,
                task=task.id,
                depends=task.depends,
            )
        found = self._index.find(question, lambda entry: self._current(entry).score(self._number))
        return [entry for _, entry in found if entry.id not in hidden]
