"""The rules of memory, without a store."""

from __future__ import annotations

import time
from itertools import permutations

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from orchestra.opencode.mission.memory.index import ENOUGH, MemoryIndex, Question
from orchestra.opencode.mission.memory.lessons import from_accepted, from_brief, from_rejected
from orchestra.opencode.mission.memory.rules import (
    BUDGETS,
    FADING,
    MAX_ENTRY,
    Contribution,
    MemoryEntry,
    MemorySource,
    MemoryTier,
    Tally,
    combine,
    drop_least,
    entry_from_plain,
    entry_id,
    entry_to_plain,
    new_entry,
    observe,
    settle,
)
from orchestra.opencode.mission.memory.telling import choose, memory_block
from orchestra.opencode.mission.report import CommandResult, TaskReport, TaskState

tallies = st.builds(Tally, helped=st.integers(0, 5), hurt=st.integers(0, 5))
names = st.sampled_from(["a.py", "b.py", "docs/c.rst"])
entries = st.builds(
    MemoryEntry,
    id=st.sampled_from("abcdef"),
    tier=st.sampled_from(MemoryTier),
    text=st.text(min_size=1, max_size=MAX_ENTRY),
    source=st.sampled_from(MemorySource),
    files=st.lists(names, unique=True).map(sorted).map(tuple),
    roles=st.sampled_from([(), ("worker",), ("planner", "worker")]),
    task=st.sampled_from(["", "t1", "t2"]),
    at=st.integers(0, 9),
    first=st.floats(0, 1),
    earned=st.floats(-1, 1),
    tally=tallies,
)


def note(text: str = "the parser needs a newline", **fields: object) -> MemoryEntry:
    return evolve(new_entry(MemoryTier.PROJECT, MemorySource.REVIEW, text), **fields)  # type: ignore[arg-type]  # a test's short cut


def close(one: MemoryEntry, other: MemoryEntry) -> bool:
    """Whether two entries are equal up to the rounding of their scores."""
    return evolve(one, first=0, earned=0) == evolve(other, first=0, earned=0) and (
        (one.first, one.earned) == pytest.approx((other.first, other.earned), abs=1e-9)
    )


# --- scores ---


@given(st.lists(tallies, max_size=30))
def test_a_score_stays_between_its_bounds(history: list[Tally]) -> None:
    """However missions end, a score is never above 1 and never below -1."""
    entry = note()
    for number, tally in enumerate(history, 1):
        entry = observe(entry, tally, number)
        assert -1 <= entry.score(number) <= 1


@given(st.lists(st.tuples(tallies, tallies), min_size=1, max_size=12))
def test_what_helps_more_is_worth_more(history: list[tuple[Tally, Tally]]) -> None:
    """An entry whose every mission went at least as well never has the lower score."""
    good = bad = note()
    for number, pair in enumerate(history, 1):
        worse, better = sorted(pair, key=lambda tally: tally.signal)
        good, bad = observe(good, better, number), observe(bad, worse, number)
        assert good.score(number) >= bad.score(number) - 1e-9


@given(entries, st.integers(0, 30))
def test_fading_is_bounded_and_never_changes_the_sign(entry: MemoryEntry, missions: int) -> None:
    """Each mission that passes takes exactly its share; nothing unused becomes good or bad."""
    before = entry.score(entry.at + missions)
    after = entry.score(entry.at + missions + 1)
    assert abs(after) <= abs(before)
    assert before * after >= 0
    if abs(entry.first + entry.earned) <= 1 and entry.tier is not MemoryTier.SYSTEM:
        assert after == pytest.approx(before * (1 - FADING))
    assert close(entry.aged(entry.at + missions).aged(entry.at + 40), entry.aged(entry.at + 40))


