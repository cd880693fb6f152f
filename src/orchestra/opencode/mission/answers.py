"""Reads what agents answer: a plan, a verdict. Answers come from models, so nothing is trusted."""

from __future__ import annotations

import json
import posixpath
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TypeVar

from attrs import evolve, frozen

from orchestra import Priority
from orchestra.errors import PlanError
from orchestra.opencode.mission.plan import Plan, TaskMode, TaskSpec, find_faults, summarize

__all__ = (
    "Verdict",
    "VerdictError",
    "parse_direct",
    "parse_plan",
    "parse_split",
    "parse_verdict",
)

_MAX_TASKS = 10_000
_MAX_PARTS = 8
_MAX_COMMAND = 4_096
"""Characters of a command line; splitting one takes time that grows with their square."""
_MAX_FAILURES = 1_000
"""Places in a text at which a JSON value is tried for in vain."""
_MAX_WASTE = 4
"""How often, on average, a character may be read in vain."""
_DEEP = 50_000
"""At most about how many characters are read before nesting is too deep."""
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_FENCE = re.compile(r"```[a-zA-Z]*[ \t]*\r?\n(.*?)```", re.DOTALL)
_START = re.compile(r"\{\s*[\"}]|\[\s*[\[\]{\"\d\-tfnNI]")


class VerdictError(ValueError):
    """An answer is not a verdict; the message says why."""


@frozen(kw_only=True)
class Verdict:
    """What a reviewer decided.

    Attributes:
        is_accepted: Whether the work is accepted.
        reasons: Why, one sentence each; at least one when it is not accepted.
    """

    is_accepted: bool
    reasons: tuple[str, ...] = ()


def _values(text: str) -> Iterator[object]:
    """Yield each JSON object and list in a text, in order.

    Raises:
        ValueError: So much of the text only looks like JSON that the rest is not read.
    """
    decoder = json.JSONDecoder()
    position = failures = 0
    waste = _MAX_WASTE * len(text) + _DEEP
    while match := _START.search(text, position):
        start = match.start()
        try:
            value, position = decoder.raw_decode(text, start)
        except (ValueError, RecursionError) as exc:
            position = start + 1
            failures += 1
            waste -= exc.pos - start if isinstance(exc, json.JSONDecodeError) else _DEEP
            if failures >= _MAX_FAILURES or waste < 0:
                raise ValueError("it has too much that only looks like JSON") from exc
            continue
        yield value


