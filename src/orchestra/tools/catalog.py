"""The tools of the tool server: what they are called, what they take, and what they answer."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeAlias

import attrs
from attrs import field, frozen

from orchestra._core.globs import Glob
from orchestra.tools.files import file_statistics
from orchestra.tools.listing import Selection, find_ripgrep
from orchestra.tools.root import Root
from orchestra.tools.search import GrepQuery, glob, grep
from orchestra.tools.syntax import LANGUAGES, SyntaxQuery, match_syntax

__all__ = ("Argument", "ArgumentError", "Tool", "shipped_tools")

_MAX_TIMEOUT = 300.0
_MAX_RESULTS = 20_000
_MAX_ANSWER = 1_000_000
"""Characters of one answer's records, as JSON."""

JSON: TypeAlias = dict[str, Any]
_JSON_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
}


class ArgumentError(ValueError):
    """Arguments do not fit what a tool takes; nothing was done."""


@frozen(kw_only=True)
class Argument:
    """One argument of a tool.

    Attributes:
        kind: Its JSON type.
        description: What it means.
        default: Its value when it is not given; None: it must be, or has no value.
        is_required: Whether it must be given.
        choices: What it may be; empty: anything of its type.
        bounds: The smallest and the largest number; None: any.
    """

    kind: str = "string"
    description: str
    default: Any = None
    is_required: bool = False
    choices: tuple[str, ...] = ()
    bounds: tuple[float, float] | None = None

    def schema(self) -> JSON:
        """Return its JSON schema."""
        schema: JSON = {"type": self.kind, "description": self.description}
        if self.default is not None:
            schema["default"] = self.default
        if self.choices:
            schema["enum"] = list(self.choices)
        if self.bounds is not None:
            schema["minimum"], schema["maximum"] = self.bounds
        return schema

    def check(self, name: str, value: Any) -> None:
        """Check a value.

        Args:
            name: What the argument is called.
            value: What was given.

        Raises:
            ArgumentError: It does not fit.
        """
        is_fit: bool = isinstance(value, _JSON_TYPES[self.kind])
        if not is_fit or isinstance(value, bool) != (self.kind == "boolean"):
            raise ArgumentError(f"{name} must be of type {self.kind}, not {_shown(value)}")
        if self.choices and value not in self.choices:
            raise ArgumentError(f"{name} must be one of {', '.join(self.choices)}")
        if self.bounds is not None and not self.bounds[0] <= value <= self.bounds[1]:
            least, most = self.bounds
            raise ArgumentError(f"{name} must be from {least:g} to {most:g}, not {value!r:.40}")


@frozen(kw_only=True)
class Tool:
    """A tool.

    Attributes:
        name: What it is called.
        description: What it does, for a model.
        arguments: What it takes.
        call: Awaited with every argument, defaults filled in; returns the answer's record, and
            the same for people.
        is_writing: Whether it may change files.
    """

    name: str
    description: str
    arguments: Mapping[str, Argument]
    call: Callable[[JSON], Awaitable[tuple[JSON, str]]] = field(repr=False)
    is_writing: bool = False

    def describe(self) -> JSON:
        """Return what ``tools/list`` tells of it."""
        return {
            "name": self.name,
            "description": self.description,
            "inputSchema": {
                "type": "object",
                "properties": {name: one.schema() for name, one in self.arguments.items()},
                "required": [name for name, one in self.arguments.items() if one.is_required],
                "additionalProperties": False,
            },
            "annotations": {"readOnlyHint": not self.is_writing, "openWorldHint": False},
        }

    def complete(self, given: object) -> JSON:
        """Check arguments and fill in the defaults.

        Args:
            given: What was sent.

        Raises:
            ArgumentError: They do not fit.
        """
        if given is None:
            given = {}
        if not isinstance(given, dict):
            raise ArgumentError(f"arguments must be an object, not {_shown(given)}")
        if unknown := sorted(given.keys() - self.arguments.keys()):
            known = ", ".join(self.arguments)
            raise ArgumentError(f"{self.name} takes no {unknown[0]!r:.80}; it takes {known}")
        complete: JSON = {}
        for name, argument in self.arguments.items():
            value = given.get(name)
            if value is not None:
                argument.check(name, value)
            elif argument.is_required:
                raise ArgumentError(f"{self.name} needs {name!r}; give it")
            complete[name] = argument.default if value is None else value
        return complete


def _shown(value: object) -> str:
    return f"{type(value).__name__} {value!r:.80}"


_WHERE: Mapping[str, Argument] = {
    "path": Argument(description="Folder or file to look at, relative to the root.", default=""),
    "hidden": Argument(
        kind="boolean", description="Include names that begin with a dot.", default=False
    ),
    "ignored": Argument(
        kind="boolean", description="Include what .gitignore names.", default=False
    ),
    "timeout": Argument(
        kind="number",
        description="Seconds after which to stop with what was found.",
        default=30.0,
        bounds=(0.1, _MAX_TIMEOUT),
    ),
}
_GLOB = Argument(
    description="Only paths that match, as in '*.py' (any folder) or 'src/**/*.{ts,tsx}'."
)
_CODE = "Code in which $NAME stands for one node and $$$NAME for several, as in 'print($$$ARGS)'."


def _limit(default: int) -> Argument:
    return Argument(
        kind="integer",
        description="How many results to return.",
        default=default,
        bounds=(1, _MAX_RESULTS),
    )


def _selection(given: JSON, *, max_file_size: int = 10 << 20) -> Selection:
    pattern = given.get("glob")
    return Selection(
        path=given["path"],
        glob=None if pattern is None else Glob(pattern),
        is_hidden_included=given["hidden"],
        is_ignored_included=given["ignored"],
        max_file_size=max_file_size,
        timeout=given["timeout"],
    )


