"""Git as this package uses it: never from the workspace, without hooks, without anybody's name."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import final

from orchestra import run_command

__all__ = ("Git", "GitError", "find_git", "split")

_SAFE = (
    "-c",
    f"core.hooksPath={os.devnull}",
    "-c",
    "core.fsmonitor=false",
    "-c",
    "core.quotePath=false",
    "-c",
    "commit.gpgSign=false",
    "-c",
    "gc.auto=0",
)
_NAME = {
    "GIT_AUTHOR_NAME": "orchestra",
    "GIT_AUTHOR_EMAIL": "orchestra@localhost",
    "GIT_COMMITTER_NAME": "orchestra",
    "GIT_COMMITTER_EMAIL": "orchestra@localhost",
    "GIT_TERMINAL_PROMPT": "0",
    "LC_ALL": "C",
}
_OUTPUT_LIMIT = 32 << 20
_TIMEOUT = 300.0


class GitError(Exception):
    """Git did not do what it was told to; the message is what it said."""


def find_git(directory: Path) -> str | None:
    """Return git's path; one inside the workspace, which agents write, is not taken. Blocks.

    Args:
        directory: The workspace.
    """
    workspace = os.path.realpath(directory)
    for folder in os.get_exec_path():
        path = os.path.join(folder, "git.exe" if os.name == "nt" else "git")  # noqa: PTH118
        if not os.path.isabs(folder) or not os.access(path, os.X_OK):  # noqa: PTH117
            continue
        if os.path.commonpath((workspace, os.path.realpath(path))) != workspace:
            return path
    return None


@final
class Git:
    """Runs git in one directory.

    Args:
        executable: Git's path.
        directory: Where it runs.
    """

    def __init__(self, executable: str, directory: Path) -> None:
        self._executable = executable
        self.directory: Path = directory

    def at(self, directory: Path) -> Git:
        """Return the same git in another directory.

        Args:
            directory: Where it runs.
        """
        return Git(self._executable, directory)

    async def run(self, *words: str, stdin: str = "", index: Path | None = None) -> str:
        """Run a command and return what it printed. A checkpoint.

        Args:
            *words: The command and its arguments.
            stdin: What it reads.
            index: The index that it uses in place of the repository's own.

        Raises:
            GitError: It failed, or could not be started.
        """
        code, out, err = await self.ask(*words, stdin=stdin, index=index)
        if code:
            said = (err or out).strip().splitlines()
            reason = said[-1][:500] if said else f"it ended with exit code {code}"
            raise GitError(f"git {words[0]}: {reason}")
        return out

    async def ask(
        self, *words: str, stdin: str = "", index: Path | None = None
    ) -> tuple[int, str, str]:
        """Run a command whose exit code says something. A checkpoint.

        Args:
            *words: The command and its arguments.
            stdin: What it reads.
            index: The index that it uses in place of the repository's own.

        Returns:
            Its exit code and what it printed on both outputs.

        Raises:
            GitError: It could not be started, or took too long.
        """
        try:
            done = await run_command(
                [self._executable, *_SAFE, *words],
                directory=self.directory,
                stdin=stdin,
                environment=_environment(os.environ, index),
                timeout=_TIMEOUT,
                output_limit=_OUTPUT_LIMIT,
            )
        except OSError as exc:
            raise GitError(f"git cannot be started: {exc.strerror or exc}") from exc
        if done.is_timed_out:
            raise GitError(f"git {words[0]} was stopped after {_TIMEOUT:g} s")
        return done.exit_code, done.stdout, done.stderr

    def __repr__(self) -> str:
        return f"<Git {self.directory}>"


def _environment(environment: Mapping[str, str], index: Path | None) -> dict[str, str]:
    """Return an environment in which nothing but the directory says which repository it is."""
    kept = {name: value for name, value in environment.items() if not name.startswith("GIT_")}
    kept.update(_NAME)
    if index is not None:
        kept["GIT_INDEX_FILE"] = str(index)
    return kept


def split(text: str) -> Sequence[str]:
    """Split what git printed with ``-z``.

    Args:
        text: The output.
    """
    return [each for each in text.split("\0") if each]
