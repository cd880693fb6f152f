"""One row of the burst of buffers: ``python -m benchmarks.bursts SOURCE SIZE TOGETHER REPEAT HISTORY``.

It has a process of its own, since what fresh memory costs depends on what the process has freed
before: the first large block that is freed makes the GNU C library keep more memory from then on.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from orchestra import BufferPool


def fresh(size: int) -> memoryview:
    """Memory that nobody has used."""
    return memoryview(bytearray(size))


def main(source: str, size: int, together: int, repeat: int, history: int) -> float:
    """Fill some buffers together, again and again; the seconds for each buffer.

    Args:
        source: ``pool`` or ``fresh``.
        size: Of a buffer, in bytes.
        together: How many are in use at a time.
        repeat: How often.
        history: Bytes of a block that the process has used and freed before.
    """
    bytearray(history)
    take: Callable[[int], memoryview] = BufferPool().lease if source == "pool" else fresh
    data = b"orchestra" * (size // 9) + bytes(size % 9)
    began = 0.0
    for number in range(repeat + 2):
        if number == 2:  # the first ones are not counted
            began = time.process_time()
        views = [take(size) for _ in range(together)]
        for view in views:
            view[:] = data
        for view in views:
            assert view[0] == data[0]
            view.release()
    return (time.process_time() - began) / repeat / together


if __name__ == "__main__":
    print(main(sys.argv[1], *map(int, sys.argv[2:])))
