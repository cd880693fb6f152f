"""The chain of audit records: each digest covers the record and the digest before it.

That is the construction of S. Haber and W. S. Stornetta, "How to time-stamp a digital document",
1991: a record cannot be altered, left out or moved without changing every digest after it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import TypeAlias

from orchestra.revisions import Link

__all__ = (
    "Link",
    "body_digest",
    "find_fault",
    "genesis",
    "link_digest",
    "read_changes",
    "write_changes",
)

_encode = json.JSONEncoder(separators=(",", ":")).encode

Changes: TypeAlias = Sequence[tuple[str, str | None, int]]
"""Key, digest of the body in hex (None: deleted), revision of the value before."""


def genesis(namespace: str) -> bytes:
    """Return the digest before the first record of a namespace.

    Args:
        namespace: Its name.
    """
    return sha256(b"orchestra journal 1\0" + namespace.encode()).digest()


def body_digest(schema: int, body: bytes) -> str:
    """Return the digest of a stored value, in hex.

    Args:
        schema: The version of its form.
        body: Its bytes.
    """
    return sha256(b"%d\0" % schema + body).hexdigest()


def write_changes(changes: Changes) -> str:
    """Return the changes as text.

    Args:
        changes: In the order of writing.
    """
    return _encode(changes)


def read_changes(text: str) -> Changes:
    """Return what `write_changes` wrote."""
    return [(key, digest, previous) for key, digest, previous in json.loads(text)]


def link_digest(
    previous: bytes, revision: int, time: float, author: str, transaction: str, changes: str
) -> bytes:
    """Return a record's digest.

    Args:
        previous: The digest before.
        revision: The revision.
        time: Seconds since the epoch.
        author: Who.
        transaction: The transaction's id.
        changes: What `write_changes` returned.
    """
    # With the lengths in front no two records are the same text.
    text = f"{revision} {time!r} {len(author)} {len(transaction)} {author}{transaction}{changes}"
    return sha256(previous + text.encode()).digest()


def find_fault(
    namespace: str, links: Iterable[Link], *, anchors: Mapping[int, str], last: int
) -> tuple[int, str] | None:
    """Return the first revision that is altered, missing or out of order, and what is wrong.

    Args:
        namespace: Whose chain it is.
        links: The records as they are stored.
        anchors: Digests in hex that are known from elsewhere, by revision.
        last: The newest revision that there must be.
    """
    previous = genesis(namespace)
    seen = 0
    time = float("-inf")
    for link in links:
        expected = seen + 1
        if link.revision > expected:
            return expected, f"the record of revision {expected} is missing"
        if link.revision < expected:
            return link.revision, f"the record of revision {link.revision} is out of order"
        digest = link_digest(previous, link.revision, link.time, link.author, link.id, link.changes)
        if digest != link.digest or link.time < time:
            return link.revision, f"the record of revision {link.revision} has been altered"
        if anchors.get(link.revision, digest.hex()) != digest.hex():
            return link.revision, f"the record of revision {link.revision} was rewritten"
        previous, seen, time = digest, link.revision, link.time
    wanted = max([last, *anchors])
    if seen < wanted:
        return seen + 1, f"the record of revision {seen + 1} is missing"
    return None
