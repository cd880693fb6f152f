from __future__ import annotations

from collections.abc import Iterable

from shelf.books import Book


def catalogue(books: Iterable[Book]) -> str:
    return "\n".join(sorted(book.label() for book in books))
