"""Whether a piece of text looks as if it had been drawn at random, or filled in by nobody yet."""

from __future__ import annotations

import binascii
import math
import re
from base64 import b64decode
from collections import Counter
from itertools import pairwise

__all__ = ("entropy", "is_credential", "is_filled_in", "is_password", "looks_drawn")

_PLACEHOLDER = re.compile(
    r"(?i:[x*.#_0-]+|[<{$%\[(].*|.*\.\.\.|.*\*\*\*.*|.*x{6}.*|.*example.*|your.*|my[_-].*"
    r"|change.?(?:me|it).*|dummy.*|insert.*|replace.*|placeholder.*|redacted.*|none|null|nil"
    r"|true|false|undefined|string|pass(?:w(?:or)?d)?|secret|token|user)",
    re.DOTALL,
)
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_NAME = re.compile(r"/[\w.-]+/|\.{1,2}/|~/|arn:|[a-z]+://|[A-Za-z]:\\", re.IGNORECASE)
_HEX = frozenset("0123456789abcdefABCDEF-:_")
_DIGEST = re.compile(r"(?i:sha(?:1|224|256|384|512)|md5|blake2b|blake3|h1)[-:=_]")
_PUBLIC = re.compile(r"AAAA(?:B3NzaC1|C3NzaC1|E2VjZHNh|G)")
_ID = re.compile(
    r"(?:ses|msg|prt|per|que|call|toolu|chatcmpl|req|run|resp|thread|asst|mission)[_-]"
)


def entropy(text: str) -> float:
    """Return Shannon's entropy of the characters, in bits per character.

    Args:
        text: Not empty.
    """
    size = len(text)
    return -sum(n / size * math.log2(n / size) for n in Counter(text).values())


def is_filled_in(text: str) -> bool:
    """Whether this is no placeholder: ``xxxx``, ``<token>``, ``${TOKEN}``, ``AKIA...EXAMPLE``.

    Args:
        text: What stands where a secret would.
    """
    return _PLACEHOLDER.fullmatch(text[:300]) is None and len(set(text[-12:])) > 2


def _has_digit(text: str) -> bool:
    return any("0" <= char <= "9" for char in text)


def _has_letter(text: str) -> bool:
    return any(char.isalpha() for char in text)


def is_password(text: str) -> bool:
    """Whether this, where a password stands, is one rather than a word or a name.

    Args:
        text: What was assigned.
    """
    return (
        is_filled_in(text)
        and _NAME.match(text) is None
        and _has_letter(text)
        and (_has_digit(text) or any(char in "!@#$%^&*+=~?" for char in text[1:]))
    )


def is_credential(text: str) -> bool:
    """Whether this, where a credential stands, is one rather than a word or a name.

    Args:
        text: What was assigned.
    """
    if len(text) < 8 or not is_filled_in(text) or _NAME.match(text):
        return False
    if _has_digit(text):
        return _has_letter(text)
    # Letters only: base64 of something short changes its case where no name does.
    return _WORD.fullmatch(text) is None and _changes(text) >= 0.4


def _changes(text: str) -> float:
    """Return how often, of the neighbouring letters and digits, one is of another sort."""
    sorts = ["d" if c.isdigit() else "u" if c.isupper() else "l" for c in text if c.isalnum()]
    if len(sorts) < 2:
        return 0.0
    return sum(a != b for a, b in pairwise(sorts)) / (len(sorts) - 1)


def looks_drawn(text: str, minimum: float) -> bool:
    """Whether a token without any context looks like a secret.

    Digests in hexadecimal or with their name before them, UUIDs, public keys, paths, names, ids of
    sessions and messages, and text in base64 do not.

    Args:
        text: At least 20 characters, of letters, digits and ``+/_=-``.
        minimum: Bits per character that it must have.
    """
    body = text.rstrip("=")
    if _HEX.issuperset(body) or not _has_digit(body) or body.isupper() or body.islower():
        return False
    if _DIGEST.match(text) or _PUBLIC.match(text) or _ID.match(text):
        return False
    return (
        _changes(body) >= 0.4
        and entropy(body) >= minimum
        and is_filled_in(body)
        and not _is_text(body)
    )


def _is_text(body: str) -> bool:
    """Whether it is base64 of printable ASCII."""
    try:
        data = b64decode(body.translate({45: 43, 95: 47}) + "=" * (-len(body) % 4), validate=True)
    except (binascii.Error, ValueError):
        return False
    return all(32 <= byte < 127 or byte in b"\t\n\r" for byte in data)
