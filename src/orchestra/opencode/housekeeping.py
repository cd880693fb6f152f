"""Keeping ``.orchestra`` small: at most 200 files and 2 MB, and nothing removed that is not ours.

Ours is what carries one of our names in that folder. What an agent wrote where it must not
(``quarantine``) is somebody's work: it is kept longer than the rest, goes for want of room only after
a time of grace, and is told of. Work trees of git are left to whoever made them.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

import anyio.to_thread
from attrs import define, field, frozen

from orchestra import MVCCStore, SQLiteStore
from orchestra.errors import StoreError
from orchestra.opencode.mission.report_files import REPORT_FOLDER
from orchestra.opencode.records import MISSION, RECORDS

__all__ = ("CleanOptions", "Cleaning", "clean_records", "clean_workspace")

QUARANTINE: Final = "quarantine"
_DAY: Final = 86_400.0
_HOUR: Final = 3_600.0

_HALF_WRITTEN = re.compile(r"\.(report\.json|report\.html|\.gitignore)\.[0-9a-f]{8}")
_OLD = re.compile(r"report-[\w.-]+\.(json|html)|(mission|orchestra)[\w.-]*\.log(\.\d+)?(\.gz)?")
_LOG = re.compile(r"(mission|orchestra)[\w.-]*\.log(\.\d+)?")
_UNTOUCHED = frozenset({"worktrees", "salvage"})


@frozen(kw_only=True)
class CleanOptions:
    """What may stay.

    Attributes:
        files: How many files there may be.
        size: How many bytes they may have together.
        days: After how many days missions, reports and logs go.
        quarantine_days: After how many days quarantined files go.
        grace_days: For how many days they stay even when there is no room for them.
    """

    files: int = 200
    size: int = 2_000_000
    days: float = 7.0
    quarantine_days: float = 30.0
    grace_days: float = 1.0


@define(kw_only=True)
class Cleaning:
    """What was done and what is left.

    Attributes:
        removed: Files that were removed.
        packed: Logs that were compressed.
        missions: Missions whose records were removed.
        freed: Bytes that are there again.
        files: Files that are left.
        size: Bytes that they have.
        quarantined: How many of them are quarantined.
        notes: What people should know, a sentence each.
        problems: What could not be done, a sentence each.
    """

    removed: int = 0
    packed: int = 0
    missions: int = 0
    freed: int = 0
    files: int = 0
    size: int = 0
    quarantined: int = 0
    notes: list[str] = field(factory=list)
    problems: list[str] = field(factory=list)

    def __str__(self) -> str:
        lines = (
            f"removed {self.removed} files and the records of {self.missions} missions, packed "
            f"{self.packed} logs; {self.files} files with {self.size / 1e6:.2f} MB are left"
        )
        if self.quarantined:
            lines += f", {self.quarantined} of them in quarantine"
        return lines


@frozen(kw_only=True, order=True)
class _File:
    changed: float
    size: int
    path: Path


async def clean_workspace(
    directory: Path, options: CleanOptions | None = None, *, now: float | None = None
) -> Cleaning:
    """Clean up what earlier missions have left in a workspace. A checkpoint.

    Args:
        directory: The workspace. One that has no ``.orchestra`` is left as it is.
        options: What may stay.
        now: The time, in seconds since the epoch; None: that of the clock.
    """
    options = options or CleanOptions()
    moment = time.time() if now is None else now
    folder = directory / REPORT_FOLDER
    if not await anyio.Path(folder).is_dir() or await anyio.Path(folder).is_symlink():
        return Cleaning()
    before = sum(file.size for file in await anyio.to_thread.run_sync(_all_files, folder))
    cleaning = Cleaning()
    if await anyio.Path(folder / RECORDS).is_file():
        try:
            async with SQLiteStore(folder / RECORDS, durability="process") as store:
                await clean_records(store, folder / RECORDS, cleaning, options, moment)
        except StoreError as exc:
            cleaning.problems.append(str(exc))
    await anyio.to_thread.run_sync(_clean_files, folder, cleaning, options, moment)
    left = await anyio.to_thread.run_sync(_all_files, folder)
    cleaning.files, cleaning.size = len(left), sum(file.size for file in left)
    cleaning.freed = max(before - cleaning.size, 0)
    cleaning.quarantined = sum(_is_below(file.path, folder / QUARANTINE) for file in left)
    if cleaning.files > options.files or cleaning.size > options.size:
        cleaning.problems.append(
            f"{folder} has {cleaning.files} files with {cleaning.size / 1e6:.1f} MB, of which "
            f"{cleaning.quarantined} are in quarantine, where they stay for at least "
            f"{options.grace_days:g} days, and the rest is not ours to remove; look them through"
        )
    return cleaning


# --- records ---


async def clean_records(
    store: MVCCStore, path: Path, cleaning: Cleaning, options: CleanOptions, now: float
) -> None:
    """Compact the records of missions that are over, and remove those that are old or too many.

    The newest mission stays, and so does one that has not ended, unless it was killed so long ago
    that nobody will go on with it.

    Args:
        store: The records, open.
        path: Their file.
        cleaning: Takes what was done.
        options: What may stay.
        now: The time, in seconds since the epoch.

    Raises:
        StoreError: They cannot be read or written.
    """
    over: list[tuple[float, str]] = []
    for name in await store.namespaces():
        if name.startswith("mission_"):
            found = await _about(store.namespace(name))
            if found is not None:
                started, is_running = found
                if not is_running or now - started > options.quarantine_days * _DAY:
                    over.append((started, name))
    over.sort()
    for started, name in over[:-1]:
        if now - started > options.days * _DAY:
            cleaning.missions += await store.namespace(name).drop()
        else:
            await store.namespace(name).compact()
    room = options.size * 3 // 4
    for _, name in over[:-1]:
        if await anyio.to_thread.run_sync(_size, path) <= room:
            break
        cleaning.missions += await store.namespace(name).drop()


async def _about(store: MVCCStore) -> tuple[float, bool] | None:
    """Return when a mission was started, and whether it has not ended; None: nobody can tell."""
    try:
        about = await store.get(MISSION)
        started = datetime.fromisoformat(about["started_at"]).timestamp()
        return started, about["state"] == "running"
    except (KeyError, TypeError, ValueError):
        return None


def _size(path: Path) -> int:
    names = (path, path.with_name(f"{path.name}-wal"))
    return sum(os.stat(name).st_size for name in names if os.path.exists(name))  # noqa: PTH110, PTH116


# --- files ---


def _clean_files(folder: Path, cleaning: Cleaning, options: CleanOptions, now: float) -> None:
    left = [_clean_file(file, cleaning, options, now) for file in _files(folder)]
    spare = sorted(file for file in left if file is not None)
    _make_room(folder, spare, cleaning, options)
    _clean_quarantine(folder, cleaning, options, now)


def _clean_quarantine(folder: Path, cleaning: Cleaning, options: CleanOptions, now: float) -> None:
    """Remove what is old enough, and for want of room what is past its time of grace; tell of it."""
    place = folder / QUARANTINE
    before = cleaning.removed
    for file in _all_files(place):
        if now - file.changed > options.quarantine_days * _DAY:
            _remove(file.path, cleaning)
    late = [each for each in _all_files(place) if now - each.changed > options.grace_days * _DAY]
    _make_room(folder, sorted(late), cleaning, options)
    _remove_empty(place)
    if cleaning.removed > before:
        cleaning.notes.append(
            f"removed {cleaning.removed - before} files from {place}, the oldest first: they go after "
            f"{options.quarantine_days:g} days, and after {options.grace_days:g} when there are more "
            f"than {options.files} files or {options.size / 1e6:g} MB"
        )


def _clean_file(file: _File, cleaning: Cleaning, options: CleanOptions, now: float) -> _File | None:
    """Remove or pack one file if it is time; return it when it may go as soon as room is short."""
    name, age = file.path.name, now - file.changed
    if _HALF_WRITTEN.fullmatch(name):
        if age > _HOUR:
            _remove(file.path, cleaning)
    elif _OLD.fullmatch(name):
        if age > options.days * _DAY:
            _remove(file.path, cleaning)
        elif _LOG.fullmatch(name) and age > _DAY:
            return _pack(file, cleaning)
        else:
            return file
    return None


def _make_room(
    folder: Path, spare: Sequence[_File], cleaning: Cleaning, options: CleanOptions
) -> None:
    """Remove the oldest of what may go until there is room."""
    left = _all_files(folder)
    count, size = len(left), sum(file.size for file in left)
    for file in spare:
        if count <= options.files and size <= options.size:
            return
        if _remove(file.path, cleaning):
            count, size = count - 1, size - file.size


def _files(folder: Path) -> Iterator[_File]:
    """Yield the plain files right in a folder; links are not followed, and are not ours."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        try:
            facts = entry.stat(follow_symlinks=False)
        except OSError:
            continue  # it is gone by now
        if stat.S_ISREG(facts.st_mode):
            yield _File(changed=facts.st_mtime, size=facts.st_size, path=Path(entry.path))


