from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from orchestra.errors import (
    ConfigurationError,
    RemoteProtocolError,
    ServerError,
    SessionError,
    SessionLostError,
    TransportError,
)
from orchestra.opencode.client.http import HttpClient

if TYPE_CHECKING:
    from tests.opencode.conftest import Answer, FakeServer


@pytest.fixture
async def http(fake_server: FakeServer) -> AsyncIterator[HttpClient]:
    """A client of the fake server."""
    client = HttpClient(fake_server.url, password="secret-word", timeout=20.0)  # noqa: S106
    yield client
    await client.aclose()


@pytest.fixture
def answers(fake_server: FakeServer) -> type[Answer]:
    """How the fake server's faults are written."""
    import sys

    found: type[Answer] = sys.modules[type(fake_server).__module__].Answer
    return found


async def failure(http: HttpClient) -> Any:
    """The error that asking for the agents ends with."""
    with pytest.raises((SessionError, ConfigurationError)) as caught:
        await http.agents("/work")
    message = str(caught.value)
    assert "secret-word" not in message
    return caught.value


async def test_a_web_page_is_not_an_answer(http: HttpClient, fake_server: FakeServer) -> None:
    """A path that the server does not know is answered with its web page, and status 200."""
    with pytest.raises(RemoteProtocolError, match=r"text/html.*OpenCode"):
        await http.session("ses_1")
    assert fake_server.seen("GET /session/ses_1")


async def test_a_hidden_failure_names_its_reference(
    http: HttpClient, fake_server: FakeServer, answers: type[Answer]
) -> None:
    """A 500 says only a reference into the server's log; the error passes it on."""
    body = {"name": "UnknownError", "data": {"message": "Unexpected", "ref": "err_42"}}
    fake_server.faults["GET /agent"] = [answers(body, 500)]
    error = await failure(http)
    assert isinstance(error, ServerError)
    assert error.status == 500
    assert "err_42" in str(error)


async def test_a_wrong_password_is_said_in_one_sentence(
    http: HttpClient, fake_server: FakeServer, answers: type[Answer]
) -> None:
    """A 401 tells what to do, and is not repeated."""
    fake_server.faults["GET /agent"] = [answers(b"", 401)]
    error = await failure(http)
    assert isinstance(error, ServerError)
    assert error.status == 401
    assert "password" in str(error)
    assert "\n" not in str(error)
    assert len(fake_server.seen("GET /agent")) == 1


async def test_each_fault_of_the_configuration_is_told(
    http: HttpClient, fake_server: FakeServer, answers: type[Answer]
) -> None:
    """A 400 about the configuration becomes one sentence per fault, with its path."""
    issues = [
        {"path": ["agent", "x", "mode"], "message": "Expected 'all'"},
        {"path": ["share"], "message": "Expected a string"},
    ]
    data = {"path": "OPENCODE_CONFIG_CONTENT", "issues": issues}
    fake_server.faults["GET /agent"] = [
        answers({"name": "ConfigInvalidError", "data": data}, 400),
        answers({"name": "ConfigJsonError", "data": {"message": "no JSON"}}, 400),
    ]
    error = await failure(http)
    assert isinstance(error, ConfigurationError)
    assert len(error.problems) == 2
    assert "agent.x.mode: Expected 'all'" in error.problems[0]
    assert "no JSON" in str(await failure(http))


async def test_both_shapes_of_errors_are_read(
    http: HttpClient, fake_server: FakeServer, answers: type[Answer]
) -> None:
    """The server writes errors in two ways; the message comes out of both."""
    fake_server.faults["GET /agent"] = [
        answers({"_tag": "SessionBusyError", "message": "it is busy"}, 409),
        answers({"name": "BadRequest", "data": {"message": "no body"}}, 400),
        answers(["neither"], 418),
    ]
    for status, word in ((409, "it is busy"), (400, "no body"), (418, "neither")):
        error = await failure(http)
        assert error.status == status
        assert word in str(error)


