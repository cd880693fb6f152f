"""The algorithms of csrc/ under every execution that the C11 memory model allows."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable

import pytest
from attrs import frozen
from deque_model import (
    CSRC,
    EMPTY,
    LOST,
    PARKING,
    DequeModel,
    Owner,
    ParkingModel,
    Steps,
    initial,
    macros_in,
    orders_of,
)
from weak_memory import Exploration, Location, Operation, add, explore, fence, load, store

DEQUE = orders_of("chase_lev.h")
EVENTCOUNT = orders_of("eventcount.h")
WEAKER = {"release": "relaxed", "acquire": "relaxed", "seq_cst": "acq_rel"}


# --- the explorer itself: litmus tests with known verdicts ---------------------------------------


def thread(*steps: tuple[str, Location, str]) -> list[Operation]:
    """A thread of writes of 1 ("w"), reads ("r"), and fences ("f"); the outcome is what it read."""

    def run(local: Hashable) -> Steps:
        read = []
        for action, location, order in steps:
            if action == "w":
                yield store(location, 1, order)
            elif action == "r":
                read.append((yield load(location, order)))
            elif action == "+":
                yield add(location, 1, order)
            else:
                yield fence(order)
        return local, tuple(read)

    return [run]


def reads(*threads: list[Operation]) -> set[tuple[Hashable, ...]]:
    """What the threads may read, all of it in a row."""
    found = explore(threads, memory=dict.fromkeys("xy", 0))
    return {
        tuple(value for (outcome,) in result if isinstance(outcome, tuple) for value in outcome)
        for result in found.results
    }


@pytest.mark.parametrize(
    ("fences", "is_allowed"), [("relaxed", True), ("acq_rel", True), ("seq_cst", False)]
)
def test_store_buffering(fences: str, *, is_allowed: bool) -> None:
    """Two threads may both miss the other's write, unless seq_cst fences stand between."""
    first = thread(("w", "x", "relaxed"), ("f", "", fences), ("r", "y", "relaxed"))
    second = thread(("w", "y", "relaxed"), ("f", "", fences), ("r", "x", "relaxed"))
    assert ((0, 0) in reads(first, second)) is is_allowed


@pytest.mark.parametrize(
    ("write", "read", "is_allowed"),
    [
        ("release", "acquire", False),
        ("relaxed", "acquire", True),
        ("release", "relaxed", True),
    ],
)
def test_message_passing(write: str, read: str, *, is_allowed: bool) -> None:
    """Who sees the flag may miss the data, unless both sides synchronise."""
    writer = thread(("w", "x", "relaxed"), ("w", "y", write))
    reader = thread(("r", "y", read), ("r", "x", "relaxed"))
    assert ((1, 0) in reads(writer, reader)) is is_allowed


def test_message_passing_by_fences() -> None:
    """A release and an acquire fence synchronise through relaxed accesses."""
    writer = thread(("w", "x", "relaxed"), ("f", "", "release"), ("w", "y", "relaxed"))
    reader = thread(("r", "y", "relaxed"), ("f", "", "acquire"), ("r", "x", "relaxed"))
    assert (1, 0) not in reads(writer, reader)


@pytest.mark.parametrize(("fences", "is_allowed"), [("acq_rel", True), ("seq_cst", False)])
def test_independent_reads(fences: str, *, is_allowed: bool) -> None:
    """Two readers may disagree about the order of two writes, unless seq_cst fences stand between."""
    found = reads(
        thread(("w", "x", "release")),
        thread(("w", "y", "release")),
        thread(("r", "x", "acquire"), ("f", "", fences), ("r", "y", "acquire")),
        thread(("r", "y", "acquire"), ("f", "", fences), ("r", "x", "acquire")),
    )
    assert ((1, 0, 1, 0) in found) is is_allowed


def test_coherence() -> None:
    """Nobody sees one location go back."""
    found = reads(
        thread(("w", "x", "relaxed")), thread(("r", "x", "relaxed"), ("r", "x", "relaxed"))
    )
    assert found == {(0, 0), (0, 1), (1, 1)}


