"""The keys of a mission's records, in a namespace of its own that is named after its id."""

from __future__ import annotations

__all__ = (
    "ATTEMPT",
    "COPY",
    "EVIDENCE",
    "INPUT",
    "MISSION",
    "OWNER",
    "PART",
    "PLAN",
    "PROPOSAL",
    "RESULT",
    "SETUP",
    "SPENT",
    "STATE",
    "TASK",
    "TOTALS",
    "WAITS",
    "WHY",
)

MISSION = "mission"
"""Goal, state, reason: what `orchestra history` lists."""
SETUP = "setup"
"""What a mission that goes on needs besides: settings, agents, where it ran."""
STATE = "state"
"""The mission as a whole, as its machine sees it."""
PLAN = "plan"
"""The tasks of all plans, each with the number of its plan."""
PROPOSAL = "proposal"
"""The plan that waits for an approval."""
PART = "part/"
"""A task that races for another one, or is a piece of it."""
TASK = "task/"
"""All that is known of a task under way."""
EVIDENCE = "evidence/"
"""The change that a task's reviewer is shown."""
ATTEMPT = "attempt/"
"""Session and id of a prompt, written before it is sent; gone with its session."""
COPY = "copy/"
"""The folder with the copy of the workspace that a task works in, written before it is made."""
INPUT = "input/"
"""The digest of a task's files before anybody worked on it."""
RESULT = "result/"
"""Of an accepted task: what it was made of, and its files' digests afterwards."""
SPENT = "spent/"
"""What a turn has cost, by its name."""
WHY = "why/"
"""Why a task that was accepted ran once more."""
TOTALS = "totals"
"""What the turns that have been taken notice of have consumed."""
WAITS = "waits/"
"""What tasks have waited for, one key for each commit with news of it."""
OWNER = "owner"
"""The number of the owner who may write here; an earlier one is refused."""
