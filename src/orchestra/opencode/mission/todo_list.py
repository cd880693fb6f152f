"""The TODO list: kept in the store, shown in a file that people and agents may edit.

The store is the truth: each item is a key of its own, so that who changes different items is never
in conflict, and the outline (order, nesting, other lines) is one more. The file is a projection. It
says which revision it was written from, so whatever somebody has made of it meanwhile is merged
with that revision as the base, also by another process, also after a crash.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import final

import anyio
import anyio.to_thread
from attrs import evolve, frozen

from orchestra import MVCCStore, Snapshot, Transaction, background_tasks
from orchestra.errors import CompactedError, ItemNotFoundError
from orchestra.opencode.mission.todo_file import (
    digest_of,
    list_of,
    read_text,
    replace_section,
    stamp_of,
)
from orchestra.opencode.mission.todo_merge import (
    TodoConflict,
    TodoDocument,
    match_lines,
    merge_documents,
)
from orchestra.opencode.mission.todo_outline import (
    ITEM,
    OUTLINE,
    PREFIX,
    Outline,
    TodoEntry,
    find_entry,
    list_entries,
    load_list,
    replace_items,
    save_list,
)
from orchestra.opencode.mission.todo_text import TodoLine, TodoMark, wrap_section

__all__ = ("TodoList", "TodoListStatistics", "TodoSync")

_MAX_STEPS = 16
"""Commits that are followed one by one; after more of them the list is read as a whole."""

_logger = logging.getLogger(__name__)


@frozen(kw_only=True)
class TodoSync:
    """What came of reading the file back.

    Attributes:
        is_changed: Whether the file said something new.
        conflicts: What was changed on both sides; the store's word stands.
    """

    is_changed: bool = False
    conflicts: tuple[TodoConflict, ...] = ()


@frozen(kw_only=True)
class TodoListStatistics:
    """What has been done to the file.

    Attributes:
        writes: How often it was written.
        reads: How often an edit was read back.
        conflicts: How many conflicts there were.
    """

    writes: int = 0
    reads: int = 0
    conflicts: int = 0


@final
class TodoList:
    """A task list in a store's namespace, and the file that shows it.

    ::

        todo = TodoList(store, path=workspace / "TODO.md")
        await todo.add("write the parser")
        await todo.mark("parser", TodoMark.DONE)
        await todo.project()

    An item is meant by its id, by its text, or by a part of the text that no other item has.

    Args:
        store: The namespace.
        path: The file; None: none.
        is_synced: Whether the file survives the loss of power each time. The store's own
            durability is the store's business.
        listener: Called with each conflict.
    """

    def __init__(
        self,
        store: MVCCStore,
        *,
        path: Path | None = None,
        is_synced: bool = True,
        listener: Callable[[TodoConflict], object] | None = None,
    ) -> None:
        self._store = store
        self._path = path
        self._is_synced = is_synced
        self._listener = listener
        self._lock = anyio.Lock()
        self._written = -1
        self._rounds = 0
        self._digest = b""
        self._shown: TodoDocument | None = None
        self._known: tuple[TodoDocument, int] | None = None
        self._stamp: object = None
        self._counts = {"writes": 0, "reads": 0, "conflicts": 0}

    # --- reading ---

    async def items(self) -> tuple[TodoEntry, ...]:
        """Return the items in order. A checkpoint."""
        return list_entries((await self._current())[0])

    async def _current(self) -> tuple[TodoDocument, int]:
        """Return the list as it is now, reading no more of it than what has changed."""
        async with self._store.snapshot() as snap:
            if self._known is not None and self._known[1] != snap.revision:
                await self._catch_up(snap, *self._known)
            if self._known is None or self._known[1] != snap.revision:
                self._known = (await load_list(snap), snap.revision)
        return self._known

    async def _catch_up(self, snap: Snapshot, document: TodoDocument, revision: int) -> None:
        records = await self._store.journal(revision, limit=_MAX_STEPS + 1)
        changed = {change.key for record in records for change in record.changes}
        ids = {key.removeprefix(ITEM) for key in changed if key.startswith(ITEM)}
        if len(records) > _MAX_STEPS or OUTLINE in changed or records[-1].revision < snap.revision:
            return  # simpler to read all of it
        items = {id_: await snap.get(ITEM + id_) for id_ in ids}
        self._known = (replace_items(document, items), snap.revision)

    async def find(self, reference: str) -> TodoEntry:
        """Return the item that is meant. A checkpoint.

        Args:
            reference: An id, a text, or a part of a text.

        Raises:
            ItemNotFoundError: There is none.
            AmbiguousItemError: There are several.
        """
        return find_entry((await self._current())[0], reference)

    # --- changing ---

    async def mark(self, reference: str, mark: TodoMark, *, author: str = "") -> TodoEntry:
        """Mark an item. A checkpoint.

        Args:
            reference: Which item.
            mark: The new mark.
            author: Kept in the history.

        Returns:
            The item as it is now.

        Raises:
            ItemNotFoundError: There is no such item.
            AmbiguousItemError: There are several.
        """
        return await self._change(reference, author, lambda item: evolve(item, mark=mark))

    async def reword(self, reference: str, text: str, *, author: str = "") -> TodoEntry:
        """Give an item another text. A checkpoint.

        Args:
            reference: Which item.
            text: The new text.
            author: Kept in the history.

        Raises:
            ItemNotFoundError: There is no such item.
            AmbiguousItemError: There are several.
            ValueError: The text is empty or has several lines.
        """
        return await self._change(
            reference, author, lambda item: evolve(item, text=_one_line(text))
        )

    async def _change(
        self, reference: str, author: str, change: Callable[[TodoEntry], TodoEntry]
    ) -> TodoEntry:
        # Only this item's key is read in the transaction, so changes of others are no conflict.
        found = await self.find(reference)
        ran: list[Transaction] = []

        async def step(tx: Transaction) -> TodoEntry:
            ran[:] = [tx]
            current = await tx.get(ITEM + found.id)
            if current is None:
                raise ItemNotFoundError(f"item {found.text!r} has just been removed")
            changed = change(evolve(found, text=current["text"], mark=TodoMark(current["mark"])))
            tx.put(ITEM + found.id, {"text": changed.text, "mark": changed.mark.value})
            return changed

        changed = await self._store.using(author=author).transact(step)
        self._note(ran[0], changed)
        return changed

    def _note(self, tx: Transaction, entry: TodoEntry) -> None:
        """Keep what is known up to date, if nothing else has happened meanwhile."""
        if self._known is None or tx.revision is None or tx.revision != self._known[1] + 1:
            return
        item = {"text": entry.text, "mark": entry.mark.value}
        self._known = (replace_items(self._known[0], {entry.id: item}), tx.revision)

    async def add(
        self,
        text: str,
        *,
        under: str | None = None,
        mark: TodoMark = TodoMark.OPEN,
        id: str | None = None,  # noqa: A002  (what the item calls it)
        author: str = "",
    ) -> str:
        """Add an item at the end, or as the last one under another. A checkpoint.

        Args:
            text: One line.
            under: The item that it is part of.
            mark: Its mark.
            id: Its id; None: a new one. An id that is taken is not added again.
            author: Kept in the history.

        Returns:
            The id.

        Raises:
            ItemNotFoundError: There is no such item to be part of.
            AmbiguousItemError: There are several.
            ValueError: The text is empty or has several lines.
        """
        line = _one_line(text)
        parent = None if under is None else (await self.find(under)).id

        async def step(tx: Transaction) -> str:
            outline = Outline.read(await tx.get(OUTLINE))
            key = id or outline.new_id()
            if not outline.has(key):
                outline.insert(key, parent)
                tx.put(OUTLINE, outline.plain())
                tx.put(ITEM + key, {"text": line, "mark": mark.value})
            return key

        return await self._store.using(author=author).transact(step)

    async def remove(self, reference: str, *, author: str = "") -> TodoEntry:
        """Remove an item; what is nested in it stays. A checkpoint.

        Args:
            reference: Which item.
            author: Kept in the history.

        Raises:
            ItemNotFoundError: There is no such item.
            AmbiguousItemError: There are several.
        """
        found = await self.find(reference)

        async def step(tx: Transaction) -> TodoEntry:
            outline = Outline.read(await tx.get(OUTLINE))
            if not outline.has(found.id):
                raise ItemNotFoundError(f"item {found.text!r} has just been removed")
            outline.remove(found.id)
            tx.put(OUTLINE, outline.plain())
            tx.delete(ITEM + found.id)
            return found

        return await self._store.using(author=author).transact(step)

    # --- the file ---

    async def project(self) -> None:
        """Read back what somebody has done to the file, and write it unless it shows the list.

        A checkpoint. Calls at the same time share the writing.

        Raises:
            OSError: It cannot be read or written.
        """
        if self._path is None:
            return
        arrived = self._rounds
        wanted = await self._store.revision()
        async with self._lock:
            if self._rounds > arrived and self._written >= wanted:
                return  # a round that began after this call has done it
            self._rounds += 1
            is_done = False
            while not is_done:
                document, revision = await self._current()
                # Writing finds out by itself whether somebody has edited the file meanwhile.
                if not (self._digest and await self._write(document, revision)):
                    await self._read_back()
                    await self._write(*await self._current())
                # Another process may have written an older one over a newer one: look again.
                is_done = self._written >= await self._store.revision()

    async def read_back(self) -> TodoSync:
        """Take over what somebody has done to the file. A checkpoint.

        Returns:
            What came of it.

        Raises:
            OSError: The file cannot be read.
        """
        async with self._lock:
            return await self._read_back()

    @asynccontextmanager
    async def following(self, *, interval: float = 0.2) -> AsyncIterator[None]:
        """Keep file and store in step for the length of a block, and write once more at its end.

        The file is looked at by its name, so it may be replaced as well as rewritten.

        Args:
            interval: Seconds between two looks at the file.
        """
        async with background_tasks() as group:
            group.start_soon(self._follow_store)
            group.start_soon(self._follow_file, interval)
            yield
        await self.project()

    async def _follow_store(self) -> None:
        async with self._store.watch(PREFIX) as commits:
            await self._safely(self.project)
            async for _ in commits:
                await self._safely(self.project)

    async def _follow_file(self, interval: float) -> None:
        while self._path is not None:
            await anyio.sleep(interval)
            await self._safely(self._look)

    async def _look(self) -> None:
        """Read the file back if it is another one than at the last look."""
        if self._path is None:
            return
        stamp = await anyio.to_thread.run_sync(stamp_of, self._path)
        if stamp != self._stamp:
            sync = await self.read_back()
            self._stamp = stamp
            if sync.is_changed:
                await self.project()

    async def _safely(self, act: Callable[[], Awaitable[None]]) -> None:
        try:
            await act()
        except OSError as exc:
            _logger.warning("%s: %s; the store has the list", self._path, exc)

    async def _read_back(self) -> TodoSync:
        if self._path is None:
            return TodoSync()
        text = await anyio.to_thread.run_sync(read_text, self._path)
        digest = digest_of(text)
        if digest == self._digest:
            return TodoSync()
        lines, revision, is_whole = list_of(text)
        sync = TodoSync()
        if any(line.mark is not None for line in lines) or revision is not None:
            author = f"file {self._path.name}"
            sync = await self._store.using(author=author).transact(
                partial(self._merge, lines=lines, revision=revision, is_whole=is_whole)
            )
        self._digest = digest
        self._shown = None
        self._written = -1
        self._counts["reads"] += sync.is_changed
        self._counts["conflicts"] += len(sync.conflicts)
        for conflict in sync.conflicts:
            if self._listener is not None:
                self._listener(conflict)
        return sync

    async def _merge(
        self, tx: Transaction, *, lines: Sequence[TodoLine], revision: int | None, is_whole: bool
    ) -> TodoSync:
        outline = Outline.read(await tx.get(OUTLINE))
        store = await load_list(tx)
        base = None if revision is None else await self._load_at(revision)
        if base is None:
            file = match_lines(store, lines, outline.new_id)
            # Nobody knows what was an edit and what is only old, so the file adds, and that is all.
            base = [pair for pair in file if outline.has(pair[0])]
            conflicts = _differences(store, base)
        else:
            file = match_lines(base, lines, outline.new_id)
            conflicts = []
        if [line for _, line in file] == [line for _, line in base]:
            return TodoSync(conflicts=tuple(conflicts))
        merged, torn = merge_documents(base, store, file, is_file_first=is_whole)
        save_list(tx, store, merged, outline)
        return TodoSync(is_changed=True, conflicts=(*conflicts, *torn))

    async def _load_at(self, revision: int) -> TodoDocument | None:
        """Return what the file was written from; None when it is not kept any more."""
        try:
            async with self._store.snapshot(revision) as snap:
                return await load_list(snap)
        except (CompactedError, ValueError):
            return None

    async def _write(self, document: TodoDocument, revision: int) -> bool:
        """Write the list if the file is still the one that was read; whether it was written."""
        if self._path is None:
            return False
        if document == self._shown:
            self._written = revision
            return False
        section = wrap_section([line for _, line in document], revision)
        text = await anyio.to_thread.run_sync(
            partial(replace_section, self._path, section, self._digest, is_synced=self._is_synced)
        )
        if text is None:
            return False
        self._digest = digest_of(text)
        self._shown = document
        self._written = revision
        self._counts["writes"] += 1
        return True

    def statistics(self) -> TodoListStatistics:
        """Count what has been done to the file."""
        return TodoListStatistics(**self._counts)

    def __repr__(self) -> str:
        return f"<TodoList {self._path} in {self._store.name!r} written={self._written}>"


def _differences(store: TodoDocument, file: TodoDocument) -> list[TodoConflict]:
    """Return where a file of unknown age says something else than the store."""
    known = dict(store)
    conflicts = []
    for id_, line in file:
        mark = known[id_].mark if id_ else None
        if mark is not None and line.mark is not None and mark is not line.mark:
            said = {"file": line.mark.name.lower(), "store": mark.name.lower()}
            conflicts.append(TodoConflict(id=id_, text=line.text, what="mark", **said))
    return conflicts


def _one_line(text: str) -> str:
    line = text.strip()
    if not line or "\n" in line:
        raise ValueError(f"{text!r} is no item's text: it is empty or has several lines")
    return line
