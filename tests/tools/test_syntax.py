"""Search and rewrite by syntax."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from text_tools import write_files

from orchestra.tools import syntax
from orchestra.tools.listing import Selection
from orchestra.tools.root import Root
from orchestra.tools.syntax import SyntaxQuery, match_syntax

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the tools are POSIX")

CODE = "é = 1\r\nprint(é, 2)\r\nx = print(print(3))\r\n"


@pytest.fixture
def root(tmp_path: Path) -> Root:
    write_files(
        tmp_path,
        {
            "a.py": CODE,
            "b.js": "print(1)",
            "bin.py": b"print(1)\0",
            "latin.py": b"# \xe9\nprint(1)\n",
            "note.txt": "print(1)",
        },
    )
    return Root(tmp_path)


async def test_matches_have_their_place_and_captures(root: Root) -> None:
    """A pattern finds code whatever its layout, only in files of the language."""
    query = SyntaxQuery(pattern="print($FIRST, $$$REST)", language="python")
    (found,) = (await match_syntax(root, query)).matches
    assert (found.path, found.text) == ("a.py", "print(é, 2)")
    place = (found.line, found.column, found.end_line, found.end_column)
    assert place == (2, 1, 2, 12)
    assert (found.captures, found.replacement) == ({"FIRST": "é", "REST": "2"}, None)


async def test_a_rewrite_is_dry_by_default(root: Root) -> None:
    """It shows what it would do, and writes nothing."""
    query = SyntaxQuery(pattern="print($$$A)", language="python", rewrite="log($$$A)")
    found = await match_syntax(root, query)
    assert [m.replacement for m in found.matches] == ["log(é, 2)", "log(print(3))"]
    assert (found.written, (root.path / "a.py").read_bytes()) == ((), CODE.encode())


async def test_a_rewrite_is_applied(root: Root) -> None:
    """The outermost matches are replaced and every other byte stays."""
    query = SyntaxQuery(
        pattern="print($$$A)", language="python", rewrite="log($$$A)", is_applied=True
    )
    found = await match_syntax(root, query)
    assert (found.written, found.cut) == (("a.py",), "")
    new = "é = 1\r\nlog(é, 2)\r\nx = log(print(3))\r\n"
    assert (root.path / "a.py").read_bytes() == new.encode()


async def test_what_is_not_known_whole_is_not_written(root: Root) -> None:
    """With more matches than the limit nothing is written, and it says so."""
    query = SyntaxQuery(
        pattern="print($$$A)", language="python", rewrite="log()", is_applied=True, limit=1
    )
    found = await match_syntax(root, query)
    assert (len(found.matches), found.written) == (1, ())
    assert "these are the first 1 matches; nothing was written" in found.cut
    assert (root.path / "a.py").read_bytes() == CODE.encode()


async def test_a_file_that_changes_meanwhile_is_not_written(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The change stays, and the answer names the file."""
    real = syntax._write

    def late(*arguments: object) -> object:
        (root.path / "a.py").write_text("theirs")
        return real(*arguments)  # type: ignore[arg-type]  # passed on as they are

    monkeypatch.setattr(syntax, "_write", late)
    query = SyntaxQuery(
        pattern="print($$$A)", language="python", rewrite="log($$$A)", is_applied=True
    )
    found = await match_syntax(root, query)
    assert (found.written, found.cut) == (
        (),
        "not written: a.py (changed meanwhile); look and repeat",
    )
    assert (root.path / "a.py").read_text() == "theirs"


async def test_a_pattern_that_cannot_be_used(root: Root) -> None:
    """What the matcher refuses is a ValueError of one line."""
    with pytest.raises(ValueError, match=r"the pattern cannot be used: .+") as caught:
        await match_syntax(root, SyntaxQuery(pattern=" ", language="python"))
    assert "\n" not in str(caught.value)


async def test_it_is_stopped_in_time(root: Root) -> None:
    """When the time is over, what is missing is said and nothing is written."""
    selection = Selection(path="a.py", timeout=0.001)
    query = SyntaxQuery(
        pattern="print($A)",
        language="python",
        rewrite="x",
        is_applied=True,
        selection=selection,
    )
    found = await match_syntax(root, query)
    assert "the search was stopped after 0.001 s; nothing was written" in found.cut
    assert (root.path / "a.py").read_bytes() == CODE.encode()


async def test_without_the_extra(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ast-grep-py the error is one sentence that says what to install."""
    monkeypatch.setitem(sys.modules, "ast_grep_py", None)
    with pytest.raises(ImportError) as caught:
        await match_syntax(root, SyntaxQuery(pattern="x", language="python"))
    assert str(caught.value) == "AST search needs ast-grep-py: pip install 'orchestra[tools]'"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"language": "klingon"}, "language 'klingon' is unknown; choose bash, c"),
        ({"pattern": ""}, "the pattern must have 1 to 10,000 characters"),
        ({"rewrite": "f($B)"}, r"the rewrite has \$B, which the pattern does not; name it"),
        ({"rewrite": "x" * 20_000}, "the rewrite must have at most 10,000 characters"),
        ({"limit": 0}, "limit must be at least 1"),
    ],
)
def test_a_query_is_checked(fields: dict[str, object], message: str) -> None:
    """What cannot be meant is refused before anything is done."""
    values: dict[str, object] = {"pattern": "f($A)", "language": "python", **fields}
    with pytest.raises(ValueError, match=message):
        SyntaxQuery(**values)  # type: ignore[arg-type]  # wrong on purpose
