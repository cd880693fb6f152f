"""A client for language servers that asks them one thing: what is wrong with a file."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from enum import IntEnum
from pathlib import PurePosixPath
from typing import Any, Final, final
from urllib.parse import unquote, urlsplit

import anyio
import anyio.lowlevel
import anyio.to_thread
from anyio import AsyncContextManagerMixin
from attrs import frozen

from orchestra._core.checks import check_at_least, finite
from orchestra._version import __version__
from orchestra.errors import ToolError, ToolProtocolError, ToolResponseError, ToolTimeoutError
from orchestra.tools.command import CancelStyle, Framing, ToolCommand
from orchestra.tools.process import ToolProcess
from orchestra.tools.root import Root

__all__ = ("Diagnostic", "LanguageServer", "LanguageServerStatistics", "Severity")

_SERVER_CANCELLED = -32802
_CONTENT_MODIFIED = -32801
_MAX_MESSAGE = 4_000
"""Characters of a diagnostic's message."""

_LANGUAGES: Mapping[str, str] = {
    ".bash": "shellscript",
    ".c": "c",
    ".cc": "cpp",
    ".cpp": "cpp",
    ".cs": "csharp",
    ".css": "css",
    ".go": "go",
    ".h": "c",
    ".hpp": "cpp",
    ".html": "html",
    ".java": "java",
    ".js": "javascript",
    ".json": "json",
    ".jsx": "javascriptreact",
    ".kt": "kotlin",
    ".lua": "lua",
    ".md": "markdown",
    ".php": "php",
    ".py": "python",
    ".pyi": "python",
    ".rb": "ruby",
    ".rs": "rust",
    ".scala": "scala",
    ".sh": "shellscript",
    ".swift": "swift",
    ".toml": "toml",
    ".ts": "typescript",
    ".tsx": "typescriptreact",
    ".yaml": "yaml",
    ".yml": "yaml",
}


class Severity(IntEnum):
    """How bad a diagnostic is; a smaller number is worse."""

    ERROR = 1
    WARNING = 2
    INFORMATION = 3
    HINT = 4


@frozen(kw_only=True)
class Diagnostic:
    """Something that a language server says about a place in a file.

    Lines and columns count from 1; columns are characters, whatever the server counts in.

    Attributes:
        path: The file, relative to the root.
        line: Where it begins.
        column: The same.
        end_line: Where it ends.
        end_column: The column after its last character.
        severity: How bad; ERROR when the server does not say.
        code: The rule's name; empty when there is none.
        source: Who says so, as the server names it.
        message: What is wrong; past 4,000 characters it is cut, and says so.
    """

    path: str
    line: int
    column: int
    end_line: int
    end_column: int
    severity: Severity
    code: str
    source: str
    message: str


@frozen(kw_only=True)
class LanguageServerStatistics:
    """What a `LanguageServer` has done.

    Attributes:
        diagnosed: Files it was asked about, and answered.
        open_documents: Files that it holds open.
        published: Sets of diagnostics that it sent by itself.
        is_pulling: Whether it is asked for diagnostics, or sends them by itself.
    """

    diagnosed: int
    open_documents: int
    published: int
    is_pulling: bool


class _Document:
    """A file that the server has open."""

    __slots__ = ("diagnostics", "lock", "news", "version")

    def __init__(self) -> None:
        self.lock = anyio.Lock()
        self.version = 0  # 0: not open, or nobody knows
        self.news = anyio.Event()
        self.diagnostics: list[Any] | None = None  # those of this version


