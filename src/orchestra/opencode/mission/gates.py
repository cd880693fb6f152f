"""What we check ourselves before anybody may call a change done.

Cheap checks first, each kind only when those before it found nothing: the changed files parse and
hold no secrets, language servers tell no new errors, the acceptance commands succeed. What comes
out is a receipt for one tree: if the files change under the check, it starts anew.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Protocol, TypeAlias, final

import anyio
from attrs import evolve

from orchestra import WorkStealingPool
from orchestra.opencode.mission.diagnostics import Diagnostics
from orchestra.opencode.mission.inspection import Inspection, secret_formats
from orchestra.opencode.mission.nearby import run_near
from orchestra.opencode.mission.orders import RunGates
from orchestra.opencode.mission.plan import MissionSettings
from orchestra.opencode.mission.report import CommandResult, Finding, Receipt
from orchestra.opencode.mission.workplaces import Change

__all__ = ("Gates", "RunCommands", "Site", "describe_receipt", "judge")

_MAX_ATTEMPTS = 3
"""How often a change is checked while its files keep changing."""
_MAX_PROBLEMS = 20
_MAX_FINDINGS = 1_000
_MAX_EVIDENCE = 16_000
"""Characters of the evidence that a reviewer is shown."""

RunCommands: TypeAlias = Callable[[RunGates, Path], Awaitable[Sequence[CommandResult]]]
"""Runs the order's commands in a folder, as far as there is a slot for them."""


class Site(Protocol):
    """Where a change is: a task's workplace, or the workspace as a whole."""

    def checking(self) -> AbstractAsyncContextManager[None]:
        """Say that commands are at work during this block."""

    async def look(self) -> Change:
        """Tell what has changed."""

    async def before(self, path: str) -> bytes | None:
        """Tell what a file held before; None: it was not there, or nobody knows."""


def judge(
    order: RunGates,
    change: Change,
    refused: Sequence[Finding],
    commands: Sequence[CommandResult],
) -> tuple[str, ...]:
    """Return why a change proves nothing, one sentence each; pure.

    Commands that failed are not repeated: the receipt has them.

    Args:
        order: What was to be checked.
        change: What has changed.
        refused: What its files must not hold.
        commands: What the acceptance commands have come to.
    """
    problems = [*change.problems]
    for finding in refused[:_MAX_PROBLEMS]:
        where = f"{finding.path}:{finding.line}" if finding.line else finding.path
        problems.append(f"{where}: {finding.message}")
    if (more := len(refused) - _MAX_PROBLEMS) > 0:
        problems.append(f"there are {more} more findings like these")
    if order.task_id is not None and not change.changed:
        if order.is_silent:
            problems.append("the turn was empty: no answer, no tool call, no changed file")
        if order.files and not any(result.exit_code == 0 for result in commands):
            names = ", ".join(order.files[:5]) + (", ..." if len(order.files) > 5 else "")
            problems.append(
                f"its files did not change ({names}), and no acceptance command has passed: "
                "a summary is no proof"
            )
    return tuple(problems)


def describe_receipt(receipt: Receipt, diff: str) -> str:
    """Return what a reviewer is shown of a change: text of bounded length.

    Args:
        receipt: What was checked.
        diff: The change.
    """
    lines = [f"changed: {_listed(receipt.changed) or 'no file'}"]
    if receipt.strays:
        lines.append(f"put back, since the task may not write it: {_listed(receipt.strays)}")
    for result in receipt.commands:
        line = shlex.join(result.argv)[:300]
        if result.refusal:
            lines.append(f"not run: {line} ({result.refusal})")
        else:
            lines.append(f"{'failed' if result.is_failed else 'succeeded'}: {line}")
    lines += [
        f"look at {finding.path}:{finding.line}: {finding.message}"
        for finding in receipt.findings[:_MAX_PROBLEMS]
    ]
    if diff:
        lines += ["diff:", diff]
    text = "\n".join(lines)
    if len(text) > _MAX_EVIDENCE:
        cut = "\n[cut: read the rest in the files]"
        text = text[: _MAX_EVIDENCE - len(cut)] + cut
    return text


def _listed(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - 50} more" if len(paths) > 50 else ""
    return ", ".join(paths[:50]) + more


