"""What a mission is asked to do: tasks, the plan they form, and the rules of the run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from graphlib import CycleError, TopologicalSorter

from attrs import field, frozen, validators

from orchestra import Priority, Redactor
from orchestra.errors import PlanError
from orchestra.opencode.mission.allowances import BudgetSettings, ProviderSettings
from orchestra.opencode.mission.isolation import Isolation
from orchestra.opencode.mission.memory.rules import MemorySettings
from orchestra.opencode.mission.people_settings import PeopleSettings
from orchestra.opencode.mission.specialists import Specialist

__all__ = (
    "GateSettings",
    "LoopLimits",
    "MissionSettings",
    "Plan",
    "Role",
    "TaskMode",
    "TaskSpec",
    "find_faults",
    "summarize",
)


class Role(Enum):
    """Who does what in a mission."""

    COMMANDER = "commander"
    PLANNER = "planner"
    WORKER = "worker"
    REVIEWER = "reviewer"


class TaskMode(Enum):
    """How a task is worked on."""

    NORMAL = "normal"
    """One worker."""
    RACE = "race"
    """Several workers, each in a copy of the workspace. The first that is accepted wins; the others
    are cancelled, and what they changed is discarded."""
    FRACTAL = "fractal"
    """One worker, who may split the task once more, inside its own files and budget."""


@frozen(kw_only=True)
class TaskSpec:
    """One piece of work that one worker can finish.

    Attributes:
        id: Short and unique in its plan.
        title: One line for people.
        instructions: What the worker is told, beyond the title.
        files: Files the task will write, relative to the workspace.
        depends: Ids of tasks that must be accepted first.
        acceptance: Command lines (already split) that must end with exit code 0.
        priority: Which task gets a free slot first.
        mode: How it is worked on.
        racers: How many workers race for it; counts in the mode RACE only.
        agent: The specialist who works on it; empty: the worker.
    """

    id: str
    title: str
    instructions: str = ""
    files: tuple[str, ...] = ()
    depends: tuple[str, ...] = ()
    acceptance: tuple[tuple[str, ...], ...] = ()
    priority: Priority = Priority.NORMAL
    mode: TaskMode = TaskMode.NORMAL
    racers: int = field(default=2, validator=[validators.ge(2), validators.le(8)])
    agent: str = ""


def _as_tuple(tasks: Iterable[TaskSpec]) -> tuple[TaskSpec, ...]:
    return tuple(tasks)


@frozen
class Plan:
    """Tasks in the order in which they are written down.

    Raises:
        PlanError: There is no task, an id comes twice, a dependency is unknown, or dependencies
            form a cycle; the message names every fault.
    """

    tasks: tuple[TaskSpec, ...] = field(converter=_as_tuple)

    def __attrs_post_init__(self) -> None:
        if problems := find_faults(self.tasks):
            raise PlanError(summarize(problems))


def find_faults(tasks: Sequence[TaskSpec]) -> list[str]:
    """Return what makes these tasks no plan, one phrase per fault.

    Args:
        tasks: The tasks in plan order.
    """
    if not tasks:
        return ["it has no tasks"]
    known: set[str] = set()
    faults: list[str] = []
    for task in tasks:
        if task.id in known:
            faults.append(f"the id {task.id!r} is used twice")
        known.add(task.id)
    for task in tasks:
        faults.extend(
            f"task {task.id!r} depends on {name!r}, which is not in the plan"
            for name in task.depends
            if name not in known
        )
    if not faults:
        try:
            TopologicalSorter({task.id: task.depends for task in tasks}).prepare()
        except CycleError as exc:
            cycle: Sequence[str] = exc.args[1][::-1]
            faults.append(f"tasks depend on each other in a circle: {' -> '.join(cycle)}")
    return faults


def summarize(faults: Sequence[str], limit: int = 5) -> str:
    """Join faults into one sentence of bounded length.

    Args:
        faults: At least one phrase.
        limit: How many are spelled out.
    """
    shown = "; ".join(fault[:300] for fault in faults[:limit])
    more = len(faults) - limit
    return f"{shown}; and {more} more" if more > 0 else shown


def _default_limits() -> dict[str, int]:
    return {"commander": 1, "planner": 10, "worker": 10, "reviewer": 10}


def _are_limits(_settings: object, _field: object, limits: Mapping[str, object]) -> None:
    known = [role.value for role in Role]
    for name, limit in limits.items():
        if name not in known:
            raise ValueError(f"limits has {name!r}, but must name roles: {', '.join(known)}")
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ValueError(f"limits[{name!r}] must be an int of at least 1, not {limit!r}")


@frozen(kw_only=True)
class LoopLimits:
    """When a mission that does not get anywhere is ended.

    Attributes:
        rounds: How often a worker may try one task; turns that failed for reasons of their own
            (network, rate limit) are bounded by the recovery table and do not count.
        iterations: How often the commander is asked how to go on when tasks have failed, the
            first plan included; a plan that was given is never made anew.
        stagnation: Rounds (and iterations) in a row without any change of the tree and of the
            evidence before the worker is told the facts; after one more, the strategy changes;
            after another one, the task fails.
        depth: How deep tasks may be nested, counted by lineage: commander, worker, worker's part.
        equal_calls: Equal tool calls in a row after which a turn is ended.
    """

    rounds: int = field(default=5, validator=validators.ge(1))
    iterations: int = field(default=3, validator=validators.ge(1))
    stagnation: int = field(default=2, validator=validators.ge(1))
    depth: int = field(default=3, validator=[validators.ge(1), validators.le(3)])
    equal_calls: int = field(default=20, validator=validators.ge(2))


def _are_servers(_settings: object, _field: object, servers: Mapping[str, Sequence[str]]) -> None:
    for suffix, argv in servers.items():
        if not suffix.startswith(".") or suffix != suffix.lower():
            raise ValueError(f"diagnostics has {suffix!r}, but must name suffixes, as '.py'")
        if isinstance(argv, str) or not argv or not all(argv):
            raise ValueError(f"diagnostics[{suffix!r}] must be a command line, not {argv!r}")


@frozen(kw_only=True)
class GateSettings:
    """What is checked of a change before a reviewer sees it, beyond the acceptance commands.

    Attributes:
        diagnostics: For a suffix (``.py``) the command line of the language server that is asked
            about changed files: an error that it did not tell of the file before is refused. The
            program is looked for on ``PATH``, never in the workspace.
        unparsed: Patterns of files that are not parsed although their suffix says what they are:
            templates, JSON with comments, broken files that a test needs; ``*`` matches ``/`` too.
        commands_at_once: How many acceptance commands of one check run at the same time; above 1
            they must not need each other, nor each other's order.
    """

    diagnostics: Mapping[str, tuple[str, ...]] = field(factory=dict, validator=_are_servers)
    unparsed: tuple[str, ...] = ("*tsconfig*.json", "*jsconfig*.json", "*.vscode/*.json")
    commands_at_once: int = field(default=1, validator=validators.ge(1))


def _are_fallbacks(
    _settings: object, _field: object, fallbacks: Mapping[str, Sequence[str]]
) -> None:
    known = [role.value for role in Role]
    for name, models in fallbacks.items():
        if name not in known:
            raise ValueError(f"fallbacks has {name!r}, but must name roles: {', '.join(known)}")
        for model in models:
            if "/" not in model:
                raise ValueError(f"fallbacks[{name!r}] has {model!r}, but must name provider/model")


@frozen(kw_only=True)
class MissionSettings:
    """The rules of a run.

    Attributes:
        limits: How many sessions of each role may work at once; 10 for a role that is left out.
        loop: When a mission that does not get anywhere is ended.
        gates: What is checked of every change.
        isolation: Where workers work: all in the workspace, or each in a copy of it.
        fallbacks: For each role the models that are taken, in this order, when its own fails for
            good, or its provider cannot be asked.
        providers: How the providers of the models are treated.
        budget: What the mission may spend.
        must_approve: Whether somebody must approve the plan before its tasks start.
        acceptance: Command lines that must succeed after all tasks were accepted.
        allow: Further command lines that acceptance may run. An entry that ends in ``*`` allows
            any further arguments; otherwise it must match as a whole.
        command_timeout: Seconds that one acceptance command may take.
        turn_timeout: Seconds that one agent turn may take before it is aborted.
        deadline: Seconds that the whole mission may take; None: no limit.
        retry_delay: Seconds before a failed turn is tried again; doubled each time, at most 60.
        todo_file: Where the plan is written, relative to the workspace; None: nowhere.
        has_evidence: Whether the workspace is looked at before and after the mission, so that the
            report tells which files changed, and what in them does not parse or looks like a
            secret.
        memory: Whether and how much it remembers of earlier work.
        people: How long people are waited for, and what agents must ask them.
        redactor: Takes secrets out of prompts, answers, events, the store, the report and the
            log; None: nothing is taken out.
        specialists: Agents that a task may name, so that they work on it in the worker's place.
    """

    limits: Mapping[str, int] = field(factory=_default_limits, validator=_are_limits)
    loop: LoopLimits = field(factory=LoopLimits)
    gates: GateSettings = field(factory=GateSettings)
    isolation: Isolation = field(factory=Isolation)
    fallbacks: Mapping[str, tuple[str, ...]] = field(factory=dict, validator=_are_fallbacks)
    providers: ProviderSettings = field(factory=ProviderSettings)
    budget: BudgetSettings = field(factory=BudgetSettings)
    must_approve: bool = False
    acceptance: tuple[tuple[str, ...], ...] = ()
    allow: tuple[tuple[str, ...], ...] = ()
    command_timeout: float = field(default=300.0, validator=validators.gt(0))
    turn_timeout: float = field(default=600.0, validator=validators.gt(0))
    deadline: float | None = field(default=None, validator=validators.optional(validators.gt(0)))
    retry_delay: float = field(default=1.0, validator=validators.ge(0))
    todo_file: str | None = "TODO.md"
    has_evidence: bool = True
    memory: MemorySettings = field(factory=MemorySettings)
    people: PeopleSettings = field(factory=PeopleSettings)
    redactor: Redactor | None = field(factory=Redactor)
    specialists: tuple[Specialist, ...] = ()

    def check_agents(self, tasks: Iterable[TaskSpec]) -> str:
        """Return what is wrong with the agents that tasks name; empty: nothing.

        Args:
            tasks: The tasks of a plan.
        """
        known = [each.agent.name for each in self.specialists]
        strangers = [task for task in tasks if task.agent and task.agent not in known]
        return summarize(
            [
                f"task {task.id!r} names the agent {task.agent!r}, but known are: "
                f"{', '.join(known) or 'none'}"
                for task in strangers
            ]
        )

    def permits(self, argv: Sequence[str]) -> bool:
        """Whether acceptance may run this command line: ``acceptance`` names it, or ``allow`` does.

        Args:
            argv: The command line, split.
        """
        line = tuple(argv)
        return line in self.acceptance or any(
            line[: len(entry) - 1] == entry[:-1] if entry[-1:] == ("*",) else line == entry
            for entry in self.allow
            if entry
        )

    def sort_commands(
        self, lines: Iterable[tuple[str, ...]]
    ) -> tuple[tuple[tuple[str, ...], ...], tuple[tuple[str, ...], ...]]:
        """Split command lines into what may be run and what may not.

        Args:
            lines: Command lines, split into words.
        """
        permitted: list[tuple[str, ...]] = []
        refused: list[tuple[str, ...]] = []
        for argv in lines:
            (permitted if self.permits(argv) else refused).append(argv)
        return tuple(permitted), tuple(refused)

    def chain(self, role: Role) -> tuple[str, ...]:
        """Return the models that a role falls back on, in their order.

        Args:
            role: The role.
        """
        return tuple(self.fallbacks.get(role.value, ()))

    def later_models(self, role: Role, model: str | None) -> tuple[str, ...]:
        """Return the models that a role can still fall back on.

        Args:
            role: The role.
            model: The one in use; None: the agent's own.
        """
        chain = self.chain(role)
        return chain[chain.index(model) + 1 :] if model in chain else chain
