"""Merging what people did to the file with what happened in the store: three-way, per item. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import SequenceMatcher
from typing import TypeAlias, TypeVar

from attrs import evolve, frozen

from orchestra.opencode.mission.todo_text import TodoLine, TodoMark

__all__ = ("TodoConflict", "TodoDocument", "match_lines", "merge_documents")

T = TypeVar("T")

TodoDocument: TypeAlias = Sequence[tuple[str, TodoLine]]
"""Lines in order, each with its id; ids of lines that are no items are empty."""


@frozen(kw_only=True)
class TodoConflict:
    """An item that was changed in the file and in the store, differently.

    Attributes:
        id: The item; empty when it is about other lines.
        text: The item's text in the store.
        what: ``mark``, ``text``, ``removed``, or ``lines`` for lines that are no items.
        file: What the file says; empty when it was removed there.
        store: What the store says, which stands; empty when it was removed there.
    """

    id: str
    text: str
    what: str
    file: str = ""
    store: str = ""

    def __str__(self) -> str:
        file, store = self.file or "nothing", self.store or "nothing"
        return f"item {self.text!r}: the file says {file!r}, the store {store!r}, which stands"


def match_lines(
    base: TodoDocument, lines: Sequence[TodoLine], new_id: Callable[[], str]
) -> list[tuple[str, TodoLine]]:
    """Give the lines of an edited file the ids of the items that they were.

    An item is known by its text; of equal texts, by what stands around it. One whose text is not
    in the base is the item at the same place there, if that is gone and the texts are alike.

    Args:
        base: What the file was written from.
        lines: What it says now.
        new_id: Makes the id of an item that is new.
    """
    old = [(id_, line) for id_, line in base if line.mark is not None]
    new = [line for line in lines if line.mark is not None]
    pairs = _pair([line.text for _, line in old], [line.text for line in new])
    matched: list[tuple[str, TodoLine]] = []
    place = 0
    for line in lines:
        if line.mark is None:
            matched.append(("", line))
            continue
        matched.append((old[pairs[place]][0] if place in pairs else new_id(), line))
        place += 1
    return matched


def _pair(old: Sequence[str], new: Sequence[str]) -> dict[int, int]:
    """Return for places in the new list the places in the old one that they come from."""
    matcher = SequenceMatcher(None, old, new, autojunk=False)
    pairs = {
        b + step: a + step for a, b, size in matcher.get_matching_blocks() for step in range(size)
    }
    free = dict.fromkeys(number for number in range(len(old)) if number not in pairs.values())
    # Moved: the same text at another place.
    by_text: dict[str, list[int]] = {}
    for number in free:
        by_text.setdefault(old[number], []).append(number)
    for place, text in enumerate(new):
        if place not in pairs and by_text.get(text):
            pairs[place] = by_text[text].pop(0)
            free.pop(pairs[place])
    # Reworded: between the same neighbours.
    for tag, i1, i2, j1, j2 in matcher.get_opcodes():
        gone = [number for number in range(i1, i2) if number in free] if tag == "replace" else []
        for place in range(j1, j2):
            if gone and place not in pairs and _is_alike(old[gone[0]], new[place]):
                pairs[place] = gone.pop(0)
                free.pop(pairs[place])
    return pairs


def _is_alike(one: str, two: str) -> bool:
    return SequenceMatcher(None, one, two).ratio() > 0.5


def merge_documents(
    base: TodoDocument,
    store: TodoDocument,
    file: TodoDocument,
    *,
    is_file_first: bool = False,
) -> tuple[list[tuple[str, TodoLine]], list[TodoConflict]]:
    """Merge three-way. Where both changed the same thing differently, the store's word stands.

    Args:
        base: What the file was written from.
        store: What the store says now.
        file: What the file says now, with the ids of `match_lines`.
        is_file_first: Whether order and other lines are the file's in any case.

    Returns:
        The merged lines, and what could not be merged.
    """
    before, ours, theirs = _items(base), _items(store), _items(file)
    conflicts: list[TodoConflict] = []
    merged: dict[str, TodoLine] = {}
    for id_ in {**ours, **theirs, **before}:
        line = _merge_item(id_, before.get(id_), ours.get(id_), theirs.get(id_), conflicts)
        if line is not None:
            merged[id_] = line
    is_file_first |= _outline(store) == _outline(base) != _outline(file)
    order, others = (file, store) if is_file_first else (store, file)
    said, stands = _other_lines(file), _other_lines(order)
    if said not in {_other_lines(base), stands}:
        conflicts.append(
            TodoConflict(
                id="", text="(lines that are no items)", what="lines", file=said, store=stands
            )
        )
    return _arrange(order, others, merged), conflicts


def _items(document: TodoDocument) -> dict[str, TodoLine]:
    return {id_: line for id_, line in document if id_}


def _outline(document: TodoDocument) -> list[tuple[str, str, str]]:
    """What is left of a document without its items' texts and marks: their order and nesting."""
    return [(id_, "" if id_ else line.text, line.indent) for id_, line in document]