@final
class LanguageServer(AsyncContextManagerMixin):
    """A running language server; entering starts it and shakes hands, leaving ends it.

    ::

        async with LanguageServer(["ruff", "server"], workspace) as server:
            for found in await server.diagnose("src/parser.py"):
                print(found.path, found.line, found.message)

    Any server of the Language Server Protocol will do. One that offers it is asked for diagnostics;
    of any other what it publishes for the current version of a file is taken, and since some
    publish twice (syntax first), the last set after which ``settle`` seconds are quiet.

    The server is told of files as they are asked about, and keeps the last ``max_open`` of them
    open. It does not see other files change: `files_changed` says so. It is never allowed to edit.

    Several tasks may ask at once. A server that dies fails those that wait; it is not started
    again. It is entered once, belongs to one event loop, and is not thread-safe.

    Args:
        argv: The program and its arguments, as for `ToolCommand`.
        root: The workspace. No path leads out of it.
        settings: What the server may ask for by dotted section, as ``{"python": {"analysis": ...}}``.
        options: ``initializationOptions`` of the handshake, as the server documents them.
        environment: Its whole environment; None: this process's.
        start_timeout: Seconds for the handshake.
        timeout: Seconds for the diagnostics of a file.
        settle: Seconds.
        max_open: How many files the server holds open.
        max_file_size: Bytes of a file that it is told.

    Raises:
        NotADirectoryError: ``root`` is no folder.
        ToolStartError: On entering: the program is not there, or cannot be started.
        ToolError: On entering: the handshake failed.
        TypeError: An argument is of the wrong type.
        ValueError: A number is out of range, or ``argv`` cannot be used.
    """

    def __init__(
        self,
        argv: Sequence[str],
        root: str | os.PathLike[str],
        *,
        settings: Mapping[str, Any] | None = None,
        options: Any = None,
        environment: Mapping[str, str] | None = None,
        start_timeout: float = 60.0,
        timeout: float = 30.0,
        settle: float = 0.2,
        max_open: int = 64,
        max_file_size: int = 4 << 20,
    ) -> None:
        for name, seconds in (("start_timeout", start_timeout), ("timeout", timeout)):
            if finite(name, seconds) <= 0:
                raise ValueError(f"{name} must be above 0 seconds, not {seconds!r}")
        if finite("settle", settle) < 0:
            raise ValueError(f"settle must be at least 0 seconds, not {settle!r}")
        check_at_least("max_open", max_open, 1)
        check_at_least("max_file_size", max_file_size, 1)
        self._root: Final = Root(root)
        self._settings: Final = dict(settings or {})
        self._options: Final = options
        self._start_timeout: Final = start_timeout
        self._timeout: Final = timeout
        self._settle: Final = settle
        self._max_open: Final = max_open
        self._max_file_size: Final = max_file_size
        command = ToolCommand(
            argv=argv,
            directory=self._root.path,
            environment=environment,
            framing=Framing.CONTENT_LENGTH,
            cancel_style=CancelStyle.LANGUAGE_SERVER,
        )
        self._process: Final = ToolProcess(
            command, on_notification=self._note, on_request=self._reply
        )
        self._documents: Final[OrderedDict[str, _Document]] = OrderedDict()
        self._is_pulling = False
        self._encoding = "utf-16"
        self._diagnosed = 0
        self._published = 0

    # ---- asking ----

    async def diagnose(
        self, path: str, *, text: str | None = None, language: str | None = None
    ) -> tuple[Diagnostic, ...]:
        """Return what the server says about a file. Always a checkpoint.

        Args:
            path: The file, relative to the root.
            text: What it shall be taken to contain, also when there is no such file; None: what it
                contains.
            language: The protocol's name of its language; None: by its suffix.

        Returns:
            The diagnostics in the order of the file.

        Raises:
            ValueError: The path leads out of the root, or the file is too large or no text in
                UTF-8.
            OSError: The file cannot be read.
            ToolTimeoutError: The server did not tell in time.
            ToolResponseError: The server answered with an error.
            ToolLostError: The server has ended.
            ToolProtocolError: The server wrote what is not its protocol.
            anyio.ClosedResourceError: The server was closed.
        """
        relative, content = await anyio.to_thread.run_sync(self._load, path, text)
        suffix = PurePosixPath(relative).suffix.lower()
        language = language or _LANGUAGES.get(suffix, suffix[1:] or "plaintext")
        with anyio.move_on_after(self._timeout):
            async with self._held(relative) as document:
                await self._tell(relative, document, content, language)
                await self._close_others(relative)
                if self._is_pulling:
                    found = await self._pull(relative)
                else:
                    found = await self._await_published(document)
            self._diagnosed += 1
            return self._translate(relative, content, found)
        raise ToolTimeoutError(
            f"{self._process.command.label} did not tell the diagnostics of {relative!r} within "
            f"{self._timeout:g} s; give it more time",
            self._process.stderr,
        )

    async def files_changed(self, *paths: str) -> None:
        """Tell the server that files have changed on the disk, or are gone. Always a checkpoint.

        Args:
            *paths: Files relative to the root.

        Raises:
            ToolError: The server has failed.
            anyio.ClosedResourceError: The server was closed.
        """
        changes = [
            {"uri": self._uri(path), "type": 2 if (self._root.path / path).exists() else 3}
            for path in paths
        ]
        await self._process.notify("workspace/didChangeWatchedFiles", {"changes": changes})

    def statistics(self) -> LanguageServerStatistics:
        """Return what it has done."""
        return LanguageServerStatistics(
            diagnosed=self._diagnosed,
            open_documents=sum(one.version > 0 for one in self._documents.values()),
            published=self._published,
            is_pulling=self._is_pulling,
        )

    def __repr__(self) -> str:
        how = "pull" if self._is_pulling else "push"
        state = f"pid {self._process.pid}, {how}" if self._process.is_running else "not running"
        return f"<LanguageServer {self._process.command.label!r} {state}>"

    # ---- documents ----

    def _load(self, path: str, text: str | None) -> tuple[str, str]:
        if text is not None:
            folder, _, name = path.rpartition("/")
            if name in {"", ".", ".."}:
                raise ValueError(f"{path!r} names no file; name one")
            parent = self._root.resolve(folder)
            return (f"{parent}/{name}" if parent else name), text
        relative = self._root.resolve(path)
        data = self._root.read(relative, limit=self._max_file_size)
        if data is None:
            limit = f"{self._max_file_size:,}"
            raise ValueError(f"{relative!r} is no file of at most {limit} bytes; choose another")
        try:
            return relative, data.decode()
        except UnicodeDecodeError:
            raise ValueError(f"{relative!r} is no text in UTF-8; choose another") from None

    def _uri(self, relative: str) -> str:
        return (self._root.path / relative).as_uri()

    @asynccontextmanager
    async def _held(self, relative: str) -> AsyncIterator[_Document]:
        """Hold a document, so that nobody else changes or closes it."""
        while True:
            document = self._documents.setdefault(relative, _Document())
            async with document.lock:
                if self._documents.get(relative) is document:  # else it was closed meanwhile
                    self._documents.move_to_end(relative)
                    yield document
                    return

    async def _tell(self, relative: str, document: _Document, text: str, language: str) -> None:
        """Open the document or change it, also if it is the same: so what is told is fresh."""
        uri, version = self._uri(relative), document.version + 1
        document.diagnostics = None
        if document.version:
            method, params = (
                "textDocument/didChange",
                {
                    "textDocument": {"uri": uri, "version": version},
                    "contentChanges": [{"text": text}],
                },
            )
        else:
            method, params = (
                "textDocument/didOpen",
                {
                    "textDocument": {
                        "uri": uri,
                        "languageId": language,
                        "version": version,
                        "text": text,
                    }
                },
            )
        document.version = version
        try:
            await self._process.notify(method, params)
        except BaseException:
            # It may have been told or not: the next one opens it anew.
            self._documents.pop(relative, None)
            raise

    async def _close_others(self, relative: str) -> None:
        while len(self._documents) > self._max_open:
            oldest, document = next(iter(self._documents.items()))
            if oldest == relative or document.lock.locked():
                return
            del self._documents[oldest]
            await self._process.notify(
                "textDocument/didClose", {"textDocument": {"uri": self._uri(oldest)}}
            )

    async def _pull(self, relative: str) -> list[Any]:
        params = {"textDocument": {"uri": self._uri(relative)}}
        while True:
            try:
                report = await self._process.request(
                    "textDocument/diagnostic", params, timeout=None
                )
            except ToolResponseError as exc:
                if exc.code not in {_SERVER_CANCELLED, _CONTENT_MODIFIED}:
                    raise
                await anyio.sleep(0.05)  # it is busy with something newer
                continue
            items = report.get("items") if isinstance(report, dict) else None
            if not isinstance(items, list):
                raise self._violation("textDocument/diagnostic", report)
            return items

    async def _await_published(self, document: _Document) -> list[Any]:
        async with anyio.create_task_group() as group:

            async def end() -> None:
                await self._process.wait_over()
                document.news.set()

            group.start_soon(end)
            while self._process.is_running:
                patience = None if document.diagnostics is None else self._settle
                with anyio.move_on_after(patience) as pause:
                    await document.news.wait()
                if pause.cancelled_caught:
                    break  # quiet for so long
                document.news = anyio.Event()
            group.cancel_scope.cancel()
        if not self._process.is_running:
            await self._process.notify("exit")  # raises why it is over
        return document.diagnostics or []

    def _translate(self, relative: str, text: str, found: list[Any]) -> tuple[Diagnostic, ...]:
        lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")

        def place(position: Any) -> tuple[int, int]:
            line, units = position["line"], position["character"]
            if not isinstance(line, int) or not isinstance(units, int):
                raise TypeError
            content = lines[line] if 0 <= line < len(lines) else ""
            return line + 1, _characters(content, units, self._encoding) + 1

        told: list[Diagnostic] = []
        try:
            for one in found:
                line, column = place(one["range"]["start"])
                end_line, end_column = place(one["range"]["end"])
                message, code = str(one["message"]), one.get("code")
                told.append(
                    Diagnostic(
                        path=relative,
                        line=line,
                        column=column,
                        end_line=end_line,
                        end_column=end_column,
                        severity=Severity(one.get("severity") or 1),
                        code="" if code is None else str(code),
                        source=str(one.get("source") or ""),
                        message=message
                        if len(message) <= _MAX_MESSAGE
                        else f"{message[:_MAX_MESSAGE]} [cut after {_MAX_MESSAGE:,} characters]",
                    )
                )
        except (LookupError, TypeError, ValueError, AttributeError):
            raise self._violation("diagnostics", found) from None
        return tuple(sorted(told, key=lambda one: (one.line, one.column, one.severity)))

    def _violation(self, what: str, value: object) -> ToolProtocolError:
        self._process.close()
        label = self._process.command.label
        return ToolProtocolError(
            f"{label} told {what} that cannot be read and was closed: {value!r:.200}; use another "
            "version of it",
            self._process.stderr,
        )

    # ---- what the server says by itself ----

    def _note(self, method: str, params: Any) -> None:
        if method != "textDocument/publishDiagnostics" or not isinstance(params, dict):
            return
        self._published += 1
        document = self._documents.get(self._path_of(params.get("uri")))
        items = params.get("diagnostics")
        if document is None or not isinstance(items, list):
            return
        if params.get("version") in {None, document.version}:
            document.diagnostics = items
            document.news.set()

    def _path_of(self, uri: object) -> str:
        # Servers write the same file in several ways: escaped or not.
        path = PurePosixPath(unquote(urlsplit(uri).path)) if isinstance(uri, str) else None
        if path is None or not path.is_relative_to(self._root.path):
            return ""
        return path.relative_to(self._root.path).as_posix()

    def _reply(self, method: str, params: Any) -> object:
        match method:
            case "workspace/configuration":
                return [self._setting(item.get("section")) for item in params["items"]]
            case "workspace/workspaceFolders":
                return [self._folder()]
            case "workspace/applyEdit":
                return {"applied": False, "failureReason": "this client takes no edits"}
            case (
                "client/registerCapability"
                | "client/unregisterCapability"
                | "window/workDoneProgress/create"
                | "window/showMessageRequest"
                | "workspace/diagnostic/refresh"
            ):
                return None
        raise LookupError(method)

    def _setting(self, section: str | None) -> object:
        value: object = self._settings
        for name in section.split(".") if section else ():
            value = value.get(name) if isinstance(value, dict) else None
        return value

    def _folder(self) -> dict[str, str]:
        return {"uri": self._root.path.as_uri(), "name": self._root.path.name}

    # ---- the block ----

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncIterator[LanguageServer]:
        async with self._process:
            await self._shake_hands()
            try:
                yield self
            finally:
                if self._process.is_running:
                    await self._say_goodbye()

    async def _shake_hands(self) -> None:
        with anyio.move_on_after(self._start_timeout):
            answer = await self._process.request("initialize", self._introduction(), timeout=None)
            found = answer.get("capabilities") if isinstance(answer, dict) else None
            if not isinstance(found, dict):
                raise self._violation("initialize", answer)
            self._is_pulling = bool(found.get("diagnosticProvider"))
            self._encoding = found.get("positionEncoding") or "utf-16"
            await self._process.notify("initialized", {})
            if self._settings:
                await self._process.notify(
                    "workspace/didChangeConfiguration", {"settings": self._settings}
                )
            return
        raise ToolTimeoutError(
            f"{self._process.command.label} did not answer 'initialize' within "
            f"{self._start_timeout:g} s; give it more time",
            self._process.stderr,
        )

    def _introduction(self) -> dict[str, Any]:
        return {
            "processId": os.getpid(),
            "clientInfo": {"name": "orchestra", "version": __version__},
            "rootUri": self._root.path.as_uri(),
            "rootPath": str(self._root.path),
            "workspaceFolders": [self._folder()],
            "initializationOptions": self._options,
            "capabilities": {
                "general": {"positionEncodings": ["utf-32", "utf-16", "utf-8"]},
                "textDocument": {
                    "synchronization": {"didSave": False},
                    "publishDiagnostics": {"versionSupport": True},
                    "diagnostic": {"dynamicRegistration": False},
                },
                "workspace": {
                    "configuration": True,
                    "workspaceFolders": True,
                    "didChangeWatchedFiles": {"dynamicRegistration": False},
                },
                "window": {"workDoneProgress": False},
            },
        }

    async def _say_goodbye(self) -> None:
        with anyio.move_on_after(self._process.command.grace, shield=True):
            with suppress(ToolError, anyio.ClosedResourceError):  # it is ended either way
                await self._process.request("shutdown")
                await self._process.notify("exit")


def _characters(line: str, units: int, encoding: str) -> int:
    """Return how many characters of a line so many units of an encoding are."""
    if encoding == "utf-32" or line.isascii():
        return min(units, len(line))
    codec, width = ("utf-16-le", 2) if encoding == "utf-16" else ("utf-8", 1)
    data = line.encode(codec, errors="surrogatepass")[: units * width]
    return len(data.decode(codec, errors="ignore"))
