"""A git repository under a workspace: snapshots, merges and salvage, by plumbing alone.

The user's branch, index and uncommitted work are never touched: every step uses an index of its
own, and the workspace changes only by what a merge has brought.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import final

import anyio
import anyio.to_thread
from attrs import frozen

from orchestra.opencode.mission.git import Git, GitError, find_git, split
from orchestra.opencode.mission.workplaces import WorkplaceError

__all__ = ("Merge", "Repository", "open_repository")

_MAX_TRIES = 5
_DELAY = 0.05
"""Seconds before something is tried again."""
_GITLINK = "160000"


@frozen(kw_only=True)
class Merge:
    """What came of a merge.

    Attributes:
        tree: The merged tree; files in conflict have markers in it.
        conflicts: Those files.
    """

    tree: str
    conflicts: tuple[str, ...] = ()


async def open_repository(directory: Path, *, skipped: Sequence[str] = ()) -> Repository | None:
    """Return the repository that a directory is in; None: there is none. A checkpoint.

    Args:
        directory: The workspace.
        skipped: Paths, relative to it, that are never taken along.
    """
    executable = await anyio.to_thread.run_sync(find_git, directory)
    if executable is None:
        return None
    git = Git(executable, directory)
    try:
        top = (await git.run("rev-parse", "--show-toplevel")).rstrip("\n")
        prefix = (await git.run("rev-parse", "--show-prefix")).rstrip("\n")
        help_text = (await git.ask("merge-tree", "-h"))[1:]
    except GitError:
        return None
    if "--write-tree" not in "".join(help_text):
        raise WorkplaceError("git is too old to merge beside the workspace; install 2.38 or newer")
    return Repository(git.at(Path(top)), prefix, skipped)


@final
class Repository:
    """Works with trees and commits of one repository; from `open_repository`.

    Args:
        git: Git at the top of the repository's own worktree.
        prefix: The workspace, relative to that; empty, or with a ``/`` at its end.
        skipped: Paths, relative to the workspace, that are never taken along.
    """

    def __init__(self, git: Git, prefix: str, skipped: Sequence[str]) -> None:
        self.git: Git = git
        self.prefix: str = prefix
        excluded = [f":(top,exclude,literal){prefix}{path}" for path in skipped if path]
        # Beside such a file is its next version for a moment, before it takes its place.
        excluded += [f":(top,exclude,glob){_drafts_of(prefix + path)}" for path in skipped if path]
        self._pathspec = [f":(top,literal){prefix}" if prefix else ":(top)", *excluded]

    async def tree(self, top: Path, index: Path, *, forced: Sequence[str] = ()) -> str:
        """Write what a worktree holds, untracked files too, as a tree. A checkpoint.

        Args:
            top: The worktree.
            index: The index that is used; made from the worktree's HEAD when it is not there.
            forced: Files that are taken along even if they are ignored.

        Raises:
            GitError: It cannot be written.
        """
        git = self.git.at(top)
        if not await anyio.Path(index).exists():
            code, _, _ = await git.ask("rev-parse", "--verify", "--quiet", "HEAD")
            await git.run("read-tree", *(["--empty"] if code else ["HEAD"]), index=index)
        await self._add_all(git, index)
        there = [path for path in forced if await anyio.Path(top, self.prefix, path).is_file()]
        if there:
            names = [f":(top,literal){self.prefix}{path}" for path in there]
            await git.run("add", "--force", "--", *names, index=index)
        return (await git.run("write-tree", index=index)).strip()

    async def _add_all(self, git: Git, index: Path) -> None:
        """Add what there is. Files that come and go meanwhile, as editors make them, fail it."""
        for tries_left in reversed(range(_MAX_TRIES)):
            try:
                await git.run("add", "--all", "--", *self._pathspec, index=index)
            except GitError:
                if not tries_left:
                    raise
                await anyio.sleep(_DELAY)
            else:
                return

    async def tree_of(self, commit: str) -> str:
        """Return a commit's tree. A checkpoint.

        Args:
            commit: The commit.
        """
        return (await self.git.run("rev-parse", f"{commit}^{{tree}}")).strip()

    async def commit(self, tree: str, message: str, *parents: str) -> str:
        """Make a commit; no branch moves, and no hook runs. A checkpoint.

        Args:
            tree: What it holds.
            message: Its message.
            *parents: Its parents.
        """
        words = [word for parent in parents for word in ("-p", parent)]
        made = await self.git.run("commit-tree", tree, *words, stdin=f"{message}\n")
        return made.strip()

    async def head(self, top: Path | None = None) -> str:
        """Return the commit that a worktree is at; empty: there is none. A checkpoint.

        Args:
            top: The worktree; None: the repository's own.
        """
        git = self.git if top is None else self.git.at(top)
        _, out, _ = await git.ask("rev-parse", "--verify", "--quiet", "HEAD")
        return out.strip()

    async def changed(self, before: str, after: str) -> list[str]:
        """Return the files of the workspace that differ between two trees. A checkpoint.

        Args:
            before: A tree or commit.
            after: Another one.
        """
        listed = await self.git.run(
            "diff-tree", "-r", "-z", "--no-renames", "--name-only", before, after
        )
        return [
            path.removeprefix(self.prefix) for path in split(listed) if path.startswith(self.prefix)
        ]

    async def contents(self, tree: str, path: str) -> bytes | None:
        """Return what a file of the workspace holds in a tree; None: it is not there. A checkpoint.

        What is no UTF-8 text comes with replacement characters.

        Args:
            tree: A tree or commit.
            path: The file, relative to the workspace.
        """
        code, out, _ = await self.git.ask("cat-file", "blob", f"{tree}:{self.prefix}{path}")
        return None if code else out.encode()

    async def steps(self, tip: str, messages: Collection[str]) -> list[tuple[str, str]]:
        """Return what stood before and after commits with these messages, oldest first.

        A checkpoint.

        Args:
            tip: The newest commit; its first parents are looked at, down to what HEAD has.
            messages: The messages.
        """
        known = [f"^{head}"] if (head := await self.head()) else []
        listed = await self.git.run(
            "log", "-z", "--first-parent", "--reverse", "--format=%P %H%n%B", tip, *known
        )
        found = []
        for each in split(listed):
            hashes, _, message = each.partition("\n")
            before, *_, after = hashes.split()
            if message.rstrip("\n") in messages:
                found.append((before, after))
        return found

    async def undo(self, tree: str, steps: Sequence[tuple[str, str]], index: Path) -> str:
        """Write a tree in which what some steps have changed is as before them. A checkpoint.

        Args:
            tree: A tree or commit that has come after them.
            steps: Trees or commits before and after each of them, in their order.
            index: A file for an index, which is made.
        """
        await self.git.run("read-tree", tree, index=index)
        for before, after in reversed(steps):
            listed = split(
                await self.git.run("diff-tree", "-r", "-z", "--no-renames", after, before)
            )
            entries = [
                f"{head.split(' ')[1]} {head.split(' ')[3]}\t{path}"
                for head, path in zip(listed[::2], listed[1::2], strict=True)
            ]
            await self.git.run(
                "update-index",
                "-z",
                "--index-info",
                stdin="".join(f"{e}\0" for e in entries),
                index=index,
            )
        return (await self.git.run("write-tree", index=index)).strip()

    async def diff(self, before: str, after: str, limit: int = 16_000) -> str:
        """Return how two trees differ, as text of bounded length. A checkpoint.

        Args:
            before: A tree or commit.
            after: Another one.
            limit: Characters.
        """
        text = await self.git.run(
            "diff-tree", "-r", "-p", "--no-renames", "--no-ext-diff", "--no-textconv", before, after
        )
        if len(text) > limit:
            return f"{text[:limit]}\n... ({len(text) - limit} more characters)\n"
        return text

    async def merge(self, ours: str, theirs: str) -> Merge:
        """Merge two commits, in memory. A checkpoint.

        Args:
            ours: A commit.
            theirs: Another one.

        Raises:
            GitError: They cannot be merged at all.
        """
        code, out, err = await self.git.ask(
            "merge-tree", "--write-tree", "--name-only", "--no-messages", "-z", ours, theirs
        )
        if code not in {0, 1}:
            raise GitError(f"git merge-tree: {err.strip()[:500]}")
        tree, *conflicts = split(out)
        return Merge(tree=tree, conflicts=tuple(dict.fromkeys(conflicts)))

    async def write(self, top: Path, index: Path, before: str, after: str) -> bool:
        """Bring a worktree from one tree to another; nothing that differs from the first is lost.

        A checkpoint.

        Args:
            top: The worktree.
            index: The index in which the first tree was written.
            before: The tree that it holds.
            after: The tree that it shall hold.

        Returns:
            Whether it was done; not when a file that it would touch has changed meanwhile.
        """
        code, _, _ = await self.git.at(top).ask("read-tree", "-m", "-u", before, after, index=index)
        return code == 0

    async def has_new_repositories(self, before: str, after: str) -> bool:
        """Whether a tree names a repository inside it that the other does not. A checkpoint.

        Git keeps no contents of these.

        Args:
            before: The tree that came first.
            after: The other one.
        """
        listed = await self.git.run("diff-tree", "-r", "-z", "--no-renames", before, after)
        heads = [each.split(" ") for each in split(listed) if each.startswith(":")]
        return any(head[1] == _GITLINK for head in heads)

    async def is_ancestor(self, commit: str, of: str) -> bool:
        """Whether a commit is contained in another. A checkpoint.

        Args:
            commit: The commit.
            of: The other one.
        """
        code, _, _ = await self.git.ask("merge-base", "--is-ancestor", commit, of)
        return code == 0

    async def newest(self, branch: str) -> str:
        """Return the last branch that `free_branch` gave for a name; empty: none. A checkpoint.

        Args:
            branch: The name.
        """
        listed = await self.git.run("for-each-ref", "--format=%(refname:short)", "refs/heads")
        taken = set(listed.split("\n"))
        number, found, name = 1, "", branch
        while name in taken:
            number, found, name = number + 1, name, f"{branch}-{number + 1}"
        return found

    async def base_of(self, branch: str) -> str:
        """Return the commit from which the work in a branch of `salvage` began. A checkpoint.

        Args:
            branch: The branch.
        """
        parents = await self.git.run("rev-parse", f"refs/heads/{branch}^@")
        return next(reversed(parents.split()), "")

    async def refs(self, prefix: str) -> list[str]:
        """Return the names of references. A checkpoint.

        Args:
            prefix: What they begin with; with a ``/`` at its end.
        """
        return (await self.git.run("for-each-ref", "--format=%(refname)", prefix)).split()

    async def free_branch(self, name: str) -> str:
        """Return the name of a branch that does not exist yet. A checkpoint.

        Args:
            name: The name that is wanted.
        """
        listed = await self.git.run("for-each-ref", "--format=%(refname:short)", "refs/heads")
        taken = set(listed.split("\n"))
        number = 1
        free = name
        while free in taken:
            number += 1
            free = f"{name}-{number}"
        return free

    async def salvage(
        self, top: Path, index: Path, branch: str, known: Sequence[str], *, base: str
    ) -> str:
        """Save what a worktree holds, untracked files too, to a branch. A checkpoint.

        Whether it looks merged by ancestry does not matter: the files themselves are compared.

        Args:
            top: The worktree.
            index: An index for it.
            branch: The branch's name; another one when it is taken.
            known: Commits whose contents are safe.
            base: The commit from which its work began; empty: nobody knows.

        Returns:
            The branch; empty when everything is in one of the known commits.

        Raises:
            GitError: It cannot be saved; the worktree must not be removed.
        """
        tree = await self.tree(top, index)
        head = await self.head(top)
        for commit in known:
            is_merged = not head or await self.is_ancestor(head, commit)
            if is_merged and tree == await self.tree_of(commit):
                return ""
        if await self.has_new_repositories(head or known[0], tree):
            raise GitError("there is another repository in it, which no branch can keep")
        parents = dict.fromkeys(filter(None, [head, base]))
        saved = await self.commit(tree, f"Salvage {branch}", *parents)
        free = await self.free_branch(branch)
        await self.git.run("update-ref", f"refs/heads/{free}", saved, "")
        return free

    def __repr__(self) -> str:
        return f"<Repository {self.git.directory}>"


def _drafts_of(path: str) -> str:
    """Return the pattern of what stands beside a file while it is written."""
    folder, _, name = path.rpartition("/")
    pattern = f"{folder}/.{name}." if folder else f".{name}."
    return re.sub(r"[\\*?\[]", r"\\\g<0>", pattern) + "?" * 8
