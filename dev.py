#!/usr/bin/env python3
"""The commands of the README; what they need is set up inside this folder, and nowhere else.

``python3 dev.py demo`` runs the example mission, ``python3 dev.py test`` the tests. Both need
Python 3.11 with venv, and the network on their first run; nothing else.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
DEMO = "examples/tidy/mission.toml"
OPENCODE = "1.18.33"
OPENCODE_HOME = ROOT / ".opencode-cli"


class SetupError(Exception):
    """The set-up cannot go on; the message says what to do."""


def main(argv: list[str]) -> int:
    """Run one command.

    Args:
        argv: The arguments, without the program's name.

    Returns:
        The exit code of what was run; 2 when the set-up failed, 130 when it was interrupted.
    """
    parser = argparse.ArgumentParser(prog="dev.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="(default: .venv)")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser(
        "demo", help="run the example mission; more arguments go to 'orchestra run'"
    )
    commands.add_parser("test", help="run the tests; more arguments go to pytest")
    install = commands.add_parser("install", help="install dependency groups of pyproject.toml")
    install.add_argument("groups", nargs="*")
    options, rest = parser.parse_known_args(argv)
    venv = options.venv.absolute()
    try:
        if sys.version_info < (3, 11):  # noqa: UP036 - this is where an older Python is told so
            version = ".".join(map(str, sys.version_info[:3]))
            raise SetupError(f"this is Python {version}; run dev.py with Python 3.11 or newer")
        if options.command == "demo":
            scripts = prepare(venv, extra="cli")
            # The mission's commands say python3: that shall be this one, and not an older one.
            os.environ["PATH"] = os.pathsep.join([str(scripts), os.environ.get("PATH", os.defpath)])
            return run([str(scripts / "orchestra"), "run", DEMO, *rest])
        if options.command == "install":
            if rest:
                parser.error(f"unknown arguments: {' '.join(rest)}")
            prepare(venv, extra="all", groups=options.groups)
            return 0
        scripts = prepare(venv, extra="all", groups=["tests"])
        return run_tests(scripts, rest)
    except SetupError as exc:
        print(f"dev.py: {exc}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("dev.py: interrupted; repeat the command to go on", file=sys.stderr)
        return 130


def run_tests(scripts: Path, arguments: list[str]) -> int:
    """Run pytest, with the real OpenCode where it can be had.

    Args:
        scripts: The folder of the virtual environment's programs.
        arguments: Arguments for pytest.
    """
    missing = install_opencode()
    if missing and os.environ.get("CI"):
        raise SetupError(f"{missing}; in CI the tests on the real server are never skipped")
    if missing:
        say(f"the tests marked real_server are skipped: {missing}")
    code = run([str(scripts / "python"), "-m", "pytest", *arguments])
    if missing:
        say(f"skipped above, every test marked real_server: {missing}")
    return code


def prepare(venv: Path, *, extra: str, groups: list[str] | tuple[str, ...] = ()) -> Path:
    """Make the virtual environment and install into it what is not there yet.

    Args:
        venv: The folder of the virtual environment.
        extra: The extra of the package.
        groups: Dependency groups of ``pyproject.toml``.

    Returns:
        The folder of its programs.
    """
    scripts = venv / ("Scripts" if os.name == "nt" else "bin")
    if not venv.exists():
        say(f"making {venv.name} with Python {sys.version.split()[0]}")
        is_made = False
        try:
            is_made = quietly([sys.executable, "-m", "venv", str(venv)]) == 0
        finally:
            if not is_made:  # also when it was interrupted: half an environment helps nobody
                shutil.rmtree(venv, ignore_errors=True)
        if not is_made:
            raise SetupError(
                "python3 -m venv failed; install the venv module (on Debian and Ubuntu: "
                "apt install python3-venv) and repeat the command"
            )
    python = str(scripts / "python")
    requirements, pins = read_requirements(extra, groups)
    stamp = venv / ".dev-stamp.json"
    done = json.loads(stamp.read_text()) if stamp.exists() else {}
    installed = set(done.get("requirements", ())) if done.get("pins") == pins else set()
    if not set(requirements) <= installed:
        say(f"installing {' '.join(requirements)}")
        command = [python, "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
        if quietly([*command, "--editable", *requirements]):
            raise SetupError(
                f"pip could not install into {venv}, see above; check the network (or remove "
                f"the folder, if it is broken) and repeat the command"
            )
        stamp.write_text(json.dumps({"pins": pins, "requirements": [*installed, *requirements]}))
    return scripts


def read_requirements(extra: str, groups: list[str] | tuple[str, ...]) -> tuple[list[str], str]:
    """What pip is to install, and a digest of all that decides about it.

    The pip of Python 3.11 does not know dependency groups, so they are read here.

    Args:
        extra: The extra of the package.
        groups: Dependency groups.
    """
    import tomllib  # noqa: PLC0415 - an older Python must get as far as being told so

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    known = project["dependency-groups"]

    def expand(group: str) -> list[str]:
        if group not in known:
            raise SetupError(f"there is no group {group!r}; there are {', '.join(known)}")
        found: list[str] = []
        for item in known[group]:
            found += [item] if isinstance(item, str) else expand(item["include-group"])
        return found

    deciding = [project["build-system"], project["project"], known]
    pins = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()
    wanted = [requirement for group in groups for requirement in expand(group)]
    return [f".[{extra}]", *wanted], pins


def install_opencode() -> str:
    """Install the pinned OpenCode into this folder, unless one is there.

    Returns:
        Why there is none; empty when there is.
    """
    modules = OPENCODE_HOME / "node_modules"
    if os.environ.get("ORCHESTRA_OPENCODE"):
        return ""
    program = modules / ".bin" / "opencode"
    if program.exists() and version_of(program) == OPENCODE:
        return ""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        on_path = shutil.which("opencode")
        return "" if on_path else "OpenCode needs node and npm; install them and repeat"
    say(f"installing OpenCode {OPENCODE} into {OPENCODE_HOME.name} (about 200 MB)")
    OPENCODE_HOME.mkdir(exist_ok=True)
    install = [npm, "install", "--prefix", str(OPENCODE_HOME), "--no-audit", "--no-fund"]
    # Its own script only picks the program for this processor. It is run by name, because npm
    # does not run the scripts of packages where it is told so by its configuration.
    pick = [node, str(modules / "opencode-ai" / "postinstall.mjs")]
    failed = quietly([*install, "--ignore-scripts", f"opencode-ai@{OPENCODE}"]) or quietly(pick)
    if failed or version_of(program) != OPENCODE:
        return f"npm could not install OpenCode {OPENCODE}, see above; check the network and repeat"
    return ""


def version_of(program: Path) -> str:
    """The version that a program prints; empty when it does not run.

    Args:
        program: The program.
    """
    try:
        done = subprocess.run(
            [program, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def say(text: str) -> None:
    """Print one line about the progress.

    Args:
        text: The line.
    """
    print(f"== {text}", flush=True)


def quietly(command: list[str]) -> int:
    """Run a command and show what it printed only when it failed.

    Args:
        command: The program and its arguments.

    Returns:
        Its exit code.
    """
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as exc:
        print(exc, file=sys.stderr)
        return 1
    if done.returncode:
        print("\n".join(done.stdout.splitlines()[-20:]), file=sys.stderr, flush=True)
    return done.returncode


def run(command: list[str]) -> int:
    """Run a command in the foreground; Ctrl-C is its business.

    Args:
        command: The program and its arguments.

    Returns:
        Its exit code.
    """
    with subprocess.Popen(command, cwd=ROOT) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
