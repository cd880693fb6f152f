"""Markdown task lists as text: which lines are items, and how items are written. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from enum import Enum

from attrs import frozen

__all__ = (
    "TodoLine",
    "TodoMark",
    "depths",
    "parse_lines",
    "render_line",
    "split_section",
    "wrap_section",
)

_ITEM = re.compile(r"^([ \t]*)([-*+]|\d{1,9}[.)])[ \t]+\[([ xX/-])\](?:[ \t]+(.*?))?[ \t]*$")
_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})(.*)$")
_BEGIN = re.compile(
    r"^<!-- orchestra:begin\b(?:[^>]*?\brevision=(\d{1,18})\b)?.*-->[ \t]*\r?$", re.MULTILINE
)
_END = "<!-- orchestra:end -->"


class TodoMark(Enum):
    """What stands between the brackets."""

    OPEN = " "
    DONE = "x"
    ACTIVE = "/"
    DROPPED = "-"


@frozen(kw_only=True)
class TodoLine:
    """One line of the list: an item, or any other line.

    Attributes:
        text: The item's text; of another line all of it.
        mark: The item's mark; None: the line is no item.
        indent: The white space before an item.
        bullet: ``-``, ``*``, ``+`` or a number with its dot or bracket.
    """

    text: str
    mark: TodoMark | None = None
    indent: str = ""
    bullet: str = "-"

    @property
    def width(self) -> int:
        """How far the item is indented, with a tab as four spaces."""
        return len(self.indent.expandtabs(4))


def parse_lines(text: str) -> list[TodoLine]:
    """Return the lines of a Markdown text.

    Items are lines with a bullet or a number and ``[ ]``, ``[x]``, ``[X]``, ``[/]`` or ``[-]``,
    nested or not. What stands in a code fence or in a comment is no item.

    Args:
        text: The text.
    """
    lines: list[TodoLine] = []
    fence = ""
    is_comment = False
    for line in text.split("\n"):
        mark = _FENCE.match(line)
        if fence:
            is_end = mark and mark[1].startswith(fence) and not mark[2].strip()
            fence = "" if is_end else fence
        elif is_comment:
            is_comment = "-->" not in line
        elif mark and not (mark[1][0] == "`" and "`" in mark[2]):
            fence = mark[1]
        elif line.rfind("<!--") > line.rfind("-->"):
            is_comment = True
        elif found := _ITEM.match(line):
            indent, bullet, box, rest = found.groups()
            lines.append(
                TodoLine(text=rest or "", mark=TodoMark(box.lower()), indent=indent, bullet=bullet)
            )
            continue
        lines.append(TodoLine(text=line))
    return lines


def render_line(line: TodoLine) -> str:
    """Return a line as it stands in the file.

    Args:
        line: The line.
    """
    if line.mark is None:
        return line.text
    return f"{line.indent}{line.bullet} [{line.mark.value}] {line.text}".rstrip()


def split_section(text: str) -> tuple[str, str | None, int | None, str]:
    """Find the section that is kept true.

    Args:
        text: The whole file.

    Returns:
        What stands before it, its text (None: there is no section), the revision that it was
        written from (None: it does not say), and what stands after it.
    """
    begin = _BEGIN.search(text)
    if begin is None:
        return "", None, None, text
    end = text.find(_END, begin.end())
    if end < 0:
        return "", None, None, text
    revision = None if begin[1] is None else int(begin[1])
    inner = text[begin.end() : end].replace("\r\n", "\n").strip("\n")
    return text[: begin.start()], inner, revision, text[end + len(_END) :]


def wrap_section(lines: Iterable[TodoLine], revision: int) -> str:
    """Return the section with its marks, which say which revision it was written from.

    Args:
        lines: Its lines.
        revision: The store's revision.
    """
    begin = f"<!-- orchestra:begin revision={revision} (edits of this list are read back) -->"
    return "\n".join([begin, *map(render_line, lines), _END])


def depths(lines: Sequence[TodoLine]) -> list[int]:
    """Return for each line how many items it is nested in; -1 for lines that are no items.

    Args:
        lines: The lines.
    """
    found: list[int] = []
    open_widths: list[int] = []
    for line in lines:
        if line.mark is None:
            found.append(-1)
            if line.text.startswith("#"):
                open_widths.clear()
            continue
        while open_widths and open_widths[-1] >= line.width:
            open_widths.pop()
        found.append(len(open_widths))
        open_widths.append(line.width)
    return found
