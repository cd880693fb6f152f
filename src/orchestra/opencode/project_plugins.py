"""Finding the OpenCode plug-ins of a project, which a server runs as its own code.

OpenCode 1.18.33 loads them with the first prompt in a directory, also when it is told to leave the
configuration of the project alone (``OPENCODE_DISABLE_PROJECT_CONFIG``). So they are looked for
before anything is sent: in the directory and in those above it, up to the root of the repository.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from orchestra.errors import ConfigurationError

__all__ = ("check_no_plugins", "find_plugins")

_FOLDERS = ("plugin", "plugins")
_SUFFIXES = {".ts", ".js"}
_DOCUMENTS = ("opencode.json", "opencode.jsonc")
_NOISE = re.compile(r'("(?:\\.|[^"\\])*")|//[^\n]*|/\*.*?\*/', re.DOTALL)
_LAST_COMMA = re.compile(r",(\s*[}\]])")


def check_no_plugins(directory: Path) -> None:
    """See that a server that works in a directory runs no code of the project. Blocks.

    Args:
        directory: The directory, resolved.

    Raises:
        ConfigurationError: It would.
    """
    found = next(find_plugins(directory), None)
    if found is not None:
        raise ConfigurationError(
            f"{found} makes the OpenCode server run code of the project; look at it, then remove it or "
            "set project_config = true to obey the project's configuration"
        )


def find_plugins(directory: Path) -> Iterator[Path]:
    """Yield what names plug-ins, or is one. Blocks.

    Args:
        directory: The directory, resolved.
    """
    for place in (directory, *directory.parents):
        for folder in (place, place / ".opencode"):
            yield from (path for name in _DOCUMENTS if _names_plugins(path := folder / name))
        for name in _FOLDERS:
            yield from _scripts(place / ".opencode" / name)
        if (place / ".git").exists():
            return


def _scripts(folder: Path) -> Iterator[Path]:
    try:
        yield from sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES)
    except OSError:
        return  # there is no such folder, or it is not ours to read


def _names_plugins(path: Path) -> bool:
    """Whether a configuration names plug-ins; one that cannot be understood may."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError):
        return True
    plain = _NOISE.sub(lambda match: match[1] or " ", text)
    try:
        document = json.loads(_LAST_COMMA.sub(r"\1", plain), object_pairs_hook=list)
    except (ValueError, RecursionError):
        return bool(plain.strip())
    if not isinstance(document, list):
        return False
    return any(pair[0] in _FOLDERS and pair[1] for pair in document if isinstance(pair, tuple))
