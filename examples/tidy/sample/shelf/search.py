from __future__ import annotations

from collections.abc import Iterable

from shelf.books import Book


def by_author(books: Iterable[Book], name: str) -> list[Book]:
    wanted = name.casefold()
    return [book for book in books if wanted in book.author.casefold()]


def by_title(books: Iterable[Book], words: str) -> list[Book]:
    wanted = words.casefold()
    return [book for book in books if wanted in book.title.casefold()]
