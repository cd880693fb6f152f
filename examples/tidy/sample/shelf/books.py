from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Book:
    """One copy on the shelf."""

    isbn: str
    title: str
    author: str

    def label(self) -> str:
        return f"{self.author}: {self.title}"