async def test_a_missing_session_is_a_lost_session(
    http: HttpClient, fake_server: FakeServer, answers: type[Answer]
) -> None:
    """A 404 about a session says that it is lost."""
    body = {"name": "NotFoundError", "data": {"message": "Session not found: ses_1"}}
    fake_server.faults["POST /session/ses_1/prompt_async"] = [answers(body, 404)]
    with pytest.raises(SessionLostError, match="ses_1"):
        await http.prompt("ses_1", {})


@pytest.mark.parametrize("body", [b"[{", b'{"an": "object"}', b"\xff\xfe"])
async def test_json_of_a_wrong_shape_is_a_protocol_error(
    http: HttpClient, fake_server: FakeServer, answers: type[Answer], body: bytes
) -> None:
    """What says that it is JSON and is not, or is another, is not believed."""
    fake_server.faults["GET /agent"] = [answers(body, 200)]
    assert isinstance(await failure(http), RemoteProtocolError)


async def test_a_call_is_repeated_when_the_connection_breaks(
    http: HttpClient, fake_server: FakeServer, answers: type[Answer]
) -> None:
    """Two broken connections in a row are not worth mentioning; a third one is."""
    drop = answers(status=0)
    fake_server.faults["GET /agent"] = [drop, drop]
    assert [agent.name for agent in await http.agents("/work")] == ["echo", "title"]
    fake_server.faults["GET /agent"] = [drop, drop, drop]
    assert isinstance(await failure(http), TransportError)


async def test_creating_a_session_is_not_repeated(
    http: HttpClient, fake_server: FakeServer, answers: type[Answer]
) -> None:
    """Nobody can say whether it was created, and two would be one too many."""
    fake_server.faults["POST /session"] = [answers(status=0)]
    with pytest.raises(TransportError):
        await http.create_session("/work", title="t", agent=None, permission=[], metadata={})
    assert len(fake_server.seen("POST /session")) == 1


async def test_a_server_that_never_answers_is_given_up(fake_server: FakeServer) -> None:
    """A silent server ends a call in time, as `TransportError`."""
    fake_server.silent = {"/global/health"}
    client = HttpClient(fake_server.url, timeout=0.1)
    try:
        with anyio.fail_after(10), pytest.raises(TransportError, match="did not answer"):
            await client.health()
    finally:
        await client.aclose()


async def test_nobody_there_is_said_in_one_sentence() -> None:
    """A refused connection names the address and asks the obvious question."""
    client = HttpClient("http://127.0.0.1:9", password="secret-word")  # noqa: S106
    try:
        with pytest.raises(TransportError, match=r"127\.0\.0\.1:9.*running"):
            await client.health()
    finally:
        await client.aclose()


async def test_a_directory_of_any_name_reaches_the_server(
    http: HttpClient, fake_server: FakeServer
) -> None:
    """Names beyond ASCII, and percent signs, travel quoted in the header."""
    await http.agents("/wörk/100%41 世界")
    (request,) = fake_server.seen("GET /agent")
    assert request.headers["x-opencode-directory"] == ("/w%C3%B6rk/100%2541%20%E4%B8%96%E7%95%8C")


def test_a_password_in_the_url_is_used_and_never_shown() -> None:
    """The URL that errors and representations show has no password in it."""
    client = HttpClient("http://me:secret%20word@127.0.0.1:4096/")
    assert client.url == "http://127.0.0.1:4096"
    assert "secret" not in repr(client)
    with pytest.raises(ConfigurationError) as caught:
        HttpClient("ftp://me:secret-word@example.org")
    assert "secret" not in str(caught.value)
    assert HttpClient("[::1]:4096").url == "http://[::1]:4096"
    for wrong in ("http://", "nonsense://x", "http://host:port"):
        with pytest.raises(ConfigurationError):
            HttpClient(wrong)


async def test_the_password_travels_in_the_header(
    http: HttpClient, fake_server: FakeServer
) -> None:
    """Basic authentication, as the server wants it."""
    await http.health()
    (request,) = fake_server.seen("GET /global/health")
    assert request.headers["authorization"] == "Basic b3BlbmNvZGU6c2VjcmV0LXdvcmQ="
