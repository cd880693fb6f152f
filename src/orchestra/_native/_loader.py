"""Loads the compiled extension and gives its two modules types.

One shared object holds both: the module that cffi generated, and the native types of ``objects.c``
under an init function of its own.
"""

from __future__ import annotations

from importlib import import_module
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.util import module_from_spec
from typing import Any, Protocol, cast

from orchestra._native import _fallback
from orchestra._native._statistics import DequeStatistics

_cffi: Any = import_module("orchestra._native._orchestra")


class Library(Protocol):
    """The C functions of ``_cdef.h``; each releases the GIL while it runs."""

    EXE_MAX_THREADS: int
    EXE_MAX_NEEDLES: int

    def wsd_new(self, capacity: int, /) -> object: ...
    def wsd_delete(self, deque: object, /) -> None: ...
    def wsd_size(self, deque: object, /) -> int: ...
    def wsd_push_many(self, deque: object, items: object, count: int, /) -> bool: ...
    def wsd_pop_many(self, deque: object, items: object, count: int, /) -> int: ...
    def wsd_steal_many(self, deque: object, items: object, count: int, /) -> int: ...
    def evc_wait(self, ec: object, key: int, timeout: int, /) -> bool: ...
    def exe_scan_files(
        self,
        paths: object,
        path_count: int,
        needles: object,
        needle_count: int,
        threads: int,
        found: object,
        report: object,
        /,
    ) -> int: ...


class _Objects(Protocol):
    WorkStealingDeque: type[_fallback.WorkStealingDeque[Any]]
    Stealer: type[_fallback.Stealer[Any]]
    EventCount: type[_fallback.EventCount]

    def set_statistics(self, factory: type[DequeStatistics], /) -> None: ...


def _load_objects() -> _Objects:
    name = "orchestra._native._objects"
    spec = ModuleSpec(name, ExtensionFileLoader(name, _cffi.__file__), origin=_cffi.__file__)
    module = module_from_spec(spec)
    cast("ExtensionFileLoader", spec.loader).exec_module(module)
    return cast("_Objects", module)


ffi: Any = _cffi.ffi
lib = cast("Library", _cffi.lib)
objects = _load_objects()
objects.set_statistics(DequeStatistics)

_FOREVER = -1
_LONGEST = 2**62  # nanoseconds; 146 years


class EventCount(objects.EventCount):  # type: ignore[misc,name-defined]
    """The native eventcount; waiting goes through cffi, which releases the GIL."""

    __slots__ = ("_pointer",)

    def __init__(self) -> None:
        self._pointer = ffi.cast("evc *", self.address)

    def wait(self, key: int, timeout: float | None = None) -> bool:
        """As `orchestra._native._fallback.EventCount.wait`."""
        nanoseconds = _FOREVER if timeout is None else min(int(max(timeout, 0) * 1e9), _LONGEST)
        return lib.evc_wait(self._pointer, key, nanoseconds)
