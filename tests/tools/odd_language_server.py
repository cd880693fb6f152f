"""A language server that publishes diagnostics in the way that its argument names."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

MODE = sys.argv[1]
NOTHING: dict[str, Any] = {}
log = open(sys.argv[2], "a", encoding="utf-8", buffering=1)  # noqa: PTH123, SIM115


def send(**members: Any) -> None:
    body = json.dumps({"jsonrpc": "2.0", **members}).encode()
    sys.stdout.buffer.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
    sys.stdout.buffer.flush()


def receive() -> dict[str, Any]:
    length = 0
    while line := sys.stdin.buffer.readline().strip():
        length = int(line.partition(b":")[2])
    if not length:
        sys.exit(0)
    message: dict[str, Any] = json.loads(sys.stdin.buffer.read(length))
    return message


def diagnostic(message: str, line: int = 0, start: int = 0, end: int = 1) -> dict[str, Any]:
    place = {"start": {"line": line, "character": start}, "end": {"line": line, "character": end}}
    return {"range": place, "message": message}


def publish(uri: str, version: int | None, *diagnostics: Any) -> None:
    params: dict[str, Any] = {"uri": uri, "diagnostics": diagnostics}
    if version is not None:
        params["version"] = version
    send(method="textDocument/publishDiagnostics", params=params)


def tell(uri: str, version: int, text: str) -> None:
    if MODE == "silent":
        return
    if MODE == "die":
        sys.stderr.write("out of memory\n")
        sys.exit(3)
    if MODE == "garbage":
        publish(uri, version, {"range": 5})
        return
    if MODE == "late":  # an old version, another file, then the one
        publish(uri, version - 1, diagnostic("old"))
        publish(uri + "x", version, diagnostic("other"))
        time.sleep(0.05)
        publish(uri, version, diagnostic("new"))
    elif MODE == "twice":
        publish(uri, version, diagnostic("syntax"))
        time.sleep(0.02)
        publish(uri, version, diagnostic("syntax"), diagnostic("types", 1, 4, 6))
    elif MODE == "escaped":
        publish(uri.replace("a", "%61"), None, diagnostic("plain"))
    elif MODE == "asks":
        ask("workspace/configuration", {"items": [{"section": "odd.level"}, {"section": "no.no"}]})
        ask("workspace/applyEdit", {"edit": {}})
        ask("client/registerCapability", {"registrations": []})
        ask("nothing/known", {})
        publish(uri, version, diagnostic("asked"))
    else:
        publish(uri, version, diagnostic(f"{len(text)} characters"))


def ask(method: str, params: Any) -> None:
    send(id=f"ask-{method}", method=method, params=params)
    answer = receive()
    log.write(json.dumps([method, answer.get("result"), answer.get("error", NOTHING).get("code")]))
    log.write("\n")


while True:
    message = receive()
    method, params = message.get("method"), message.get("params") or {}
    log.write(json.dumps([method]) + "\n")
    if method == "initialize":
        if MODE == "rude":
            send(id=message["id"], result="hello")
        elif MODE != "mute":
            capabilities: dict[str, Any] = {"textDocumentSync": 1}
            if MODE.startswith("pull"):
                capabilities["diagnosticProvider"] = {"interFileDependencies": True}
            send(id=message["id"], result={"capabilities": capabilities})
    elif method == "textDocument/didOpen":
        document = params["textDocument"]
        log.write(json.dumps(["language", document["languageId"]]) + "\n")
        tell(document["uri"], document["version"], document["text"])
    elif method == "textDocument/didChange":
        document, (change,) = params["textDocument"], params["contentChanges"]
        tell(document["uri"], document["version"], change["text"])
    elif method == "textDocument/diagnostic":
        if MODE == "pull-busy":
            MODE = "pull"
            send(id=message["id"], error={"code": -32802, "message": "busy"})
        elif MODE == "pull-refused":
            send(id=message["id"], error={"code": -32000, "message": "no"})
        else:
            send(id=message["id"], result={"kind": "full", "items": [diagnostic("pulled")]})
    elif method == "shutdown":
        send(id=message["id"], result=None)
    elif method == "exit":
        os._exit(0)
