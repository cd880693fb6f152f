from __future__ import annotations


def check_digit(digits: str) -> int:
    """The last digit of an ISBN-13 with these first twelve."""
    total = sum(int(digit) * (3 if place % 2 else 1) for place, digit in enumerate(digits))
    return -total % 10


def is_valid(isbn: str) -> bool:
    digits = isbn.replace("-", "")
    return len(digits) == 13 and digits.isdigit() and check_digit(digits[:12]) == int(digits[12])
