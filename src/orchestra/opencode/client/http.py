"""Typed calls to an OpenCode server: every answer is checked before it is believed."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, TypeVar, final
from urllib.parse import SplitResult, quote, unquote, urlsplit, urlunsplit

import anyio
import msgspec

from orchestra.errors import (
    ConfigurationError,
    RemoteProtocolError,
    ServerError,
    SessionError,
    SessionLostError,
    TransportError,
)
from orchestra.opencode.client import wire
from orchestra.opencode.client.connections import Connections, Reply
from orchestra.opencode.client.sse import EventReader, EventTooLargeError

__all__ = ("WIRE_ERRORS", "HttpClient")

T = TypeVar("T")

WIRE_ERRORS = (SessionError, ConfigurationError)
"""Everything that a call may raise: the server's configuration may turn out to be wrong."""

_ATTEMPTS = 3
_FIRST_DELAY = 0.1
_MAX_BODY = 256 * 1024 * 1024
_MAX_EVENT = 64 * 1024 * 1024


@final
class HttpClient:
    """A connection to one server. Close it with `aclose`.

    All methods are checkpoints. They raise `TransportError` when the server cannot be reached,
    `RemoteProtocolError` when something else answers, `ServerError` when it answers with an error,
    `ConfigurationError` when the error is in the server's configuration.
    Calls that may safely be repeated are repeated a few times when the connection breaks.

    Args:
        url: ``http://host:port``; a user name and password in it are used and not shown.
        username: For HTTP basic authentication.
        password: For HTTP basic authentication; None: none.
        timeout: Seconds that the server may take to answer a call.
    """

    def __init__(
        self,
        url: str,
        *,
        username: str = "opencode",
        password: str | None = None,
        timeout: float = 30.0,
    ) -> None:
        parts = _parse(url)
        host = parts.hostname or ""
        host = f"[{host}]" if ":" in host else host
        netloc = f"{host}:{parts.port}" if parts.port else host
        self.url: str = urlunsplit((parts.scheme, netloc, parts.path.rstrip("/"), "", ""))
        if password is None and parts.password is not None:
            username = unquote(parts.username or username)
            password = unquote(parts.password)
        self._timeout = timeout
        self._connections = Connections(
            parts._replace(netloc=netloc),
            url=self.url,
            username=username,
            password=password,
            timeout=timeout,
        )

    def __repr__(self) -> str:
        return f"<HttpClient {self.url}>"

    async def aclose(self) -> None:
        """Close all connections."""
        await self._connections.aclose()

    # --- the server and its directories ---

    async def health(self) -> wire.HealthInfo:
        """Whether the server is well, and its version."""
        with anyio.move_on_after(min(self._timeout, 10.0)):
            return await self._get("/global/health", wire.HealthInfo)
        raise TransportError(
            f"the server at {self.url} accepted the connection and did not answer; is it OpenCode?"
        )

    async def agents(self, directory: str) -> tuple[wire.AgentInfo, ...]:
        """The agents of a directory; the first call for a directory reads its configuration."""
        return await self._get("/agent", tuple[wire.AgentInfo, ...], directory)

    async def providers(self, directory: str) -> wire.ProviderList:
        """The models of a directory."""
        return await self._get("/config/providers", wire.ProviderList, directory)

    async def config(self, directory: str) -> wire.ConfigInfo:
        """The merged configuration of a directory."""
        return await self._get("/config", wire.ConfigInfo, directory)

    async def statuses(self, directory: str) -> dict[str, wire.StatusInfo]:
        """What each session of a directory does; idle ones are absent."""
        return await self._get("/session/status", dict[str, wire.StatusInfo], directory)

    async def permissions(self, directory: str) -> tuple[wire.PermissionAsked, ...]:
        """The permission requests of a directory that wait for an answer."""
        return await self._get("/permission", tuple[wire.PermissionAsked, ...], directory)

    async def questions(self, directory: str) -> tuple[wire.QuestionAsked, ...]:
        """The questions of a directory that wait for an answer."""
        return await self._get("/question", tuple[wire.QuestionAsked, ...], directory)

    @asynccontextmanager
    async def events(
        self, directory: str, *, silence: float
    ) -> AsyncGenerator[AsyncIterator[bytes]]:
        """Open a directory's event stream; yields the iterator over its ``data`` fields.

        Args:
            directory: The directory.
            silence: Seconds without a byte after which the stream counts as broken.
        """
        async with self._connections.call(
            "GET", "/event", headers=_headers(directory), limit=_MAX_BODY, silence=silence
        ) as reply:
            if reply.status != HTTPStatus.OK or reply.kind != "text/event-stream":
                self._check("GET", "/event", reply, await reply.read())
                raise self._foreign("GET", "/event", reply)
            yield _Events(reply, self.url)

    # --- sessions ---

    async def create_session(
        self,
        directory: str,
        *,
        title: str,
        agent: str | None,
        permission: Sequence[Mapping[str, str]],
        metadata: Mapping[str, str],
    ) -> wire.SessionInfo:
        """Create a session. Not repeated when the connection breaks: that might make two."""
        body: dict[str, Any] = {"title": title, "metadata": dict(metadata)}
        if agent is not None:
            body["agent"] = agent
        if permission:
            body["permission"] = list(permission)
        data = await self._call("POST", "/session", directory, body, attempts=1)
        return self._read_as(wire.SessionInfo, data, "POST", "/session")

    async def session(self, session_id: str) -> wire.SessionInfo:
        """One session."""
        return await self._get(f"/session/{session_id}", wire.SessionInfo)

    async def sessions(self, directory: str) -> tuple[wire.SessionInfo, ...]:
        """The sessions of a directory that nobody else has started, at most 10,000."""
        data = await self._call(
            "GET", "/session", directory, params={"limit": 10_000, "roots": "true"}
        )
        return self._read_as(tuple[wire.SessionInfo, ...], data, "GET", "/session")

    async def children(self, session_id: str) -> tuple[wire.SessionInfo, ...]:
        """The sessions that a session has started."""
        return await self._get(f"/session/{session_id}/children", tuple[wire.SessionInfo, ...])

    async def messages(self, session_id: str, *, limit: int | None) -> tuple[wire.Message, ...]:
        """The newest messages of a session, oldest first."""
        path = f"/session/{session_id}/message"
        params = {} if limit is None else {"limit": limit}
        data = await self._call("GET", path, None, params=params)
        try:
            return wire.decode_messages(data)
        except wire.MalformedError as exc:
            raise self._unreadable("GET", path, exc) from exc

    async def todos(self, session_id: str) -> tuple[wire.TodoInfo, ...]:
        """A session's to-do list."""
        return await self._get(f"/session/{session_id}/todo", tuple[wire.TodoInfo, ...])

    async def delete_message(self, session_id: str, message_id: str) -> None:
        """Delete one message of an idle session."""
        await self._call("DELETE", f"/session/{session_id}/message/{message_id}", None)

    async def update_session(
        self, session_id: str, *, title: str, metadata: Mapping[str, str]
    ) -> None:
        """Replace a session's title and metadata."""
        body = {"title": title, "metadata": dict(metadata)}
        await self._call("PATCH", f"/session/{session_id}", None, body)

    async def prompt(self, session_id: str, body: Mapping[str, object]) -> None:
        """Start a prompt. ``body`` must carry ids, so that repeating it is harmless."""
        await self._call("POST", f"/session/{session_id}/prompt_async", None, body)

    async def abort(self, session_id: str) -> None:
        """Ask the server to abort what a session does; answers before it is idle."""
        await self._call("POST", f"/session/{session_id}/abort", None)

    async def delete_session(self, session_id: str) -> None:
        """Delete a session and its children. They must be idle."""
        await self._call("DELETE", f"/session/{session_id}", None)

    async def reply_permission(
        self, directory: str, request_id: str, *, reply: str, message: str = ""
    ) -> None:
        """Answer a permission request with ``once``, ``always`` or ``reject``."""
        body = {"reply": reply} | ({"message": message} if message else {})
        await self._call("POST", f"/permission/{request_id}/reply", directory, body)

    async def reply_question(
        self, directory: str, request_id: str, *, answers: Sequence[Sequence[str]]
    ) -> None:
        """Answer a set of questions, each with a list of texts."""
        body = {"answers": [list(answer) for answer in answers]}
        await self._call("POST", f"/question/{request_id}/reply", directory, body)

    async def show_toast(
        self, directory: str, *, title: str, message: str, variant: str, duration: float
    ) -> None:
        """Show a line to whoever has a terminal interface open on the directory."""
        body = {
            "title": title,
            "message": message,
            "variant": variant,
            "duration": int(duration * 1000),
        }
        await self._call("POST", "/tui/show-toast", directory, body, attempts=1)

    async def reject_question(self, directory: str, request_id: str) -> None:
        """Turn a question down; that ends the run."""
        await self._call("POST", f"/question/{request_id}/reject", directory)

    # --- the wire ---

    async def _get(self, path: str, shape: type[T], directory: str | None = None) -> T:
        data = await self._call("GET", path, directory)
        return self._read_as(shape, data, "GET", path)

    def _read_as(self, shape: type[T], data: bytes, method: str, path: str) -> T:
        try:
            return wire.decode(data, shape)
        except wire.MalformedError as exc:
            raise self._unreadable(method, path, exc) from exc

    async def _call(
        self,
        method: str,
        path: str,
        directory: str | None,
        body: Mapping[str, object] | None = None,
        *,
        params: Mapping[str, int | str] | None = None,
        attempts: int = _ATTEMPTS,
    ) -> bytes:
        content = None if body is None else msgspec.json.encode(body)
        delay = _FIRST_DELAY
        for attempt in range(1, attempts + 1):
            try:
                async with self._connections.call(
                    method,
                    path,
                    headers=_headers(directory),
                    params=params,
                    body=content,
                    limit=_MAX_BODY,
                ) as reply:
                    answer = await reply.read()
                self._check(method, path, reply, answer)
            except TransportError:
                if attempt == attempts:
                    raise
                await anyio.sleep(delay)
                delay *= 4
            else:
                return answer
        raise AssertionError("unreachable")

    def _check(self, method: str, path: str, reply: Reply, body: bytes) -> None:
        """Raise what an answer means unless it is JSON (or nothing) with a good status."""
        status, kind = reply.status, reply.kind
        is_good = 200 <= status < 300
        if status == HTTPStatus.UNAUTHORIZED:
            raise ServerError(
                f"the server at {self.url} refused the user name or password; "
                "give the password it was started with",
                status,
            )
        if is_good and (kind == "application/json" or not body):
            return
        if kind != "application/json" or is_good:
            raise self._foreign(method, path, reply)
        raise _server_error(f"{method} {path}", status, body)

    def _foreign(self, method: str, path: str, reply: Reply) -> RemoteProtocolError:
        kind = reply.kind or "no content type"
        return RemoteProtocolError(
            f"{method} {path} at {self.url} was answered with status {reply.status} and "
            f"{kind} instead of JSON; check that this is an OpenCode 1.x server"
        )

    def _unreadable(self, method: str, path: str, exc: Exception) -> RemoteProtocolError:
        return RemoteProtocolError(
            f"the answer to {method} {path} at {self.url} has an unknown shape ({exc}); "
            "check the server's version"
        )


