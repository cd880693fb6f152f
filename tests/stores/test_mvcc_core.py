"""The pure rules against a model that is nothing but a list of dictionaries."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    rule,
)

from orchestra._core.chain import (
    body_digest,
    find_fault,
    genesis,
    link_digest,
    read_changes,
    write_changes,
)
from orchestra._core.mvcc import VersionedMap, backoff, prefix_end
from orchestra.errors import CompactedError, ConflictError
from orchestra.revisions import Footprint, Link

KEYS = st.sampled_from(["a", "a/1", "a/2", "b", "b/1", "é"])
PREFIXES = st.sampled_from(["", "a", "a/", "b", "z"])


class Model:
    """A transaction of the model: the state it began with, and what it has read and written."""

    def __init__(self, revision: int) -> None:
        self.revision = revision
        self.keys: set[str] = set()
        self.prefixes: set[str] = set()
        self.footprint = Footprint()


class VersionedMapMachine(RuleBasedStateMachine):
    """Transactions that overlap in any way, compaction, and reads of any revision."""

    transactions = Bundle("transactions")

    def __init__(self) -> None:
        super().__init__()
        self.map = VersionedMap()
        self.states: list[dict[str, int]] = [{}]
        self.changed: list[set[str]] = [set()]
        self.pins: list[int] = []
        self.value = 0

    @rule(target=transactions, validates_reads=st.booleans())
    def begin(self, validates_reads: bool) -> Model:  # noqa: FBT001
        model = Model(self.map.revision)
        model.footprint = Footprint(validates_reads=validates_reads)
        self.pins.append(model.revision)
        return model

    @rule(model=transactions, key=KEYS)
    def read(self, model: Model, key: str) -> None:
        found = self.map.read(key, model.revision)
        expected = self.states[model.revision].get(key)
        assert (None if found is None else found.body) == expected
        model.footprint.read_revision = model.revision
        model.footprint.keys.add(key)

    @rule(model=transactions, prefix=PREFIXES)
    def scan(self, model: Model, prefix: str) -> None:
        found = self.map.scan(prefix, model.revision)
        state = self.states[model.revision]
        expected = sorted((k, v) for k, v in state.items() if k.startswith(prefix))
        assert [(key, stored.body) for key, stored in found] == expected
        model.footprint.read_revision = model.revision
        model.footprint.prefixes.append(prefix)

    @rule(model=transactions, key=KEYS, deletes=st.booleans())
    def write(self, model: Model, key: str, deletes: bool) -> None:  # noqa: FBT001
        self.value += 1
        model.footprint.writes[key] = None if deletes else self.value

    @rule(model=consumes(transactions))
    def commit(self, model: Model) -> None:
        footprint = model.footprint
        touched = set().union(*self.changed[model.revision + 1 :])
        relied = set(footprint.writes)
        if footprint.validates_reads:
            relied |= footprint.keys
            relied |= {k for k in touched for p in footprint.prefixes if k.startswith(p)}
        expected = relied & touched if footprint.read_revision is not None else set()
        self.pins.remove(model.revision)
        before = self.map.revision
        if expected:
            with pytest.raises(ConflictError) as caught:
                self.map.commit(footprint, now=1.0)
            assert set(caught.value.keys) == expected
            assert (caught.value.read_revision, caught.value.revision) == (model.revision, before)
            assert self.map.revision == before
            return
        revision = self.map.commit(footprint, now=1.0)
        state = dict(self.states[-1])
        changed = set()
        for key, body in footprint.writes.items():
            if body is None and key not in state:
                continue
            changed.add(key)
            if isinstance(body, int):
                state[key] = body
            else:
                del state[key]
        if changed:
            assert revision == before + 1
            self.states.append(state)
            self.changed.append(changed)
        else:
            assert revision == 0

    @rule(data=st.data())
    def compact(self, data: st.DataObject) -> None:
        newest = min([self.map.revision, *self.pins])
        self.map.compact(data.draw(st.integers(self.map.floor, newest)))

    @invariant()
    def every_kept_revision_reads_the_same(self) -> None:
        assert self.map.revision == len(self.states) - 1
        for revision in range(self.map.floor, self.map.revision + 1):
            found = {key: stored.body for key, stored in self.map.scan("", revision)}
            assert found == self.states[revision]
        log = self.map.log(self.map.floor)
        assert [set(logged.changes) for logged in log] == self.changed[self.map.floor + 1 :]

    @invariant()
    def nothing_is_kept_for_longer_than_needed(self) -> None:
        kept = self.states[self.map.floor :]
        later = set().union(*self.changed[self.map.floor + 1 :])
        found = self.kept()
        assert set(found) == set(kept[0]) | later
        for revisions in found.values():
            assert len([revision for revision in revisions if revision <= self.map.floor]) <= 1

    def kept(self) -> dict[str, list[int]]:
        """The revisions of each key that are kept."""
        return {key: [v.revision for v in self.map.versions(key)] for key in self.map._histories}


VersionedMapMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None
)
test_the_map_is_a_list_of_dictionaries = VersionedMapMachine.TestCase


def put(versions: VersionedMap, **values: object) -> int:
    """Commit without having read anything."""
    footprint = Footprint()
    footprint.writes.update(values)
    return versions.commit(footprint, now=0.0)


def test_revisions_that_cannot_be_read_are_refused() -> None:
    """A revision that is gone and one that is still to come are told apart."""
    versions = VersionedMap()
    for number in range(5):
        put(versions, a=number)
    versions.compact(3)
    with pytest.raises(CompactedError) as caught:
        versions.check(2)
    assert (caught.value.revision, caught.value.compacted) == (2, 3)
    with pytest.raises(ValueError, match="does not exist yet"):
        versions.check(6)
    for revision in (3, 5):
        versions.check(revision)


def test_entries_count_their_versions() -> None:
    """Creation, version and predecessor of a value are those that etcd would tell."""
    versions = VersionedMap()
    put(versions, a=1)
    put(versions, a=2)
    put(versions, a=None)
    put(versions, a=3)
    assert [tuple(v[:4]) for v in versions.versions("a")] == [
        (1, 1, 1, 0),
        (2, 1, 2, 1),
        (3, 0, 0, 2),
        (4, 4, 1, 0),
    ]


def test_many_new_keys_are_found_in_order() -> None:
    """The list of keys is brought up to date in batches and one by one, also after deletions."""
    versions = VersionedMap()
    expected: set[str] = set()
    for size in (1, 100, 3, 50, 0, 1):
        for number in range(size):
            key = f"k{(number * 7919 + size) % 1000:03}"
            put(versions, **{key: 1})
            expected.add(key)
        assert [key for key, _ in versions.scan("k", versions.revision)] == sorted(expected)
        gone = sorted(expected)[::5]
        for key in gone:
            put(versions, **{key: None})
            expected.discard(key)
        versions.compact(versions.revision)
        assert [key for key, _ in versions.scan("", versions.revision)] == sorted(expected)
        assert len(versions) == len(expected)


@given(st.text(max_size=4), st.text(max_size=6))
def test_a_prefix_ends_where_nothing_begins_with_it(prefix: str, key: str) -> None:
    """A text lies between a prefix and its end exactly if it begins with the prefix."""
    end = prefix_end(prefix)
    assert (prefix <= key and (end is None or key < end)) == key.startswith(prefix)


def test_the_end_of_a_prefix_can_be_stored() -> None:
    """The end of a prefix is never a surrogate, which SQLite could not compare with."""
    assert prefix_end("a\ud7ff") == "a\ue000"
    assert prefix_end("\U0010ffff") is None
    assert prefix_end("a\U0010ffff") == "b"


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_backing_off_is_bounded(conflicts: int, random: float) -> None:
    """The wait doubles up to its maximum, and jitter only shortens it."""
    longest = min(0.1, 0.001 * 2 ** (min(conflicts, 40) - 1))
    assert backoff(conflicts, delay=0.001, maximum=0.1, random=random) == pytest.approx(
        random * longest
    )


CHANGES = st.lists(
    st.tuples(st.text(max_size=5), st.none() | st.just("00" * 32), st.integers(0, 9)), max_size=3
)


def chain(records: list[Any]) -> list[Link]:
    """Link records."""
    digest, links = genesis("n"), []
    for number, (author, changes) in enumerate(records, 1):
        text = write_changes(changes)
        assert [tuple(c) for c in read_changes(text)] == changes
        digest = link_digest(digest, number, float(number), author, f"t{number}", text)
        links.append(Link(number, float(number), author, f"t{number}", text, digest))
    return links


@given(st.lists(st.tuples(st.text(max_size=3), CHANGES), min_size=1, max_size=6), st.data())
def test_any_change_of_a_chain_is_found_where_it_is(
    records: list[Any], data: st.DataObject
) -> None:
    """Altering, dropping, doubling or moving a record is found at that record."""
    links = chain(records)
    last = len(links)
    assert find_fault("n", links, anchors={last: links[-1].digest.hex()}, last=last) is None
    fault = find_fault("another", links, anchors={}, last=last)
    assert fault is not None
    assert fault[0] == 1
    at = data.draw(st.integers(0, last - 1))
    link = links[at]
    altered = data.draw(
        st.sampled_from(
            [
                link._replace(author=link.author + "x"),
                link._replace(time=link.time + 0.25),
                link._replace(id="other"),
                link._replace(changes=write_changes([*read_changes(link.changes), ("x", None, 0)])),
                link._replace(digest=b"\0" * 32),
                None,
            ]
        )
    )
    broken = [*links[:at], *([] if altered is None else [altered]), *links[at + 1 :]]
    fault = find_fault("n", broken, anchors={}, last=last)
    assert fault is not None
    assert fault[0] == at + 1
    if last > 1:
        other = (at + 1) % last
        broken = list(links)
        broken[at], broken[other] = broken[other], broken[at]
        fault = find_fault("n", broken, anchors={}, last=last)
        assert fault is not None
        assert fault[0] == min(at, other) + 1
    doubled = [*links[: at + 1], *links[at:]]
    assert find_fault("n", doubled, anchors={}, last=last) is not None


def test_a_chain_that_was_rewritten_is_found_by_an_anchor() -> None:
    """A consistent chain with another past differs from the digest that was noted."""
    links = chain([("a", []), ("b", []), ("c", [])])
    forged = chain([("a", []), ("x", []), ("c", [])])
    assert find_fault("n", forged, anchors={}, last=3) is None
    fault = find_fault("n", forged, anchors={3: links[2].digest.hex()}, last=3)
    assert fault is not None
    assert fault[0] == 3


def test_a_body_has_one_digest_per_form() -> None:
    """The version of a value's form belongs to its digest."""
    assert body_digest(1, b"x") != body_digest(2, b"x")
    assert body_digest(1, b"1x") != body_digest(11, b"x")
