"""The search without ripgrep: ``python -m orchestra.tools.scanner``, one process for one search.

A regular expression can run for ever and cannot be interrupted, so it runs where it can be killed.
It prints what ripgrep prints, and its time is bounded by the kernel: whoever started it may be gone.
"""

from __future__ import annotations

import json
import re
import signal
import sys
import warnings
from typing import IO, Any

from orchestra._core.patterns import encode_pattern
from orchestra.tools.root import Root, is_binary

__all__ = ("scan",)

_BAD_REQUEST = 3
_SHOWN = 4_000
"""Bytes of a line that are printed; the reader cuts further."""


def scan(request: dict[str, Any], output: IO[bytes]) -> None:
    """Print the lines that match, in the order of the files.

    Args:
        request: ``root``, ``files``, ``pattern``, ``is_literal``, ``is_case_ignored``, ``per_file``
            (lines of one file that are printed) and ``max_file_size``.
        output: Where each is printed: path, null byte, number, colon, column, colon, line.

    Raises:
        ValueError: The pattern is none.
    """
    root = Root(request["root"])
    search = _compile(request).search
    for path in request["files"]:
        try:
            data = root.read(path, limit=request["max_file_size"])
        except OSError:
            continue  # gone meanwhile, or not ours to read
        if data is None or is_binary(data):
            continue
        printed = 0
        lines = data.split(b"\n")
        if not lines[-1]:
            del lines[-1]  # the file ends with a line end
        for number, line in enumerate(lines, 1):
            if found := search(line):
                head = f"{path}\0{number}:{found.start() + 1}:".encode()
                output.write(head + line[:_SHOWN] + b"\n")
                printed += 1
                if printed == request["per_file"]:
                    break
        if printed:
            output.flush()


def _compile(request: dict[str, Any]) -> re.Pattern[bytes]:
    pattern: str = request["pattern"]
    flags = re.IGNORECASE if request["is_case_ignored"] else re.NOFLAG
    if request["is_literal"]:
        return re.compile(re.escape(pattern.encode()), flags)
    try:
        return re.compile(encode_pattern(pattern), flags)
    except (re.error, OverflowError, RecursionError) as exc:
        raise ValueError(f"the pattern {pattern!r} is no regular expression: {exc}") from None


def main() -> int:
    """Read a request from standard input and print the answer."""
    request = json.load(sys.stdin)
    # The kernel ends the process, whatever the regular expression is doing.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, request["timeout"])
    warnings.simplefilter("ignore")  # about patterns that will mean something else one day
    try:
        scan(request, sys.stdout.buffer)
        sys.stdout.buffer.flush()
    except ValueError as exc:
        sys.stderr.write(str(exc))
        return _BAD_REQUEST
    return 0


if __name__ == "__main__":
    sys.exit(main())
