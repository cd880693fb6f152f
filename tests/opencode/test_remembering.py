"""``orchestra memory``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestra.opencode.cli import main
from orchestra.opencode.mission.memory.rules import MemorySource, MemoryTier, new_entry
from orchestra.opencode.remembering import Remembered


def memory(
    capsys: pytest.CaptureFixture[str], *words: str | Path, code: int = 0
) -> tuple[str, str]:
    """Run the command and return what it printed."""
    assert main(["memory", *map(str, words)]) == code
    printed = capsys.readouterr()
    return printed.out, printed.err


def document(capsys: pytest.CaptureFixture[str], *words: str | Path, code: int = 0) -> Any:
    out, _ = memory(capsys, "--json", *words, code=code)
    return json.loads(out)


def test_add_list_forget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A note is listed until it is forgotten; options count on either side of the action."""
    note = "Run ruff before\n you answer"
    added = document(capsys, "--dir", tmp_path, "add", note, "--file", "a.py", "--role", "worker")
    assert added["text"] == "Run ruff before you answer"
    (entry,) = document(capsys, "--dir", tmp_path)["entries"]
    assert entry == {
        "id": added["id"],
        "tier": "system",
        "score": 1.0,
        "uses": 0,
        "helped": 0,
        "hurt": 0,
        "tokens": 7,
        "source": "person",
        "files": ["a.py"],
        "roles": ["worker"],
        "text": "Run ruff before you answer",
    }
    out, _ = memory(capsys, "--dir", tmp_path)
    assert out.split() == [
        added["id"], "system", "+1.00", "0", "uses", "7", "tokens", *note.split()
    ]  # fmt: skip
    out, _ = memory(capsys, "forget", added["id"][:4], "--dir", tmp_path)
    assert out == f"forgotten: {added['id']}  Run ruff before you answer\n"
    assert document(capsys, "--dir", tmp_path)["entries"] == []


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ((), "nothing is remembered in"),
        (("add", "   "), "the note is empty"),
        (("add", "x" * 601), "the note has 601 characters"),
        (("add", "x", "--role", "king"), "invalid choice"),
        (("forget", "ab"), "nothing is remembered in"),
        (("forget",), "required: ID"),
    ],
)
def test_what_cannot_be_done_is_said(
    words: tuple[str, ...], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wrong use ends with exit code 2 and a sentence."""
    told = document(capsys, "--dir", tmp_path, *words, code=2)
    assert problem in told["error"]


def test_which_one_must_be_clear(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is forgotten unless exactly one entry is meant."""
    for text in ("first note", "second note"):
        memory(capsys, "--dir", tmp_path, "add", text)
    for reference in ("", "nope"):
        _, err = memory(capsys, "--dir", tmp_path, "forget", reference, code=2)
        assert "no entry begins" in err
    assert len(document(capsys, "--dir", tmp_path)["entries"]) == 2
    told = document(capsys, "--dir", tmp_path / "nowhere", "add", "x", code=2)
    assert "is not a folder" in told["error"]


def test_secrets_are_not_remembered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What looks like a secret is taken out of a note."""
    out, _ = memory(capsys, "--dir", tmp_path, "add", "the key is AKIA" + "2345672345672345")
    assert "[redacted:aws-access-key]" in out
    assert b"2345672345672345" not in (tmp_path / ".orchestra" / "missions.db").read_bytes()


def test_what_agents_wrote_cannot_move_the_cursor() -> None:
    """Control characters are not printed."""
    entry = new_entry(MemoryTier.PROJECT, MemorySource.REVIEW, "red \x1b[31m\x07 alert")
    line = str(Remembered(entry=entry, score=0.5))
    assert line.endswith("red ?[31m? alert")
    assert line.isprintable()
