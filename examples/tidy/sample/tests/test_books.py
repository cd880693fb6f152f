import unittest

from shelf.books import Book
from shelf.search import by_author, by_title
from shelf.text import catalogue

BOOKS = [
    Book("9780141439518", "Pride and Prejudice", "Jane Austen"),
    Book("9780141439556", "Wuthering Heights", "Emily Bronte"),
]


class BooksTest(unittest.TestCase):
    def test_search(self):
        self.assertEqual(by_author(BOOKS, "austen"), BOOKS[:1])
        self.assertEqual(by_title(BOOKS, "HEIGHTS"), BOOKS[1:])

    def test_catalogue_is_sorted(self):
        self.assertEqual(
            catalogue(BOOKS).splitlines(),
            ["Emily Bronte: Wuthering Heights", "Jane Austen: Pride and Prejudice"],
        )
