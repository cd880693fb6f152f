"""Answers come from models: whatever they say is a plan or a verdict, or is refused in time."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from itertools import chain

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orchestra.errors import PlanError
from orchestra.opencode.mission.answers import Verdict, VerdictError, parse_plan, parse_verdict
from orchestra.opencode.mission.plan import Plan

MIB = 1 << 20

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["accept", "reject", "../x", "/etc/passwd", "a", "b", "\ud800", "\0"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "tasks",
                    "id",
                    "title",
                    "instructions",
                    "files",
                    "depends",
                    "acceptance",
                    "verdict",
                    "reasons",
                ]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=30,
)
pieces = st.sampled_from(
    ["```json\n", "```\n", "```", "[", "]", "{", "}", '"', '{"tasks":', '{"verdict":', ",", "\\"]
)
answers = (
    st.text()
    | json_values.map(json.dumps)
    | st.builds("{}```json\n{}\n```{}".format, st.text(), json_values.map(json.dumps), st.text())
    | st.lists(pieces | st.text(max_size=3), max_size=40).map("".join)
)


def task(**fields: object) -> dict[str, object]:
    return {"id": "a", "title": "do it", **fields}


def plan(*tasks: object) -> str:
    return json.dumps({"tasks": tasks})


def value_or_refusal(parse: Callable[[str], object], answer: str) -> object:
    try:
        return parse(answer)
    except (PlanError, VerdictError) as exc:
        return exc


@given(answers)
@example('{"verdict": ' + "[" * 900 + "]" * 900 + "}")
@example('{"tasks": ' + "[" * 900 + "]" * 900 + "}")
def test_any_answer_is_a_plan_or_refused(answer: str) -> None:
    """Whatever an agent answers gives a valid plan or one line that says why not."""
    parsed = value_or_refusal(parse_plan, answer)
    if isinstance(parsed, PlanError):
        assert 0 < len(str(parsed)) < 2_500
        return
    assert isinstance(parsed, Plan)
    for entry in parsed.tasks:
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", entry.id)
        assert entry.title
        assert entry.title.isprintable()
        assert all(argv for argv in entry.acceptance)
        for text in (entry.title, entry.instructions, *entry.files, *chain(*entry.acceptance)):
            text.encode()
        for file in entry.files:
            assert not file.startswith(("/", ".."))
            assert "\0" not in file


@given(answers)
@example('{"verdict": ' + "[" * 900 + "]" * 900 + "}")
def test_any_answer_is_a_verdict_or_refused(answer: str) -> None:
    """Whatever a reviewer answers gives a verdict or one line that says why not."""
    verdict = value_or_refusal(parse_verdict, answer)
    if isinstance(verdict, VerdictError):
        assert 0 < len(str(verdict)) < 500
        return
    assert isinstance(verdict, Verdict)
    assert verdict.is_accepted or verdict.reasons
    for reason in verdict.reasons:
        reason.encode()


@pytest.mark.skipif(
    os.name != "posix", reason="needs an alarm that interrupts a regular expression"
)
@pytest.mark.parametrize("parse", [parse_plan, parse_verdict])
@pytest.mark.parametrize(
    "answer",
    [
        pytest.param("[" * MIB, id="lists"),
        pytest.param("{" * MIB, id="objects"),
        pytest.param('{"a":' * (MIB // 5), id="nested-objects"),
        pytest.param("{}" * (MIB // 2), id="empty-objects"),
        pytest.param("[]" * (MIB // 2), id="empty-lists"),
        pytest.param("[" * 500 + "1," * (MIB // 2), id="open-long-lists"),
        pytest.param('{"' * (MIB // 2), id="open-keys"),
        pytest.param("[" * 500 + '"' + "x" * MIB, id="open-string"),
        pytest.param("[" + "1" * MIB + "]", id="digits"),
        pytest.param("```" + "\n" * MIB, id="open-fence"),
        pytest.param("```\n" * (MIB // 4), id="fences"),
        pytest.param("```a" * (MIB // 4), id="broken-fences"),
        pytest.param("`" * MIB, id="backticks"),
        pytest.param(("{" + " " * 1_000) * (MIB // 1_000), id="spaces"),
        pytest.param(plan(task(acceptance=["x" * MIB])), id="one-word-command"),
        pytest.param(plan(task(acceptance=["x" * 4_000] * 250)), id="long-word-commands"),
        pytest.param(plan(*[task(id=str(number)) for number in range(9_000)]), id="many-tasks"),
        pytest.param(plan(task(files=["a/" * (MIB // 2)])), id="long-path"),
        pytest.param(plan(task(depends=["b"] * (MIB // 5))), id="unknown-dependencies"),
        pytest.param(plan(task(title=" x" * (MIB // 2))), id="long-title"),
        pytest.param('{"verdict": "accept", "reasons": "' + "x" * MIB + '"}', id="long-reason"),
    ],
)
def test_no_answer_takes_long(parse: Callable[[str], object], answer: str) -> None:
    """A mebibyte made to be slow is dealt with in seconds; a quadratic step would take minutes."""

    def interrupt(*_: object) -> None:
        raise TimeoutError

    old = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 8)
    try:
        value_or_refusal(parse, answer)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def test_a_whole_plan_is_read() -> None:
    """Every field of a task arrives; numbers are good ids, command lines are split."""
    (entry,) = parse_plan(
        plan(
            {
                "id": 7,
                "title": "  do\n it ",
                "instructions": " all of it ",
                "files": ["./src/a.py", "src\\b.py", "c/../d.py"],
                "depends": [],
                "acceptance": ["pytest -k 'a b'", ["make", "check"]],
                "urgency": "a key that nobody knows",
            }
        )
    ).tasks
    assert (entry.id, entry.title, entry.instructions) == ("7", "do it", "all of it")
    assert entry.files == ("src/a.py", "src/b.py", "d.py")
    assert entry.acceptance == (("pytest", "-k", "a b"), ("make", "check"))


@pytest.mark.parametrize(
    "answer",
    [
        plan(task()),
        f"Here is it:\n```json\n{plan(task())}\n```\nGood luck!",
        f"```\r\n{plan(task())}\r\n```",
        f"I read [the code] and {{it}} is fine: {plan(task())} [done",
        f"{{}} [1, 2] {plan(task())}",
        f"if (a) {{ b }}\n```json\n{plan(task())}\n```",
        "[0] { " * 5_000 + f"```json\n{plan(task())}\n```",
    ],
)
def test_a_plan_is_found_in_prose(answer: str) -> None:
    """A plan may be fenced or bare, with other brackets around it."""
    assert [entry.id for entry in parse_plan(answer).tasks] == ["a"]


def test_a_fenced_plan_counts_before_a_bare_one() -> None:
    """An example quoted in the prose does not pass for the answer in the fence."""
    answer = f"not {plan(task(id='example'))} but\n```json\n{plan(task(id='real'))}\n```"
    assert parse_plan(answer).tasks[0].id == "real"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("I could not do it.", '"tasks"'),
        ('{"task": []}', '"tasks"'),
        ('{"tasks": {}}', "list"),
        ('{"tasks": []}', "no tasks"),
        (plan(*range(10_001)), "10000"),
        (plan("a"), "not an object"),
        (plan({"title": "x"}), "id"),
        (plan(task(id="")), "id"),
        (plan(task(id="a b")), "id"),
        (plan(task(id="../a")), "id"),
        (plan(task(id="a\n")), "id"),
        (plan(task(id="x" * 65)), "id"),
        (plan(task(id=True)), "id"),
        (plan(task(id=-1)), "id"),
        (plan({"id": "a"}), "title"),
        (plan(task(title=" \n")), "title"),
        (plan(task(title="\x1b\x07")), "title"),
        (plan(task(title=["x"])), "title"),
        (plan(task(instructions=3)), "instructions"),
        (plan(task(files="a.py")), "files"),
        (plan(task(files=[1])), "files"),
        (plan(task(files=["/etc/passwd"])), "inside the workspace"),
        (plan(task(files=["//etc/passwd"])), "inside the workspace"),
        (plan(task(files=["../a"])), "inside the workspace"),
        (plan(task(files=["a/../../b"])), "inside the workspace"),
        (plan(task(files=["..\\b"])), "inside the workspace"),
        (plan(task(files=["C:\\b"])), "inside the workspace"),
        (plan(task(files=[".."])), "inside the workspace"),
        (plan(task(files=[""])), "inside the workspace"),
        (plan(task(files=["a\0b"])), "inside the workspace"),
        (plan(task(depends="a")), "depends"),
        (plan(task(depends=["a"])), "circle"),
        (plan(task(depends=["b"])), "'b', which is not in the plan"),
        (plan(task(), task()), "used twice"),
        (plan(task(depends=["b"]), task(id="b", depends=["a"])), "circle: "),
        (plan(task(acceptance="pytest")), "acceptance"),
        (plan(task(acceptance=[3])), "acceptance"),
        (plan(task(acceptance=[["a", 3]])), "acceptance"),
        (plan(task(acceptance=[""])), "empty"),
        (plan(task(acceptance=[[]])), "empty"),
        (plan(task(acceptance=["echo 'a"])), "cannot be split"),
        (plan(task(acceptance=["a\0b"])), "unusable"),
        (plan(task(acceptance=["x" * 5_000])), "4096"),
    ],
)
def test_a_plan_with_a_fault_is_refused(answer: str, words: str) -> None:
    """Each fault of a plan is refused with a sentence that names it."""
    with pytest.raises(PlanError, match=re.escape(words)):
        parse_plan(answer)


def test_every_fault_is_named_up_to_a_bound() -> None:
    """One answer to a bad plan names its first faults and counts the others."""
    with pytest.raises(PlanError) as caught:
        parse_plan(plan(*[{"id": f"a{number}"} for number in range(100)]))
    assert str(caught.value).count("title") == 5
    assert "and 95 more" in str(caught.value)


def test_texts_can_be_written_anywhere() -> None:
    """Halves of surrogate pairs and control characters do not get past the parser."""
    (entry,) = parse_plan(
        '{"tasks": [{"id": "a", "title": "x\\ud800\\u001b[2Jy", "instructions": "\\udfff",'
        ' "files": ["\\ud800"], "acceptance": ["echo \\ud800", ["echo", "\\udcff"]]}]}'
    ).tasks
    assert entry.title == "x? [2Jy"
    assert entry.instructions == "?"
    assert entry.files == ("?",)
    assert entry.acceptance == (("echo", "?"), ("echo", "?"))


@pytest.mark.parametrize(
    ("answer", "is_accepted"),
    [
        ('{"verdict": "accept"}', True),
        ('{"verdict": "accept", "reasons": []}', True),
        ('```json\n{"verdict": "reject", "reasons": ["no"]}\n```', False),
        ('{"verdict": "reject", "reasons": "no"}', False),
        ('First {"verdict": "reject", "reasons": ["no"]}, now {"verdict": "accept"}', True),
        ('First {"verdict": "accept"}, now {"verdict": "reject", "reasons": ["no"]}', False),
        ('```\n{"verdict": "accept"}\n```\n no: {"verdict": "reject", "reasons": ["no"]}', False),
    ],
)
def test_the_last_verdict_counts(answer: str, is_accepted: bool) -> None:  # noqa: FBT001
    """A verdict may be fenced or bare; of several the last one is what the reviewer ended on."""
    assert parse_verdict(answer).is_accepted is is_accepted


def test_what_follows_much_broken_code_still_counts() -> None:
    """A verdict that was taken back after pages of code does not accept the work."""
    start = 'I thought {"verdict": "accept"}, but look:\n'
    end = '\n{"verdict": "reject", "reasons": ["it is broken"]}'
    assert not parse_verdict(start + "if (x) { y[i] }\n" * 5_000 + end).is_accepted
    with pytest.raises(VerdictError, match="looks like JSON"):
        parse_verdict(start + '{"x: ' * 5_000 + end)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("", "empty"),
        ("It is good.", '"verdict"'),
        ('["accept"]', '"verdict"'),
        ('{"verdict": "maybe"}', "'maybe'"),
        ('{"verdict": true}', "a bool"),
        ('{"verdict": {"verdict": "accept"}}', "a dict"),
        ('{"verdict": "reject"}', "at least one reason"),
        ('{"verdict": "reject", "reasons": [" "]}', "at least one reason"),
        ('{"verdict": "accept", "reasons": [1]}', "list of strings"),
        ('{"verdict": "accept", "reasons": {"a": 1}}', "list of strings"),
    ],
)
def test_what_is_no_verdict_is_refused(answer: str, words: str) -> None:
    """Nothing but a clear word of the reviewer accepts the work."""
    with pytest.raises(VerdictError, match=re.escape(words)):
        parse_verdict(answer)


def test_reasons_are_bounded() -> None:
    """Of a thousand long reasons twenty are kept, each cut."""
    answer = json.dumps({"verdict": "reject", "reasons": ["x" * 10_000] * 1_000})
    reasons = parse_verdict(answer).reasons
    assert [len(reason) for reason in reasons] == [2_000] * 20
