"""Where workers work, and how what they changed gets into the workspace: the contract.

A mission has one `Workplaces`. A task gets a `Workplace` with its first turn and keeps it until
its change is taken over or discarded. Some are the workspace itself, others a copy of it; a mission
does not see the difference.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from attrs import field, frozen

__all__ = ("Change", "Taken", "Workplace", "WorkplaceError", "Workplaces")


class WorkplaceError(Exception):
    """A workplace cannot be made, or not be worked in; the message is for people."""


@frozen(kw_only=True)
class Change:
    """What somebody has changed, as we saw it ourselves.

    Attributes:
        tree: Digest of the files that it is about, in hexadecimal: of a task those that it has a
            lease on and those that it changed, of a mission the whole workspace.
        directory: Where it can be looked at.
        changed: Files that changed, relative to the directory, at most 1,000.
        strays: Files that the task changed without a lease on them, at most 1,000. They are not
            part of the change any more: they were put back.
        problems: Why it cannot be taken for the task's work, one sentence each.
        diff: The change as a unified diff of bounded length.
    """

    tree: str
    directory: Path
    changed: tuple[str, ...] = ()
    strays: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    diff: str = field(default="", repr=False)


@frozen(kw_only=True)
class Taken:
    """What became of a change that was to be taken over.

    Attributes:
        problem: Why it was not, for the worker; empty: it was.
        is_moved: Whether that is because the files are not those any more that were checked.
    """

    problem: str = ""
    is_moved: bool = False


class Workplace(ABC):
    """Where one task is worked on; from `Workplaces.open`."""

    @property
    @abstractmethod
    def directory(self) -> Path:
        """Where its worker works and its commands run."""

    @property
    @abstractmethod
    def is_left(self) -> bool:
        """Whether its task has left it: what the task does next, it does elsewhere."""

    @abstractmethod
    def at_work(self) -> AbstractAsyncContextManager[None]:
        """Say that the task's worker is at work during this block.

        What it leaves at the end is the task's; what others change in it afterwards is not.
        """

    @abstractmethod
    def checking(self) -> AbstractAsyncContextManager[None]:
        """Say that commands of ours check the task during this block, after a `look`.

        What they do to the task's own files (a formatter does) is its change too; what else they
        leave is not.
        """

    @abstractmethod
    def on_edit(self, path: str) -> None:
        """A tool call of the task's worker has written a file.

        Args:
            path: As the call named it.
        """

    @abstractmethod
    async def look(self) -> Change:
        """Tell what the task has changed since it began; what is not its own is put aside first.

        A checkpoint.
        """

    @abstractmethod
    async def before(self, path: str) -> bytes | None:
        """Tell what a file held before the task changed it; None: nothing, or nobody knows.

        A checkpoint.

        Args:
            path: The file, relative to the directory.
        """

    @abstractmethod
    async def integrate(self, tree: str) -> Taken:
        """Take the change over into the workspace, if it still is what was checked. A checkpoint.

        Afterwards the task has left its workplace.

        Args:
            tree: `Change.tree` of what was checked.
        """

    @abstractmethod
    async def discard(self) -> None:
        """Leave the workplace without a change that counts, once nobody is at work there.

        What was done in a copy does not get into the workspace. Idempotent. A checkpoint.
        """


class Workplaces(ABC):
    """A mission's workplaces. `begin` first, `aclose` last."""

    @property
    @abstractmethod
    def warnings(self) -> list[str]:
        """What should be known of strays and other oddities, in order; whoever tells it empties it."""

    @abstractmethod
    async def begin(self) -> None:
        """Look at the workspace before anybody changes it. A checkpoint.

        Raises:
            WorkplaceError: This mission cannot work there.
        """

    @abstractmethod
    def recall(self, before: Mapping[str, Mapping[str, str]]) -> None:
        """Say how files were before tasks were first worked on, by an earlier process.

        Args:
            before: For each task the SHA-256 of each file, in hexadecimal; empty: it was not there.
        """

    @abstractmethod
    async def open(
        self,
        task_id: str,
        files: Sequence[str],
        *,
        is_apart: bool = False,
        position: float = 0,
        parts: Sequence[str] = (),
        is_resumed: bool = False,
    ) -> Workplace:
        """Give a task its workplace for the attempt that begins, or the one that it has.

        The leases on its files are taken anew: what holds older ones, an earlier attempt of the
        same task too, can take over nothing any more. A checkpoint.

        Args:
            task_id: The task.
            files: What it may write, relative to the workspace; none: any file that nobody has a
                lease on.
            is_apart: Whether it must be a copy of the workspace.
            position: The task's place in the plan.
            parts: The tasks that it was split into: what was accepted of them is its change too.
            is_resumed: Whether an earlier process has begun with it: what that one has saved of the
                task's work is there again, as far as it can be.

        Raises:
            WorkplaceError: There cannot be one.
        """

    @abstractmethod
    async def is_taken(self, task_id: str, files: Sequence[str], tree: str) -> bool:
        """Whether an earlier process has taken a change over, and was ended before it could say so.

        Then the task has left its workplace. A checkpoint.

        Args:
            task_id: The task, which nobody has been given a workplace for.
            files: What it may write.
            tree: `Change.tree` of what was to be taken over.
        """

    @abstractmethod
    def find(self, task_id: str) -> Workplace | None:
        """Return the workplace that a task has, and has not left.

        Args:
            task_id: The task.
        """

    @abstractmethod
    async def leave(self, task_id: str, *, split_at: float | None = None) -> None:
        """Let a task leave its workplace, if it has one, without a change that counts.

        A checkpoint.

        Args:
            task_id: The task.
            split_at: Its place in the plan if it goes on in parts: those that come after it are
                taken over after them. None: it has ended.
        """

    @abstractmethod
    def at_work(self) -> AbstractAsyncContextManager[None]:
        """Say that one of the mission's own commands is at work in the workspace."""

    @abstractmethod
    async def whole(self) -> Change:
        """Tell what the whole mission has changed in the workspace since it began. A checkpoint."""

    @abstractmethod
    async def before(self, path: str) -> bytes | None:
        """Tell what a file of the workspace held at first; None: nothing, or nobody knows.

        A checkpoint.

        Args:
            path: The file, relative to the workspace.
        """

    @abstractmethod
    def abandon(self) -> None:
        """Leave everything as it is: somebody else carries the mission on, and has it now."""

    @abstractmethod
    async def aclose(self) -> None:
        """Give everything back. Work in copies that was not taken over is kept aside first."""