def _bounded(records: list[Any], cut: str) -> tuple[list[Any], str]:
    """Return as many records as one answer may have, and what is missing."""
    size = 0
    for index, record in enumerate(records):
        size += len(json.dumps(record))
        if size > _MAX_ANSWER:
            more = f"the last {len(records) - index:,} of {len(records):,} results are left out"
            return records[:index], f"{cut}; {more}" if cut else more
    return records, cut


def _text(lines: list[str], cut: str) -> str:
    return "\n".join([*(lines or ["nothing was found"]), *([f"[{cut}]"] if cut else [])])


def shipped_tools(root: Root, *, is_ripgrep_used: bool = True) -> tuple[Tool, ...]:
    """Return the tools of the tool server, which work below a folder. Blocks.

    Args:
        root: The folder that they cannot leave.
        is_ripgrep_used: Whether ripgrep may be used where it is.
    """
    tools: Final = _Tools(root, find_ripgrep(root) if is_ripgrep_used else None)
    syntax = {
        "pattern": Argument(description=_CODE, is_required=True),
        "language": Argument(
            description="The language.", is_required=True, choices=tuple(LANGUAGES)
        ),
    }
    rewrite = Argument(
        description="What to put in place of each match; may use the pattern's variables.",
        is_required=True,
    )
    apply = Argument(
        kind="boolean", description="Write the files; else the rewrite is shown.", default=False
    )
    return (
        Tool(
            name="grep",
            description="Search text files for lines that match a regular expression (Python's "
            "syntax, on bytes) or a text.",
            arguments={
                "pattern": Argument(description="What to look for.", is_required=True),
                "literal": Argument(
                    kind="boolean", description="The pattern is a text.", default=False
                ),
                "ignore_case": Argument(
                    kind="boolean", description="ASCII letters match both cases.", default=False
                ),
                "glob": _GLOB,
                **_WHERE,
                "limit": _limit(1_000),
            },
            call=tools.grep,
        ),
        Tool(
            name="glob",
            description="List files whose path matches a glob, sorted.",
            arguments={
                "glob": attrs.evolve(_GLOB, is_required=True),
                **_WHERE,
                "limit": _limit(5_000),
            },
            call=tools.glob,
        ),
        Tool(
            name="file_statistics",
            description="Count files, bytes and lines below a folder, by suffix, and name the "
            "largest files.",
            arguments={"glob": _GLOB, **_WHERE},
            call=tools.file_statistics,
        ),
        Tool(
            name="ast_search",
            description="Search code by syntax.",
            arguments={**syntax, "glob": _GLOB, **_WHERE, "limit": _limit(1_000)},
            call=tools.match_syntax,
        ),
        Tool(
            name="ast_rewrite",
            description="Replace code by syntax; shows what it would do unless apply is true.",
            arguments={
                **syntax,
                "rewrite": rewrite,
                "apply": apply,
                "glob": _GLOB,
                **_WHERE,
                "limit": _limit(1_000),
            },
            call=tools.match_syntax,
            is_writing=True,
        ),
    )


class _Tools:
    """Calls the tools and writes their answers."""

    def __init__(self, root: Root, ripgrep: str | None) -> None:
        self._root: Final = root
        self._ripgrep: Final = ripgrep

    async def grep(self, given: JSON) -> tuple[JSON, str]:
        query = GrepQuery(
            pattern=given["pattern"],
            is_literal=given["literal"],
            is_case_ignored=given["ignore_case"],
            selection=_selection(given),
            limit=given["limit"],
        )
        found = await grep(self._root, query, ripgrep=self._ripgrep)
        matches, cut = _bounded([attrs.asdict(match) for match in found.matches], found.cut)
        lines = [f"{m['path']}:{m['line']}:{m['column']}: {m['text']}" for m in matches]
        return {"matches": matches, "engine": found.engine, "cut": cut}, _text(lines, cut)

    async def glob(self, given: JSON) -> tuple[JSON, str]:
        found = await glob(
            self._root, _selection(given), limit=given["limit"], ripgrep=self._ripgrep
        )
        paths, cut = _bounded(list(found.paths), found.cut)
        return {"paths": paths, "cut": cut}, _text(paths, cut)

    async def file_statistics(self, given: JSON) -> tuple[JSON, str]:
        found = await file_statistics(self._root, _selection(given), ripgrep=self._ripgrep)
        lines = [
            (
                f"{found.files:,} files, {found.size:,} bytes, {found.lines:,} lines, "
                f"{found.binary_files:,} binary"
            ),
            *(
                f"{one.suffix or '(none)'}: {one.files:,} files, {one.size:,} bytes, "
                f"{one.lines:,} lines"
                for one in found.suffixes
            ),
            *(f"{path}: {size:,} bytes" for path, size in found.largest),
        ]
        return attrs.asdict(found), _text(lines, found.cut)

    async def match_syntax(self, given: JSON) -> tuple[JSON, str]:
        query = SyntaxQuery(
            pattern=given["pattern"],
            language=given["language"],
            rewrite=given.get("rewrite"),
            is_applied=given.get("apply", False),
            selection=_selection(given, max_file_size=1 << 20),
            limit=given["limit"],
        )
        found = await match_syntax(self._root, query, ripgrep=self._ripgrep)
        matches, cut = _bounded([attrs.asdict(match) for match in found.matches], found.cut)
        lines = [
            f"{m['path']}:{m['line']}:{m['column']}: {m['text']}"
            + ("" if m["replacement"] is None else f"\n  -> {m['replacement']}")
            for m in matches
        ]
        if found.written:
            lines.append(f"written: {', '.join(found.written)}")
        record = {"matches": matches, "written": list(found.written), "cut": cut}
        return record, _text(lines, cut)
