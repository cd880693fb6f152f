"""The public test kit: virtual time and schedules."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestra.testing.clock import settle, virtual_time_options
    from orchestra.testing.schedule import (
        Action,
        Job,
        ScheduleStep,
        ScriptedFailure,
        play,
        random_schedule,
    )

__all__ = (
    "Action",
    "Job",
    "ScheduleStep",
    "ScriptedFailure",
    "play",
    "random_schedule",
    "settle",
    "virtual_time_options",
)

_HOMES = {
    "Action": "orchestra.testing.schedule",
    "Job": "orchestra.testing.schedule",
    "ScheduleStep": "orchestra.testing.schedule",
    "ScriptedFailure": "orchestra.testing.schedule",
    "play": "orchestra.testing.schedule",
    "random_schedule": "orchestra.testing.schedule",
    "settle": "orchestra.testing.clock",
    "virtual_time_options": "orchestra.testing.clock",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'orchestra.testing' has no attribute {name!r}")
    value: object = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