def _all_files(folder: Path) -> list[_File]:
    """Return every plain file below a folder but those of work trees."""
    found: list[_File] = []
    if folder.is_symlink():
        return found
    for place, folders, _ in os.walk(folder):
        if Path(place) == folder:
            folders[:] = [name for name in folders if name not in _UNTOUCHED]
        found.extend(_files(Path(place)))
    return found


def _is_below(path: Path, folder: Path) -> bool:
    return path.is_relative_to(folder)


def _remove(path: Path, cleaning: Cleaning) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return True
    except OSError as exc:
        cleaning.problems.append(f"{path} cannot be removed: {exc.strerror or exc}")
        return False
    cleaning.removed += 1
    return True


def _pack(file: _File, cleaning: Cleaning) -> _File:
    """Compress a log; the original goes when the packed one is there as a whole."""
    packed = file.path.with_name(f"{file.path.name}.gz")
    beside = file.path.with_name(f"{file.path.name}.gz.part")
    try:
        with file.path.open("rb") as plain, gzip.open(beside, "wb") as out:
            shutil.copyfileobj(plain, out)
        os.utime(beside, (file.changed, file.changed))
        beside.replace(packed)
        file.path.unlink()
    except OSError as exc:
        beside.unlink(missing_ok=True)
        cleaning.problems.append(f"{file.path} cannot be packed: {exc.strerror or exc}")
        return file
    cleaning.packed += 1
    return _File(changed=file.changed, size=packed.stat().st_size, path=packed)


def _remove_empty(folder: Path) -> None:
    if folder.is_symlink():
        return
    for place, _, _ in os.walk(folder, topdown=False):
        try:
            os.rmdir(place)  # noqa: PTH106
        except OSError:
            continue  # not empty
