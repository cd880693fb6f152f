from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra import MemoryStore, MVCCStore, SQLiteStore
from orchestra.errors import AmbiguousItemError, ItemNotFoundError
from orchestra.opencode.mission.todo_file import digest_of, replace_section
from orchestra.opencode.mission.todo_list import TodoList
from orchestra.opencode.mission.todo_merge import TodoConflict, match_lines, merge_documents
from orchestra.opencode.mission.todo_text import (
    TodoLine,
    TodoMark,
    depths,
    parse_lines,
    render_line,
    split_section,
)

SAMPLE = """\
# Plan

- [ ] first
  * [x] nested
    1. [X] deeper
    2) [/] numbered
+ [-] dropped
- not an item
- [y] neither
-[ ] nor this
```
- [ ] in a fence
```
~~~ text
```
- [ ] in another fence
~~~
<!-- - [ ] in a comment -->
<!--
- [ ] in a long comment
-->
\t- [ ] after a tab
- [ ]
"""


def test_every_kind_of_item_is_read() -> None:
    """Bullets, numbers, all marks and nesting are items; fences and comments hold none."""
    lines = parse_lines(SAMPLE)
    items = [
        (line.text, line.mark, depth)
        for line, depth in zip(lines, depths(lines), strict=True)
        if line.mark is not None
    ]
    assert items == [
        ("first", TodoMark.OPEN, 0),
        ("nested", TodoMark.DONE, 1),
        ("deeper", TodoMark.DONE, 2),
        ("numbered", TodoMark.ACTIVE, 2),
        ("dropped", TodoMark.DROPPED, 0),
        ("after a tab", TodoMark.OPEN, 1),
        ("", TodoMark.OPEN, 0),
    ]


@given(st.text(alphabet="-*1. []xX/#`~<!>\n\tab", max_size=60))
def test_any_text_is_read_and_written_the_same(text: str) -> None:
    """Reading and writing again changes at most white space and the case of a mark."""
    written = "\n".join(map(render_line, parse_lines(text)))
    assert [line.mark for line in parse_lines(written)] == [line.mark for line in parse_lines(text)]
    assert "\n".join(map(render_line, parse_lines(written))) == written


# --- merging ------------------------------------------------------------------------------------


def document(text: str, ids: str) -> list[tuple[str, TodoLine]]:
    """A document with ids for its items, in order."""
    names = iter(ids)
    return [(next(names) if line.mark else "", line) for line in parse_lines(text)]


def merged(
    base: str, store: str, file: str, ids: str, store_ids: str
) -> tuple[str, list[TodoConflict]]:
    """Merge three texts; the file's items get their ids by matching."""
    old = document(base, ids)
    new = iter("vwxyz")
    edited = match_lines(old, parse_lines(file), lambda: next(new))
    lines, conflicts = merge_documents(old, document(store, store_ids), edited)
    return "\n".join(render_line(line) for _, line in lines), conflicts


BASE = "- [ ] one\n- [ ] two\n- [ ] three"


@pytest.mark.parametrize(
    ("store", "store_ids", "file", "expected"),
    [
        (
            "- [x] one\n- [ ] two\n- [ ] three",
            "abc",
            BASE.replace("[ ] two", "[x] two"),
            "- [x] one\n- [x] two\n- [ ] three",
        ),
        (
            BASE,
            "abc",
            "- [ ] one\n- [ ] new\n- [ ] two\n- [ ] three",
            "- [ ] one\n- [ ] new\n- [ ] two\n- [ ] three",
        ),
        (
            "- [ ] one\n- [ ] three\n- [ ] four",
            "acd",
            "- [ ] zero\n" + BASE,
            "- [ ] zero\n- [ ] one\n- [ ] three\n- [ ] four",
        ),
        (
            "- [x] one\n- [ ] two\n- [ ] three",
            "abc",
            "- [ ] one\n- [ ] three",
            "- [x] one\n- [ ] three",
        ),
        (BASE, "abc", "- [ ] three\n- [x] one\n- [ ] two", "- [ ] three\n- [x] one\n- [ ] two"),
        (
            "- [x] one\n- [ ] two\n- [ ] three",
            "abc",
            BASE.replace("two", "two, but better"),
            "- [x] one\n- [ ] two, but better\n- [ ] three",
        ),
        (
            BASE,
            "abc",
            "# Title\n- [ ] one\n  - [ ] two\n- [ ] three",
            "# Title\n- [ ] one\n  - [ ] two\n- [ ] three",
        ),
        ("- [ ] uno\n- [ ] two\n- [ ] three", "abc", BASE, "- [ ] uno\n- [ ] two\n- [ ] three"),
    ],
    ids=[
        "marks",
        "added",
        "added on both sides",
        "removed",
        "moved",
        "reworded",
        "nested",
        "store",
    ],
)
def test_edits_of_different_things_are_merged(
    store: str, store_ids: str, file: str, expected: str
) -> None:
    """What only one side has changed is taken over from it."""
    assert merged(BASE, store, file, "abc", store_ids) == (expected, [])