def _headers(directory: str | None) -> dict[str, str]:
    # The server decodes percent signs in this header, which also lets other alphabets through.
    return {} if directory is None else {"x-opencode-directory": quote(directory, safe="/")}


def _parse(url: str) -> SplitResult:
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0:
            return parts
    except ValueError:
        pass  # told below, without the text, which may hold a password
    raise ConfigurationError(
        f"{url.rpartition('@')[2]!r} is not the URL of a server; give http://host:port"
    )


@final
class _Events:
    """Reads an event stream."""

    def __init__(self, reply: Reply, url: str) -> None:
        self._reply = reply
        self._url = url
        self._reader = EventReader(_MAX_EVENT)
        self._events: deque[bytes] = deque()

    def __aiter__(self) -> _Events:
        return self

    async def __anext__(self) -> bytes:
        while not self._events:
            if not (chunk := await self._reply.read_some()):
                raise StopAsyncIteration
            try:
                self._events.extend(self._reader.feed(chunk))
            except EventTooLargeError as exc:
                raise RemoteProtocolError(f"{self._url} sent {exc}; it was dropped") from exc
        return self._events.popleft()


class _Problem(msgspec.Struct):
    """Both shapes of an error answer in one."""

    name: str = ""
    tag: str = msgspec.field(default="", name="_tag")
    message: str = ""
    data: dict[str, Any] | None = None


