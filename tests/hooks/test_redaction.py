"""Secret redaction: what is found, what is left alone, and that nothing slips through a seam."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra import SECRET_RULES, Redactor, SecretRule

ROOT = Path(__file__).parents[2]
REDACTOR = Redactor()
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
ALNUM = f"{LETTERS}0123456789"
HEX = "0123456789abcdef"


def drawn(size: int, alphabet: str = ALNUM, seed: int = 7) -> str:
    """Return what an issuer would draw: made here, so that no scanner finds it in this file."""
    return "".join(random.Random(f"{seed}{alphabet}{size}").choices(alphabet, k=size))


def pem(kind: str = "RSA ", lines: int = 12) -> str:
    body = "\n".join(drawn(64, f"{ALNUM}+/", seed) for seed in range(lines))
    return (
        f"-----BEGIN {kind}PRIVATE KEY-----\n{body}\n{drawn(22)}==\n-----END {kind}PRIVATE KEY-----"
    )


JWT = f"eyJ{drawn(33)}.eyJ{drawn(60)}.{drawn(43)}"

# Where the text has a secret it is the second of three parts.
SECRETS: Sequence[tuple[str, str, str, str]] = [
    ("private-key", "", pem(), "\n"),
    ("private-key", "key: ", pem("OPENSSH ", 5), ""),
    ("private-key", '{"private_key": "', pem("").replace("\n", "\\n"), '\\n"}'),
    ("private-key", "cut short: ", pem().partition("\n-----END")[0].rpartition("\n")[0], "\nEnd."),
    ("jwt", "session=", JWT, ";"),
    ("aws-access-key", "", "AKIA" + drawn(16, "ABCDEFGHIJ234567"), " "),
    ("aws-access-key", "a line\\n", "ASIA" + drawn(16, "ABCDEFGHIJ234567"), "\\n"),
    ("credential", "aws_secret_access_key = ", drawn(40, f"{ALNUM}+/"), "\n"),
    ("google-key", "?key=", "AIza" + drawn(35), "&x=1"),
    ("google-client-secret", "", "GOCSPX-" + drawn(28), ""),
    ("google-access-token", "", "ya29." + drawn(60), ""),
    ("azure-client-secret", "", f"{drawn(3)}8Q~{drawn(34)}", '"'),
    ("azure-account-key", "AccountKey=", drawn(86, f"{ALNUM}+/") + "==", ";"),
    ("azure-signature", "https://x.blob.core.windows.net/?sv=1&sig=", drawn(43) + "%3D", ""),
    ("github-token", "", "ghp_" + drawn(36), "\n"),
    ("github-token", "", "github_pat_" + drawn(22) + "_" + drawn(59), "."),
    ("github-token", "https://", "gho_" + drawn(36), "@github.com/a/b"),
    ("gitlab-token", "", "glpat-" + drawn(20), ")"),
    ("gitlab-token", "", "glrt-t1_" + drawn(27) + ".01" + drawn(7, HEX), ""),
    ("slack-token", "", f"xoxb-{drawn(12, '123456')}-{drawn(12, '123456')}-{drawn(24)}", ""),
    (
        "slack-webhook",
        "https://hooks.slack.com/services/",
        f"T{drawn(8)}/B{drawn(8)}/{drawn(24)}",
        "",
    ),
    ("stripe-key", "", "sk_live_" + drawn(24), ""),
    ("openai-key", "", "sk-" + drawn(20) + "T3BlbkFJ" + drawn(20), ""),
    ("openai-key", "OPENAI=", "sk-proj-" + drawn(58, f"{ALNUM}_-"), ""),
    ("anthropic-key", "", "sk-ant-api03-" + drawn(93) + "AA", ""),
    ("npm-token", "//registry.npmjs.org/:x=", "npm_" + drawn(36), ""),
    ("pypi-token", "", "pypi-AgEIcHlwaS5vcmc" + drawn(60), ""),
    ("huggingface-token", "", "hf_" + drawn(34, LETTERS), ""),
    ("twilio-key", "", "SK" + drawn(32, HEX), ""),
    ("sendgrid-key", "", f"SG.{drawn(22)}.{drawn(43)}", ""),
    ("digitalocean-token", "", "dop_v1_" + drawn(64, HEX), ""),
    ("vault-token", "", "hvs." + drawn(24), ""),
    ("url-password", "postgresql://app:", "s3cr3t!pw", "@db.internal:5432/app"),
    ("url-password", "redis://:", "hunter2", "@127.0.0.1"),
    ("authorization", "Authorization: Basic ", "dXNlcjpwYXNzd29yZA==", ""),
    ("authorization", '"authorization": "Bearer ', drawn(24), '"'),
    ("authorization", "curl -H 'Authorization: token ", drawn(40, HEX), "'"),
    ("bearer-token", "sent Bearer ", drawn(24, HEX), " and"),
    ("password", "password=", "hunter2", "\n"),
    ("password", "DB_PASSWORD: ", "c0rrect-horse", "\n"),
    ("password", '"password": "', "hunter2!", '"'),
    ("password", "password: str = '", "hunter2", "'"),
    ("password", '{\\"password\\": \\"', "hunter2!", '\\"}'),
    ("credential", "api_key = '", drawn(20), "'"),
    ("credential", "--token=", drawn(12) + "1a", " go"),
    ("password", "mysql --password ", "hunter2!", " -u me"),
    ("credential", '["cli", "--api-token", "', "s3cr3tvalue", '"]'),
    ("credential", "token: ", "550e8400-e29b-41d4-a716-446655440000", "\n"),
    ("high-entropy", "try ", drawn(40), " now"),
    ("high-entropy", "line\\n", drawn(32, f"{ALNUM}+/"), "\\n"),
    ("high-entropy", "\x1b[31m", drawn(40, f"{ALNUM}_-"), "\x1b[0m"),
]


each_secret = pytest.mark.parametrize(
    ("kind", "before", "secret", "after"),
    SECRETS,
    ids=[f"{number}-{row[0]}" for number, row in enumerate(SECRETS)],
)


@each_secret
def test_secrets_are_found(kind: str, before: str, secret: str, after: str) -> None:
    """Each format is found, named, and replaced exactly; the text around it stays."""
    text = f"{before}{secret}{after}"
    found = REDACTOR.find(text)
    assert [(each.kind, text[each.start : each.end].rstrip(".\n")) for each in found] == [
        (kind, secret)
    ]
    assert REDACTOR.redact(text) == f"{before}[redacted:{kind}]{after}"


@each_secret
def test_what_is_redacted_stays(kind: str, before: str, secret: str, after: str) -> None:
    """Redacting again changes nothing, also among other words and with fingerprints."""
    for redactor in (REDACTOR, Redactor(fingerprint_key=b"key")):
        once = redactor.redact(f"{before}{secret}{after}\n and password={secret} PWD: {secret}\n")
        assert redactor.redact(once) == once
        assert secret not in once


@each_secret
def test_json_stays_json(kind: str, before: str, secret: str, after: str) -> None:
    """A JSON text with a secret in one of its strings is JSON after it was redacted."""
    text = json.dumps({"text": f"first\n{before}{secret}{after}", "last": 1})
    redacted = REDACTOR.redact(text)
    assert json.loads(redacted)["last"] == 1
    assert json.dumps(secret)[1:-1] not in redacted


HARMLESS = [
    "commit 8f14e45fceea167a5a36dedd4bea2543f0e1d2c3 (HEAD -> main)",
    f"sha256:{drawn(64, HEX)}  file.tar.gz",
    f'"integrity": "sha512-{drawn(86, f"{ALNUM}+/")}==",',
    f"github.com/pkg/errors v0.9.1 h1:{drawn(43)}=",
    f"script-src 'sha256-{drawn(43)}='",
    "id: 550e8400-e29b-41d4-a716-446655440000",
    f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI{drawn(43)} me@host",
    f"-----BEGIN CERTIFICATE-----\n{drawn(64)}\n{drawn(64, seed=8)}\n-----END CERTIFICATE-----",
    "The marker is -----BEGIN PRIVATE KEY----- and nothing else",
    "SGVsbG8gd29ybGQhIFRoaXMgaXMgYSBzbWFsbCB0ZXh0Lg==",
    f"data:image/png;base64,{drawn(120, f'{ALNUM}+/')}",
    "/usr/lib/python3/dist-packages/Foo2Bar/__pycache__/HTTPServer2.cpython-311.pyc",
    "src/orchestra/opencode/mission/Runner2ConnectionPool3Handler.py",
    "HTTPServer2ConnectionPool3HandlerFactory4Builder",
    "ses_5f1e0a8c1ffeXyZabcDEF123456 msg_5f1e0a8c1ffeXyZabcDEF123456",
    "sk-learn-and-a-very-long-name-with-many-words-in-it task-" + "a" * 50,
    "token = get_token(settings.api_key2, retries=3)",
    "password = getpass.getpass('Password: ')",
    'password: str = ""',
    "tokens: list[str] = field(factory=list)",
    "max_tokens=4096, token_count: 128000",
    "if token == None or secret is True:",
    '"password": "Enter your password", "token": "invalid_token", "secret": "my-secret"',
    "PASSWORD=${DB_PASSWORD} TOKEN=<your token> API_KEY=xxxxxxxx SECRET=changeme1",
    "postgres://user:password@localhost/db https://user:${PASSWORD}@host/ http://host:8080/a@b",
    "Authorization: Basic authentication is required, Bearer authentication too",
    "AKIAIOSFODNN7EXAMPLE ghp_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    "=" * 5_000 + "-" * 5_000 + "0" * 5_000,
    "x" * 5_000 + "Aa1" * 2_000,
    "",
]


@pytest.mark.parametrize("text", HARMLESS, ids=range(len(HARMLESS)))
def test_the_harmless_is_left_alone(text: str) -> None:
    """Digests, ids, paths, names, placeholders, certificates and code are no secrets."""
    assert REDACTOR.redact(text) == text


def test_our_own_files_are_left_alone() -> None:
    """Nothing in our source and pages is taken for a secret, but what shows one on purpose."""
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "docs").glob("*.rst"), *ROOT.glob("*.*")]
    hits = {
        (path.name, found.kind)
        for path in files
        if path.is_file()
        for found in REDACTOR.find(path.read_text("utf-8", "replace"))
        if path.name not in {"redaction.py", "redaction.rst"}
    }
    assert hits == set()


def test_a_lock_file_is_left_alone() -> None:
    """Thousands of packages with addresses and digests raise no alarm."""
    packages = {
        f"node_modules/{drawn(8, HEX, n)}": {
            "version": f"{n}.1.2",
            "resolved": f"https://registry.npmjs.org/@types/x/-/x-{n}.1.2.tgz",
            "integrity": f"sha512-{drawn(86, f'{ALNUM}+/', n)}==",
            "engines": {"node": ">=12"},
        }
        for n in range(3_000)
    }
    text = json.dumps({"packages": packages}, indent=2)
    text += "".join(f"    sha256 = {drawn(64, HEX, n)}\n" for n in range(1_000))
    assert REDACTOR.find(text) == ()


def test_the_most_telling_name_wins() -> None:
    """Where formats overlap there is one marker, of the first in the list."""
    text = f"token=ghp_{drawn(36)} password='sk-ant-{drawn(40)}'"
    assert (
        REDACTOR.redact(text) == "token=[redacted:github-token] password='[redacted:anthropic-key]'"
    )


def test_known_values_and_exceptions() -> None:
    """A value that was named is always found, one that was excepted never."""
    redactor = Redactor(known=["plain words", "äöüß"], allow=["hunter2"])
    text = "plain words, password=hunter2, password=hunter3, äöüß"
    assert redactor.redact(text) == (
        "[redacted:known], password=hunter2, password=[redacted:password], [redacted:known]"
    )
    assert "plain" not in repr(redactor)


def test_fingerprints_tell_secrets_apart() -> None:
    """With a key the marker tells the same secret from another one; another key tells otherwise."""
    texts = ["password=hunter2", "password: hunter2", "password=hunter3"]
    first, same, other = (Redactor(fingerprint_key=b"k").redact(t)[9:] for t in texts)
    assert re.fullmatch(r"\[redacted:password#[0-9a-f]{8}\]", first)
    assert same.strip() == first != other
    assert Redactor(fingerprint_key=b"j").redact(texts[0])[9:] != first


def test_rules_can_be_added_and_entropy_turned_off() -> None:
    """A rule of one's own works like the others; without entropy a bare token passes."""
    rule = SecretRule(
        kind="acme-key", description="an ACME key", anchors=["acme_"], pattern=r"acme_([0-9]{6,})"
    )
    redactor = Redactor(rules=[rule, *SECRET_RULES], minimum_entropy=None)
    token = drawn(40)
    assert redactor.redact(f"acme_1234567 {token}") == f"acme_[redacted:acme-key] {token}"