@pytest.mark.parametrize(
    ("store", "store_ids", "file", "expected", "what"),
    [
        ("- [x] one", "a", "- [-] one", "- [x] one", "mark"),
        ("- [ ] uno", "a", "- [ ] one!", "- [ ] uno", "text"),
        ("- [x] one", "a", "", "- [x] one", "removed"),
        ("", "", "- [x] one", "", "removed"),
    ],
)
def test_conflicts_are_reported_and_the_store_stands(
    store: str, store_ids: str, file: str, expected: str, what: str
) -> None:
    """The same thing changed on both sides stays as the store says, and is told."""
    result, conflicts = merged("- [ ] one", store, file, "a", store_ids)
    assert result.strip() == expected
    assert [conflict.what for conflict in conflicts] == [what]
    assert "which stands" in str(conflicts[0])


def test_equal_items_keep_their_places() -> None:
    """Items with the same text are told apart by their order."""
    base = "- [ ] same\n- [ ] same\n- [ ] same"
    file = "- [ ] same\n- [x] same\n- [ ] same"
    assert merged(base, base, file, "abc", "abc") == (file, [])


# --- the list -----------------------------------------------------------------------------------


@pytest.fixture
async def store() -> AsyncIterator[MVCCStore]:
    """A store in memory."""
    async with MemoryStore() as opened:
        yield opened


def body(path: Path) -> str:
    """The list as the file shows it."""
    return split_section(path.read_text())[1] or ""


async def test_a_reference_means_one_item_or_is_an_error(store: MVCCStore) -> None:
    """What is not there and what is ambiguous is refused, and nothing changes."""
    todo = TodoList(store)
    ids = [await todo.add(text) for text in ("write the parser", "test the parser", "parser")]
    assert ids == ["i1", "i2", "i3"]
    assert (await todo.find("i2")).text == "test the parser"
    assert (await todo.find("parser")).id == "i3"
    assert (await todo.find("WRITE")).id == "i1"
    revision = await store.revision()
    with pytest.raises(ItemNotFoundError, match="no item of the list is meant by 'docs'"):
        await todo.mark("docs", TodoMark.DONE)
    with pytest.raises(AmbiguousItemError, match=r"may mean 2 items \(i1 .*use an id"):
        await todo.mark("the parser", TodoMark.DONE)
    with pytest.raises(ItemNotFoundError, match="the reference is empty"):
        await todo.remove(" ")
    with pytest.raises(ItemNotFoundError):
        await todo.add("x", under="nothing")
    for text in ("", "two\nlines"):
        with pytest.raises(ValueError, match="no item's text"):
            await todo.add(text)
    assert await store.revision() == revision


async def test_items_are_added_nested_and_removed(store: MVCCStore) -> None:
    """Order and nesting are as asked for, ids are never used again."""
    todo = TodoList(store)
    await todo.add("a")
    await todo.add("b")
    await todo.add("a1", under="a")
    await todo.add("a2", under="a")
    await todo.add("a1x", under="a1")
    assert await todo.add("own", id="task-7") == "task-7"
    assert await todo.add("again", id="task-7") == "task-7"
    items = [(item.text, item.depth) for item in await todo.items()]
    assert items == [("a", 0), ("a1", 1), ("a1x", 2), ("a2", 1), ("b", 0), ("own", 0)]
    await todo.remove("a1x")
    assert await todo.add("c") == "i6"
    changed = await todo.reword("c", "see", author="me")
    assert (changed.id, changed.text) == ("i6", "see")
    assert (await store.journal())[-1].author == "me"
    with pytest.raises(ItemNotFoundError):
        await todo.find("i5")


async def test_100_writers_lose_nothing(store: MVCCStore, tmp_path: Path) -> None:
    """100 tasks that mark, add and write the file at once: everything is in it."""
    path = tmp_path / "TODO.md"
    todo = TodoList(store, path=path, is_synced=False)
    for number in range(100):
        await todo.add(f"item {number:03}")

    async def change(number: int) -> None:
        await todo.mark(f"item {number:03}", TodoMark.DONE)
        await todo.add(f"new {number:03}")
        await todo.project()

    async with anyio.create_task_group() as group:
        for number in range(100):
            group.start_soon(change, number)
    lines = parse_lines(body(path))
    assert sum(line.mark is TodoMark.DONE for line in lines) == 100
    assert {line.text for line in lines} >= {f"new {number:03}" for number in range(100)}
    assert len(lines) == 200
    assert os.listdir(tmp_path) == ["TODO.md"]  # noqa: PTH208  (no more blocking than a Path)
    assert todo.statistics().writes < 100