def test_release_sequences_are_those_of_cxx20() -> None:
    """A read-modify-write hands on an earlier release; a relaxed store of the same thread does not."""
    reader = thread(("r", "y", "acquire"), ("r", "x", "relaxed"))
    writer = [*thread(("w", "x", "relaxed"), ("w", "y", "release"))]
    found = explore([writer, thread(("+", "y", "relaxed")), reader], memory={"x": 0, "y": 0})
    assert not any(result[2] == ((2, 0),) for result in found.results)

    def store_again(local: Hashable) -> Steps:
        yield store("y", 2, "relaxed")
        return local, ()

    found = explore([[*writer, store_again], reader], memory={"x": 0, "y": 0})
    assert any(result[1] == ((2, 0),) for result in found.results)


def test_no_load_buffering() -> None:
    """The known limit: reads never see what comes later in every order, as in RC11."""
    first = thread(("r", "x", "relaxed"), ("w", "y", "relaxed"))
    second = thread(("r", "y", "relaxed"), ("w", "x", "relaxed"))
    assert (1, 1) not in reads(first, second)


# --- the model mirrors the source ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "function", "macros"),
    [
        ("chase_lev.h", "wsd_grow", "WSD_PUSH_TOP WSD_GROW_ARRAY"),
        ("chase_lev.h", "wsd_push_many", "WSD_PUSH_SLOT WSD_PUSH_BOTTOM"),
        ("chase_lev.h", "wsd_pop_last", "WSD_POP_TOP WSD_POP_CAS"),
        (
            "chase_lev.h",
            "wsd_pop_many",
            "WSD_POP_BOTTOM WSD_POP_FENCE WSD_POP_TOP WSD_POP_CAS WSD_POP_BOTTOM",
        ),
        (
            "chase_lev.h",
            "wsd_steal_once",
            (
                "WSD_STEAL_TOP WSD_STEAL_FENCE WSD_STEAL_BOTTOM "
                "WSD_STEAL_ARRAY WSD_STEAL_SLOT WSD_STEAL_CAS"
            ),
        ),
        ("eventcount.h", "evc_prepare", "EVC_PREPARE_WAITERS EVC_PREPARE_FENCE EVC_PREPARE_EPOCH"),
        ("eventcount.h", "evc_notify", "EVC_NOTIFY_FENCE EVC_NOTIFY_SEARCHING EVC_NOTIFY_WAITERS"),
        ("eventcount.h", "evc_wake", "EVC_NOTIFY_EPOCH"),
        ("eventcount.h", "evc_end_search", "EVC_SEARCH_COUNT EVC_SEARCH_FENCE"),
    ],
)
def test_model_has_the_order_of_the_source(header: str, function: str, macros: str) -> None:
    """The C function does the same ordered accesses in the same sequence as the model's."""
    assert macros_in(header, function) == macros.split()
    model = (CSRC.parent / "tests" / "helpers" / "deque_model.py").read_text(encoding="utf-8")
    assert re.search(".*?".join(f'"{macro}"' for macro in macros.split()), model, re.DOTALL)


@pytest.mark.parametrize("name", ["chase_lev.h", "eventcount.h", "executor.c"])
def test_every_atomic_access_names_its_order_and_its_partner(name: str) -> None:
    """No atomic is used without an explicit order and a comment on what it pairs with."""
    lines = (CSRC / name).read_text(encoding="utf-8").splitlines()
    accesses = 0
    for number, line in enumerate(lines):
        if not re.search(r"\batomic_(?!init|thread_fence\()\w+\(|\batomic_thread_fence\(", line):
            continue
        accesses += 1
        assert "_explicit(" in line or "atomic_thread_fence(" in line, f"{name}:{number + 1}"
        assert "pairs with:" in "\n".join(lines[max(0, number - 4) : number]), (
            f"{name}:{number + 1}"
        )
        statement = "\n".join(lines[number : number + 3])
        assert re.search(r"memory_order_\w+|WSD_\w+|EVC_\w+|\border\b", statement)
    assert accesses


# --- the deque -----------------------------------------------------------------------------------


@frozen
class Scenario:
    """Threads of operations, the owner's first; how many items; capacity of the first array."""

    owner: list[Operation]
    thieves: list[list[Operation]]
    items: int

    def run(self) -> Exploration:
        """Explore it."""
        return explore([self.owner, *self.thieves], memory=initial(), local=[Owner()])


