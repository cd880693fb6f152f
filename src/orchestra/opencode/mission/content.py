"""What an accepted result is known by: its content, not its place in the plan or in time.

The key of a result is a digest over the task, the keys of what it depends on, its files as they
were before, the worker's prompt and the model. With it stand the digests of its files afterwards.
A mission that goes on pays for an accepted task once more only when one of these is another now.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen

from orchestra import Agent
from orchestra.opencode.mission.plain import spec_to_plain
from orchestra.opencode.mission.plan import TaskSpec

__all__ = ("Result", "digest_files", "digest_of", "prompt_digest", "task_digest")

_ABSENT = ""
_MAX_READ = 64 << 20
"""Bytes of a file up to which its contents count; of a larger one size and time do."""


def digest_of(*parts: object) -> str:
    """Return a digest of plain data; the order of dict keys does not matter.

    Args:
        *parts: Texts, numbers, lists and dicts.
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:32]


def task_digest(spec: TaskSpec) -> str:
    """Return a digest of what a task is; in which order it is done does not count.

    Args:
        spec: The task.
    """
    plain = spec_to_plain(spec)
    del plain["priority"]
    plain["depends"] = sorted(plain["depends"])
    return digest_of(plain)


def prompt_digest(agent: Agent) -> str:
    """Return a digest of what an agent is told in general, which is its version.

    Args:
        agent: The agent.
    """
    return digest_of(agent.name, agent.prompt)


def digest_files(directory: Path, paths: Iterable[str]) -> dict[str, str]:
    """Return the digest of each file; of one that is not there, an empty text. Reads files.

    Args:
        directory: The workspace.
        paths: Relative to it.
    """
    return {path: _digest_file(os.path.join(directory, path)) for path in paths}  # noqa: PTH118


def _digest_file(path: str) -> str:
    try:
        if os.path.islink(path):  # noqa: PTH114
            return hashlib.sha256(b"link:" + os.fsencode(os.readlink(path))).hexdigest()  # noqa: PTH115
        info = os.stat(path)  # noqa: PTH116
        if info.st_size > _MAX_READ:
            return hashlib.sha256(f"large:{info.st_size}:{info.st_mtime_ns}".encode()).hexdigest()
        with open(path, "rb") as file:  # noqa: PTH123
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):  # a folder, or a name that no file can have
        return _ABSENT


@frozen(kw_only=True)
class Result:
    """What an accepted task was made of, and what it has left.

    Attributes:
        task: The digest of its specification.
        depends: The key of each task that it depends on.
        before: The digest of its files before anybody worked on it.
        prompt: The version of its worker's prompt.
        model: The model of its worker; empty: the backend's own.
        after: The digest of each of its files when it was accepted.
    """

    task: str
    depends: Mapping[str, str] = field(factory=dict)
    before: str = ""
    prompt: str = ""
    model: str = ""
    after: Mapping[str, str] = field(factory=dict)

    @property
    def key(self) -> str:
        """What names it: the digest of all that went in."""
        depends = dict(sorted(self.depends.items()))
        return digest_of(self.task, depends, self.before, self.prompt, self.model)

    def plain(self) -> dict[str, Any]:
        """Return its plain form."""
        return {
            "key": self.key,
            "task": self.task,
            "depends": dict(self.depends),
            "before": self.before,
            "prompt": self.prompt,
            "model": self.model,
            "after": dict(self.after),
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Result:
        """Return the result of a plain form.

        Args:
            plain: What `plain` returned.
        """
        known = ("task", "depends", "before", "prompt", "model", "after")
        return cls(**{name: plain[name] for name in known if name in plain})