@given(st.lists(tallies, min_size=2, max_size=3))
def test_missions_report_in_any_order(history: list[Tally]) -> None:
    """What is known after some missions does not depend on which of them ended first."""
    lesson = note("always close the file", tier=MemoryTier.MISSION, task="t1")
    contributions = [
        Contribution(number=number, learned=(evolve(lesson, at=number),), tallies={lesson.id: each})
        for number, each in enumerate(history, 1)
    ]
    outcomes = []
    for order in permutations(contributions):
        known: dict[str, MemoryEntry] = {lesson.id: note("always close the file")}
        for contribution in order:
            known = settle(known, contribution)
        (entry,) = known.values()
        outcomes.append(entry)
    assert all(close(each, outcomes[0]) for each in outcomes)
    assert outcomes[0].tally == Tally(sum(t.helped for t in history), sum(t.hurt for t in history))


@given(entries, entries, entries)
def test_combining_is_commutative_and_associative(
    one: MemoryEntry, two: MemoryEntry, three: MemoryEntry
) -> None:
    """However duplicates meet, the same entry comes out."""
    one, two, three = (evolve(entry, id="a") for entry in (one, two, three))
    assert close(combine(one, two), combine(two, one))
    assert close(combine(combine(one, two), three), combine(one, combine(two, three)))


# --- budgets ---


@given(st.lists(entries, unique_by=lambda entry: entry.id, max_size=6), st.integers(0, 300))
def test_no_tier_is_over_its_budget(found: list[MemoryEntry], budget: int) -> None:
    """What stays fits; nothing that was dropped is worth more than what stayed in its tier."""
    kept, dropped = drop_least(found, 9, dict.fromkeys(MemoryTier, budget))
    assert sorted(entry.id for entry in kept + dropped) == sorted(entry.id for entry in found)
    for tier in MemoryTier:
        stayed = [entry for entry in kept if entry.tier is tier]
        gone = [entry for entry in dropped if entry.tier is tier]
        assert sum(entry.tokens for entry in stayed) <= budget
        if stayed and gone:
            assert min(e.score(9) for e in stayed) >= max(e.score(9) for e in gone)


def test_helpful_beats_noise() -> None:
    """When the project's tier is full, what never helped is what goes."""
    helpful = [
        observe(note(f"help number {n}" + "x" * 380, at=1), Tally(1, 0), 1) for n in range(20)
    ]
    noise = [note(f"noise number {n}" + "x" * 380, at=1) for n in range(60)]
    harm = [observe(note(f"harm number {n}" + "x" * 380, at=1), Tally(0, 1), 1) for n in range(20)]
    kept, dropped = drop_least([*harm, *noise, *helpful], 2)
    assert set(helpful) <= set(kept)
    assert set(harm) <= set(dropped)
    assert sum(entry.tokens for entry in kept) <= BUDGETS[MemoryTier.PROJECT] == 5_000


def test_only_what_has_proved_good_is_promoted() -> None:
    """A lesson stays unless telling it hurt; what was only said stays when telling it helped."""

    def promoted(source: MemorySource, tier: MemoryTier, tally: Tally) -> bool:
        entry = new_entry(tier, source, "the words of it", task="t1", now=3)
        known = settle({}, Contribution(number=3, learned=(entry,), tallies={entry.id: tally}))
        assert all(each.tier is MemoryTier.PROJECT and not each.task for each in known.values())
        return bool(known)

    assert promoted(MemorySource.REVIEW, MemoryTier.MISSION, Tally())
    assert promoted(MemorySource.COMMAND, MemoryTier.MISSION, Tally(1, 1))
    assert not promoted(MemorySource.REVIEW, MemoryTier.MISSION, Tally(0, 1))
    assert not promoted(MemorySource.REVIEW, MemoryTier.TASK, Tally())
    assert not promoted(MemorySource.SUMMARY, MemoryTier.MISSION, Tally())
    assert promoted(MemorySource.BRIEF, MemoryTier.MISSION, Tally(1, 0))


