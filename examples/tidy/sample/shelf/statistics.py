from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from shelf.members import Member


def most_borrowed(members: Iterable[Member]) -> list[tuple[str, int]]:
    return Counter(isbn for member in members for isbn in member.borrowed).most_common()
