"""AST matching: ``python -m orchestra.tools.matcher``, one process for one search.

Parsers and matcher are native code that may panic or take long, so they run where they can be
killed. One line of JSON is printed for each match, and for each file that would change.
"""

from __future__ import annotations

import hashlib
import json
import re
import signal
import sys
from typing import Any

from ast_grep_py import SgNode, SgRoot

from orchestra.tools.root import Root, is_binary

__all__ = ("match_files",)

_BAD_REQUEST = 3
_SHOWN = 2_000
"""Characters of a text that are printed."""
_VARIABLE = re.compile(r"\$\$\$([A-Z_][A-Z0-9_]*)|\$([A-Z_][A-Z0-9_]*)")


def match_files(request: dict[str, Any]) -> None:
    """Print what matches.

    Args:
        request: ``root``, ``files``, ``language``, ``pattern``, ``rewrite`` (None: search only),
            ``limit`` and ``max_file_size``.
    """
    root = Root(request["root"])
    left: int = request["limit"]
    for path in request["files"]:
        data = _read(root, path, request["max_file_size"])
        try:
            text = data.decode()
        except UnicodeDecodeError:
            continue
        edits: list[tuple[int, int, str]] = []
        for node in SgRoot(text, request["language"]).root().find_all(pattern=request["pattern"]):
            replacement = None
            if request["rewrite"] is not None:
                place = node.range()
                if edits and place.start.index < edits[-1][1]:
                    continue  # inside one that is replaced already
                replacement = _fill(request["rewrite"], node, text)
                edits.append((place.start.index, place.end.index, replacement))
            _print(_describe(path, node, text, replacement, request["pattern"]))
            left -= 1
            if left == 0:
                return
        if edits:
            digest = hashlib.sha256(data).hexdigest()
            _print({"path": path, "digest": digest, "new": _apply(text, edits)})


def _read(root: Root, path: str, limit: int) -> bytes:
    """Return a text; empty when it is none, or cannot be read any more."""
    try:
        data = root.read(path, limit=limit)
    except OSError:
        return b""
    return b"" if data is None or is_binary(data) else data


def _value(node: SgNode, text: str, several: str, one: str) -> str:
    """Return the source of what a variable stands for."""
    if several:
        nodes = node.get_multiple_matches(several)
        return text[nodes[0].range().start.index : nodes[-1].range().end.index] if nodes else ""
    single = node.get_match(one)
    return "" if single is None else single.text()


def _fill(template: str, node: SgNode, text: str) -> str:
    return _VARIABLE.sub(lambda found: _value(node, text, found[1], found[2]), template)


def _apply(text: str, edits: list[tuple[int, int, str]]) -> str:
    pieces: list[str] = []
    at = 0
    for start, end, replacement in edits:
        pieces += (text[at:start], replacement)
        at = end
    return "".join([*pieces, text[at:]])


def _describe(
    path: str, node: SgNode, text: str, replacement: str | None, pattern: str
) -> dict[str, Any]:
    place = node.range()
    return {
        "path": path,
        "line": place.start.line + 1,
        "column": place.start.column + 1,
        "end_line": place.end.line + 1,
        "end_column": place.end.column + 1,
        "text": node.text()[:_SHOWN],
        "captures": {
            several or one: _value(node, text, several, one)[:_SHOWN]
            for several, one in _VARIABLE.findall(pattern)
        },
        "replacement": None if replacement is None else replacement[:_SHOWN],
    }


def _print(record: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(record) + "\n")


def main() -> int:
    """Read a request from standard input and print the answer."""
    request = json.load(sys.stdin)
    # The kernel ends the process, whatever the native code is doing.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, request["timeout"])
    try:
        match_files(request)
    except RuntimeError as exc:  # what the matcher says of a pattern: the last line of its causes
        causes = str(exc).partition("\n\nStack backtrace")[0].strip()
        sys.stderr.write(f"the pattern cannot be used: {causes.rpartition(': ')[2]}")
        return _BAD_REQUEST
    return 0


if __name__ == "__main__":
    sys.exit(main())
