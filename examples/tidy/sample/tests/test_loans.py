import unittest
from datetime import date

from shelf.fines import fine
from shelf.loans import borrow, due
from shelf.members import Member
from shelf.statistics import most_borrowed


class LoansTest(unittest.TestCase):
    def test_due_and_fine(self):
        last = due(date(2024, 1, 1))
        self.assertEqual(last, date(2024, 1, 22))
        self.assertEqual(fine(last, date(2024, 1, 20)), 0)
        self.assertEqual(fine(last, date(2024, 1, 25)), 30)
        self.assertEqual(fine(last, date(2025, 1, 1)), 500)

    def test_three_books_at_most(self):
        member = Member("Ada", ["a", "a", "b"])
        with self.assertRaises(ValueError):
            borrow(member, "c")
        self.assertEqual(most_borrowed([member]), [("a", 2), ("b", 1)])
