"""The order of hooks: phases, wishes, priorities, ties, and what cannot be ordered."""

from __future__ import annotations

import pickle
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra._core.ordering import HookPhase, Place, put_in_order
from orchestra.errors import HookOrderError

EARLY, NORMAL, LATE = HookPhase


def place(name: str, phase: HookPhase = NORMAL, priority: int = 0, **wishes: str) -> Place:
    return Place(
        name=name,
        phase=phase,
        priority=priority,
        before=tuple(wishes.get("before", "")),
        after=tuple(wishes.get("after", "")),
    )


def test_phases_come_first() -> None:
    """Early hooks precede normal ones, and these late ones, whatever the priorities say."""
    places = [place("c", LATE, 99), place("b", NORMAL), place("a", EARLY, -99)]
    assert put_in_order(places) == ["a", "b", "c"]


def test_the_higher_priority_goes_first() -> None:
    """Within a phase the priority decides, and ties keep the order of registration."""
    places = [place("c"), place("b", priority=1), place("d"), place("a", priority=2)]
    assert put_in_order(places) == ["a", "b", "c", "d"]


def test_wishes_beat_priorities() -> None:
    """A hook that wants to be after another one is, however high its priority is."""
    assert put_in_order([place("a", priority=9, after="b"), place("b")]) == ["b", "a"]
    assert put_in_order([place("a", priority=9), place("b", before="a")]) == ["b", "a"]


def test_what_a_wish_holds_back_comes_as_soon_as_it_may() -> None:
    """Once what it waits for has run, a hook is next when its priority is the highest left."""
    places = [place("a", priority=5, after="b"), place("b", priority=1), place("c")]
    assert put_in_order(places) == ["b", "a", "c"]


def test_names_that_are_not_there_do_not_count() -> None:
    """A wish about a hook that does not exist changes nothing."""
    assert put_in_order([place("a", before="x", after="y"), place("b")]) == ["a", "b"]


def test_wishes_that_the_phases_fulfil_are_fine() -> None:
    """A wish across phases that agrees with them is no error and moves nothing."""
    places = [place("b", LATE, after="a"), place("a", EARLY, before="b"), place("c")]
    assert put_in_order(places) == ["a", "c", "b"]


@pytest.mark.parametrize(
    ("places", "members"),
    [
        ([place("a", LATE, before="b"), place("b", EARLY)], ("a", "b")),
        ([place("a", LATE), place("b", NORMAL, after="a")], ("a", "b")),
        ([place("a", NORMAL), place("b", EARLY, after="a")], ("a", "b")),
    ],
)
def test_a_wish_against_a_phase_is_an_error(places: list[Place], members: tuple[str, ...]) -> None:
    """A wish that would move a hook to another phase is refused, with both names and phases."""
    with pytest.raises(HookOrderError, match=r"is to run before 'b', but it is \w+ and") as info:
        put_in_order(places)
    assert info.value.members == members


@pytest.mark.parametrize(
    ("places", "circle"),
    [
        ([place("a", before="a")], {"a"}),
        ([place("a", before="b"), place("b", before="a")], {"a", "b"}),
        (
            [place("a", before="b"), place("b", before="c"), place("c", before="a"), place("d")],
            {"a", "b", "c"},
        ),
    ],
)
def test_a_circle_is_an_error(places: list[Place], circle: set[str]) -> None:
    """Hooks that want to be before each other in a circle are refused, and named in its order."""
    with pytest.raises(HookOrderError, match="in a circle") as info:
        put_in_order(places)
    assert set(info.value.members) == circle
    wishes = {(each.name, name) for each in places for name in each.before}
    assert set(pairwise([info.value.members[-1], *info.value.members])) <= wishes
    assert isinstance(info.value, ValueError)


def test_the_error_pickles() -> None:
    """An order error survives a trip to another process with its members."""
    error = pickle.loads(pickle.dumps(HookOrderError("a message", ("a", "b"))))  # noqa: S301
    assert (str(error), error.members) == ("a message", ("a", "b"))


places = st.lists(
    st.builds(
        Place,
        name=st.sampled_from("abcdef"),
        phase=st.sampled_from(HookPhase),
        priority=st.integers(-1, 1),
        before=st.lists(st.sampled_from("abcdefx"), max_size=2).map(tuple),
        after=st.lists(st.sampled_from("abcdefx"), max_size=2).map(tuple),
    ),
    unique_by=lambda each: each.name,
    max_size=6,
)


@given(places)
def test_an_order_keeps_every_wish_and_phase(given_places: list[Place]) -> None:
    """What is ordered has everybody once, by phase, with each wish fulfilled; else it is refused."""
    refusal = None
    names: list[str] = []
    try:
        names = put_in_order(given_places)
    except HookOrderError as exc:
        refusal = exc
    if refusal is not None:
        assert refusal.members
        assert set(refusal.members) <= {each.name for each in given_places}
        return
    assert sorted(names) == sorted(each.name for each in given_places)
    position = {name: number for number, name in enumerate(names)}
    known = {each.name: each for each in given_places}
    order = list(HookPhase)
    assert [order.index(known[name].phase) for name in names] == sorted(
        order.index(known[name].phase) for name in names
    )
    for each in given_places:
        assert all(position[each.name] < position[name] for name in each.before if name in known)
        assert all(position[name] < position[each.name] for name in each.after if name in known)
