"""JSON-RPC 2.0 without I/O: framing, ids, and which answer belongs to which request. Pure.

What comes from the other side is never trusted: every fault of it is a `ViolationError` that says
in words what was wrong. Nothing is buffered beyond the limit that a message may have.

Sources: the JSON-RPC 2.0 specification; the base protocol of the Language Server Protocol 3.17 for
``Content-Length`` framing; the stdio transport of the Model Context Protocol for lines.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Iterator
from enum import Enum
from typing import Any, Final, NoReturn, TypeAlias, final

from attrs import frozen

__all__ = (
    "INTERNAL_ERROR",
    "INVALID_PARAMS",
    "INVALID_REQUEST",
    "METHOD_NOT_FOUND",
    "PARSE_ERROR",
    "Answer",
    "Framer",
    "Framing",
    "Id",
    "LateAnswer",
    "Message",
    "Notification",
    "Peer",
    "Refusal",
    "Request",
    "ViolationError",
)

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603

Id: TypeAlias = int | str

_MAX_HEADER = 4096
_MAX_ABANDONED = 1024
_HEADER_LINE = re.compile(rb"([!-9;-~]+):[ \t]*([ -~\t]*)\r\n")
_SHOWN = 80


class Framing(Enum):
    """How one message is told from the next."""

    LINES = "lines"
    """One message on each line, as simple tool servers and the Model Context Protocol have it."""

    CONTENT_LENGTH = "content-length"
    """A header with the length before each message, as language servers have it."""


class ViolationError(ValueError):
    """The other side broke the protocol.

    Args:
        fact: What it did, to be read after its name: ``wrote a line that is not JSON: ...``.
        code: The JSON-RPC error code with which a server would answer.
        is_fatal: Whether what follows in the stream has no meaning.
    """

    def __init__(self, fact: str, code: int = INVALID_REQUEST, *, is_fatal: bool = False) -> None:
        super().__init__(fact, code, is_fatal)
        self.fact = fact
        self.code = code
        self.is_fatal = is_fatal

    def __str__(self) -> str:
        return self.fact


@frozen
class Request:
    """The other side asks; it waits for an answer with this id."""

    id: Id
    method: str
    params: Any


@frozen
class Notification:
    """The other side tells something.

    Attributes:
        method: What it is about.
        params: A dict, a list, or None.
    """

    method: str
    params: Any


@frozen
class Answer:
    """A request of ours was answered."""

    id: int
    result: Any


@frozen
class Refusal:
    """A request of ours was answered with an error."""

    id: int
    code: int
    message: str
    data: Any


@frozen
class LateAnswer:
    """A request that was abandoned was answered, with a result or an error."""

    id: int


Message: TypeAlias = Request | Notification | Answer | Refusal | LateAnswer


@final
class Framer:
    """Cuts a stream of bytes into the bodies of messages, and puts bodies into frames.

    Args:
        framing: How.
        limit: How many bytes one message may have.
    """

    __slots__ = ("_buffer", "_framing", "_length", "_limit", "_scanned")

    def __init__(self, framing: Framing, *, limit: int) -> None:
        self._framing: Final = framing
        self._limit: Final = limit
        self._buffer = bytearray()
        self._scanned = 0  # where the search for the next line end goes on
        self._length = -1  # of the body whose header has been read

    def frame(self, body: bytes) -> bytes:
        """Return a body as it is to be sent; it must have no line break.

        Args:
            body: The message.
        """
        if self._framing is Framing.LINES:
            return body + b"\n"
        return b"Content-Length: %d\r\n\r\n%s" % (len(body), body)

    def feed(self, data: bytes) -> None:
        """Take what was received.

        Args:
            data: Any piece of the stream.
        """
        self._buffer += data

    def next(self) -> bytes | None:
        """Return the next body; None when more must be fed first.

        Raises:
            ViolationError: No message can begin here, or it is too long; always fatal.
        """
        return self._next_line() if self._framing is Framing.LINES else self._next_counted()

    def _next_line(self) -> bytes | None:
        while (end := self._buffer.find(b"\n", self._scanned)) >= 0:
            line = bytes(self._buffer[:end]).strip()
            del self._buffer[: end + 1]
            self._scanned = 0
            if len(line) > self._limit:
                self._too_long(len(line))
            if line:
                return line
        self._scanned = len(self._buffer)
        if self._scanned > self._limit:
            self._too_long(self._scanned)
        return None

    def _next_counted(self) -> bytes | None:
        while self._length < 0:
            if not self._read_header():
                return None
        if len(self._buffer) < self._length:
            return None
        body = bytes(self._buffer[: self._length])
        del self._buffer[: self._length]
        self._length = -1
        return body

    def _read_header(self) -> bool:
        """Read a whole header if it is there; False when more must be fed first."""
        buffer, length, start = self._buffer, -1, 0
        # Line by line, so that a server that prints a greeting is found out at its first line and
        # not when a blank line never comes.
        while (end := buffer.find(b"\n", start, _MAX_HEADER)) >= 0:
            line = bytes(buffer[start : end + 1])
            start = end + 1
            if line == b"\r\n" and length >= 0:
                del buffer[:start]
                self._length = length
                return True
            match = _HEADER_LINE.fullmatch(line)
            if match is None:
                raise _unframed(f"wrote {_shown(line)} where a header should be")
            if match[1].lower() == b"content-length":
                length = self._checked_length(match[2].strip(), length)
        if len(buffer) > _MAX_HEADER:
            raise _unframed(f"wrote {_shown(buffer)} and no end of a header")
        return False

    def _checked_length(self, digits: bytes, before: int) -> int:
        # No length of so many digits is below any limit, and int() would refuse thousands of them.
        if not digits.isdigit() or len(digits) > 18 or before >= 0:
            raise _unframed(f"wrote a Content-Length of {_shown(digits)}")
        if (length := int(digits)) > self._limit:
            self._too_long(length)
        return length

    def _too_long(self, size: int) -> NoReturn:
        raise _unframed(
            f"wrote a message of {size:,} bytes or more where {self._limit:,} are allowed"
        )


@final
class Peer:
    """One side of a connection.

    It gives out ids, knows which requests are open, and refuses what nobody asked for. Encoding
    raises TypeError or ValueError for what JSON cannot express.

    Args:
        framing: How messages are told apart.
        limit: How many bytes a message of the other side may have.

    Attributes:
        pending: Ids of the requests that wait for their answer.
    """

    __slots__ = ("_abandoned", "_framer", "_last_id", "pending")

    def __init__(self, framing: Framing, *, limit: int) -> None:
        self._framer: Final = Framer(framing, limit=limit)
        self._last_id = 0
        self.pending: Final[set[int]] = set()
        # Answers to these are no surprise. Some servers never send one, so the oldest go.
        self._abandoned: OrderedDict[int, None] = OrderedDict()

    # ---- sending ----

    def request(self, method: str, params: Any = None) -> tuple[int, bytes]:
        """Ask something.

        Args:
            method: What is asked for.
            params: A dict or a list; None: left out.

        Returns:
            The request's id and what is to be sent.
        """
        data = self._encode({"id": self._last_id + 1, **_call(method, params)})
        self._last_id += 1
        self.pending.add(self._last_id)
        return self._last_id, data

    def notify(self, method: str, params: Any = None) -> bytes:
        """Tell something; returns what is to be sent.

        Args:
            method: What it is about.
            params: A dict or a list; None: left out.
        """
        return self._encode(_call(method, params))

    def answer(self, request_id: Id, result: Any) -> bytes:
        """Answer a request of the other side; returns what is to be sent.

        Args:
            request_id: The request's id.
            result: Anything that JSON can express.
        """
        return self._encode({"id": request_id, "result": result})

    def refuse(self, request_id: Id | None, code: int, message: str, data: Any = None) -> bytes:
        """Answer a request of the other side with an error; returns what is to be sent.

        Args:
            request_id: The request's id; None when it could not be read.
            code: Kind of error, such as `METHOD_NOT_FOUND`.
            message: One sentence.
            data: Anything more; None: left out.
        """
        error = {"code": code, "message": message}
        return self._encode(
            {"id": request_id, "error": error if data is None else {**error, "data": data}}
        )

    def abandon(self, request_id: int) -> bool:
        """Stop waiting for an answer; when it comes nevertheless, it is a `LateAnswer`.

        Args:
            request_id: One of ours.

        Returns:
            False when it has been answered already.
        """
        if request_id not in self.pending:
            return False
        self.pending.discard(request_id)
        self._abandoned[request_id] = None
        if len(self._abandoned) > _MAX_ABANDONED:
            self._abandoned.popitem(last=False)
        return True

    def _encode(self, message: dict[str, Any]) -> bytes:
        # ASCII only: half a surrogate pair in a text cannot break it, and no byte is a line break.
        text = json.dumps({"jsonrpc": "2.0", **message}, allow_nan=False, separators=(",", ":"))
        return self._framer.frame(text.encode("ascii"))

    # ---- receiving ----

    def receive(self, data: bytes) -> Iterator[Message]:
        """Take a piece of the stream and give the messages that are complete now.

        To be run to its end. What stands before a fault is given before the fault is raised. When
        that is not fatal, a caller who can live with a faulty message may go on with
        ``receive(b"")``.

        Args:
            data: What was received.

        Raises:
            ViolationError: The other side broke the protocol.
        """
        self._framer.feed(data)
        while (body := self._framer.next()) is not None:
            yield self._decode(body)

    def _decode(self, body: bytes) -> Message:
        try:
            message = json.loads(body, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            raise ViolationError(f"wrote {_shown(body)}, which is not JSON", PARSE_ERROR) from None
        if isinstance(message, list):
            raise ViolationError("wrote a batch, which is not supported")
        if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
            raise ViolationError(f"wrote {_shown(body)}, which is not a JSON-RPC 2.0 message")
        if "method" in message:
            return _decode_call(message, body)
        return self._decode_answer(message, body)

    def _decode_answer(self, message: dict[str, Any], body: bytes) -> Message:
        request_id, error = message.get("id"), message.get("error")
        # Some servers send the other member too, as null.
        if error is None and "result" not in message:
            raise ViolationError(f"wrote {_shown(body)}, which is no request and no answer")
        if request_id is None and isinstance(error, dict):
            raise ViolationError(f"could not read a message: {_shown_text(error.get('message'))}")
        if type(request_id) is not int or not self._is_expected(request_id):
            raise ViolationError(f"answered with the id {request_id!r}, which nobody waits for")
        if request_id not in self.pending:
            del self._abandoned[request_id]
            return LateAnswer(request_id)
        if error is None:
            self.pending.discard(request_id)
            return Answer(request_id, message["result"])
        if not isinstance(error, dict) or type(error.get("code")) is not int:
            raise ViolationError(f"wrote {_shown(body)}, whose error has no code")
        self.pending.discard(request_id)
        return Refusal(request_id, error["code"], str(error.get("message")), error.get("data"))

    def _is_expected(self, request_id: int) -> bool:
        return request_id in self.pending or request_id in self._abandoned


def _unframed(fact: str) -> ViolationError:
    return ViolationError(fact, PARSE_ERROR, is_fatal=True)


def _call(method: str, params: Any) -> dict[str, Any]:
    return {"method": method} if params is None else {"method": method, "params": params}


def _decode_call(message: dict[str, Any], body: bytes) -> Request | Notification:
    method, params = message["method"], message.get("params")
    if not isinstance(method, str) or not isinstance(params, dict | list | None):
        raise ViolationError(f"wrote {_shown(body)}, which is not a JSON-RPC 2.0 message")
    if "id" not in message:
        return Notification(method, params)
    request_id: object = message["id"]
    if not isinstance(request_id, int | str) or isinstance(request_id, bool):
        raise ViolationError(f"asked with the id {request_id!r}, which is neither number nor text")
    return Request(request_id, method, params)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _shown(data: bytes | bytearray) -> str:
    """The start of some bytes, for a message."""
    return _shown_text(bytes(data[: _SHOWN + 1]).decode("utf-8", "replace"))


def _shown_text(text: object) -> str:
    text = str(text)
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
