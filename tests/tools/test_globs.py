"""Globs, ignore rules and portable patterns, without any file."""

from __future__ import annotations

import re
import time

import pytest

from orchestra._core.globs import Glob, IgnoreRules
from orchestra._core.patterns import encode_pattern, is_portable


@pytest.mark.parametrize(
    ("pattern", "path", "is_match"),
    [
        ("*.py", "a.py", True),
        ("*.py", "deep/down/a.py", True),
        ("*.py", "a.pyc", False),
        ("/*.py", "a.py", True),
        ("/*.py", "deep/a.py", False),
        ("src/*.py", "src/a.py", True),
        ("src/*.py", "src/deep/a.py", False),
        ("src/**/*.py", "src/a.py", True),
        ("src/**/*.py", "src/deep/down/a.py", True),
        ("**/test_*.py", "tests/test_a.py", True),
        ("src/**", "src/a", True),
        ("src/**", "src", False),
        ("**/b/**/c", "a/b/x/b/c", True),
        ("**/b/**/c", "a/c", False),
        ("a?c", "abc", True),
        ("a?c", "a/c", False),
        ("[a-c]x", "bx", True),
        ("[!a-c]x", "bx", False),
        ("[]]x", "]x", True),
        ("*.{ts,tsx}", "a.tsx", True),
        ("*.{ts,tsx}", "a.js", False),
        ("{a,b{c,d}}e", "bde", True),
        ("{src,lib/**}/*.c", "lib/x/a.c", True),
        (r"\*", "*", True),
        (r"\*", "a", False),
        ("a*b*c", "aXbYbZc", True),
        ("a*b*c", "aXcYb", False),
    ],
)
def test_glob_means_what_it_says(pattern: str, path: str, is_match: bool) -> None:  # noqa: FBT001
    """Each piece of the language matches what the documentation says."""
    assert Glob(pattern).matches(path) is is_match


@pytest.mark.parametrize("pattern", ["[a", "{a,b", "a}", "a\\", "[z-a]", "{a,b}" * 9, "x" * 5_000])
def test_a_glob_that_is_none_is_refused(pattern: str) -> None:
    """What is not closed, ends in a backslash or explodes is a ValueError that says what to do."""
    with pytest.raises(ValueError, match=r"glob .*; \w+ "):
        Glob(pattern)


def test_no_glob_takes_long() -> None:
    """A glob that drives a backtracking matcher mad is answered at once."""
    started = time.process_time()
    assert not Glob("*a" * 60 + "b").matches("a" * 250)
    assert not Glob("**/a/" * 60 + "b").matches("a/" * 500 + "c")
    assert time.process_time() - started < 1.0


@pytest.mark.parametrize(
    ("lines", "path", "is_folder", "verdict"),
    [
        ("*.log", "a/b.log", False, True),
        ("*.log\n!keep.log", "keep.log", False, False),
        ("!keep.log\n*.log", "keep.log", False, True),
        ("build/", "build", True, True),
        ("build/", "build", False, None),
        ("/build", "x/build", True, None),
        ("a/b", "x/a/b", False, None),
        ("# *.log", "# x.log", False, None),
        (r"\#x", "#x", False, True),
        (r"\!x", "!x", False, True),
        ("x   ", "x", False, True),
        ("x\\ ", "x ", False, True),
        ("x\r\ny", "x", False, True),
        ("[a\nx", "x", False, True),
        ("?", "é", False, None),
        ("", "x", False, None),
    ],
)
def test_ignore_rules(lines: str, path: str, is_folder: bool, verdict: bool | None) -> None:  # noqa: FBT001
    """The last rule that fits decides; folders, anchors, escapes and faulty lines count."""
    assert IgnoreRules(lines).verdict(path, is_folder=is_folder) is verdict


@pytest.mark.parametrize(
    ("pattern", "is_so"),
    [
        ("def test_", True),
        (r"\bfoo\(", True),
        ("^import (?:os|sys)$", True),
        ("[a-z_]+[0-9]{2,3}?", True),
        ("é+x", True),
        ("a*", False),  # fits nothing
        ("(?:a|b?)", False),
        ("a++", False),  # possessive here, doubled there
        ("(?=a)a", False),
        (r"(a)\1", False),
        ("(?i)a", False),
        ("a{,2}b", False),
        (r"\<a", False),
        (r"a\Z", False),
        ("[[:alpha:]]", False),
        ("[a&&b]", False),
        ("(a", False),
        ("a)", False),
        ("*a", False),
        ("^*a", False),
        ("", False),
    ],
)
def test_portable_patterns(pattern: str, is_so: bool) -> None:  # noqa: FBT001
    """Only patterns that mean the same to both engines are portable."""
    assert is_portable(pattern) is is_so


def test_a_character_beyond_ascii_is_one_thing_to_repeat() -> None:
    """In the bytes of a pattern it is a group; in a class it is refused."""
    assert re.fullmatch(encode_pattern("xé+[a]"), "xééa".encode())
    with pytest.raises(ValueError, match="beyond ASCII; write"):
        encode_pattern("[aé]")