CHILD = """
import sys, anyio
from pathlib import Path
from orchestra import SQLiteStore
from orchestra.opencode.mission.todo_list import TodoList
from orchestra.opencode.mission.todo_text import TodoMark
async def main():
    name = sys.argv[2]
    async with SQLiteStore(Path(sys.argv[1]) / "store.db", durability="process") as store:
        todo = TodoList(store, path=Path(sys.argv[1]) / "TODO.md", is_synced=False)
        for number in range(50):
            await todo.mark(f"{name}-{number}.", TodoMark.DONE)
            if number % 10 == 9:
                await todo.add(f"by {name} {number}")
            await todo.project()
anyio.run(main)
"""


async def test_four_processes_of_50_updates_lose_nothing(tmp_path: Path) -> None:
    """4 processes update items and write the same file: list and file have all of it."""
    names = ["p1", "p2", "p3", "p4"]
    async with SQLiteStore(tmp_path / "store.db", durability="process") as store:
        todo = TodoList(store)
        for name in names:
            for number in range(50):
                await todo.add(f"{name}-{number}.")
    async with anyio.create_task_group() as group:
        for name in names:
            command = [sys.executable, "-c", CHILD, str(tmp_path), name]
            group.start_soon(partial(anyio.run_process, command, stderr=None))
    async with SQLiteStore(tmp_path / "store.db", durability="process") as store:
        items = await TodoList(store).items()
        assert sum(item.mark is TodoMark.DONE for item in items) == 200
        assert len(items) == 220
        assert await store.verify()
    shown = parse_lines(body(tmp_path / "TODO.md"))
    assert [(line.text, line.mark) for line in shown] == [(item.text, item.mark) for item in items]


async def test_an_edit_of_the_file_is_read_back(store: MVCCStore, tmp_path: Path) -> None:
    """What a person does to the file while the store goes on is merged, and conflicts are told."""
    path = tmp_path / "TODO.md"
    told: list[TodoConflict] = []
    todo = TodoList(store, path=path, listener=told.append)
    for text in ("one", "two", "three"):
        await todo.add(text)
    await todo.project()
    path.write_text(
        path.read_text().replace("[ ] one", "[x] one").replace("[ ] two", "[-] two\n  - [ ] more")
        + "\nnotes of a person\n"
    )
    await todo.mark("two", TodoMark.DONE)
    await todo.mark("three", TodoMark.ACTIVE)
    await todo.project()
    assert body(path).split("\n") == ["- [x] one", "- [x] two", "  - [ ] more", "- [/] three"]
    assert path.read_text().endswith("<!-- orchestra:end -->\n\nnotes of a person\n")
    assert [(conflict.what, conflict.file, conflict.store) for conflict in told] == [
        ("mark", "dropped", "done")
    ]
    assert (await store.journal())[-1].author == "file TODO.md"
    assert not (await todo.read_back()).is_changed


async def test_the_file_says_what_it_was_written_from(store: MVCCStore, tmp_path: Path) -> None:
    """Somebody who has not written the file merges an edit of it against the right revision."""
    path = tmp_path / "TODO.md"
    todo = TodoList(store, path=path)
    await todo.add("one")
    await todo.add("two")
    await todo.project()
    path.write_text(path.read_text().replace("[ ] two", "[x] two"))
    await todo.mark("one", TodoMark.DONE)
    another = TodoList(store, path=path)
    await another.project()
    assert body(path) == "- [x] one\n- [x] two"


async def test_a_file_of_unknown_age_only_adds(store: MVCCStore, tmp_path: Path) -> None:
    """When its revision has been compacted, nothing that is old in the file undoes the store."""
    path = tmp_path / "TODO.md"
    todo = TodoList(store, path=path)
    await todo.add("one")
    await todo.project()
    path.write_text(path.read_text().replace("- [ ] one", "- [ ] one\n- [ ] new"))
    await todo.mark("one", TodoMark.DONE)
    await store.compact()
    sync = await todo.read_back()
    assert [conflict.what for conflict in sync.conflicts] == ["mark"]
    await todo.project()
    assert body(path) == "- [x] one\n- [ ] new"


