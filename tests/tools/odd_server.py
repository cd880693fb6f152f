"""A tool server that does what it is asked, also what no server should do; run with ``-IS``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

COUNTED = "--counted" in sys.argv
held: list[int] = []
seen: list[list[Any]] = []
pending_asks: list[int] = []


def write(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


def send(**members: Any) -> None:
    body = json.dumps({"jsonrpc": "2.0", **members}).encode()
    write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body) if COUNTED else body + b"\n")


def receive() -> Iterator[dict[str, Any]]:
    source = sys.stdin.buffer
    while line := source.readline():
        if COUNTED:
            length = int(line.partition(b":")[2])
            source.readline()
            line = source.read(length)
        yield json.loads(line)


def release(*_: Any) -> int:
    """Answer what is held, the last one first."""
    count = len(held)
    while held:
        number = held.pop()
        send(id=number, result=f"held {number}")
    return count


def close(*_: Any) -> None:
    os.close(1)
    time.sleep(1000)


def flood(*_: Any) -> None:
    while True:
        os.write(2, b"blah " * 10_000)


def spawn(number: int, params: dict[str, Any]) -> int:
    """Start a child that sleeps; it has our pipes, and maybe a group of its own."""
    return subprocess.Popen(
        ["/bin/sleep", "1000"], start_new_session=params.get("leave", False)
    ).pid


def ask(number: int, params: dict[str, Any]) -> None:
    pending_asks.append(number)
    send(id="ask", method=params["method"], params=params)


def ask_a_lot(*_: Any) -> None:
    while True:
        send(id="ask", method="x" * 1000)


def tell(number: int, params: dict[str, Any]) -> int:
    count: int = params["count"]
    for place in range(count):
        send(method="told", params=[place])
    return count


def say(number: int, params: dict[str, Any]) -> None:
    os.write(2, params["text"].encode())


def deaf(*_: Any) -> None:
    time.sleep(1000)


def half(*_: Any) -> None:
    write(b'{"jsonrpc": "2.0", "id"')
    os._exit(0)


def twice(number: int, _: object) -> None:
    send(id=number, result=1)
    send(id=number, result=1)


METHODS: dict[str, Callable[..., Any]] = {
    "echo": lambda _, params: params,
    "pid": lambda *_: os.getpid(),
    "hold": lambda number, _: held.append(number),
    "release": release,
    "seen": lambda *_: seen,
    "say": say,
    "close": close,
    "flood": flood,
    "spawn": spawn,
    "ask": ask,
    "ask a lot": ask_a_lot,
    "tell": tell,
    "deaf": deaf,
    "die": lambda _, params: os._exit(params["code"]),
    "kill": lambda *_: os.kill(os.getpid(), signal.SIGKILL),
    "garbage": lambda *_: write(b"Hello, world!\r\n\r\n"),
    "wrong id": lambda number, _: send(id=number + 1000, result=1),
    "giant": lambda *_: write(b"x" * 3_000_000),
    "half": half,
    "twice": twice,
}
SILENT = {"hold", "ask", "garbage", "wrong id", "giant", "twice"}


def main() -> None:
    if "--exit" in sys.argv:
        os.write(2, b"no license\nfound")
        sys.exit(3)
    if "--stubborn" in sys.argv:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for message in receive():
        number, method = message.get("id"), message.get("method")
        params: Any = message.get("params")
        if method is None:
            send(id=pending_asks.pop(0), result=message.get("result", message.get("error")))
        elif number is None:
            seen.append([method, params])
            if method == "$/cancelRequest" and params["id"] in held:
                held.remove(params["id"])
                send(id=params["id"], error={"code": -32800, "message": "cancelled"})
        elif method not in METHODS:
            send(id=number, error={"code": -32601, "message": f"no {method}", "data": [1]})
        else:
            result = METHODS[method](number, params)
            if method not in SILENT:
                send(id=number, result=result)
    if "--stubborn" in sys.argv:
        threading.Event().wait()


main()
