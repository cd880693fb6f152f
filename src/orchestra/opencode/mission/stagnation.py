"""Sees that nothing moves any more. It compares digests, so it costs no tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from enum import Enum
from hashlib import sha256
from typing import Any, final

from attrs import frozen

from orchestra.opencode.mission.report import Receipt

__all__ = ("Facts", "Stagnation", "Step", "digest", "facts_of")


def digest(*texts: str) -> str:
    """Return a short digest of texts, in their order.

    Args:
        *texts: What to compare by.
    """
    total = sha256()
    for text in texts:
        data = text.encode("utf-8", "replace")
        total.update(f"{len(data)}:".encode())
        total.update(data)
    return total.hexdigest()[:16]


@frozen(kw_only=True)
class Facts:
    """What a round has led to; facts that were there before mean that nothing has moved.

    Attributes:
        tree: Digest of the files that the work is about.
        evidence: Digest of what we checked ourselves: which commands failed how, which findings.
        state: Digest of the states of what it consists of; empty for a single task.
    """

    tree: str
    evidence: str
    state: str = ""

    @property
    def digest(self) -> str:
        """Equal for equal facts."""
        return digest(self.tree, self.evidence, self.state)


def facts_of(receipt: Receipt) -> Facts:
    """Return what a round has led to, as far as it can be compared with the next one's.

    Args:
        receipt: What we checked after the round.
    """
    evidence = [
        f"{' '.join(result.argv)} {result.exit_code} {result.error} {result.refusal}"
        for result in receipt.commands
    ]
    evidence += [f"{finding.path}: {finding.message}" for finding in receipt.findings]
    return Facts(tree=receipt.tree, evidence=digest(*evidence, *receipt.problems))


class Step(Enum):
    """What is done about a lack of progress, in this order."""

    NONE = "none"
    DIAGNOSE = "diagnose"
    """One turn in the same session, with the facts."""
    CHANGE = "change"
    """A changed strategy: a fresh session, another model, leave to split."""
    STOP = "stop"


_MAX_SEEN = 16
"""Facts that are kept to be compared with."""
_LADDER = (Step.DIAGNOSE, Step.CHANGE, Step.STOP)


@final
class Stagnation:
    """Counts rounds in a row that have led only to where the work has been before.

    Not only to where it has just been: who changes a file back and forth goes nowhere either.

    Args:
        rounds: Equal rounds in a row before the first step.
    """

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds
        self._seen: deque[str] = deque(maxlen=_MAX_SEEN)
        self._equal = 0

    @property
    def equal(self) -> int:
        """Rounds in a row that have moved nothing."""
        return self._equal

    def observe(self, facts: Facts) -> Step:
        """Take a round's facts and say what is to be done.

        Args:
            facts: What the round has led to.
        """
        if facts.digest not in self._seen:
            self._seen.append(facts.digest)
            self._equal = 0
            return Step.NONE
        self._equal += 1
        # The round that sets the mark is itself the first of an equal row.
        beyond = self._equal + 1 - self._rounds
        return Step.NONE if beyond < 0 else _LADDER[min(beyond, len(_LADDER) - 1)]

    def plain(self) -> dict[str, object]:
        """Return what has to be kept for `restore`."""
        return {"equal": self._equal, "seen": list(self._seen)}

    @classmethod
    def restore(cls, rounds: int, plain: Mapping[str, Any]) -> Stagnation:
        """Return one that goes on where another stopped.

        Args:
            rounds: As for the constructor.
            plain: What `plain` returned.
        """
        made = cls(rounds)
        made._seen.extend(plain.get("seen", ()))
        made._equal = plain.get("equal", 0)
        return made

    def __repr__(self) -> str:
        return f"<Stagnation {self._equal} equal rounds>"
