"""What lies beside a worktree: the commit that it was made of, and an index of our own."""

from __future__ import annotations

from pathlib import Path

import anyio

__all__ = ("find_base", "folders_in", "index_of", "unlock_indexes", "write_base")


def index_of(top: Path) -> Path:
    """Return the index that is used for a worktree.

    Args:
        top: The worktree.
    """
    return top.with_name(f"{top.name}.index")


async def find_base(top: Path) -> str:
    """Return what a worktree was made of; empty: it is not there, or was never finished.

    A checkpoint.

    Args:
        top: The worktree.

    Raises:
        OSError: It cannot be read.
    """
    base = anyio.Path(_base_of(top))
    is_there = await anyio.Path(top).is_dir() and await base.is_file()
    return (await base.read_text()).strip() if is_there else ""


async def write_base(top: Path, base: str) -> None:
    """Write down what a worktree is made of, as a whole or not at all. A checkpoint.

    Args:
        top: The worktree.
        base: The commit.

    Raises:
        OSError: It cannot be written.
    """
    draft = anyio.Path(top.with_name(f"{top.name}.base.new"))
    await draft.write_text(base)
    await draft.rename(_base_of(top))


def _base_of(top: Path) -> Path:
    return top.with_name(f"{top.name}.base")


def unlock_indexes(folder: Path) -> None:
    """Remove the locks of a git that was killed: our indexes are in nobody else's hands. Blocks.

    Args:
        folder: Where a mission's worktrees are.
    """
    for path in folder.glob("*index.lock"):
        path.unlink(missing_ok=True)


def folders_in(home: Path) -> list[Path]:
    """Return the folders in a folder, but for links. Blocks.

    Args:
        home: The folder.
    """
    return [path for path in home.iterdir() if path.is_dir() and not path.is_symlink()]
