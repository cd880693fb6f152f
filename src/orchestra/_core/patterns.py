r"""Regular expressions that mean the same to Python and to ripgrep.

Patterns are those of Python's `re` on bytes: ``\w``, ``\d``, ``\s``, ``\b`` and letter case are ASCII,
``.`` is one byte. ripgrep's engine knows the same language under ``--no-unicode``, but for some
corners. `is_portable` tells whether a pattern stays clear of all of them; it errs on the safe side.
"""

from __future__ import annotations

import re
from math import inf

__all__ = ("encode_pattern", "is_portable")

_PORTABLE = re.compile(
    r"""
    (?P<atom>
        [^\\^$.|?*+()\[\]{}\n\r\0]                                   # a character
      | \\[dwsDWStrfv.*+?()|\[\]{}^$\\/\-#"'`~!@%&=:;,\ ]             # an escape; not \< \> nor \Z
      | \.
      | \[\^?(?:[a-zA-Z0-9_ .,:;=!@%/'"<>()*+?|$#{}`]-?
              |(?:a-z|A-Z|0-9|[a-z]-[a-z]|[A-Z]-[A-Z]|[0-9]-[0-9])
              |\\[dwstDWS.\\\]\[^/\-])+\]                             # a plain class
    )
  | (?P<repeat>(?:[*+?]|\{[0-9]{1,3}(?:,(?:[0-9]{1,3})?)?\})\??)
  | (?P<open>\((?:\?:)?)(?!\?)
  | (?P<close>\))
  | (?P<edge>\||\^|\$|\\b)
    """,
    re.VERBOSE,
)


def is_portable(pattern: str) -> bool:
    """Whether ripgrep finds the same lines and columns with a pattern as Python does, if any.

    ripgrep may still refuse it, which is not a difference. A pattern that fits an empty text is not
    portable: not every ripgrep names a column for it.

    Args:
        pattern: The pattern.
    """
    index = last = 0
    is_repeatable = False
    # For each open group, the fewest characters of its alternatives before this one, and of this.
    groups: list[tuple[float, int]] = [(inf, 0)]
    while index < len(pattern):
        found = _PORTABLE.match(pattern, index)
        if found is None or (found["repeat"] and not is_repeatable):
            return False
        index = found.end()
        is_repeatable = bool(found["atom"] or found["close"])
        fewest, length = groups[-1]
        if found["open"]:
            groups.append((inf, 0))
        elif found["close"]:
            if len(groups) == 1:
                return False
            groups.pop()
            last = int(min(fewest, length))
            groups[-1] = groups[-1][0], groups[-1][1] + last
        elif found["atom"]:
            last = 1
            groups[-1] = fewest, length + last
        elif found["repeat"] and (found[0][0] in "*?" or found[0].startswith("{0")):
            groups[-1] = fewest, length - last
        elif found[0] == "|":
            groups[-1] = min(fewest, length), 0
    return len(groups) == 1 and min(groups[0]) > 0


def encode_pattern(pattern: str) -> bytes:
    """Return a pattern for bytes, in which a character beyond ASCII is still one thing to repeat.

    Args:
        pattern: The pattern.

    Raises:
        ValueError: Such a character stands in a class, where it would be taken byte by byte.
    """
    if pattern.isascii():
        return pattern.encode()
    written: list[str] = []
    index, is_in_class = 0, False
    while index < len(pattern):
        char = pattern[index]
        if char == "\\" and index + 1 < len(pattern):
            index += 1
            char = pattern[index] if not pattern[index].isascii() else f"\\{pattern[index]}"
        elif char == "[" and not is_in_class:
            is_in_class = True
            while pattern[index + 1 : index + 2] and pattern[index + 1] in "^]":
                index += 1
                char += pattern[index]
        elif char == "]":
            is_in_class = False
        if char.isascii():
            written.append(char)
        elif is_in_class:
            raise ValueError(f"{char!r} is beyond ASCII; write (?:a|{char}) in place of [a{char}]")
        else:
            written.append(f"(?:{char})")
        index += 1
    return "".join(written).encode()