def _server_error(call: str, status: int, body: bytes) -> SessionError | ConfigurationError:
    start = body[:2000].decode("utf-8", "replace")
    try:
        problem = wire.decode(body, _Problem)
    except wire.MalformedError:
        return ServerError(f"{call} was answered with status {status}: {start}", status, start)
    data = problem.data or {}
    if problem.name.startswith("Config"):
        return ConfigurationError(*_config_problems(problem.name, data))
    message = problem.message or data.get("message") or problem.name or problem.tag or "no reason"
    if status == HTTPStatus.NOT_FOUND and "/session/" in call:
        return SessionLostError(f"{call}: the server does not know the session ({message})")
    ref = data.get("ref")
    hint = f"; look for {ref} in the server's log" if ref else ""
    return ServerError(f"{call} was answered with status {status}: {message}{hint}", status, start)


def _config_problems(name: str, data: Mapping[str, Any]) -> list[str]:
    """One sentence per fault that the server found in its configuration."""
    place = data.get("path") or "the configuration"
    issues = data.get("issues")
    problems = []
    for issue in issues if isinstance(issues, list) else []:
        if isinstance(issue, dict):
            path = ".".join(str(step) for step in issue.get("path") or ())
            problems.append(f"{place}: {path or 'top level'}: {issue.get('message', 'is wrong')}")
    return problems or [f"{place}: {data.get('message') or name}"]
