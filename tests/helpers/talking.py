"""Listening to a child process line by line, and then to the rest."""

from __future__ import annotations

import subprocess
import threading
from typing import IO


def rest_of(process: subprocess.Popen[str], limit: float = 60.0) -> tuple[str, str]:
    """What a child still says, once it has ended; after the limit it is killed.

    ``communicate()`` reads past the streams' buffers, and so loses what ``readline()`` took early.
    """
    said = {"stdout": "", "stderr": ""}

    def listen(name: str, stream: IO[str]) -> None:
        with stream:
            said[name] = stream.read()

    listeners = [
        threading.Thread(target=listen, args=(name, stream))
        for name, stream in (("stdout", process.stdout), ("stderr", process.stderr))
        if stream is not None and not stream.closed
    ]
    overdue = threading.Timer(limit, process.kill)
    overdue.start()
    for each in listeners:
        each.start()
    process.wait()
    for each in listeners:
        each.join()
    overdue.cancel()
    overdue.join()
    return said["stdout"], said["stderr"]