@final
class Gates:
    """Checks changes, any number of them at once.

    Args:
        settings: The rules of the run.
        pool: Reads and parses.
        diagnostics: The mission's language servers, entered.
        run_commands: Runs acceptance commands.
    """

    def __init__(
        self,
        settings: MissionSettings,
        pool: WorkStealingPool,
        diagnostics: Diagnostics,
        run_commands: RunCommands,
    ) -> None:
        self._pool = pool
        self._diagnostics = diagnostics
        self._run_commands = run_commands
        self._inspection = Inspection(
            redactor=secret_formats(settings.redactor), unparsed=settings.gates.unparsed
        )

    async def check(self, order: RunGates, site: Site) -> tuple[Receipt, str]:
        """Check a change, and again when its files change meanwhile. A checkpoint.

        Args:
            order: What to check; its commands are permitted.
            site: Where.

        Returns:
            The receipt, and the evidence for a reviewer.
        """
        attempts = 0
        while True:
            attempts += 1
            change = await site.look()
            mark = await self._mark(order, change)
            findings, refused = await self._examine(site, change)
            commands: Sequence[CommandResult] = ()
            if order.commands and not refused and not change.problems:
                async with site.checking():
                    commands = await self._run_commands(order, change.directory)
                change = await site.look()
            if await self._mark(order, change) == mark:
                break
            if attempts == _MAX_ATTEMPTS:
                moving = "its files changed under every check: something still writes there"
                change = evolve(change, problems=(*change.problems, moving))
                break
        unrun = tuple(
            CommandResult(argv=argv, refusal="it is not on the mission's allow list")
            for argv in order.refused
        )
        receipt = Receipt(
            stage=order.stage,
            tree=change.tree,
            problems=judge(order, change, refused, commands),
            commands=(*unrun, *commands),
            findings=tuple(findings[:_MAX_FINDINGS]),
            changed=change.changed,
            strays=change.strays,
        )
        return receipt, describe_receipt(receipt, change.diff)

    async def _mark(self, order: RunGates, change: Change) -> str:
        """Return what must stay the same: of the whole, commands may leave other files behind."""
        if order.task_id is not None or not order.commands:
            return change.tree
        return await self._pool.run(_digest_files, change.directory, order.files)

    async def _examine(self, site: Site, change: Change) -> tuple[list[Finding], list[Finding]]:
        """Return what is the matter with the changed files, and what of it is refused."""
        root = str(change.directory)
        look = partial(self._inspection.look, root)
        if len(change.changed) == 1:
            path = change.changed[0]
            seen = [await run_near(self._pool, root, change.changed, look, path)]
        else:
            seen = await self._pool.run_many(look, change.changed)
        findings: list[Finding] = []
        refused: list[Finding] = []
        for path, sightings in zip(change.changed, seen, strict=True):
            if any(sighting.is_refused for sighting in sightings):
                before = await site.before(path)
                sightings = await self._pool.run(self._inspection.look, root, path, before)  # noqa: PLW2901
            findings += (sighting.finding for sighting in sightings)
            refused += (sighting.finding for sighting in sightings if sighting.is_refused)
        if not refused:
            errors = await self._diagnose(site, change)
            findings += errors
            refused += errors
        return findings, refused

    async def _diagnose(self, site: Site, change: Change) -> list[Finding]:
        paths = [
            path
            for path in change.changed
            if self._diagnostics.covers(path) and (change.directory / path).is_file()
        ]
        found: dict[str, list[Finding]] = {}

        async def ask(path: str) -> None:
            before = await site.before(path)
            found[path] = await self._diagnostics.new_errors(change.directory, path, before)

        async with anyio.create_task_group() as group:
            for path in paths:
                group.start_soon(ask, path)
        return [finding for path in paths for finding in found[path]]

    def __repr__(self) -> str:
        return f"<Gates {self._diagnostics!r}>"


def _digest_files(directory: Path, paths: Sequence[str]) -> str:
    total = hashlib.sha256()
    for path in paths:
        total.update(os.fsencode(path) + b"\0")
        try:
            with (directory / path).open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
        except OSError:
            total.update(b"\0absent")
    return total.hexdigest()
