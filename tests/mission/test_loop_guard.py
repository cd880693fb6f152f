"""Equal tool calls across the steps of one turn."""

from __future__ import annotations

from orchestra.events import TextReceived, ToolCalled, ToolStatus
from orchestra.opencode.mission.loop_guard import LoopGuard


def call(
    number: int,
    pattern: str = "TODO",
    output: str = "no match",
    status: ToolStatus = ToolStatus.COMPLETED,
) -> ToolCalled:
    return ToolCalled(
        session_id="s",
        call_id=f"c{number}",
        tool="grep",
        status=status,
        input={"pattern": pattern},
        output=output,
    )


def test_equal_calls_in_a_row_end_the_turn() -> None:
    """opencode#45442: 364 equal searches, one per step of the model, are stopped at the limit."""
    guard = LoopGuard(20)
    told = [guard.see(call(number)) for number in range(364)]
    assert told.index(next(filter(None, told))) == 19
    assert "grep" in told[19]
    assert "20 times" in told[19]


def test_any_other_call_begins_anew() -> None:
    """Calls that differ in anything do not add up, however many there are."""
    guard = LoopGuard(3)
    for number in range(100):
        assert not guard.see(call(number, pattern=str(number // 2)))


def test_one_call_counts_once() -> None:
    """A call is told once per status, and counts when it has come to its end."""
    guard = LoopGuard(3)
    for status in (ToolStatus.PENDING, ToolStatus.RUNNING, ToolStatus.COMPLETED) * 2:
        assert not guard.see(call(1, status=status))
    assert not guard.see(TextReceived(session_id="s", text="well"))
    assert guard.see(call(2))


def test_who_waits_for_something_may_look_longer() -> None:
    """Equal calls with other results may be a wait for a build: five times as many may come."""
    guard = LoopGuard(4)
    told = [guard.see(call(number, output=f"{number} %")) for number in range(30)]
    assert told.index(next(filter(None, told))) == 19


def test_the_digest_tells_whether_two_turns_did_the_same() -> None:
    """Equal calls in equal order have an equal digest, whatever came back."""
    one, two, three = LoopGuard(9), LoopGuard(9), LoopGuard(9)
    for pattern in ("a", "b"):
        one.see(call(1, pattern))
        two.see(call(2, pattern, output="other"))
    for pattern in ("b", "a"):
        three.see(call(1, pattern))
    assert one.digest == two.digest != three.digest
