"""Runs a scenario on a store again and again and kills itself at one write point after the other.

Usage: ``crash_child.py DIRECTORY DURABILITY``. For each point N there is afterwards a directory ``N``
with the store as the killed process left it, and ``acknowledged``, what it had been told by then. The
names of the points are printed.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import anyio

from orchestra import SQLiteStore

LARGE = "long" * 500


async def scenario(directory: Path, durability: str, kill_at: int, names: list[str]) -> None:
    """Write, settle an outcome, compact, write again, close."""
    acknowledged = os.open(directory / "acknowledged", os.O_WRONLY | os.O_CREAT)

    def point(name: str) -> None:
        names.append(name)
        if len(names) - 1 == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    store = SQLiteStore(
        directory / "store.db",
        durability="full" if durability == "full" else "process",
        fault=point,
    )
    async with store:
        for number in range(1, 11):
            async with store.transaction(author="child") as tx:
                tx.put("first", number)
                tx.put("large", f"{number} {LARGE if number < 3 else LARGE[:-number]}")
                if number % 2:
                    tx.put("odd", number)
                else:
                    tx.delete("odd")
                tx.put("last", number)
            os.write(acknowledged, b"%d\n" % number)
            if number == 2:
                await store.outcome("never committed")
            if number == 3:
                await store.compact(2)
    os.close(acknowledged)


def main(directory: Path, durability: str) -> None:
    """Kill one child after the other, until one gets through."""
    anyio.run(anyio.sleep, 0)  # imports what every child needs
    number = 0
    while True:
        place = directory / str(number)
        place.mkdir()
        pid = os.fork()
        if pid == 0:
            names: list[str] = []
            anyio.run(scenario, place, durability, number, names)
            (directory / "names").write_text("\n".join(names))
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if os.WIFEXITED(status):
            sys.exit(os.WEXITSTATUS(status))
        number += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
