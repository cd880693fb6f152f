"""Another process on the same store: ``process_child.py PATH COMMAND [ARGUMENTS]``."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Awaitable, Callable

import anyio

from orchestra import MVCCStore, SQLiteStore, Transaction


def say(*words: object) -> None:
    """Tell the parent."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


async def add(store: MVCCStore, key: str, count: str) -> None:
    """Add 1 to a number, so many times."""

    async def step(tx: Transaction) -> None:
        tx.put(key, await tx.get(key, 0) + 1)

    for _ in range(int(count)):
        await store.transact(step)


async def put(store: MVCCStore, key: str, count: str) -> None:
    """Write numbers under one key."""
    for number in range(int(count)):
        await store.put(key, number)


async def claim(store: MVCCStore, name: str, count: str) -> None:
    """Claim tasks, and print those that were got."""

    async def take(tx: Transaction, key: str) -> bool:
        if await tx.get(key) is not None:
            return False
        tx.put(key, name)
        return True

    for number in range(int(count)):
        if await store.transact(take, f"task/{number}"):
            say(number)


async def hold(store: MVCCStore, name: str, lifetime: str) -> None:
    """Hold a lease until killed."""
    async with store.lease(name, owner="child", lifetime=float(lifetime)) as lease:
        say(lease.fence)
        await anyio.sleep_forever()


async def read(store: MVCCStore, revision: str) -> None:
    """Take a snapshot, say so, and read it when a line comes."""
    async with store.snapshot(int(revision)) as snap:
        say("ready")
        await anyio.to_thread.run_sync(sys.stdin.readline)
        say(await snap.get("n"))


async def compact(store: MVCCStore, revision: str) -> None:
    """Compact, and print how far it got."""
    say(await store.compact(int(revision)))


async def operate(store: MVCCStore, name: str, count: str) -> None:
    """Do this and that with two registers, and print it with its moments."""
    generator = random.Random(name)

    async def swap(tx: Transaction, key: str, old: int, new: int) -> bool:
        if await tx.get(key, 0) != old:
            return False
        tx.put(key, new)
        return True

    for _ in range(int(count)):
        key, old, new = generator.choice("xy"), generator.randrange(3), generator.randrange(3)
        kind = generator.choice(["read", "write", "swap"])
        argument: object = None
        result: object = None
        called = time.monotonic_ns()
        if kind == "read":
            result = await store.get(key, 0)
        elif kind == "write":
            argument = new
            await store.put(key, new)
        else:
            argument = [old, new]
            result = await store.transact(swap, key, old, new)
        returned = time.monotonic_ns()
        say(json.dumps([kind, argument, result, key, called, returned]))


COMMANDS: dict[str, Callable[..., Awaitable[None]]] = {
    function.__name__: function for function in (add, put, claim, hold, operate, read, compact)
}


async def main(*words: str) -> None:
    """Open the store and do it."""
    path, command, *arguments = words
    async with SQLiteStore(path, durability="process", poll_interval=0.01) as store:
        await COMMANDS[command](store, *arguments)


if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:])