def scenarios(m: DequeModel) -> dict[str, Scenario]:
    """Everything that can go wrong, small."""
    once, twice = [m.steal_once()], [m.steal_once(), m.steal_once()]
    pop = m.pop()
    return {
        "two items": Scenario([m.push(1), m.push(2), pop, pop], [twice], 2),
        "growth": Scenario([m.push(1), m.push(2), m.push(3), pop], [twice], 3),
        "slot reuse": Scenario([m.push(1), m.push(2), pop, m.push(3), pop], [twice], 3),
        "last item, then growth": Scenario(
            [m.push(1), pop, m.push(2), m.push(3), m.push(4)], [twice], 4
        ),
        "two thieves": Scenario([m.push(1), m.push(2), pop], [once, once], 2),
        "batch": Scenario([m.push_many([1, 2]), m.pop_many(2)], [once, once], 2),
        "batch, then last item": Scenario([m.push_many([1, 2, 3]), m.pop_many(2), pop], [twice], 3),
        "four items": Scenario([m.push_many([1, 2, 3, 4]), pop, pop, pop], [once], 4),
    }


NAMES = list(scenarios(DequeModel(orders=DEQUE)))


def faults(model: DequeModel, scenario: Scenario) -> list[str]:
    """What the exploration found wrong."""
    found = scenario.run()
    wrong = [f"race on {place}" for place in found.races]
    pushed = sorted(map(str, range(1, scenario.items + 1)))
    for (owner, *thieves), memory in found.outcomes:
        taken: list[Hashable] = []
        for outcome in (*owner, *(outcome for thief in thieves for outcome in thief)):
            if isinstance(outcome, tuple):
                taken.extend(outcome)
            elif outcome not in {None, EMPTY, LOST}:
                taken.append(outcome)
        if sorted(map(str, [*taken, *model.rest(dict(memory))])) != pushed:
            wrong.append(f"took {taken} of {pushed}")
    return wrong


@pytest.mark.parametrize("name", NAMES)
def test_every_item_is_taken_once(name: str) -> None:
    """In no execution is an item lost, doubled, invented, or seen before what it points to."""
    model = DequeModel(orders=DEQUE, has_payload=True)
    assert faults(model, scenarios(model)[name]) == []


REQUIRED = {
    "WSD_PUSH_BOTTOM": "two items",
    "WSD_GROW_ARRAY": "growth",
    "WSD_POP_BOTTOM": "two items",
    "WSD_POP_FENCE": "two items",
    "WSD_STEAL_FENCE": "two items",
    "WSD_STEAL_BOTTOM": "two items",
    "WSD_STEAL_ARRAY": "growth",
}
KEPT = {
    "WSD_PUSH_TOP": "only a machine with load buffering could reuse a slot before it is read",
    "WSD_POP_CAS": "that of Le et al.; weaker ones are not refuted here nor under IMM",
    "WSD_STEAL_TOP": "that of Le et al.; the fence behind it implies it",
    "WSD_STEAL_CAS": "release is needed under IMM, which knows load buffering",
}


@pytest.mark.parametrize(("macro", "name"), REQUIRED.items())
def test_required_order_is_necessary(macro: str, name: str) -> None:
    """Each required order of the source, weakened by one step, breaks the deque."""
    model = DequeModel(orders=DEQUE | {macro: WEAKER[DEQUE[macro]]})
    assert faults(model, scenarios(model)[name])


def test_every_order_is_accounted_for() -> None:
    """Each order above relaxed is either proved necessary or kept for a stated reason."""
    ordered = {macro for macro, order in DEQUE.items() if order != "relaxed"}
    assert ordered == REQUIRED.keys() | KEPT.keys()


@pytest.mark.parametrize("macro", KEPT)
def test_kept_order_is_beyond_this_model(macro: str) -> None:
    """The orders kept for other reasons are those that this model cannot refute: no claim is idle."""
    model = DequeModel(orders=DEQUE | {macro: WEAKER[DEQUE[macro]]})
    assert all(not faults(model, scenarios(model)[name]) for name in ("growth", "slot reuse"))


