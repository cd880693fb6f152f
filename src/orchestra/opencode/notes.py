"""What the command line notes about a mission in its records, for ``orchestra resume``."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import attrs
from attrs import frozen

from orchestra.errors import ConfigurationError
from orchestra.opencode.mission.file import BackendKind
from orchestra.opencode.mission.isolation import IsolationKind
from orchestra.opencode.mission.saved import SavedMission

__all__ = (
    "JobOptions",
    "environment",
    "leftover_marker",
    "marked_children",
    "recall",
    "take_notes",
)

_RUN = "ORCHESTRA_RUN_ID"
_KEPT = (
    "max_workers",
    "isolation",
    "max_tokens",
    "max_cost",
    "max_time",
    "must_approve",
    "notify",
    "project_agents",
)


@frozen(kw_only=True)
class JobOptions:
    """What the command line asks for.

    Attributes:
        mission: A goal, or the name of a mission file.
        backend: Where the agents run; None: what the mission file says.
        url: The server to attach to.
        model: The model of every role.
        directory: The workspace.
        max_workers: Workers at once.
        isolation: Where workers work.
        project_agents: Whether the agents file of the workspace is read.
        must_approve: Whether somebody must approve the plan.
        notify: Whether people are told when the mission is over.
        event_log: A file for JSON lines.
        max_tokens: Model tokens of the whole mission.
        max_cost: US dollars of the whole mission.
        max_time: Seconds of the whole mission.
        password: The server's password.
    """

    mission: str
    backend: BackendKind | None = None
    url: str | None = None
    model: str | None = None
    directory: Path | None = None
    max_workers: int | None = None
    isolation: IsolationKind | None = None
    project_agents: bool = False
    must_approve: bool = False
    notify: bool = False
    event_log: Path | None = None
    max_tokens: int | None = None
    max_cost: float | None = None
    max_time: float | None = None
    password: str | None = attrs.field(default=None, repr=False)


def take_notes(options: JobOptions) -> dict[str, Any]:
    """Return what is noted: no password, also not the one in a URL.

    ``run`` marks the processes of a server of our own, so that what a killed process has left
    behind is known by it, and nothing else is.

    Args:
        options: What the command line asks for.
    """
    is_file = os.path.isfile(options.mission)  # noqa: PTH113  (never raises)
    return {
        "mission": os.path.abspath(options.mission) if is_file else options.mission,  # noqa: PTH100
        "backend": options.backend,
        "url": _without_password(options.url),
        "model": options.model,
        **{name: getattr(options, name) for name in _KEPT},
        "event_log": os.path.abspath(options.event_log) if options.event_log else None,  # noqa: PTH100
        "run": secrets.token_hex(16),
    }


def _without_password(url: str | None) -> str | None:
    if url is None or "@" not in url:
        return url
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def environment(notes: Mapping[str, Any]) -> dict[str, str]:
    """Return what marks the processes of a server of our own.

    Args:
        notes: From `take_notes`.
    """
    return {_RUN: str(notes["run"])}


@contextmanager
def marked_children(notes: Mapping[str, Any]) -> Iterator[None]:
    """Mark whatever this process starts during a block: servers, commands of agents, checks.

    Args:
        notes: From `take_notes`.
    """
    before = {name: os.environ.get(name) for name in environment(notes)}
    os.environ.update(environment(notes))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def recall(saved: SavedMission, *, url: str | None, password: str | None) -> JobOptions:
    """Return what the command line asked for when a mission was started.

    Args:
        saved: The mission.
        url: Where the server is now; None: where it was.
        password: The server's password.

    Raises:
        ConfigurationError: The mission was not started by the command line.
    """
    notes = saved.launch
    if "mission" not in notes:
        raise ConfigurationError(
            f"mission {saved.id} was not started by 'orchestra run'; go on with it from Python, "
            "with resume_mission()"
        )
    return JobOptions(
        mission=notes["mission"],
        backend=notes["backend"],
        url=url or notes["url"],
        model=notes["model"],
        **{name: notes[name] for name in _KEPT if name in notes},
        event_log=Path(notes["event_log"]) if notes.get("event_log") else None,
        directory=saved.directory,
        password=password,
    )


def leftover_marker(notes: Mapping[str, Any]) -> str:
    """Return the environment entry of the processes that an earlier run has started.

    Args:
        notes: From `take_notes`.
    """
    return f"{_RUN}={notes.get('run')}"
