"""What can be said of a file by looking into it: whether it parses, whether it holds secrets.

All of it blocks, for a thread of a pool. What was the matter with the file before is told too, but
is nobody's fault now.
"""

from __future__ import annotations

import ast
import json
import sys
import tomllib
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from attrs import evolve, field, frozen

from orchestra import Redactor
from orchestra.opencode.mission.report import Finding

__all__ = ("Inspection", "Sighting", "secret_formats")

_MAX_PARSED = 4 << 20
"""Bytes of a file up to which it is looked into."""
_MAX_SECRETS = 1_000
"""Secrets of one file that are told."""
_GUESSED = frozenset({"authorization", "bearer-token", "credential", "password", "url-password"})
"""Kinds that a secret's surroundings tell, not its own form: a test's made-up password is one."""


def _parse_python(text: bytes) -> None:
    # To code, not to a tree: building trees in several threads at once fails in some Pythons.
    compile(text, "file", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


def _parse_json(text: bytes) -> None:
    json.loads(text)


def _parse_toml(text: bytes) -> None:
    tomllib.loads(text.decode())


_PYTHON = (f"Python {sys.version_info.major}.{sys.version_info.minor}", _parse_python)
_PARSERS: Mapping[str, tuple[str, Callable[[bytes], None]]] = {
    ".json": ("JSON", _parse_json),
    ".py": _PYTHON,
    ".pyi": _PYTHON,
    ".toml": ("TOML", _parse_toml),
}


@frozen
class Sighting:
    """Something that was seen in a file.

    Attributes:
        finding: What, and where.
        is_refused: Whether the file cannot be accepted like this: it is certain, and it is new.
    """

    finding: Finding
    is_refused: bool


def secret_formats(redactor: Redactor | None) -> Redactor:
    """Return what finds secrets in files: in source, a random token is more often a digest.

    Args:
        redactor: The mission's own; None: it has none.
    """
    return evolve(redactor or Redactor(), minimum_entropy=None)


@frozen(kw_only=True)
class Inspection:
    """Looks into files.

    Attributes:
        redactor: Knows what secrets look like.
        unparsed: Patterns of paths that are not parsed; ``*`` matches ``/`` too.
    """

    redactor: Redactor = field(factory=lambda: secret_formats(None))
    unparsed: tuple[str, ...] = ()

    def look(self, root: str, path: str, before: bytes | None = None) -> list[Sighting]:
        """Return what is the matter with a file. Blocks.

        A link is not followed; what cannot be read, or is larger than 4 MiB, is passed over.

        Args:
            root: The folder.
            path: The file, relative to it.
            before: What it held earlier; None: it is new, or nobody knows.
        """
        full = Path(root, path)
        try:
            if full.is_symlink() or full.stat().st_size > _MAX_PARSED:
                return []
            data = full.read_bytes()
        except OSError:
            return []
        return [*self._faults(path, data, before), *self._secrets(path, data, before)]

    def _faults(self, path: str, data: bytes, before: bytes | None) -> list[Sighting]:
        if not (fault := self._fault(path, data)):
            return []
        is_new = before is None or not self._fault(path, before)
        return [Sighting(fault[0], is_new)]

    def _fault(self, path: str, data: bytes) -> list[Finding]:
        known = _PARSERS.get(Path(path).suffix.lower())
        if known is None or any(fnmatchcase(path, pattern) for pattern in self.unparsed):
            return []
        language, parse = known
        try:
            parse(data)
        except (ValueError, SyntaxError, RecursionError, MemoryError) as exc:
            message = f"it does not parse as {language}: {exc}"[:300]
            return [Finding(path=path, line=getattr(exc, "lineno", None) or 0, message=message)]
        return []

    def _secrets(self, path: str, data: bytes, before: bytes | None) -> list[Sighting]:
        text = data.decode("utf-8", errors="replace")
        found = self.redactor.find(text)[:_MAX_SECRETS]
        if not found:
            return []
        earlier = "" if before is None else before.decode("utf-8", errors="replace")
        sightings = []
        line, place = 1, 0
        for secret in found:
            line += text.count("\n", place, secret.start)
            place = secret.start
            message = f"it looks like {secret.description}"
            is_new = text[secret.start : secret.end] not in earlier
            sightings.append(
                Sighting(
                    Finding(path=path, line=line, message=message),
                    is_refused=is_new and secret.kind not in _GUESSED,
                )
            )
        return sightings
