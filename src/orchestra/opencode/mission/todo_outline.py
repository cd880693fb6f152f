"""The TODO list in the store: a key for each item, and one for order, nesting and other lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, final

from attrs import evolve, frozen

from orchestra import Reader, Transaction
from orchestra.errors import AmbiguousItemError, ItemNotFoundError
from orchestra.opencode.mission.todo_merge import TodoDocument
from orchestra.opencode.mission.todo_text import TodoLine, TodoMark, depths

__all__ = (
    "ITEM",
    "OUTLINE",
    "PREFIX",
    "Outline",
    "TodoEntry",
    "find_entry",
    "list_entries",
    "load_list",
    "replace_items",
    "save_list",
)

PREFIX = "todo/"
ITEM = "todo/item/"
OUTLINE = "todo/outline"


@frozen(kw_only=True)
class TodoEntry:
    """One item.

    Attributes:
        id: Names the item for as long as it exists, however its text changes.
        text: One line.
        mark: How far it is.
        depth: How many items it is nested in.
    """

    id: str
    text: str
    mark: TodoMark
    depth: int


@final
class Outline:
    """The key that says which lines there are, in which order, and which id comes next."""

    def __init__(self, following: int, lines: list[Any]) -> None:
        self._following = following
        self._lines = lines  # [id, indent, bullet] for an item, text for any other line

    @classmethod
    def read(cls, plain: Any) -> Self:
        plain = plain or {"next": 1, "lines": []}
        return cls(plain["next"], list(plain["lines"]))

    def plain(self) -> dict[str, Any]:
        return {"next": self._following, "lines": self._lines}

    def new_id(self) -> str:
        """Return an id that no item has ever had."""
        while True:
            found = f"i{self._following}"
            self._following += 1
            if not self.has(found):
                return found

    def has(self, id_: str) -> bool:
        return any(line[0] == id_ for line in self._lines if isinstance(line, list))

    def remove(self, id_: str) -> None:
        self._lines = [ln for ln in self._lines if isinstance(ln, str) or ln[0] != id_]

    def insert(self, id_: str, parent: str | None) -> None:
        """Put an item behind all others, or behind all that is nested in its parent."""
        lines = [self._line(line) for line in self._lines]
        found = depths(lines)
        if parent is None:
            items = [number for number, depth in enumerate(found) if depth >= 0]
            place = items[-1] + 1 if items else len(lines)
            self._lines.insert(place, [id_, "", "-"])
            return
        at = next(n for n, line in enumerate(self._lines) if line[0] == parent)
        last = at
        for number in range(at + 1, len(lines)):
            if 0 <= found[number] <= found[at]:
                break
            last = number if found[number] >= 0 else last
        is_first = last == at
        indent = lines[at].indent + "  " if is_first else lines[last].indent
        if not is_first and found[last] > found[at] + 1:
            indent = lines[at].indent + "  "
        self._lines.insert(last + 1, [id_, indent, "-"])

    @staticmethod
    def _line(line: Any) -> TodoLine:
        if isinstance(line, str):
            return TodoLine(text=line)
        return TodoLine(text="", mark=TodoMark.OPEN, indent=line[1], bullet=line[2])

    def replace(self, document: TodoDocument) -> None:
        self._lines = [
            [id_, line.indent, line.bullet] if id_ else line.text for id_, line in document
        ]


async def load_list(reader: Reader) -> list[tuple[str, TodoLine]]:
    """Return the list as a snapshot or a transaction sees it."""
    found = await reader.range(PREFIX)
    document = []
    for line in found.get(OUTLINE, {"lines": ()})["lines"]:
        if isinstance(line, str):
            document.append(("", TodoLine(text=line)))
            continue
        id_, indent, bullet = line
        item = found[ITEM + id_]
        mark = TodoMark(item["mark"])
        document.append((id_, TodoLine(text=item["text"], mark=mark, indent=indent, bullet=bullet)))
    return document


def replace_items(document: TodoDocument, items: Mapping[str, Any]) -> TodoDocument:
    """Return the document with other items in the places of those with the same ids.

    Args:
        document: The document.
        items: The items' values, as they are stored.
    """
    return [
        (id_, evolve(line, text=items[id_]["text"], mark=TodoMark(items[id_]["mark"])))
        if id_ in items
        else (id_, line)
        for id_, line in document
    ]


def save_list(tx: Transaction, before: TodoDocument, after: TodoDocument, outline: Outline) -> None:
    """Write what differs."""
    outline.replace(after)
    tx.put(OUTLINE, outline.plain())
    old = {id_: (line.text, line.mark) for id_, line in before if id_}
    for id_, line in after:
        if id_ and line.mark is not None and old.pop(id_, None) != (line.text, line.mark):
            tx.put(ITEM + id_, {"text": line.text, "mark": line.mark.value})
    for id_ in old.keys() - {id_ for id_, _ in after}:
        tx.delete(ITEM + id_)


def list_entries(document: TodoDocument) -> tuple[TodoEntry, ...]:
    """Return the items of a document in order."""
    found = depths([line for _, line in document])
    return tuple(
        TodoEntry(id=id_, text=line.text, mark=line.mark, depth=depth)
        for (id_, line), depth in zip(document, found, strict=True)
        if line.mark is not None
    )


def find_entry(document: TodoDocument, reference: str) -> TodoEntry:
    """Return the item that is meant: by its id, by its text, by a part of its text.

    Args:
        document: The list.
        reference: What somebody calls the item.

    Raises:
        ItemNotFoundError: Nothing is meant.
        AmbiguousItemError: Several items may be meant.
    """
    wanted = reference.strip()
    if not wanted:
        raise ItemNotFoundError("the reference is empty: name the item's id or text")
    folded = wanted.casefold()
    items = [(id_, line.text) for id_, line in document if id_]
    matches = (
        [id_ for id_, _ in items if id_ == wanted]
        or [id_ for id_, text in items if text == wanted]
        or [id_ for id_, text in items if folded in text.casefold()]
    )
    if not matches:
        raise ItemNotFoundError(f"no item of the list is meant by {reference!r}; look at its items")
    if len(matches) > 1:
        texts = dict(items)
        names = ", ".join(f"{id_} {texts[id_]!r}" for id_ in matches[:5])
        raise AmbiguousItemError(
            f"{reference!r} may mean {len(matches)} items ({names}); use an id"
        )
    place = next(number for number, (id_, _) in enumerate(document) if id_ == matches[0])
    line = document[place][1]
    if line.mark is None:
        raise AssertionError("unreachable")
    depth = depths([line for _, line in document[: place + 1]])[-1]
    return TodoEntry(id=matches[0], text=line.text, mark=line.mark, depth=depth)
