"""What is said of a file by looking into it."""

from __future__ import annotations

from pathlib import Path

import pytest
from attrs import evolve

from orchestra import Redactor
from orchestra.opencode.mission.inspection import Inspection, secret_formats

KEY = "AKIA" + "A1B2" * 4
LOOK = Inspection()


def look(
    folder: Path, name: str, text: str, before: str | None = None, how: Inspection = LOOK
) -> list[tuple[int, str, bool]]:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    seen = how.look(str(folder), name, None if before is None else before.encode())
    assert {each.finding.path for each in seen} <= {name}
    return [(each.finding.line, each.finding.message, each.is_refused) for each in seen]


@pytest.mark.parametrize(
    ("name", "good", "bad", "language"),
    [
        ("a.py", "x = 1\n", "x = \n", "Python"),
        ("a.pyi", "x: int\n", "x: \n", "Python"),
        ("a.JSON", "{}", "{,}", "JSON"),
        ("a.toml", "a = 1", "a = = 1", "TOML"),
    ],
)
def test_what_does_not_parse_is_refused_if_it_did_before(
    name: str, good: str, bad: str, language: str, tmp_path: Path
) -> None:
    """A file that was broken before is told, but is not this change's fault."""
    assert look(tmp_path, name, good) == []
    assert look(tmp_path, name, good, bad) == []
    for before in (None, good):
        ((_, message, is_refused),) = look(tmp_path, name, bad, before)
        assert message.startswith(f"it does not parse as {language}")
        assert is_refused
    ((_, _, is_refused),) = look(tmp_path, name, bad, f"{bad} ")
    assert not is_refused


def test_what_is_not_to_be_parsed_is_still_searched_for_secrets(tmp_path: Path) -> None:
    """A pattern keeps templates from being parsed; a key in one is refused."""
    how = evolve(LOOK, unparsed=("templates/*",))
    ((line, message, is_refused),) = look(
        tmp_path, "templates/a/b.py", f"{{{{ x }}}} =\nkey = '{KEY}'\n", how=how
    )
    assert (line, message, is_refused) == (2, "it looks like an AWS access key", True)


def test_a_secret_that_was_there_before_is_told_only(tmp_path: Path) -> None:
    """A key is refused where it is new, wherever in the file it has moved to."""
    assert look(tmp_path, "a.txt", f"\n{KEY}", None)[0][2]
    assert look(tmp_path, "a.txt", f"\n{KEY}", "nothing")[0][2]
    assert not look(tmp_path, "a.txt", f"\n{KEY}", f"{KEY}\n")[0][2]


def test_a_guess_is_for_the_reviewer(tmp_path: Path) -> None:
    """What only its surroundings make a secret is told, not refused; an allowed value neither."""
    text = 'PASSWORD = "test123"\n'
    assert look(tmp_path, "a.py", text) == [(1, "it looks like a password", False)]
    allowing = evolve(LOOK, redactor=secret_formats(Redactor(allow=["test123", KEY])))
    assert look(tmp_path, "a.py", f"{text}# {KEY}\n", how=allowing) == []


def test_random_tokens_are_digests_in_source(tmp_path: Path) -> None:
    """A lock file's random texts are no secrets."""
    digest = "Zk3PqW8rTn5VxYb2Lm9Dc7Fs4Gh6Jt1Q"
    assert Redactor().find(digest)
    assert look(tmp_path, "package.lock", digest) == []


def test_links_and_what_is_gone_are_passed_over(tmp_path: Path) -> None:
    """What is behind a link is not read; a file that was removed has nothing the matter."""
    (tmp_path / "key").write_text(KEY)
    (tmp_path / "link").symlink_to(tmp_path / "key")
    assert LOOK.look(str(tmp_path), "link") == LOOK.look(str(tmp_path), "gone.py") == []
