import unittest

from shelf.isbn import is_valid


class IsbnTest(unittest.TestCase):
    def test_valid(self):
        self.assertTrue(is_valid("978-0-14-143951-8"))

    def test_invalid(self):
        for isbn in ("978-0-14-143951-7", "978014143951", "97801414395xx"):
            self.assertFalse(is_valid(isbn))
