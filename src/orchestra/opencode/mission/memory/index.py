"""Which entries are relevant to what an agent is about to do; pure and deterministic.

An entry is relevant when it is about a file that the task writes, when it is from the task itself or
from one that it depends on, or when the task's text has enough of the entry's rare words. How rare a
word is, is its inverse document frequency over the entries (Spaerck Jones, 1972); how much is
enough is a share of the entry's whole weight, so that long texts are not relevant to everything.

Looking takes time in proportion to the words of the text and the entries that have one of them.
Weights are whole numbers, so that they do not depend on the order in which entries came.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import final

from attrs import frozen

from orchestra.opencode.mission.memory.rules import BUDGETS, MemoryEntry, MemoryTier

__all__ = ("BY_WORDS", "ENOUGH", "MemoryIndex", "Question", "words_of")

ENOUGH = 0.3
"""The share of an entry's weight that a text must have of it."""
BY_WORDS = 0.15
"""The score from which words in common are enough. What an agent only said, and nobody has used yet,
is told where files or tasks show that it is relevant."""
_LEAST_SHARED = 2
"""A single word in common is a coincidence."""
_LONGEST_TEXT = 8_000
_CORPUS = 1_000
"""How many entries there could be: with few of them no word looks common."""
_WORD = re.compile(r"[^\W_]{3,}|\d+")
_COMMON_WORDS = """
    about accept accepted add after again all also and any are because been before being but can
    change changed check code could did does done each either else ends exactly file files first
    fix for from given goal had has have how implement into its itself just make may mission must
    nor not now off one only other our out over per plan project round run said same see should so
    some such task tasks test tests than that the their them then there these they this those
    through too two under until update use used uses using very was were what when where which
    while who why will with within without work worker would write written wrong you your
"""
_COMMON = frozenset(_COMMON_WORDS.split())


def words_of(text: str) -> frozenset[str]:
    """Return the words of a text that may tell it from others.

    Args:
        text: The text; what is past its 8,000th character does not count.
    """
    found = _WORD.findall(text[:_LONGEST_TEXT].casefold())
    return frozenset(found).difference(_COMMON)


@frozen(kw_only=True)
class Question:
    """What an agent is about to do.

    Attributes:
        role: The agent's role.
        text: What it is told.
        files: Files that it will write, relative to the workspace.
        task: The task it works on; empty: the mission as a whole.
        depends: Tasks whose work it builds on.
    """

    role: str
    text: str
    files: tuple[str, ...] = ()
    task: str = ""
    depends: tuple[str, ...] = ()