@pytest.mark.parametrize(
    ("mutant", "name"),
    [
        ("slot read late", "slot reuse"),
        ("top stored", "two thieves"),
        ("off by one", "two items"),
        ("half stolen", "four items"),
        ("two unfenced", "two items"),
    ],
)
def test_wrong_algorithm_is_found(mutant: str, name: str) -> None:
    """Known wrong variants of the algorithm do not survive."""
    model = DequeModel(orders=DEQUE, mutant=mutant)
    assert faults(model, scenarios(model)[name])


def atomic_results(
    threads: list[list[tuple[str, int]]],
) -> set[tuple[tuple[Hashable, ...], ...]]:
    """The outcomes of ("push", item), ("pop", count), ("steal", 1) on an atomic deque."""

    def run(
        positions: tuple[int, ...], items: tuple[int, ...], seen: tuple[tuple[Hashable, ...], ...]
    ) -> Iterable[tuple[tuple[Hashable, ...], ...]]:
        if all(position == len(threads[n]) for n, position in enumerate(positions)):
            yield seen
        for number, position in enumerate(positions):
            if position == len(threads[number]):
                continue
            action, value = threads[number][position]
            outcome: Hashable
            left = items
            if action == "push":
                outcome, left = None, (*items, value)
            elif action == "pop":
                cut = max(0, len(items) - value)
                outcome, left = items[cut:][::-1], items[:cut]
            else:
                outcome, left = (items[0] if items else EMPTY), items[1:]
            yield from run(
                (*positions[:number], position + 1, *positions[number + 1 :]),
                left,
                (*seen[:number], (*seen[number], outcome), *seen[number + 1 :]),
            )

    return set(run((0,) * len(threads), (), ((),) * len(threads)))


@pytest.mark.parametrize(
    "threads",
    [
        [[("push", 1), ("push", 2), ("pop", 1), ("pop", 1)], [("steal", 1), ("steal", 1)]],
        [[("push", 1), ("pop", 1), ("push", 2), ("pop", 1)], [("steal", 1), ("steal", 1)]],
        [[("push", 1), ("push", 2), ("push", 3), ("pop", 1)], [("steal", 1)], [("steal", 1)]],
        [[("push", 1), ("push", 2), ("pop", 1)], [("steal", 1)], [("steal", 1)]],
    ],
)
def test_outcomes_are_those_of_an_atomic_deque(threads: list[list[tuple[str, int]]]) -> None:
    """Whatever the threads can observe, an atomic deque could have shown them."""
    model = DequeModel(orders=DEQUE)
    programs = [
        [
            model.push(value)
            if action == "push"
            else model.pop_many(value)
            if action == "pop"
            else model.steal()
            for action, value in program
        ]
        for program in threads
    ]
    found = explore(programs, memory=initial(), local=[Owner()])
    assert found.results <= atomic_results(threads)


# --- the eventcount ------------------------------------------------------------------------------


def parking_is_sound(model: ParkingModel) -> bool:
    """Whether nobody sleeps for ever beside work, alone or with a second worker."""
    alone = explore([model.work(), [model.publish()]], memory=PARKING)
    twice = explore([model.work(), [model.publish(), model.publish()]], memory=PARKING)
    # One worker searches, with work at hand, one sleeps, and more work comes.
    crowd = explore(
        [[model.search()], [model.sleep()], [model.publish()]],
        memory={"work": 1, "searching": 1, "waiters": 1, "epoch": 0},
    )
    return not (alone.stuck or twice.stuck or crowd.stuck)


def test_no_wake_up_is_lost() -> None:
    """In no execution does a worker sleep for ever beside work."""
    assert parking_is_sound(ParkingModel(orders=EVENTCOUNT))


@pytest.mark.parametrize(
    "macro", [macro for macro, order in EVENTCOUNT.items() if order != "relaxed"]
)
def test_required_parking_order_is_necessary(macro: str) -> None:
    """Each order above relaxed, weakened by one step, loses a wake-up."""
    orders = EVENTCOUNT | {macro: WEAKER[EVENTCOUNT[macro]]}
    assert not parking_is_sound(ParkingModel(orders=orders))


@pytest.mark.parametrize("part", ["second look", "passing on"])
def test_required_parking_step_is_necessary(part: str) -> None:
    """Without the second look, or without the last searcher's, a wake-up is lost."""
    assert not parking_is_sound(ParkingModel(orders=EVENTCOUNT, without=part))