def _clean(text: str) -> str:
    """Replace what no file, pipe or wire can carry: halves of surrogate pairs."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _line(text: str) -> str:
    """Return one line for people: no control characters, which would reach their terminals."""
    kept = "".join(char if char.isprintable() else " " for char in text[:2_000])
    return " ".join(kept.split())[:200]


def _strings(value: object, name: str, faults: list[str]) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        faults.append(f"{name} must be a list of strings")
        return ()
    return tuple(_clean(item) for item in value)


def _files(value: object, name: str, faults: list[str]) -> tuple[str, ...]:
    files = []
    for file in _strings(value, name, faults):
        path = posixpath.normpath(file.replace("\\", "/"))
        if (
            path.startswith(("/", "../"))
            or path in {".", ".."}
            or re.match(r"[A-Za-z]:|.*\0", path)
        ):
            faults.append(f"{name}: {file!r} is not a path inside the workspace")
        else:
            files.append(path)
    return tuple(files)


def _commands(value: object, name: str, faults: list[str]) -> tuple[tuple[str, ...], ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        faults.append(f"{name} must be a list of command lines")
        return ()
    commands = []
    for entry in value:
        if isinstance(entry, str) and len(entry) > _MAX_COMMAND:
            faults.append(f"{name}: a command line may have {_MAX_COMMAND} characters")
            continue
        if isinstance(entry, str):
            try:
                argv = tuple(shlex.split(_clean(entry)))
            except ValueError as exc:
                faults.append(f"{name}: {entry[:100]!r} cannot be split ({exc})")
                continue
        elif isinstance(entry, list) and all(isinstance(word, str) for word in entry):
            argv = tuple(_clean(word) for word in entry)
        else:
            faults.append(f"{name} must be a list of command lines")
            continue
        if not argv or any("\0" in word for word in argv):
            faults.append(f"{name} has an empty or unusable command line")
        else:
            commands.append(argv)
    return tuple(commands)


C = TypeVar("C", Priority, TaskMode)

_PRIORITIES: Mapping[str, Priority] = {
    "normal": Priority.NORMAL,
    "high": Priority.HIGH,
    "low": Priority.LOW,
}
_MODES: Mapping[str, TaskMode] = {mode.value: mode for mode in TaskMode}


def _choice(value: object, choices: Mapping[str, C], name: str, faults: list[str]) -> C:
    """Return the choice of that name; the first one when there is none."""
    if value is None:
        return next(iter(choices.values()))
    if isinstance(value, str) and value in choices:
        return choices[value]
    faults.append(f"{name} must be one of {', '.join(choices)}")
    return next(iter(choices.values()))


def _racers(value: object, name: str, faults: list[str]) -> int:
    if value is None:
        return 2
    if isinstance(value, bool) or not isinstance(value, int) or not 2 <= value <= 8:
        faults.append(f"{name}: racers must be a number from 2 to 8")
        return 2
    return value


def _agent(value: object, name: str, faults: list[str]) -> str:
    if value is None or value == "":
        return ""
    if not isinstance(value, str) or not _ID.match(value):
        faults.append(f"{name}: agent must be the name of an agent")
        return ""
    return value


def _task(value: object, position: int, faults: list[str]) -> TaskSpec | None:
    name = f"task {position}"
    if not isinstance(value, dict):
        faults.append(f"{name} is not an object")
        return None
    before = len(faults)
    task_id = value.get("id")
    if isinstance(task_id, int) and not isinstance(task_id, bool):
        task_id = str(task_id)
    if not isinstance(task_id, str) or not _ID.match(task_id):
        faults.append(f"{name}: id must be 1 to 64 letters, digits, '.', '_' or '-'")
        task_id = "?"
    else:
        name = f"task {task_id!r}"
    title = value.get("title")
    title = _line(_clean(title)) if isinstance(title, str) else ""
    if not title:
        faults.append(f"{name}: title must be a text that is not empty")
    instructions = value.get("instructions")
    if instructions is None:
        instructions = ""
    if not isinstance(instructions, str):
        faults.append(f"{name}: instructions must be a text")
        instructions = ""
    spec = TaskSpec(
        id=task_id,
        title=title,
        instructions=_clean(instructions).strip(),
        files=_files(value.get("files"), f"{name}: files", faults),
        depends=_strings(value.get("depends"), f"{name}: depends", faults),
        acceptance=_commands(value.get("acceptance"), f"{name}: acceptance", faults),
        priority=_choice(value.get("priority"), _PRIORITIES, f"{name}: priority", faults),
        mode=_choice(value.get("mode"), _MODES, f"{name}: mode", faults),
        racers=_racers(value.get("racers"), name, faults),
        agent=_agent(value.get("agent"), name, faults),
    )
    return spec if len(faults) == before else None


_NOTHING = object()


def _find(text: str, key: str) -> object:
    """Return the first value of that key of an object in the text; fenced ones come first."""
    for part in (*_FENCE.findall(text), text):
        # What only looks like JSON in one place does not spoil another.
        with suppress(ValueError):
            for value in _values(part):
                if isinstance(value, dict) and key in value:
                    return value[key]
    return _NOTHING


def _specs(entries: object, name: str) -> tuple[TaskSpec, ...]:
    if not isinstance(entries, list):
        raise PlanError(f'"{name}" must be a list')
    if len(entries) > _MAX_TASKS:
        raise PlanError(f"{len(entries)} tasks are more than the {_MAX_TASKS} a plan may have")
    faults: list[str] = []
    tasks = [_task(entry, number, faults) for number, entry in enumerate(entries, 1)]
    if faults:
        raise PlanError(summarize(faults))
    return tuple(task for task in tasks if task is not None)


def parse_plan(text: str) -> Plan:
    """Read a plan out of an agent's answer: a JSON object with ``tasks``, fenced or bare.

    Args:
        text: The answer.

    Raises:
        PlanError: It is not a plan; one sentence that names the faults.
    """
    if not text.strip():
        raise PlanError("the answer is empty")
    entries = _find(text, "tasks")
    if entries is _NOTHING:
        raise PlanError('the answer has no JSON object with "tasks"')
    return Plan(_specs(entries, "tasks"))


def parse_direct(text: str) -> TaskSpec | None:
    """Read the one task of a small goal out of the commander's brief; None: it gives none.

    Args:
        text: The brief.

    Raises:
        PlanError: It gives one that cannot be used.
    """
    entry = _find(text, "task")
    if entry is _NOTHING:
        return None
    (task,) = _specs([entry], "task")
    if faults := find_faults([task]):
        raise PlanError(summarize(faults))
    return task


def parse_split(text: str, parent: TaskSpec) -> tuple[TaskSpec, ...]:
    """Read the parts into which a worker splits its task; none: it does not split it.

    Args:
        text: The worker's answer.
        parent: The task.

    Raises:
        PlanError: It splits the task in a way that cannot be used.
    """
    entries = _find(text, "split")
    if entries is _NOTHING:
        return ()
    specs = _specs(entries, "split")
    if not 2 <= len(specs) <= _MAX_PARTS:
        raise PlanError(f"a task is split into 2 to {_MAX_PARTS} parts, not {len(specs)}")
    faults = find_faults(specs)
    allowed = set(parent.files)
    seen: set[str] = set()
    for spec in specs:
        if not spec.files:
            faults.append(f"part {spec.id!r} names no files")
        if strays := sorted(set(spec.files) - allowed):
            faults.append(f"part {spec.id!r} writes {', '.join(strays)}, not a file of the task")
        if twice := sorted(seen & set(spec.files)):
            faults.append(f"part {spec.id!r} writes {', '.join(twice)}, as another part does")
        seen |= set(spec.files)
    if faults:
        raise PlanError(summarize(faults))
    names = {spec.id: f"{parent.id}.{spec.id}" for spec in specs}
    return tuple(
        evolve(
            spec,
            id=names[spec.id],
            depends=tuple(names[name] for name in spec.depends),
            mode=TaskMode.NORMAL,
            priority=parent.priority,
            agent=parent.agent,
        )
        for spec in specs
    )


def parse_verdict(text: str) -> Verdict:
    """Read a verdict out of a reviewer's answer: a JSON object with ``verdict``, fenced or bare.

    When there are several, the last one counts: it is what the reviewer ended on.

    Args:
        text: The answer.

    Raises:
        VerdictError: It is not a verdict.
    """
    if not text.strip():
        raise VerdictError("the answer is empty")
    found: dict[str, object] | None = None
    try:
        for value in _values(text):
            if isinstance(value, dict) and "verdict" in value:
                found = value
    except ValueError as exc:  # what was found may not be the last
        raise VerdictError(f"the answer cannot be read: {exc}") from exc
    if found is None:
        raise VerdictError('the answer has no JSON object with "verdict"')
    verdict = found["verdict"]
    if verdict not in ("accept", "reject"):
        what = repr(verdict[:50]) if isinstance(verdict, str) else f"a {type(verdict).__name__}"
        raise VerdictError(f'"verdict" must be "accept" or "reject", not {what}')
    faults: list[str] = []
    reasons = found.get("reasons")
    if isinstance(reasons, str):
        reasons = [reasons]
    texts = _strings(reasons, '"reasons"', faults)
    if faults:
        raise VerdictError(faults[0])
    kept = tuple(reason.strip()[:2000] for reason in texts[:20] if reason.strip())
    if verdict == "reject" and not kept:
        raise VerdictError("a rejection needs at least one reason")
    return Verdict(is_accepted=verdict == "accept", reasons=kept)
