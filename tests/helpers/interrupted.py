from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")


def interrupted(
    call: Callable[[], T], intruder: Callable[[], object], *, at: int, within: str
) -> tuple[T, bool]:
    """Call something, and something else in the middle of it, as a second thread might.

    Args:
        call: What is interrupted.
        intruder: What runs to its end in between.
        at: Before which instruction, counted from 0.
        within: Part of the names of the files whose instructions count.

    Returns:
        What the call gave, and whether it had that many instructions.
    """
    steps = 0
    has_intruded = False

    def trace(frame: FrameType, event: str, _arg: object) -> Any:
        nonlocal steps, has_intruded
        if within not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            if steps == at:
                has_intruded = True
                intruder()
            steps += 1
        return trace

    usual = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # or Python 3.12 does not look at other frames' flags
    sys.settrace(trace)
    try:
        result = call()
    finally:
        sys.settrace(usual)
    return result, has_intruded
