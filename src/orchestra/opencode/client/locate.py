"""Where the ``opencode`` program is, and whether it is one that we know."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import anyio
from attrs import frozen

from orchestra.errors import ConfigurationError

__all__ = ("KNOWN_VERSION", "OpenCodeProgram", "check_version", "find_opencode", "locate_opencode")

KNOWN_VERSION = "1.18.33"
"""The version that this package is tested with."""

EXECUTABLE_VARIABLE = "ORCHESTRA_OPENCODE"
LOCAL_EXECUTABLE = Path(".opencode-cli", "node_modules", ".bin", "opencode")
CHECKOUT = Path(__file__).resolve().parents[4]
"""The checkout that this package runs from, if it does. Not the current directory: that is the
workspace, and a repository must not get a program of its own run by being worked on."""

_INSTALL = (
    f"install it with: npm install --global opencode-ai@{KNOWN_VERSION}, "
    f"or name its path with {EXECUTABLE_VARIABLE}"
)


@frozen(kw_only=True)
class OpenCodeProgram:
    """An ``opencode`` program that was found and asked for its version.

    Attributes:
        path: Where it is.
        version: What it says its version is.
        warning: One sentence when the version is not one that this package is tested with.
    """

    path: Path
    version: str
    warning: str = ""


def locate_opencode(
    executable: str | os.PathLike[str] | None = None,
    *,
    environment: Mapping[str, str] | None = None,
) -> Path:
    """Find the program: the argument, ``ORCHESTRA_OPENCODE``, our own checkout, ``PATH``.

    The checkout is the folder with our source, where ``dev.py`` puts it into ``.opencode-cli``.
    The current directory is not looked into: it may be anybody's.

    Args:
        executable: A path or a name; when given, nothing else is tried.
        environment: The environment variables; None: this process's.

    Raises:
        ConfigurationError: There is none; says how to install it.
    """
    environment = os.environ if environment is None else environment
    named = executable or environment.get(EXECUTABLE_VARIABLE)
    search_path = environment.get("PATH")
    if named:
        found = shutil.which(os.fspath(named), path=search_path)
        if found is None:
            raise ConfigurationError(f"{os.fspath(named)!r} is not a program; {_INSTALL}")
        return Path(found).absolute()
    found = shutil.which(CHECKOUT / LOCAL_EXECUTABLE) or shutil.which("opencode", path=search_path)
    if found is None:
        raise ConfigurationError(f"opencode is not installed; {_INSTALL}")
    return Path(found).absolute()


async def find_opencode(
    executable: str | os.PathLike[str] | None = None,
    *,
    environment: Mapping[str, str] | None = None,
) -> OpenCodeProgram:
    """Find the program and ask it for its version. A checkpoint; takes about a second.

    Args:
        executable: As for `locate_opencode`.
        environment: As for `locate_opencode`.

    Raises:
        ConfigurationError: There is none, or it does not run.
    """
    path = locate_opencode(executable, environment=environment)
    try:
        with anyio.fail_after(30):
            result = await anyio.run_process(
                [str(path), "--version"], stdin=subprocess.DEVNULL, check=False
            )
    except (OSError, TimeoutError) as exc:
        raise ConfigurationError(f"{path} does not run ({exc}); {_INSTALL}") from exc
    lines = result.stdout.decode("utf-8", "replace").split()
    if result.returncode != 0 or not lines:
        raise ConfigurationError(f"{path} does not tell its version; {_INSTALL}")
    return OpenCodeProgram(path=path, version=lines[-1], warning=check_version(lines[-1]))


def check_version(version: str) -> str:
    """Compare a version with the one that is tested.

    Args:
        version: The version of a program or server.

    Returns:
        One sentence of warning, or an empty string.
    """
    if version == KNOWN_VERSION:
        return ""
    return f"OpenCode {version or 'of unknown version'} is not {KNOWN_VERSION}, which is tested"
