"""The gates of a mission at work: where they look, the slots they take, what is told of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import final

import anyio
from anyio import AsyncContextManagerMixin
from attrs import frozen

from orchestra import ConcurrencyController, WorkStealingPool
from orchestra.opencode.mission.acceptance import run_acceptance
from orchestra.opencode.mission.desks import Desks
from orchestra.opencode.mission.diagnostics import Diagnostics
from orchestra.opencode.mission.events import CommandFinished, MissionEvent
from orchestra.opencode.mission.gates import Gates, Site
from orchestra.opencode.mission.orders import GatesFinished, RunGates
from orchestra.opencode.mission.plan import MissionSettings
from orchestra.opencode.mission.report import CommandResult, Receipt, Span
from orchestra.opencode.mission.scrubbing import Scrubber
from orchestra.opencode.mission.wait_log import WaitLog
from orchestra.opencode.mission.waits import Cause
from orchestra.opencode.mission.workplaces import Change, WorkplaceError, Workplaces

__all__ = ("Checks",)


@frozen
class _Whole:
    """The workspace as a whole."""

    _places: Workplaces

    def checking(self) -> AbstractAsyncContextManager[None]:
        return self._places.at_work()

    async def look(self) -> Change:
        return await self._places.whole()

    async def before(self, path: str) -> bytes | None:
        return await self._places.before(path)


@final
class Checks(AsyncContextManagerMixin):
    """Runs the gates that the machine orders.

    Args:
        desks: Where changes are.
        workspace: The workspace.
        settings: The rules of the run.
        controller: Its slots of ``acceptance`` bound how many checks run commands at once.
        scrubber: Takes secrets out of what is told.
        now: Gives seconds after the mission's start.
        publish: Takes what the mission tells.
        warn: Takes what should be known.
        waits: Takes what is waited for.

    Attributes:
        timeline: The runs of acceptance commands that have ended.
    """

    def __init__(
        self,
        desks: Desks,
        *,
        workspace: Path,
        settings: MissionSettings,
        controller: ConcurrencyController,
        scrubber: Scrubber,
        now: Callable[[], float],
        publish: Callable[[MissionEvent], None],
        warn: Callable[[str], None],
        waits: WaitLog,
    ) -> None:
        self._desks = desks
        self._workspace = workspace
        self._settings = settings
        self._controller = controller
        self._scrubber = scrubber
        self._now = now
        self._publish = publish
        self._warn = warn
        self._waits = waits
        self._gates: Gates
        self.timeline: list[Span] = []

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncIterator[Checks]:
        async with (
            WorkStealingPool(name="orchestra-gates") as pool,
            Diagnostics(
                self._settings.gates.diagnostics, workspace=self._workspace, warn=self._warn
            ) as diagnostics,
        ):
            self._gates = Gates(self._settings, pool, diagnostics, self._run_commands)
            yield self

    async def run(self, order: RunGates) -> GatesFinished:
        """Check what is ordered. A checkpoint.

        Args:
            order: The machine's.

        Returns:
            The receipt, and the evidence, from which a prompt's own step takes the secrets.

        Raises:
            StoreError: The task's leases cannot be written.
        """
        site: Site = _Whole(self._desks.places)
        try:
            if order.task_id is not None:
                place = self._desks.places.find(order.task_id)
                site = place or await self._desks.open(order.task_id)
            receipt, evidence = await self._gates.check(order, site)
        except WorkplaceError as exc:
            receipt, evidence = Receipt(stage=order.stage, problems=(str(exc),)), ""
        if not receipt.is_passed or receipt.findings or order.refused:
            receipt = self._scrubber.value(receipt)
        return GatesFinished(ticket=order.ticket, receipt=receipt, evidence=evidence)

    async def _run_commands(self, order: RunGates, directory: Path) -> Sequence[CommandResult]:
        queued = self._now()
        results: dict[int, CommandResult] = {}
        turns = anyio.Semaphore(self._settings.gates.commands_at_once)

        async def run(number: int) -> None:
            argv = order.commands[number]
            result = await run_acceptance(argv, directory=directory, settings=self._settings)
            results[number] = result = self._scrubber.value(result)
            self._publish(CommandFinished(at=self._now(), task_id=order.task_id, result=result))

        async def run_in_turn(number: int) -> None:
            async with turns:
                await run(number)

        self._waits.turn(order.task_id, Cause.GATE_QUEUE)
        async with self._controller.lease("acceptance"):
            self._waits.turn(order.task_id, Cause.GATES)
            started = self._now()
            async with anyio.create_task_group() as group:
                for number in range(len(order.commands)):
                    if self._settings.gates.commands_at_once == 1:
                        await run(number)
                    else:
                        group.start_soon(run_in_turn, number)
        is_failed = any(result.is_failed for result in results.values())
        self.timeline.append(
            Span(
                name="acceptance",
                task_id=order.task_id,
                round=order.round,
                queued=queued,
                started=started,
                ended=self._now(),
                outcome="failed" if is_failed else "done",
            )
        )
        return [results[number] for number in range(len(order.commands))]

    def __repr__(self) -> str:
        return f"<Checks runs={len(self.timeline)}>"
