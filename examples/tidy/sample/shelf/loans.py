from __future__ import annotations

from datetime import date, timedelta

from shelf.members import Member

LOAN = timedelta(days=21)


def due(start: date) -> date:
    return start + LOAN


def borrow(member: Member, isbn: str) -> None:
    if not member.may_borrow():
        raise ValueError(f"{member.name} has {len(member.borrowed)} books already")
    member.borrowed.append(isbn)