def test_what_was_forgotten_is_not_learned_again() -> None:
    """A person has the last word about what is remembered."""
    entry = new_entry(MemoryTier.MISSION, MemorySource.REVIEW, "the words of it", now=1)
    assert settle({}, Contribution(number=1, learned=(entry,)), forgotten={entry.id}) == {}


@given(entries)
def test_the_plain_form_comes_back(entry: MemoryEntry) -> None:
    """What is written of an entry is the whole of it."""
    assert entry_from_plain(entry_to_plain(entry)) == entry


def test_equal_but_for_punctuation_is_equal() -> None:
    """Capitals, spaces and punctuation do not make another entry."""
    assert entry_id("Use  TABS, not spaces.") == entry_id("use tabs not spaces")
    assert entry_id("use tabs") != entry_id("use spaces")


# --- relevance ---


def found(index: MemoryIndex, now: int = 1, **fields: object) -> list[str]:
    question = Question(**{"role": "worker", "text": "", **fields})  # type: ignore[arg-type]  # a test's short cut
    return [entry.text for _, entry in index.find(question, lambda entry: entry.score(now))]


LESSON = "The tokenizer drops a trailing newline; feed it with keepends"
INDEX = MemoryIndex(
    [
        note(LESSON, files=("src/tokenizer.py",)),
        note("Migrations must name their parent revision in the header", roles=("worker",)),
        note("The colour table is generated, edit colours.toml instead"),
    ]
)


def test_a_task_on_the_same_file_is_told() -> None:
    """A file in common is enough, whatever the words are."""
    assert found(INDEX, files=("src/tokenizer.py",), text="Speed it up") == [LESSON]


def test_a_task_with_the_same_rare_words_is_told() -> None:
    """Rare words in common are enough, whatever the files are."""
    text = "Let the tokenizer keep a trailing newline at the end of its input"
    assert found(INDEX, files=("src/other.py",), text=text) == [LESSON]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Write the file and test that it works; the task must be accepted with all tests",
        "Generate a report about the table of contents",
        "the newline " + " ".join(f"word{n}" for n in range(500)),
    ],
)
def test_other_tasks_are_told_nothing(text: str) -> None:
    """Common words, or a single rare one, make nothing relevant, however long the text is."""
    assert found(INDEX, text=text, files=("README.rst",)) == []


def test_what_was_only_said_must_first_prove_itself() -> None:
    """A summary is not told for its words before it has helped where it was surely relevant."""
    said = evolve(note(LESSON, files=("a.py",)), first=0.1)
    assert found(MemoryIndex([said]), text=LESSON) == []
    assert found(MemoryIndex([said]), files=("a.py",)) == [LESSON]
    assert found(MemoryIndex([observe(said, Tally(1, 0), 1)]), text=LESSON) == [LESSON]


def test_who_and_how_good_count() -> None:
    """An entry is for its roles only, and one that has done harm is not told any more."""
    text = "Migrations name their parent revision in a header"
    assert len(found(INDEX, text=text)) == 1
    assert found(INDEX, text=text, role="planner") == []
    bad = observe(note(LESSON, first=0.1), Tally(0, 1), 1)
    assert found(MemoryIndex([bad]), text=LESSON) == []


def test_the_better_is_told_first() -> None:
    """Of two equally relevant entries the one with the better score comes first."""
    good = observe(note("one thing", files=("a.py",), first=0.1), Tally(1, 0), 1)
    plain = note("another thing", files=("a.py",), first=0.1)
    assert found(MemoryIndex([plain, good]), files=("a.py",)) == ["one thing", "another thing"]


def test_a_person_is_heard_everywhere() -> None:
    """A note of a person is told for every task, or exactly where its files are written."""
    everywhere = new_entry(MemoryTier.SYSTEM, MemorySource.PERSON, "run ruff")
    there = new_entry(MemoryTier.SYSTEM, MemorySource.PERSON, "keep it short", files=("a.rst",))
    index = MemoryIndex([everywhere, there])
    assert found(index, text="keep it short and run", now=50) == ["run ruff"]
    assert sorted(found(index, files=("a.rst",))) == ["keep it short", "run ruff"]


