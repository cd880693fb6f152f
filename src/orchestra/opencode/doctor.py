"""What is installed, found and missing, and what to do about it."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import anyio
from attrs import asdict, frozen

import orchestra
from orchestra import EmbeddedBackend, Turn
from orchestra.errors import ConfigurationError
from orchestra.opencode.log_files import log_path
from orchestra.opencode.mission.plan import MissionSettings, Plan, TaskSpec
from orchestra.opencode.mission.report import MissionOutcome
from orchestra.opencode.mission.run import run_mission

__all__ = ("Examination", "Finding", "examine")

_EXTRAS = (
    ("httptools", "opencode"),
    ("msgspec", "opencode"),
    ("rich", "cli"),
    ("h11", "testing"),
)


@frozen
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What it is.
        status: ``ok``, ``missing`` (something optional is not there) or ``broken``.
        detail: What was found.
        advice: What to do; empty when all is well.
    """

    name: str
    status: Literal["ok", "missing", "broken"]
    detail: str
    advice: str = ""


@frozen
class Examination:
    """All findings.

    Attributes:
        findings: What was looked at, in order.
    """

    findings: tuple[Finding, ...]

    @property
    def is_usable(self) -> bool:
        """Whether missions on the embedded backend work."""
        return not any(finding.status == "broken" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return the findings as data that ``json.dumps`` takes."""
        findings = [asdict(finding) for finding in self.findings]
        return {"schema": 1, "is_usable": self.is_usable, "findings": findings}

    def lines(self) -> list[str]:
        """Return the findings as lines for people."""
        lines = []
        for finding in self.findings:
            lines.append(f"{finding.status:8}{finding.name:20}{finding.detail}")
            if finding.advice:
                lines.append(f"{'':8}{'':20}-> {finding.advice}")
        verdict = "missions on the embedded backend work here"
        lines.append(verdict if self.is_usable else "the embedded backend does not work here")
        return lines


async def examine() -> Examination:
    """Look at everything. Starts ``opencode --version`` and a mission of one task."""
    findings = [
        Finding("orchestra", "ok", f"{orchestra.__version__} in {Path(orchestra.__file__).parent}"),
        Finding("python", "ok", f"{platform.python_version()} at {sys.executable}"),
    ]
    findings.extend(
        _package(package, "broken", "install orchestra again")
        for package in ("attrs", "anyio", "cffi")
    )
    findings.append(_package("trio", "missing", "pip install trio, if you want it as the loop"))
    findings.extend(
        _package(package, "missing", f"pip install 'orchestra[{extra}]'")
        for package, extra in _EXTRAS
    )
    findings.append(_log())
    findings += [await _opencode(), _program("node"), _password(), await _embedded()]
    return Examination(tuple(findings))


def _log() -> Finding:
    path = log_path(Path())
    detail = str(path) if path.exists() else f"{path} (not written yet)"
    return Finding("log of this folder", "ok", detail)


def _password() -> Finding:
    is_set = bool(os.environ.get("OPENCODE_SERVER_PASSWORD"))
    detail = "is set" if is_set else "is not set; it is needed for --url only"
    return Finding("server password", "ok", f"OPENCODE_SERVER_PASSWORD {detail}")


def _package(name: str, status: Literal["missing", "broken"], advice: str) -> Finding:
    try:
        return Finding(name, "ok", version(name))
    except PackageNotFoundError:
        return Finding(name, status, "not installed", advice)


def _program(name: str) -> Finding:
    found = shutil.which(name)
    if found:
        return Finding(name, "ok", found)
    return Finding(name, "missing", "not found", f"install {name} if you want to install OpenCode")


async def _opencode() -> Finding:
    try:
        from orchestra.opencode.client.locate import find_opencode  # noqa: PLC0415  (an extra)
    except ImportError as error:
        return Finding("opencode", "missing", "not looked for", str(error))
    try:
        program = await find_opencode()
    except ConfigurationError as error:
        return Finding("opencode", "missing", "not found", str(error))
    return Finding("opencode", "ok", f"{program.version} at {program.path}", program.warning)


async def _embedded() -> Finding:
    """Run the smallest mission there is, for real."""

    async def work(turn: Turn) -> str:
        path = anyio.Path(turn.directory, "done.txt")
        await path.write_text("done", encoding="utf-8")
        return "done"

    async def review(turn: Turn) -> str:
        is_done = await anyio.Path(turn.directory, "done.txt").exists()
        return '{"verdict": "accept"}' if is_done else '{"verdict": "reject", "reasons": ["no"]}'

    plan = Plan((TaskSpec(id="t1", title="write a file"),))
    backend = EmbeddedBackend({"worker": work, "reviewer": review})
    try:
        with tempfile.TemporaryDirectory(prefix="orchestra-doctor-") as folder:
            report = await run_mission(
                "see that missions work",
                backend=backend,
                directory=Path(folder),
                plan=plan,
                settings=MissionSettings(deadline=30.0),
            )
    except Exception as error:  # noqa: BLE001  (a doctor tells what is wrong, whatever it is)
        return Finding("embedded backend", "broken", f"{type(error).__name__}: {error}")
    if report.outcome is not MissionOutcome.ACCEPTED:
        return Finding("embedded backend", "broken", report.reason)
    return Finding("embedded backend", "ok", "a mission of one task was accepted")