def test_data_is_redacted_with_its_keys() -> None:
    """In plain data each text is judged with the key that it stands under."""
    data = {
        "password": "hunter2",
        "name": "hunter2",
        "list": [f"ghp_{drawn(36)}", ("a", 1)],
        "deep": {"api_key": drawn(20), "ok": True, "none": None},
    }
    assert REDACTOR.redact_value(data) == {
        "password": "[redacted:password]",
        "name": "hunter2",
        "list": ["[redacted:github-token]", ("a", 1)],
        "deep": {"api_key": "[redacted:credential]", "ok": True, "none": None},
    }


# --- linear time ---

ADVERSARIES: Sequence[tuple[str, Callable[[int], str]]] = [
    ("spaces", lambda n: " " * n),
    ("one token", lambda n: "aB3" * (n // 3)),
    ("jwt starts", lambda n: "eyJ" * (n // 3)),
    ("jwt parts", lambda n: "eyJabcdefghijk." * (n // 15)),
    ("key starts", lambda n: "-----BEGIN RSA PRIVATE KEY-----" * (n // 31)),
    ("key lines", lambda n: ("-----BEGIN RSA PRIVATE KEY-----\n" + "A" * 64 + "\n") * (n // 97)),
    ("one endless key", lambda n: "-----BEGIN PRIVATE KEY-----\n" + ("A" * 64 + "\n") * (n // 65)),
    ("assignments", lambda n: "token=" * (n // 6)),
    ("half assignments", lambda n: "token: a[a|a.a " * (n // 15)),
    ("open quotes", lambda n: 'token="' * (n // 7)),
    ("one open quote", lambda n: 'token="' + "token" * (n // 5)),
    ("calls", lambda n: "token=" + "token=a" * (n // 7) + "("),
    ("urls", lambda n: "://a:" * (n // 5)),
    ("one url", lambda n: "://" + ":b" * (n // 2)),
    ("prefixes", lambda n: "sk-ghp_xoxb-AKIAglpat-SG." * (n // 25)),
    ("headers", lambda n: "authorization: bearer " * (n // 22)),
    ("mixed runs", lambda n: "sk-" + "a-" * (n // 2)),
    ("azure", lambda n: "aaa1Q~" * (n // 6)),
    ("escapes", lambda n: "\\neyJ%20eyJ\\u003c" * (n // 16)),
    ("letters that grow", lambda n: "İtoken=" * (n // 7)),
]


@pytest.mark.parametrize(("name", "make"), ADVERSARIES, ids=[name for name, _ in ADVERSARIES])
def test_time_is_linear(name: str, make: Callable[[int], str]) -> None:
    """Eight times the text takes about eight times as long, not sixty-four, whatever it holds."""

    def cost(size: int) -> float:
        text, best = make(size), float("inf")
        for _ in range(3):
            begin = time.process_time()
            REDACTOR.redact(text)
            best = min(best, time.process_time() - begin)
        return best

    assert cost(131_072) < 24 * max(cost(16_384), 0.002)


# --- text that comes in pieces ---


def pieces_of(text: str, cuts: Sequence[int]) -> list[str]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in pairwise(places)]


parts = st.one_of(
    st.sampled_from([f"{before}{secret}{after}" for _, before, secret, after in SECRETS]),
    st.sampled_from(HARMLESS[:14]),
    st.sampled_from(["\n", "\r\n", " ", "-----BEGIN RSA PRIVATE KEY-----\n", "some words\n"]),
    st.text(max_size=20),
)


@given(st.lists(parts, max_size=8).map("".join), st.lists(st.integers(0, 10_000), max_size=30))
def test_pieces_give_what_the_whole_gives(text: str, cuts: list[int]) -> None:
    """However a text is cut up, what comes out is the redacted whole."""
    stream = REDACTOR.stream()
    out = "".join([stream.feed(piece) for piece in pieces_of(text, cuts)])
    assert out + stream.flush() == REDACTOR.redact(text)
    assert stream.held_back == 0


@each_secret
def test_no_seam_lets_a_secret_through(kind: str, before: str, secret: str, after: str) -> None:
    """Character by character, nothing of a secret comes out."""
    text = f"some words {before}{secret}{after}\nand more\n"
    stream = REDACTOR.stream()
    assert "".join(map(stream.feed, text)) + stream.flush() == REDACTOR.redact(text)


def test_keys_that_share_a_line_are_all_held_back() -> None:
    """A key that begins on the line on which another one ends does not let go of that one."""
    text = f"{pem()}{pem('')}{pem('OPENSSH ')}\n"
    stream = REDACTOR.stream()
    assert "".join(map(stream.feed, text)) + stream.flush() == "[redacted:private-key]" * 3 + "\n"


def test_lines_come_out_at_once() -> None:
    """A complete line without a key is not held back, and an incomplete one is."""
    stream = REDACTOR.stream()
    assert stream.feed("one\ntw") == "one\n"
    assert stream.held_back == 2
    assert repr(stream) == "<RedactionStream 2 characters held back>"
    assert stream.feed("o\n") == "two\n"
    assert stream.flush() == ""


@pytest.mark.parametrize("chunk", [100, 5_000, 200_000])
@pytest.mark.parametrize(
    ("text", "leak"),
    [
        ("word " * 40_000 + f"ghp_{drawn(36)} " + "word " * 40_000, "ghp_"),
        ("x" * 18_000 + f" sk-ant-{drawn(100)} " + "y" * 18_000, drawn(100)[50:]),
        ("x " * 9_000 + "token=" + "a1B2" * 60_000 + " end", "a1B2"),
        (pem(lines=2_000).replace("\n-----END", "\nno end"), drawn(64, f"{ALNUM}+/", 1_999)),
    ],
    ids=["long line", "token at a cut", "endless token", "endless key"],
)
def test_hold_back_is_bounded(text: str, leak: str, chunk: int) -> None:
    """An endless line, token or key is handed out or swallowed as it comes, and nothing leaks."""
    stream = REDACTOR.stream()
    out = []
    most = 0
    for start in range(0, len(text), chunk):
        out.append(stream.feed(text[start : start + chunk]))
        most = max(most, stream.held_back)
    out.append(stream.flush())
    assert most <= 32_768 + 16_384
    assert leak not in "".join(out)
    assert "".join(out).count("[redacted:") >= 1


def test_a_long_line_is_cut_beside_its_secrets() -> None:
    """Wherever in a secret, or in what tells that it is one, a long line would be cut."""
    for shift in range(0, 160, 5):
        stream = REDACTOR.stream()
        before = "w " * 7_952  # a line of 20,000 is cut 4,096 before its end
        text = f"{before[shift:]} password=hunter2-{drawn(12)} {'w ' * 2_100}"
        out = stream.feed(text[:20_000]) + stream.feed(text[20_000:]) + stream.flush()
        assert "hunter2" not in out
        assert out == REDACTOR.redact(text)


# --- configuration ---


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"known": "abcd"}, TypeError, "list of texts"),
        ({"known": ["abc"]}, ValueError, "known"),
        ({"minimum_entropy": 0}, ValueError, "minimum_entropy must be above 0"),
        ({"fingerprint_key": b""}, ValueError, "fingerprint_key"),
        ({"fingerprint_key": "key"}, TypeError, "fingerprint_key"),
        ({"rules": ["x"]}, TypeError, "rules"),
    ],
)
def test_wrong_fields_are_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    """Bad configuration is refused when it is made, and names the field."""
    with pytest.raises(error, match=message):
        Redactor(**options)


def test_repr_is_short() -> None:
    """The repr says how much is looked for, not what is secret."""
    assert repr(Redactor(rules=SECRET_RULES[:3])) == "<Redactor 3 rules, 0 known, entropy >= 4>"
