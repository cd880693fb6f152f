"""The rules of memory: entries in tiers, their scores, and what is dropped; pure.

The clock is a number: every mission of a project takes the next one when it starts. An entry's
score is an exponential moving average over it, with one signal per mission: from +1 (every round
begun with the entry in the prompt was accepted) over 0 (nobody was told it) to -1 (every such round
was rejected). Such an average is a sum of signals, each faded by its age, so that missions may
report in any order (forward decay: Cormode, Shkapenyuk, Srivastava and Xu, "Forward Decay: A
Practical Time Decay Model for Streaming Systems", ICDE 2009).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container, Iterable, Mapping
from enum import Enum
from typing import Any, NamedTuple

from attrs import evolve, field, frozen, validators

__all__ = (
    "BUDGETS",
    "CHARACTERS_PER_TOKEN",
    "FADING",
    "FIRST_SCORE",
    "MAX_ENTRY",
    "PROVEN",
    "Contribution",
    "MemoryEntry",
    "MemorySettings",
    "MemorySource",
    "MemoryTier",
    "Tally",
    "combine",
    "drop_least",
    "entry_from_plain",
    "entry_id",
    "entry_to_plain",
    "new_entry",
    "observe",
    "settle",
)

CHARACTERS_PER_TOKEN = 4
"""A token is counted as four characters, whatever the model."""
MAX_ENTRY = 600
"""Characters of one entry's text."""
FADING = 0.3
"""What a score loses when a mission passes; also the weight of the mission's own signal."""
PROVEN = 0.25
"""The score from which what a mission has learned is kept for the project."""
_MAX_FILES = 20
_WORDS = re.compile(r"\w+")


class MemoryTier(Enum):
    """How long something is remembered, and for whom."""

    SYSTEM = "system"
    """What a person has said: told to every agent that it is for, and never dropped for its age."""
    PROJECT = "project"
    """What has proved good in a mission; lives as long as it helps."""
    MISSION = "mission"
    """What accepted tasks of this mission have shown."""
    TASK = "task"
    """What went wrong in a task that is not accepted yet."""


BUDGETS: Mapping[MemoryTier, int] = {
    MemoryTier.SYSTEM: 2_000,
    MemoryTier.PROJECT: 5_000,
    MemoryTier.MISSION: 10_000,
    MemoryTier.TASK: 20_000,
}
"""How many tokens each tier may hold."""

_DURABILITY = {
    MemoryTier.SYSTEM: 3,
    MemoryTier.PROJECT: 2,
    MemoryTier.MISSION: 1,
    MemoryTier.TASK: 0,
}


class MemorySource(Enum):
    """Where an entry is from."""

    PERSON = "person"
    REVIEW = "review"
    """A reviewer's reason (or a check of ours) that a later round was accepted after."""
    COMMAND = "command"
    """An acceptance command that failed and later passed."""
    BRIEF = "brief"
    """What the commander has seen: where things are, what to take care of."""
    SUMMARY = "summary"
    """What the worker of an accepted task says it did."""


FIRST_SCORE: Mapping[MemorySource, float] = {
    MemorySource.PERSON: 1.0,
    # Somebody stumbled and found the way out: that is evidence. What was only said must earn it.
    MemorySource.REVIEW: 0.5,
    MemorySource.COMMAND: 0.5,
    MemorySource.BRIEF: 0.1,
    MemorySource.SUMMARY: 0.1,
}
"""The score with which an entry begins."""


@frozen(kw_only=True)
class MemorySettings:
    """Whether and how much a mission remembers.

    Attributes:
        is_on: Whether anything is learned and told.
        characters: The most that one session is told, in bytes of UTF-8; with the role's own prompt
            it is never more than 4,000.
    """

    is_on: bool = True
    characters: int = field(default=2_000, validator=[validators.ge(0), validators.le(4_000)])


class Tally(NamedTuple):
    """How rounds ended in which an agent was told an entry."""

    helped: int = 0
    hurt: int = 0

    def plus(self, other: Tally) -> Tally:
        """Return both together.

        Args:
            other: The other one.
        """
        return Tally(self.helped + other.helped, self.hurt + other.hurt)

    @property
    def signal(self) -> float:
        """From -1 (no round was accepted) to 1 (all were); 0 when there was none."""
        total = self.helped + self.hurt
        return (self.helped - self.hurt) / total if total else 0.0