def test_a_task_that_is_not_accepted_tells_only_itself() -> None:
    """What went wrong in a task is told to its own next worker, and to nobody else."""
    own = new_entry(
        MemoryTier.TASK, MemorySource.REVIEW, LESSON, files=("a.py",), task="t1", roles=["worker"]
    )
    index = MemoryIndex([own])
    assert found(index, task="t1") == [LESSON]
    assert found(index, task="t2", files=("a.py",), text=LESSON, depends=("t1",)) == []


def test_what_a_dependency_did_is_told() -> None:
    """A task is told what the tasks that it depends on have shown."""
    entry = new_entry(MemoryTier.MISSION, MemorySource.SUMMARY, "the schema is in x", task="t1")
    index = MemoryIndex([entry])
    assert found(index, task="t2", depends=("t1",)) == ["the schema is in x"]
    assert found(index, task="t2") == []


@given(st.lists(entries, unique_by=lambda entry: entry.id), st.text(max_size=80), entries)
def test_looking_is_the_same_whatever_came_first(
    given_entries: list[MemoryEntry], text: str, extra: MemoryEntry
) -> None:
    """The order in which entries came, and others that came and went, change nothing."""
    question = Question(role="worker", text=text, files=("a.py",), task="t1")
    one, other = MemoryIndex(given_entries), MemoryIndex(reversed(given_entries))
    stranger = evolve(extra, id="stranger")
    other.put(stranger)
    other.discard(stranger.id)
    assert one.find(question, lambda e: e.score(9)) == other.find(question, lambda e: e.score(9))
    for share, _ in one.find(question, lambda entry: entry.score(9)):
        assert ENOUGH <= share <= 1


@given(st.lists(st.tuples(st.sampled_from(MemoryTier), st.integers(0, 40)), max_size=60))
def test_the_index_knows_which_tiers_are_full(steps: list[tuple[MemoryTier, int]]) -> None:
    """Whatever came, was replaced and went, exactly the entries of full tiers are named."""
    index = MemoryIndex()
    for number, (tier, name) in enumerate(steps):
        index.put(evolve(note("x" * MAX_ENTRY), id=str(name), tier=tier))
        if number % 4 == 3:
            index.discard(str(name - 1))
    tokens = {tier: sum(e.tokens for e in index if e.tier is tier) for tier in MemoryTier}
    full = {tier for tier in MemoryTier if tokens[tier] > BUDGETS[tier]}
    assert set(index.over_budget()) == {entry for entry in index if entry.tier in full}


# --- telling ---


@given(st.lists(entries, max_size=12), st.integers(0, 3_000))
def test_the_block_fits_and_cannot_be_broken_out_of(found: list[MemoryEntry], room: int) -> None:
    """The block is never larger than its room, and ends where we end it."""
    block = memory_block(choose(found, room))
    assert len(block.encode("utf-8", "replace")) <= room
    assert block.count("<") in {0, 2}
    assert memory_block([]) == ""


# --- lessons ---


def test_what_was_wrong_and_what_helped() -> None:
    """An accepted task leaves each reason with what it was accepted after, and its summary."""
    failed = CommandResult(argv=("pytest", "-q"), exit_code=1, output="E  assert 1 == 2\n1 failed")
    report = TaskReport(
        id="t1",
        title="Parse dates",
        state=TaskState.ACCEPTED,
        reasons=("parse_date returns None for an empty text", "`pytest -q` ended with exit code 1"),
        files=("dates.py",),
        commands=(failed,),
        summary="parse_date raises ValueError now; the suite passes",
    )
    review, command, summary = from_accepted(report, 4)
    assert "returns None for an empty text" in review.text
    assert "Accepted after: parse_date raises ValueError" in review.text
    assert (review.source, command.source) == (MemorySource.REVIEW, MemorySource.COMMAND)
    assert summary.source is MemorySource.SUMMARY
    assert {entry.files for entry in (review, command, summary)} == {("dates.py",)}
    (task_entry,) = from_rejected(report, report.reasons[:1], 4)
    assert task_entry.tier is MemoryTier.TASK
    assert task_entry.id != review.id


