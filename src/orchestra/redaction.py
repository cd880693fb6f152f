"""Finds secrets in text and puts ``[redacted:kind]`` in their place, also while it still comes in."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, final

from attrs import Attribute, field, frozen, validators

from orchestra._core.checks import finite
from orchestra._core.secret_looks import looks_drawn
from orchestra._core.secret_rules import SECRET_RULES, SecretRule

__all__ = ("SECRET_RULES", "RedactionStream", "Redactor", "Secret", "SecretRule")

_TOKEN = re.compile(r"(?<![A-Za-z0-9+/_=-])[A-Za-z0-9+/_-]{24,}={0,2}")
_COLOUR = re.compile(r"\x1b\[[0-9;]{0,8}m")
_MAX_TOKEN = 256
"""Longer ones are data, not keys."""
_WRAPPED = (64, 76)
"""Characters of a line of base64 that is part of something longer, a certificate for example."""

_LINE = 16_384
"""Characters of a line up to which it is held back as a whole."""
_OVERLAP = 4_096
"""Characters of a longer line that are held back, in which a secret may be under way."""
_CONTEXT = 128
"""Characters before a secret that may tell that it is one."""
_KEY = 32_768
"""Characters of a private key up to which it is held back as a whole."""
_KEY_BEGINS = re.compile(r"-----BEGIN [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----")
_KEY_GOES_ON = re.compile(r"(?:[A-Za-z0-9+/=\s]|\\[nr]|[A-Za-z-]{3,20}: [^\n\\]{0,100})*+")
_KEY_LEFT = re.compile(r"(?:[A-Za-z0-9+/=\s]|\\[nr])*+(?:-----END [^-\n]{0,60}-----)?")
_TOKEN_LEFT = re.compile(r"[^\s\"'`\\,;(){}\[\]<>]*")


@final
@frozen(kw_only=True)
class Secret:
    """A place in a text that looks like a secret; it does not hold the secret itself.

    Attributes:
        kind: The kind, as in ``[redacted:kind]``.
        description: What people call it, with an article.
        start: Its first character.
        end: The character after its last one.
    """

    kind: str
    description: str
    start: int
    end: int


@frozen
class _Rule:
    """What the spans of a rule are ranked and named by."""

    rank: int
    kind: str
    description: str


_Anchor = tuple[str, _Rule, SecretRule]

_SHORT = 120
_PLAIN = frozenset({int, float, bool, type(None)})
_REMEMBERED = 4_096
"""Texts in which nothing was found, of up to 120 characters, that are not read again: names, paths
and states come a thousand times. None of them is a secret."""
_KNOWN = _Rule(-1, "known", "a secret that was named")
_DRAWN = _Rule(1_000, "high-entropy", "a random token")

_Span = tuple[int, int, _Rule]


def _texts(values: Iterable[str]) -> tuple[str, ...]:
    if isinstance(values, str):
        raise TypeError("a list of texts was expected, not a text")
    return tuple(values)


def _rules(rules: Iterable[SecretRule]) -> tuple[SecretRule, ...]:
    return tuple(rules)


def _set_of_texts(values: Iterable[str]) -> frozenset[str]:
    return frozenset(_texts(values))


def _optional_bits(_instance: object, attribute: Attribute[Any], value: object) -> None:
    if value is not None and finite(attribute.name, value) <= 0:
        raise ValueError(f"{attribute.name} must be above 0, not {value!r}")


@final
@frozen(kw_only=True, repr=False)
class Redactor:
    """Finds secrets in text.

    ::

        redactor = Redactor()
        redactor.redact("curl -H 'Authorization: Bearer 8f14e45fceea167a5a36'")
        # "curl -H 'Authorization: Bearer [redacted:authorization]'"

    It looks for the formats of `SECRET_RULES`, for values that you name, and for tokens that look
    drawn at random. No I/O; safe to share. A scan takes time in proportion to the text, and short
    texts in which there was nothing are remembered. What is redacted stays as it is when it is
    redacted again.

    It cannot know everything: a password in a sentence, or one that is a word, passes.

    Args:
        rules: The formats, the more telling first; where two overlap, the first names the place.
        known: Values that are secret whatever they look like, at least 4 characters each.
        allow: Values that are none whatever they look like.
        minimum_entropy: Bits per character from which a token of 24 to 256 characters with
            capitals, small letters and digits counts as a secret without any context; None: none
            does. Digests, UUIDs, public keys, paths and text in base64 never do.
        fingerprint_key: When given, the marker is ``[redacted:kind#fingerprint]``: eight
            hexadecimal digits that are the same for the same secret and key (BLAKE2b). Whoever has
            the key can test guesses, so keep it like a secret. At most 64 bytes.

    Raises:
        TypeError: A field has the wrong type.
        ValueError: A field is out of range.
    """

    rules: tuple[SecretRule, ...] = field(
        default=SECRET_RULES,
        converter=_rules,
        validator=validators.deep_iterable(validators.instance_of(SecretRule)),
    )
    known: tuple[str, ...] = field(
        default=(),
        converter=_texts,
        validator=validators.deep_iterable(
            validators.and_(validators.instance_of(str), validators.min_len(4))
        ),
    )
    allow: frozenset[str] = field(default=(), converter=_set_of_texts)
    minimum_entropy: float | None = field(default=4.0, validator=_optional_bits)
    fingerprint_key: bytes | None = field(
        default=None,
        validator=validators.optional(
            validators.and_(
                validators.instance_of(bytes), validators.min_len(1), validators.max_len(64)
            )
        ),
    )

    _exact: tuple[_Anchor, ...] = field(init=False, repr=False, eq=False)
    _caseless: tuple[_Anchor, ...] = field(init=False, repr=False, eq=False)
    _clean: set[str] = field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        anchors: dict[bool, list[_Anchor]] = {False: [], True: []}
        for rank, rule in enumerate(self.rules):
            named = _Rule(rank, rule.kind, rule.description)
            anchors[rule.is_caseless] += [(anchor, named, rule) for anchor in rule.anchors]
        object.__setattr__(self, "_exact", tuple(anchors[False]))  # as a frozen class must
        object.__setattr__(self, "_caseless", tuple(anchors[True]))
        object.__setattr__(self, "_clean", set())

    def find(self, text: str) -> tuple[Secret, ...]:
        """Return where secrets are, in order, without overlaps.

        Args:
            text: The text.
        """
        return tuple(
            Secret(kind=rule.kind, description=rule.description, start=start, end=end)
            for start, end, rule in self._spans(text)
        )

    def redact(self, text: str) -> str:
        """Return the text with a marker in the place of each secret.

        Args:
            text: The text.
        """
        spans = self._spans(text)
        if not spans:
            return text
        parts: list[str] = []
        position = 0
        for start, end, rule in spans:
            parts += (text[position:start], self._marker(rule, text[start:end]))
            position = end
        parts.append(text[position:])
        return "".join(parts)

    def redact_value(self, value: Any) -> Any:
        """Return plain data with every text in it redacted: strings, lists, tuples, mappings.

        A text that stands under a key like ``password`` is judged with that key. Keys stay.

        Args:
            value: What JSON has; other things are returned as they are.
        """
        kind = type(value)
        if kind is str:
            return value if value in self._clean else self.redact(value)
        if kind in _PLAIN:
            return value
        if kind is dict or isinstance(value, Mapping):
            return {key: self._redact_item(key, item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)([self.redact_value(item) for item in value])
        return self.redact(value) if isinstance(value, str) else value

    def _redact_item(self, key: object, item: object) -> Any:
        if type(item) in _PLAIN:
            return item
        if not isinstance(key, str) or not isinstance(item, str):
            return self.redact_value(item)
        if f"{key}: {item}" in self._clean and item in self._clean:
            return item
        redacted = self.redact(item)
        if redacted != item or len(key) > 100 or "\n" in item:
            return redacted
        before = f"{key}: "
        return self.redact(f"{before}{item}").removeprefix(before)

    def stream(self) -> RedactionStream:
        """Return a redactor for one text that comes in pieces."""
        return RedactionStream(self)

    def __repr__(self) -> str:
        drawn = "" if self.minimum_entropy is None else f", entropy >= {self.minimum_entropy:g}"
        return f"<Redactor {len(self.rules)} rules, {len(self.known)} known{drawn}>"

    def _marker(self, rule: _Rule, secret: str) -> str:
        if self.fingerprint_key is None:
            return f"[redacted:{rule.kind}]"
        data = secret.encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(data, digest_size=4, key=self.fingerprint_key).hexdigest()
        return f"[redacted:{rule.kind}#{digest}]"

    def _spans(self, text: str) -> list[_Span]:
        if text in self._clean:
            return []
        spans = self._scan(text)
        if not spans and len(text) <= _SHORT:
            if len(self._clean) >= _REMEMBERED:
                self._clean.clear()
            self._clean.add(text)
        return spans

    def _scan(self, text: str) -> list[_Span]:
        found = sorted(
            chain(self._known_spans(text), self._rule_spans(text), self._drawn_spans(text)),
            key=lambda span: (span[0], span[1], span[2].rank),
        )
        spans: list[_Span] = []
        for start, end, rule in found:
            if text[start:end] in self.allow:
                continue
            if spans and start < spans[-1][1]:
                before = spans[-1]
                if _DRAWN in (rule, before[2]):  # a rule knows better where a secret begins
                    spans[-1] = before if rule is _DRAWN else (start, end, rule)
                    continue
                first = min(before[2], rule, key=lambda each: each.rank)
                spans[-1] = (before[0], max(before[1], end), first)
            else:
                spans.append((start, end, rule))
        return spans

    def _known_spans(self, text: str) -> Iterator[_Span]:
        for value in self.known:
            position = text.find(value)
            while position >= 0:
                yield position, position + len(value), _KNOWN
                position = text.find(value, position + len(value))

    def _rule_spans(self, text: str) -> Iterator[_Span]:
        lowered = _lower(text)
        # As good as always there are none, so that finding this out is what counts.
        found = [(each, text) for each in self._exact if each[0] in text]
        found += [(each, lowered) for each in self._caseless if each[0] in lowered]
        for (anchor, named, rule), where in found:
            position = where.find(anchor)
            while position >= 0:
                match = rule.pattern.match(text, max(position - rule.offset, 0))
                if match is None:
                    position = where.find(anchor, position + 1)
                    continue
                if (span := _secret_of(rule, match)) is not None:
                    yield *span, named
                # What was read is not read again, or a scan could take the square of the time.
                position = where.find(anchor, max(match.end(), position + 1))

    def _drawn_spans(self, text: str) -> Iterator[_Span]:
        if self.minimum_entropy is None:
            return
        for match in _TOKEN.finditer(text):
            start, end = match.span()
            if end - start > _MAX_TOKEN or _is_data(text, start, end):
                continue
            start += _escape(text, start)
            if end - start >= 24 and looks_drawn(text[start:end], self.minimum_entropy):
                yield start, end, _DRAWN


def _lower(text: str) -> str:
    lowered = text.lower()
    if len(lowered) == len(text):
        return lowered
    # Some letters of some alphabets become two; positions must stay.
    return "".join(char.lower() if char < "\x80" else char for char in text)


def _secret_of(rule: SecretRule, match: re.Match[str]) -> tuple[int, int] | None:
    group = 0
    if rule.pattern.groups:
        group = next((n for n in range(1, rule.pattern.groups + 1) if match[n] is not None), -1)
    if group < 0 or not rule.accepts(match[group]):
        return None
    start, end = match.span(group)
    return start, end - len(match[group]) + len(match[group].rstrip("."))


def _is_data(text: str, start: int, end: int) -> bool:
    """Whether a token is a part of something that is no key."""
    if text.startswith("h1:", start - 3) or text.endswith(";base64,", 0, start):
        return True
    is_line = (start == 0 or text[start - 1] in "\r\n") and (
        end == len(text) or text[end] in "\r\n"
    )
    return is_line and end - start in _WRAPPED


def _escape(text: str, start: int) -> int:
    """How many characters belong to an escape of a JSON text or a terminal, not to the token."""
    if start > 0 and text[start - 1] == "\\":
        return 5 if text[start] == "u" else 1
    colour = text.rfind("\x1b[", max(start - 10, 0), start)
    match = _COLOUR.match(text, colour) if colour >= 0 else None
    return 0 if match is None else max(match.end() - start, 0)


@final
class RedactionStream:
    """Redacts one text that comes in pieces; a secret may be spread over any number of them.

    ::

        stream = redactor.stream()
        for piece in pieces:
            show(stream.feed(piece))
        show(stream.flush())

    Text is handed out line by line: what is held back is the line that is not complete (of one
    longer than 16,384 characters, its last 4,096), and a private key until its end, at most 32,768
    characters. Whatever the pieces, what comes out is what `Redactor.redact` makes of the whole
    text, as long as no line and no key is longer than that.

    Not for use by several tasks at once. Made by `Redactor.stream`.
    """

    __slots__ = ("_pending", "_redactor", "_rest")

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._pending = ""
        self._rest: re.Pattern[str] | None = None  # of a secret that has got its marker already

    @property
    def held_back(self) -> int:
        """How many characters have come in and not yet been handed out."""
        return len(self._pending)

    def feed(self, text: str) -> str:
        """Take a piece, and return what can be handed out.

        Args:
            text: The piece.
        """
        self._pending += text
        if self._rest is not None:
            self._skip()
        if "\n" not in text and len(self._pending) <= _LINE:
            return ""
        cut = line = self._pending.rfind("\n") + 1
        while (key := _unfinished_key(self._pending[:cut])) is not None:
            cut = self._pending.rfind("\n", 0, key) + 1
        if cut < line and len(self._pending) - cut > _KEY:
            self._rest = _KEY_LEFT
            cut = line
        elif cut == line and len(self._pending) - cut > _LINE:
            cut = self._cut_in_line()
        return self._release(cut)

    def flush(self) -> str:
        """Return the rest: the text is at its end. Afterwards another one may begin."""
        if self._rest is not None:
            self._skip()
            self._rest = None
        return self._release(len(self._pending))

    def _release(self, cut: int) -> str:
        released, self._pending = self._pending[:cut], self._pending[cut:]
        return self._redactor.redact(released)

    def _skip(self) -> None:
        if self._rest is None:
            return
        match = self._rest.match(self._pending)
        end = 0 if match is None else match.end()
        if end < len(self._pending):
            self._rest = None
        self._pending = self._pending[end:]

    def _cut_in_line(self) -> int:
        """Return where a line that is too long may be cut: not in a secret."""
        size = len(self._pending)
        cut = size - _OVERLAP
        position = 0
        for secret in self._redactor.find(self._pending):
            if secret.end == size:  # it may go on
                if size - secret.start > _LINE:
                    self._rest = _TOKEN_LEFT
                    return size
                return max(position, min(cut, secret.start - _CONTEXT))
            if secret.start - _CONTEXT < cut < secret.end:
                return secret.end
            position = secret.end
        return cut

    def __repr__(self) -> str:
        return f"<RedactionStream {len(self._pending)} characters held back>"


def _unfinished_key(text: str) -> int | None:
    """Return where a private key begins whose end has not come."""
    begin = text.rfind("-----BEGIN ")
    if begin < 0:
        return None
    match = _KEY_BEGINS.match(text, begin)
    if match is None or _KEY_GOES_ON.fullmatch(text, match.end()) is None:
        return None
    return begin


for _public in (SecretRule,):
    _public.__module__ = __name__