@frozen(kw_only=True)
class MemoryEntry:
    """Something that is remembered.

    Attributes:
        id: Short; the same for the same thing, wherever it was learned.
        tier: How long it is kept.
        text: What is told, at most 600 characters.
        source: Where it is from.
        files: The files it is about, relative to the workspace; none: not about files.
        roles: Whom it is for; none: for every agent.
        task: In the tiers of a mission: the task that it is from.
        at: The mission's number for which the two parts of the score hold.
        first: What is left of the score it began with.
        earned: What the missions since have made of it.
        tally: How often it was told, and how that ended.
    """

    id: str
    tier: MemoryTier
    text: str = field(validator=[validators.min_len(1), validators.max_len(MAX_ENTRY)])
    source: MemorySource
    files: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    task: str = ""
    at: int = 0
    first: float = 0.0
    earned: float = 0.0
    tally: Tally = field(factory=Tally)

    @property
    def tokens(self) -> int:
        """What it takes of its tier's budget."""
        return -(-len(self.text) // CHARACTERS_PER_TOKEN)

    @property
    def uses(self) -> int:
        """In how many rounds it was told."""
        return self.tally.helped + self.tally.hurt

    def score(self, now: int) -> float:
        """Return what it is worth, from -1 to 1.

        Args:
            now: The present mission's number.
        """
        if self.tier is MemoryTier.SYSTEM:
            return 1.0
        value = (self.first + self.earned) * (1 - FADING) ** max(now - self.at, 0)
        return min(max(value, -1.0), 1.0)

    def aged(self, now: int) -> MemoryEntry:
        """Return the same entry with its score stated for a later mission.

        Args:
            now: That mission's number; an earlier one changes nothing.
        """
        if now <= self.at:
            return self
        left: float = (1 - FADING) ** (now - self.at)
        return evolve(self, at=now, first=self.first * left, earned=self.earned * left)


def entry_id(text: str) -> str:
    """Return the id of what a text says: capitals, spaces and punctuation do not count.

    Args:
        text: What is remembered, or what it is about.
    """
    words = " ".join(_WORDS.findall(text.casefold()))
    return hashlib.sha256(words.encode("utf-8", "replace")).hexdigest()[:10]


def new_entry(
    tier: MemoryTier,
    source: MemorySource,
    text: str,
    *,
    about: str = "",
    files: Iterable[str] = (),
    roles: Iterable[str] = (),
    task: str = "",
    now: int = 0,
) -> MemoryEntry:
    """Return an entry with the score that its source begins with.

    Args:
        tier: How long it is kept.
        source: Where it is from.
        text: What is told; cut at 600 characters.
        about: What makes it the same as another entry; empty: the text.
        files: The files it is about.
        roles: Whom it is for; none: every agent.
        task: The task that it is from.
        now: The present mission's number.
    """
    return MemoryEntry(
        id=entry_id(about or text),
        tier=tier,
        text=text[:MAX_ENTRY],
        source=source,
        files=tuple(sorted(set(files))[:_MAX_FILES]),
        roles=tuple(sorted(set(roles))),
        task=task,
        at=now,
        first=FIRST_SCORE[source],
    )


def observe(entry: MemoryEntry, tally: Tally, mission: int) -> MemoryEntry:
    """Add what came of telling it in one mission.

    Args:
        entry: The entry.
        tally: How the rounds ended.
        mission: The mission's number.
    """
    now = max(entry.at, mission)
    late: float = (1 - FADING) ** (now - mission)
    entry = entry.aged(now)
    return evolve(
        entry,
        earned=entry.earned + FADING * tally.signal * late,
        tally=entry.tally.plus(tally),
    )


def combine(one: MemoryEntry, other: MemoryEntry) -> MemoryEntry:
    """Make one entry of two that say the same, learned in two places.

    What comes out does not depend on which is named first.

    Args:
        one: An entry.
        other: Another one with the same id.
    """
    now = max(one.at, other.at)
    one, other = one.aged(now), other.aged(now)
    # Whoever has more standing says it; between equals the shorter text, then the alphabet.
    best = max(one, other, key=lambda entry: _DURABILITY[entry.tier])
    if one.tier is other.tier:
        best = min(one, other, key=_wording)
    files = sorted({*one.files, *other.files})[:_MAX_FILES]
    roles = sorted({*one.roles, *other.roles}) if one.roles and other.roles else ()
    return evolve(
        best,
        files=tuple(files) if one.files and other.files else (),
        roles=tuple(roles),
        at=now,
        first=max(one.first, other.first),
        earned=one.earned + other.earned,
        tally=one.tally.plus(other.tally),
    )


def _wording(entry: MemoryEntry) -> tuple[object, ...]:
    return (len(entry.text), entry.text, entry.source.value, entry.task)


@frozen(kw_only=True)
class Contribution:
    """What a mission leaves to its project.

    Attributes:
        number: The mission's number.
        learned: Its own entries, of whatever tier.
        tallies: How the rounds ended in which an entry was told, by the entry's id.
    """

    number: int
    learned: tuple[MemoryEntry, ...] = ()
    tallies: Mapping[str, Tally] = field(factory=dict)


def settle(
    entries: Mapping[str, MemoryEntry],
    contribution: Contribution,
    *,
    forgotten: Container[str] = (),
) -> dict[str, MemoryEntry]:
    """Add what a mission leaves to the entries of its project.

    What an accepted task has shown is promoted once its score is `PROVEN`; the rest is gone. In
    which order missions do this makes no difference; budgets are for `drop_least`.

    Args:
        entries: The project's, by id.
        contribution: What the mission leaves.
        forgotten: Ids of what somebody does not want to be remembered.
    """
    settled = dict(entries)
    number = contribution.number
    for entry in contribution.learned:
        tally = contribution.tallies.get(entry.id, Tally())
        is_proven = observe(entry, tally, number).score(number) >= PROVEN
        if entry.tier is not MemoryTier.MISSION or entry.id in forgotten or not is_proven:
            continue
        promoted = evolve(entry, tier=MemoryTier.PROJECT, task="")
        known = settled.get(entry.id)
        settled[entry.id] = promoted if known is None else combine(known, promoted)
    for name, tally in contribution.tallies.items():
        if name in settled:
            settled[name] = observe(settled[name], tally, number)
    return settled


def drop_least(
    entries: Iterable[MemoryEntry], now: int, budgets: Mapping[MemoryTier, int] = BUDGETS
) -> tuple[list[MemoryEntry], list[MemoryEntry]]:
    """Bring each tier within its budget; what is worth least goes first.

    Args:
        entries: Entries with different ids.
        now: The present mission's number.
        budgets: Tokens for each tier.

    Returns:
        What stays and what is dropped, both from the most to the least worth.
    """
    ranked = sorted(entries, key=lambda entry: (-entry.score(now), -entry.uses, entry.id))
    room = dict(budgets)
    kept: list[MemoryEntry] = []
    dropped: list[MemoryEntry] = []
    for entry in ranked:
        # Once something did not fit, nothing that is worth less takes its place.
        room[entry.tier] -= entry.tokens
        (kept if room[entry.tier] >= 0 else dropped).append(entry)
    return kept, dropped


def entry_to_plain(entry: MemoryEntry) -> dict[str, Any]:
    """Return an entry's plain form.

    Args:
        entry: The entry.
    """
    return {
        "id": entry.id,
        "tier": entry.tier.value,
        "text": entry.text,
        "source": entry.source.value,
        "files": list(entry.files),
        "roles": list(entry.roles),
        "task": entry.task,
        "at": entry.at,
        "first": entry.first,
        "earned": entry.earned,
        "tally": list(entry.tally),
    }


def entry_from_plain(plain: Mapping[str, Any]) -> MemoryEntry:
    """Return the entry of a plain form.

    Args:
        plain: What `entry_to_plain` returned.
    """
    return MemoryEntry(
        id=plain["id"],
        tier=MemoryTier(plain["tier"]),
        text=plain["text"],
        source=MemorySource(plain["source"]),
        files=tuple(plain.get("files", ())),
        roles=tuple(plain.get("roles", ())),
        task=plain.get("task", ""),
        at=plain.get("at", 0),
        first=plain.get("first", 0.0),
        earned=plain.get("earned", 0.0),
        tally=Tally(*plain.get("tally", (0, 0))),
    )