async def test_a_list_of_somebody_else_is_taken_over(store: MVCCStore, tmp_path: Path) -> None:
    """A file that has a list becomes the list; a file without one stays below it."""
    path = tmp_path / "TODO.md"
    path.write_text("# Mine\n\n- [x] done before\n1. [ ] still open\n")
    todo = TodoList(store, path=path)
    await todo.add("ours")
    await todo.project()
    assert body(path) == "# Mine\n\n- [ ] ours\n- [x] done before\n1. [ ] still open"
    assert path.read_text().count("still open") == 1
    # Without its marks the file is somebody's own again: the items are known, the notes stay.
    path.write_text("# Mine\n- [x] ours\n- [x] done before\nnotes\n")
    await todo.project()
    assert body(path) == "# Mine\n- [ ] ours\n- [x] done before\n1. [ ] still open\nnotes"
    other = tmp_path / "OTHER.md"
    other.write_text("just notes\n")
    await TodoList(store.namespace("other"), path=other).add("x")
    notes = TodoList(store.namespace("other"), path=other)
    await notes.project()
    assert other.read_text().endswith("\n\njust notes\n")
    assert body(other) == "- [ ] x"


async def test_following_survives_replacement_of_the_file(tmp_path: Path) -> None:
    """Edits are seen whether the file is rewritten, replaced or removed, again and again."""
    path = tmp_path / "TODO.md"
    async with MemoryStore() as store:
        todo = TodoList(store, path=path, is_synced=False)
        await todo.add("one")

        async def until(texts: set[str]) -> None:
            with anyio.fail_after(20):
                # Only the list itself tells when an edit has arrived.
                while {item.text for item in await todo.items()} != texts:  # noqa: ASYNC110
                    await anyio.sleep(0.01)

        async def until_shown(text: str) -> None:
            with anyio.fail_after(20):
                while not path.exists() or text not in path.read_text():  # noqa: ASYNC110
                    await anyio.sleep(0.01)

        async with todo.following(interval=0.01):
            await until_shown("one")
            for number in range(3):
                replacement = tmp_path / "new"
                replacement.write_text(
                    path.read_text().replace("- [ ] one", f"- [ ] one\n- [ ] r{number}")
                )
                replacement.replace(path)
                await until({"one", *(f"r{n}" for n in range(number + 1))})
            path.write_text(path.read_text().replace("- [ ] one", "- [ ] one\n- [ ] in place"))
            await until({"one", "r0", "r1", "r2", "in place"})
            await todo.add("from the store")
            await until_shown("from the store")
        assert "from the store" in body(path)


def test_an_edit_in_the_last_moment_is_not_overwritten(tmp_path: Path) -> None:
    """The file is not written when it is another one than was read."""
    path = tmp_path / "TODO.md"
    path.write_text("what was read")
    expected = digest_of(path.read_text())
    path.write_text("what somebody has just written")
    assert replace_section(path, "section", expected, is_synced=False) is None
    assert path.read_text() == "what somebody has just written"


async def test_removing_the_file_removes_no_item(store: MVCCStore, tmp_path: Path) -> None:
    """A file that is gone is written again; only removing lines removes items."""
    path = tmp_path / "TODO.md"
    todo = TodoList(store, path=path)
    await todo.add("one")
    await todo.add("two")
    await todo.project()
    path.unlink()
    await todo.mark("one", TodoMark.DONE)
    await todo.project()
    assert body(path) == "- [x] one\n- [ ] two"
    path.write_text(path.read_text().replace("- [ ] two\n", ""))
    await todo.read_back()
    assert [item.text for item in await todo.items()] == ["one"]


async def test_the_file_keeps_its_mode_and_other_text(store: MVCCStore, tmp_path: Path) -> None:
    """Writing changes the section and nothing else, and a failure leaves the old file."""
    path = tmp_path / "TODO.md"
    todo = TodoList(store, path=path)
    await todo.add("one")
    await todo.project()
    path.write_bytes(b"before \xff\n" + path.read_bytes() + b"after\n")
    path.chmod(0o640)
    await todo.mark("one", TodoMark.DONE)
    await todo.project()
    assert path.read_bytes().startswith(b"before \xff\n<!-- orchestra:begin")
    assert path.read_bytes().endswith(b"-->\nafter\n")
    assert path.stat().st_mode & 0o777 == 0o640
    assert repr(todo).startswith(f"<TodoList {path} in ''")
    lost = TodoList(store, path=tmp_path / "missing" / "TODO.md")
    with pytest.raises(OSError, match="missing"):
        await lost.project()