def _other_lines(document: TodoDocument) -> str:
    return "\n".join(line.text for id_, line in document if not id_)


def _merge_item(
    id_: str,
    base: TodoLine | None,
    store: TodoLine | None,
    file: TodoLine | None,
    conflicts: list[TodoConflict],
) -> TodoLine | None:
    if store is None or file is None:
        kept = store or file
        if base is None or kept is None:
            return kept  # added on one side, or removed on both
        if (kept.text, kept.mark) == (base.text, base.mark):
            return None  # removed on one side, not touched on the other
        side = {"file": _state(kept)} if store is None else {"store": _state(kept)}
        conflicts.append(TodoConflict(id=id_, text=kept.text, what="removed", **side))
        return kept if file is None else None
    if base is None:
        base = store
    text, is_torn = _merge_value(base.text, store.text, file.text)
    if is_torn:
        conflicts.append(
            TodoConflict(id=id_, text=store.text, what="text", file=file.text, store=store.text)
        )
    mark, is_torn = _merge_value(base.mark, store.mark, file.mark)
    if is_torn:
        conflicts.append(
            TodoConflict(
                id=id_, text=store.text, what="mark", file=_state(file), store=_state(store)
            )
        )
    is_moved = (file.indent, file.bullet) != (base.indent, base.bullet)
    return evolve(file if is_moved else store, text=text, mark=mark)


def _state(line: TodoLine) -> str:
    return line.mark.name.lower() if isinstance(line.mark, TodoMark) else ""


def _merge_value(base: T, store: T, file: T) -> tuple[T, bool]:
    """Return the merged value and whether both sides changed it differently."""
    if file in {base, store}:
        return store, False
    return (file, False) if store == base else (store, True)


def _arrange(
    order: TodoDocument, others: TodoDocument, merged: Mapping[str, TodoLine]
) -> list[tuple[str, TodoLine]]:
    """Put items into one side's order; those of the other side come after what they came after."""
    arranged = [
        (id_, merged[id_] if id_ else line) for id_, line in order if not id_ or id_ in merged
    ]
    placed = {id_ for id_, _ in arranged if id_}
    previous = ""
    for id_, _ in others:
        if not id_ or id_ not in merged:
            continue
        if id_ not in placed:
            place = _after(arranged, previous)
            arranged.insert(place, (id_, merged[id_]))
            placed.add(id_)
        previous = id_
    return arranged


def _after(arranged: Sequence[tuple[str, TodoLine]], previous: str) -> int:
    """Where an item goes that came after another one: behind it, or at the end of the list."""
    last = 0
    for number, (id_, _) in enumerate(arranged):
        if id_ and id_ == previous:
            return number + 1
        if id_:
            last = number + 1
    if not previous:
        first = [number for number, (id_, _) in enumerate(arranged) if id_]
        return first[0] if first else len(arranged)
    return last