def test_nothing_is_learned_from_nothing() -> None:
    """A task that was accepted at once with the word done leaves nothing."""
    assert from_accepted(TaskReport(id="a", title="A", state=TaskState.ACCEPTED), 1) == []
    done = TaskReport(id="a", title="A", state=TaskState.ACCEPTED, summary="Done.")
    assert from_accepted(done, 1) == []


@given(st.lists(st.text(max_size=5_000), max_size=12), st.text(max_size=2_000), st.text())
def test_lessons_are_bounded(reasons: list[str], summary: str, title: str) -> None:
    """Whatever reviewers and workers write, few and short entries come of it."""
    report = TaskReport(
        id="a", title=title, state=TaskState.ACCEPTED, reasons=tuple(reasons), summary=summary
    )
    lessons = from_accepted(report, 1)
    assert len(lessons) <= 9
    assert len(from_rejected(report, reasons, 1)) <= 8


def test_the_facts_of_a_brief() -> None:
    """Of a brief, where things are and what to take care of is remembered, with the files."""
    brief = (
        "1. Goal: parse dates in every format that the users have asked for.\n"
        "2. Where:\n- src/dates.py holds parse_date, called by the loader\n"
        "3. Parts: parse dates side by side with the writer of the output\n"
        "5. Care: never touch the vendored copy in third_party/dateutil\n"
    )
    where, care = from_brief(brief, 1)
    assert where.text == "src/dates.py holds parse_date, called by the loader"
    assert where.files == ("src/dates.py",)
    assert care.text == "Care: never touch the vendored copy in third_party/dateutil"
    assert {where.source, care.source} == {MemorySource.BRIEF}


@pytest.mark.parametrize("text", ["a" * 500_000, "a/" * 250_000, "where: " + "b." * 250_000])
def test_learning_is_quick_whatever_agents_write(text: str) -> None:
    """Half a million characters without a break take no longer than they must."""
    brief = f"2. Where: one two three four five {text}\n5. Care: {text}"
    start = time.thread_time()
    assert all(len(entry.text) <= MAX_ENTRY for entry in from_brief(brief, 1))
    report = TaskReport(id="a", title=text, state=TaskState.ACCEPTED, reasons=(text,), summary=text)
    assert len(from_accepted(report, 1)) <= 2
    assert time.thread_time() - start < 10


# --- cost ---


def full_index(share: float) -> tuple[MemoryIndex, int]:
    """Return an index of which every tier is that full, of words as texts have them."""
    index = MemoryIndex()
    for tier, budget in BUDGETS.items():
        for number in range(int(budget * share * 4 / 300)):
            words = [f"w{(number * 31 + k * k * 7 + k) % 997}" for k in range(50)]
            text = " ".join(words)[:300]
            files = (f"src/{number % 40}.py",)
            entry = new_entry(
                tier, MemorySource.REVIEW, text, about=f"{tier} {number}", files=files
            )
            index.put(evolve(entry, tier=tier))
    return index, len(index)


def cost(index: MemoryIndex) -> float:
    question = Question(
        role="worker", text=" ".join(f"w{k * 3}" for k in range(200)), files=("src/3.py",)
    )
    times = []
    for _ in range(7):
        start = time.thread_time()
        index.find(question, lambda entry: entry.score(1))
        times.append(time.thread_time() - start)
    return min(times)


def test_looking_takes_time_in_proportion() -> None:
    """With every tier full a look takes at most a few times what a quarter of it does."""
    quarter, few = full_index(0.25)
    full, many = full_index(1.0)
    assert many >= 3.9 * few
    assert cost(full) < 12 * cost(quarter)