@final
class MemoryIndex:
    """Entries by id, and where to find them by word, file and task.

    Args:
        entries: What is in it at the start.
    """

    def __init__(self, entries: Iterable[MemoryEntry] = ()) -> None:
        self._entries: dict[str, MemoryEntry] = {}
        self._words: dict[str, frozenset[str]] = {}
        self._weights: dict[str, int] = {}
        self._by_word: dict[str, set[str]] = {}
        self._by_place: dict[str, set[str]] = {}
        self._tokens = dict.fromkeys(MemoryTier, 0)
        for entry in entries:
            self.put(entry)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[MemoryEntry]:
        return iter(self._entries.values())

    def __contains__(self, entry_id: object) -> bool:
        return entry_id in self._entries

    def get(self, entry_id: str) -> MemoryEntry | None:
        """Return an entry; None when there is none of that id.

        Args:
            entry_id: Its id.
        """
        return self._entries.get(entry_id)

    def put(self, entry: MemoryEntry) -> None:
        """Take an entry in, in the place of one with the same id.

        Args:
            entry: The entry.
        """
        self.discard(entry.id)
        self._entries[entry.id] = entry
        self._tokens[entry.tier] += entry.tokens
        words = self._words[entry.id] = words_of(f"{entry.text} {' '.join(entry.files)}")
        self._weights[entry.id] = 0
        for word in words:
            self._hold(word, entry.id, is_held=True)
        for place in _places(entry):
            self._by_place.setdefault(place, set()).add(entry.id)

    def discard(self, entry_id: str) -> None:
        """Take an entry out, if it is there.

        Args:
            entry_id: Its id.
        """
        entry = self._entries.pop(entry_id, None)
        if entry is None:
            return
        self._tokens[entry.tier] -= entry.tokens
        for word in self._words.pop(entry_id):
            self._hold(word, entry_id, is_held=False)
        del self._weights[entry_id]
        for place in _places(entry):
            self._by_place[place].discard(entry_id)
            if not self._by_place[place]:
                del self._by_place[place]

    def _hold(self, word: str, entry_id: str, *, is_held: bool) -> None:
        """Let an entry have a word, or not any more; the others' weights follow."""
        holders = self._by_word.setdefault(word, set())
        before = _rarity(len(holders))
        if is_held:
            change = _rarity(len(holders) + 1) - before
            self._weights[entry_id] += before + change
        else:
            holders.discard(entry_id)
            change = _rarity(len(holders)) - before
        for name in holders:
            self._weights[name] += change
        if is_held:
            holders.add(entry_id)
        elif not holders:
            del self._by_word[word]

    def over_budget(self) -> list[MemoryEntry]:
        """Return all entries of the tiers that hold more than they may."""
        full = {tier for tier, tokens in self._tokens.items() if tokens > BUDGETS[tier]}
        return [entry for entry in self if entry.tier in full] if full else []

    def of_task(self, task_id: str) -> list[MemoryEntry]:
        """Return the entries that are from a task.

        Args:
            task_id: The task.
        """
        return [self._entries[name] for name in sorted(self._at({f"task:{task_id}"}))]

    def find(
        self, question: Question, worth: Callable[[MemoryEntry], float]
    ) -> list[tuple[float, MemoryEntry]]:
        """Return what is relevant, best first, with how much it is: from 0.3 to 1.

        Args:
            question: What an agent is about to do.
            worth: The entry's score; what has done more harm than good is left out, and what is
                worth little is not found by its words.
        """
        places = {f"file:{name}" for name in question.files}
        if question.task:
            places.add(f"task:{question.task}")
        places.update(f"task:{name}" for name in question.depends)
        certain = self._at({*places, "everywhere"})
        relevant = dict.fromkeys(certain, 1.0)
        relevant.update(self._by_text(question, relevant))
        found = []
        for entry_id, share in relevant.items():
            entry = self._entries[entry_id]
            value = worth(entry)
            least = BY_WORDS if entry_id not in certain else 0.0
            if value >= least and self._is_for(entry, question):
                found.append((share * (1 + value) / 2, share, entry))
        found.sort(key=lambda each: (-each[0], each[2].id))
        return [(share, entry) for _, share, entry in found]

    def _at(self, places: Iterable[str]) -> set[str]:
        return {name for place in places for name in self._by_place.get(place, ())}

    def _by_text(self, question: Question, known: dict[str, float]) -> dict[str, float]:
        """Return the entries of which the text has enough, apart from those known already."""
        words = words_of(question.text)
        shared: dict[str, int] = {}
        for word in words:
            holders = self._by_word.get(word, ())
            rarity = _rarity(len(holders))
            for name in holders:
                shared[name] = shared.get(name, 0) + rarity
        found = {}
        for name, weight in shared.items():
            share = weight / self._weights[name]
            # A person has said for which files a note is.
            is_said = self._entries[name].tier is MemoryTier.SYSTEM
            if share < ENOUGH or name in known or is_said:
                continue
            if len(words & self._words[name]) >= _LEAST_SHARED:
                found[name] = share
        return found

    @staticmethod
    def _is_for(entry: MemoryEntry, question: Question) -> bool:
        if entry.roles and question.role not in entry.roles:
            return False
        # What is wrong in a task that is not accepted concerns nobody else yet.
        return entry.tier is not MemoryTier.TASK or entry.task == question.task

    def __repr__(self) -> str:
        return f"<MemoryIndex {len(self._entries)} entries, {len(self._by_word)} words>"


@cache
def _rarity(holders: int) -> int:
    return round(1_000 * math.log(1 + _CORPUS / holders)) if holders else 0


def _places(entry: MemoryEntry) -> Iterator[str]:
    """Say where an entry is looked for besides its words."""
    yield from (f"file:{name}" for name in entry.files)
    if entry.task:
        yield f"task:{entry.task}"
    if entry.tier is MemoryTier.SYSTEM and not entry.files:
        yield "everywhere"
