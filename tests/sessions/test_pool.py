"""A pool of sessions: what is leased to whom, and for how long it is kept. In virtual time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
from inn import Guest, Inn

from orchestra import EmbeddedBackend, Priority, Session, SessionPool, Turn
from orchestra.abc import Agent
from orchestra.errors import AgentNotFoundError, CapacityError, TransportError
from orchestra.events import ResourceCreated, ResourceDestroyed, ResourceEnd
from orchestra.testing import settle, virtual_time_options

HERE = Path("/here")
THERE = Path("/there")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Every async test here runs on both event loops, in virtual time."""
    return request.param, virtual_time_options(request.param)


def guest(session: Session) -> Guest:
    """The session as what it is."""
    assert isinstance(session, Guest)
    return session


# ---- fresh ----


async def test_a_fresh_session_is_leased_once() -> None:
    """No session is leased twice, none is open afterwards, and each was open only as needed."""
    inn = Inn()
    seen = set()
    async with SessionPool(inn) as pool:
        for n in range(10):
            async with pool.lease("worker", directory=HERE, mission="same") as session:
                assert (await session.prompt(f"task {n}")).text == f"task {n}"
                seen.add(session.id)
    assert len(seen) == 10
    assert inn.open_now == []
    assert pool.statistics().closed == pool.statistics().opened == inn.opened == 11


async def test_sessions_are_opened_ahead() -> None:
    """After prewarming, and again after each lease, the next one waits for no opening."""
    inn = Inn()
    inn.seconds["open"] = 20.0
    async with SessionPool(inn) as pool:
        await pool.prewarm(HERE, ["worker", "planner"])
        assert inn.warm == [HERE]
        await anyio.sleep(21)
        assert pool.statistics().idle == 2
        for _ in range(3):
            began = anyio.current_time()
            async with pool.lease("worker", directory=HERE):
                assert anyio.current_time() == began
            await anyio.sleep(25)
        assert pool.statistics("worker").leased == 3
        assert pool.statistics("planner").idle == 1
    assert inn.open_now == []


async def test_prewarming_another_directory_moves_what_idles() -> None:
    """Sessions opened ahead are opened where they are wanted next; those in use stay."""
    inn = Inn()
    async with SessionPool(inn, min_idle=2) as pool:
        await pool.prewarm(HERE, ["worker"])
        await anyio.sleep(5)
        lease = await pool.acquire("worker", directory=HERE)
        await anyio.sleep(5)
        await pool.prewarm(THERE, ["worker"])
        await anyio.sleep(5)
        assert sorted(str(one.directory) for one in inn.open_now) == ["/here", "/there", "/there"]
        assert lease.is_held
        now = pool.statistics()
        assert (now.misplaced, now.unfit, now.idle) == (2, 0, 2)
        lease.release()


async def test_prewarming_a_directory_alone_opens_nothing() -> None:
    """Without agents only the backend is asked."""
    inn = Inn()
    async with SessionPool(inn) as pool:
        await pool.prewarm(HERE)
        await anyio.sleep(30)
    assert (inn.warm, inn.opened) == ([HERE], 0)


async def test_a_role_that_is_first_wanted_while_another_opens_has_its_own_sessions() -> None:
    """A task that a backend starts while it opens a session may lease one, of any role."""
    inn = Inn()
    async with SessionPool(inn) as pool, anyio.create_task_group() as tasks:

        async def plan() -> None:
            async with pool.lease("planner", directory=THERE) as session:
                assert guest(session).agent == "planner"
            await anyio.sleep(5)

        opened = []

        def on_open(name: str) -> None:
            opened.append(name)
            if opened == ["worker", "worker"]:  # one ahead, and one in the task that wants it
                tasks.start_soon(plan)

        inn.on_open = on_open
        async with pool.lease("worker", directory=HERE):
            await anyio.sleep(10)
        assert pool.statistics("planner").idle == 1
        ahead = [one for one in inn.open_now if one.agent == "planner"]
        assert [one.directory for one in ahead] == [THERE]


async def test_title_and_metadata_reach_the_agent(tmp_path: Path) -> None:
    """A session that was opened ahead gets what its lease says; a plain one gets nothing."""
    seen = []

    async def worker(turn: Turn) -> str:
        seen.append(dict(turn.metadata))
        return "done"

    async with EmbeddedBackend({"worker": worker}) as backend, SessionPool(backend) as pool:
        await pool.prewarm(tmp_path, ["worker"])
        await settle()
        for metadata in ({"task": "a"}, None, {"task": "b"}):
            async with pool.lease("worker", directory=tmp_path, metadata=metadata) as session:
                await session.prompt("go")
    assert seen == [{"task": "a"}, {}, {"task": "b"}]


# ---- limits ----


async def test_a_role_is_bounded_over_all_directories() -> None:
    """The sixth lease of a role waits wherever it is; another role does not."""
    inn = Inn()
    async with SessionPool(inn, min_idle=0, sizes={"boss": 1}) as pool:
        held = [
            await pool.acquire("worker", directory=place) for place in (HERE, THERE, HERE, THERE)
        ]
        held.append(await pool.acquire(Agent("worker", prompt="another"), directory=HERE))
        async with anyio.create_task_group() as tasks:
            got = anyio.Event()

            async def want() -> None:
                async with pool.lease("worker", directory=THERE):
                    got.set()

            tasks.start_soon(want)
            async with pool.lease("boss", directory=HERE):
                await anyio.sleep(60)
                with anyio.move_on_after(60):
                    await pool.acquire("boss", directory=THERE)
                    pytest.fail("a role of one has two")
            assert not got.is_set()
            assert pool.statistics().tasks_waiting == 1
            held.pop().release()
            await got.wait()
        for lease in held:
            lease.release()
    assert inn.most == 6
    assert inn.open_now == []


async def test_there_are_never_more_than_max_size() -> None:
    """Sessions that idle, elsewhere too, or are being closed count; the next waits until they go."""
    inn = Inn()
    inn.seconds["close"] = 10.0
    async with SessionPool(inn, max_size=3, min_idle=3) as pool, anyio.create_task_group() as tasks:

        async def use(directory: Path) -> None:
            async with pool.lease("worker", directory=directory) as session:
                await session.prompt("go")
                assert guest(session).directory == directory

        for n in range(12):
            tasks.start_soon(use, (HERE, THERE)[n % 2])
    assert inn.most == 3
    assert inn.open_now == []


async def test_who_waits_is_served_by_priority() -> None:
    """A more urgent task goes first; within a priority the first one does."""
    order: list[str] = []
    async with SessionPool(Inn(), max_size=1) as pool, anyio.create_task_group() as tasks:

        async def use(name: str, priority: Priority) -> None:
            async with pool.lease("worker", directory=HERE, priority=priority):
                order.append(name)
                await anyio.sleep(1)

        for name, priority in (
            ("a", Priority.NORMAL),
            ("low", Priority.LOW),
            ("b", Priority.NORMAL),
            ("high", Priority.HIGH),
        ):
            tasks.start_soon(use, name, priority)
            await anyio.sleep(0 if order else 2)
    assert order == ["a", "high", "b", "low"]


# ---- reset ----


async def test_a_reset_session_is_leased_again_and_knows_nothing() -> None:
    """One session serves ``max_uses`` tasks of a mission, and each sees only what it said."""
    inn = Inn()
    ids = []
    async with SessionPool(inn, policy="reset", max_size=1, max_uses=4) as pool:
        for n in range(10):
            async with pool.lease("worker", directory=HERE, mission="m") as session:
                assert (await session.prompt(f"task {n}")).text == f"task {n}"
                ids.append(session.id)
    assert [ids.count(name) for name in sorted(set(ids))] == [4, 4, 2]
    assert inn.open_now == []


async def test_embedded_sessions_can_be_reset(tmp_path: Path) -> None:
    """The agent's notes and the number of its prompts begin anew."""
    found = []

    async def worker(turn: Turn) -> str:
        found.append((turn.session_id, turn.number, dict(turn.memory)))
        turn.memory["secret"] = turn.prompt
        return "done"

    async with (
        EmbeddedBackend({"worker": worker}) as backend,
        SessionPool(backend, policy="reset", max_size=1) as pool,
    ):
        for _ in range(3):
            async with pool.lease("worker", directory=tmp_path) as session:
                await session.prompt("one")
                await session.prompt("two")
        assert backend.statistics().sessions_opened == 1
    name = found[0][0]
    assert found == 3 * [(name, 1, {}), (name, 2, {"secret": "one"})]


async def test_no_session_goes_from_one_mission_to_another() -> None:
    """Under ``reset`` a session stays with its mission; leases without a name are one mission."""
    inn = Inn()
    ids: dict[str, set[str]] = {}
    async with SessionPool(inn, policy="reset", min_idle=0) as pool:
        for mission in ("a", "a", "b", "", "", "b", "a", "b"):
            async with pool.lease("worker", directory=HERE, mission=mission) as session:
                await session.prompt("go")
                ids.setdefault(mission, set()).add(session.id)
            await anyio.sleep(5)
    assert {mission: len(found) for mission, found in ids.items()} == {"a": 2, "b": 3, "": 1}
    assert len(set.union(*ids.values())) == 6
    assert pool.statistics().misplaced == 5
    assert pool.statistics().unfit == 0


async def test_a_session_opened_ahead_suits_every_mission_of_its_place() -> None:
    """What nobody has used yet is leased to whoever comes, but not elsewhere or as another."""
    inn = Inn()
    for agent, directory, misplaced in (
        ("worker", HERE, 0),
        ("worker", THERE, 1),
        (Agent("worker", prompt="another"), HERE, 1),
    ):
        async with SessionPool(inn, policy="reset") as pool:
            await pool.prewarm(HERE, ["worker"])
            await anyio.sleep(5)
            async with pool.lease(agent, directory=directory, mission="m") as session:
                assert guest(session).directory == directory
            assert pool.statistics().misplaced == misplaced


async def test_what_is_not_proved_to_be_empty_is_closed() -> None:
    """When a reset cannot be proved, nobody gets the session again."""
    inn = Inn(is_forgetful=False)
    seen = []
    async with SessionPool(inn, policy="reset", max_size=1) as pool:
        for n in range(3):
            async with pool.lease("worker", directory=HERE) as session:
                assert (await session.prompt(f"task {n}")).text == f"task {n}"
                seen.append(session.id)
    assert len(set(seen)) == 3
    assert pool.statistics().reset_failures == 3
    assert inn.open_now == []


async def test_a_busy_session_is_closed_and_not_reused() -> None:
    """A lease that ends while a turn still runs elsewhere costs the session, not its successor."""
    inn = Inn()
    inn.seconds["answer"] = 40.0
    async with SessionPool(inn, policy="reset", max_size=1) as pool:
        lease = await pool.acquire("worker", directory=HERE)
        session = lease.session
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(session.prompt, "the secret")
            await anyio.sleep(1)
            lease.release()
            async with pool.lease("worker", directory=HERE) as other:
                assert other is not session
                assert (await other.prompt("mine")).text == "mine"
        assert guest(session).is_closed


async def test_what_was_written_late_is_seen_before_the_next_lease() -> None:
    """A session that is not as it was left after its reset is closed."""
    inn = Inn()
    async with SessionPool(inn, policy="reset", max_size=1) as pool:
        async with pool.lease("worker", directory=HERE) as first:
            pass
        await anyio.sleep(5)
        guest(first).is_well = False  # its check looks at the context, too
        async with pool.lease("worker", directory=HERE) as second:
            assert second is not first
    assert pool.statistics().unfit == 1


# ---- health and age ----


async def test_an_unfit_session_is_replaced_while_it_idles() -> None:
    """The health check finds what went wrong before anybody wants the session."""
    inn = Inn()
    async with SessionPool(inn, idle_timeout=None) as pool:
        await pool.prewarm(HERE, ["worker"])
        await anyio.sleep(5)
        (first,) = inn.open_now
        first.is_well = False
        await anyio.sleep(65)
        (second,) = inn.open_now
        assert second is not first
        looks = inn.looks
        async with pool.lease("worker", directory=HERE) as session:
            assert session is second
        assert inn.looks == looks, "a session that was seen a moment ago is looked at again"
        await anyio.sleep(600)
        assert inn.looks > looks + 5


async def test_a_session_not_seen_for_long_is_looked_at_before_its_lease() -> None:
    """Without a health check of its own, an idle session is checked when it is wanted."""
    inn = Inn()
    async with SessionPool(inn, idle_timeout=None, health_interval=None) as pool:
        await pool.prewarm(HERE, ["worker"])
        await anyio.sleep(5)
        (first,) = inn.open_now
        first.is_well = False
        async with pool.lease("worker", directory=HERE) as session:
            assert session is not first


async def test_what_nobody_wants_is_closed() -> None:
    """After the idle timeout sessions are closed, but for ``min_idle``."""
    inn = Inn()
    async with SessionPool(inn, idle_timeout=100.0, policy="reset", min_idle=2) as pool:
        leases = [await pool.acquire("worker", directory=HERE) for _ in range(5)]
        await anyio.sleep(500)
        assert len(inn.open_now) == 5, "what is in use is not idle"
        for lease in leases:
            lease.release()
        await anyio.sleep(105)
        assert len(inn.open_now) == 2


# ---- failures ----


async def test_a_failed_opening_is_the_callers_and_frees_the_place() -> None:
    """The backend's error comes out as it is, and the next task gets a session."""
    inn = Inn(refusals=1)
    async with SessionPool(inn, max_size=1, min_idle=0) as pool:
        with pytest.raises(TransportError, match="no room"):
            await pool.acquire("worker", directory=HERE)
        async with pool.lease("worker", directory=HERE):
            assert pool.statistics().open_failures == 1


async def test_an_unknown_agent_is_the_callers_error(tmp_path: Path) -> None:
    """Nothing of the pool hides what the backend has to say."""
    async with EmbeddedBackend({}) as backend, SessionPool(backend, min_idle=0) as pool:
        with pytest.raises(AgentNotFoundError, match="'nobody'"):
            await pool.acquire("nobody", directory=tmp_path)


async def test_a_session_that_cannot_be_relabelled_is_closed() -> None:
    """The lease fails with the backend's error, and its session is not leased again."""
    inn = Inn()
    async with SessionPool(inn, max_size=1, min_idle=0, policy="reset") as pool:
        async with pool.lease("worker", directory=HERE):
            pass
        await anyio.sleep(5)
        (first,) = inn.open_now

        async def fall_ill() -> None:
            await anyio.sleep(1.5)  # after the check
            first.is_well = False

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fall_ill)
            with pytest.raises(TransportError):
                await pool.acquire("worker", directory=HERE, title="t")
        with anyio.fail_after(60):
            async with pool.lease("worker", directory=HERE, title="t") as session:
                assert session is not first


# ---- leaving ----


async def test_leaving_waits_for_holders_and_then_closes_their_sessions() -> None:
    """A holder has the grace period; what it still holds then is closed; who waits is refused."""
    inn = Inn()
    refused = anyio.Event()
    async with anyio.create_task_group() as tasks:
        async with SessionPool(inn, max_size=1, grace_period=30.0) as pool:
            lease = await pool.acquire("worker", directory=HERE)
            session = lease.session

            async def want() -> None:
                with pytest.raises(CapacityError, match="closed"):
                    await pool.acquire("worker", directory=HERE)
                refused.set()

            tasks.start_soon(want)
            await settle()
            began = anyio.current_time()
        assert anyio.current_time() - began == pytest.approx(31, abs=0.5)
        assert refused.is_set()
    assert guest(session).is_closed
    assert inn.open_now == []
    assert not lease.is_held
    lease.release()


async def test_leaving_under_cancellation_closes_everything() -> None:
    """Cancelled in the middle of a turn, with others waiting: nothing is left open."""
    inn = Inn()
    inn.seconds["answer"] = math.inf
    with anyio.move_on_after(100):
        async with SessionPool(inn, max_size=2) as pool, anyio.create_task_group() as tasks:

            async def use() -> None:
                async with pool.lease("worker", directory=HERE) as session:
                    await session.prompt("without end")

            for _ in range(5):
                tasks.start_soon(use)
    assert inn.opened >= 2
    assert inn.open_now == []
    assert pool.statistics().in_use == pool.statistics().tasks_waiting == 0


async def test_what_the_block_raises_comes_out_as_it_is() -> None:
    """An error in the block closes everything and is not wrapped."""
    inn = Inn()
    with pytest.raises(LookupError, match="mine"):
        async with SessionPool(inn) as pool, pool.lease("worker", directory=HERE):
            raise LookupError("mine")
    assert inn.open_now == []


async def test_aclose_refuses_and_waits() -> None:
    """After aclose() nothing is open and nothing can be leased; it may be called twice."""
    inn = Inn()
    async with SessionPool(inn) as pool:
        await pool.prewarm(HERE, ["worker"])
        await anyio.sleep(5)
        await pool.aclose()
        assert inn.open_now == []
        await pool.aclose()
        with pytest.raises(CapacityError):
            await pool.acquire("worker", directory=HERE)
        with pytest.raises(CapacityError):
            await pool.prewarm(HERE)


# ---- leases ----


async def test_a_lease_ends_once() -> None:
    """A second release does nothing to whoever has the place by then."""
    async with SessionPool(Inn(), max_size=1) as pool:
        lease = await pool.acquire("worker", directory=HERE, mission="m")
        assert "'worker'" in repr(lease)
        assert "'m' held" in repr(lease)
        lease.release()
        lease.invalidate()
        with pytest.raises(RuntimeError, match="not held"):
            _ = lease.session
        async with pool.lease("worker", directory=HERE):
            lease.release()
            with anyio.move_on_after(30):
                await pool.acquire("worker", directory=HERE)
                pytest.fail("a second release has freed somebody else's place")


async def test_a_lease_is_entered_once() -> None:
    """Entering it again is an error."""
    async with SessionPool(Inn()) as pool:
        lease = pool.lease("worker", directory=HERE)
        async with lease:
            pass
        with pytest.raises(RuntimeError, match="entered once"):
            await lease.__aenter__()


async def test_invalidating_closes_the_session() -> None:
    """An invalidated session is not reset and not leased again."""
    inn = Inn()
    async with SessionPool(inn, policy="reset", max_size=1) as pool:
        lease = await pool.acquire("worker", directory=HERE)
        first = lease.session
        lease.invalidate()
        async with pool.lease("worker", directory=HERE) as second:
            assert second is not first
        assert guest(first).is_closed


async def test_acquiring_is_a_checkpoint_and_releasing_is_none() -> None:
    """Under cancellation acquiring fails, also when a session idles, and releasing works."""
    inn = Inn()
    async with SessionPool(inn, min_idle=2) as pool:
        await pool.prewarm(HERE, ["worker"])
        await anyio.sleep(5)
        lease = await pool.acquire("worker", directory=HERE)
        with anyio.CancelScope() as scope:
            scope.cancel()
            lease.release()
            await pool.acquire("worker", directory=HERE)
        assert scope.cancelled_caught
        assert pool.statistics().in_use == 0


# ---- looking ----


async def test_holders_and_statistics() -> None:
    """The pool says who has what, since when and from where, and counts by role."""
    told: list[ResourceCreated | ResourceDestroyed] = []
    async with SessionPool(Inn(), min_idle=0, listener=told.append) as pool:
        async with pool.lease("worker", directory=HERE, mission="m1") as session:
            await anyio.sleep(7)
            async with pool.lease("planner", directory=HERE, mission="m2"):
                first, second = pool.holders()
                assert first.resource is session
                assert (first.owner, second.owner) == ("m1", "m2")
                assert first.held_for >= 7 > second.held_for
                assert "test_pool.py" in first.place
                assert pool.statistics("worker").in_use == 1
                assert pool.statistics().in_use == 2
                assert "2 in use" in repr(pool)
        await anyio.sleep(5)
        assert pool.holders() == ()
    assert "closed" in repr(pool)
    causes = [event.cause for event in told if isinstance(event, ResourceDestroyed)]
    assert causes == [ResourceEnd.WORN, ResourceEnd.WORN]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"policy": "reuse"}, "policy must be"),
        ({"max_size": 0}, "max_size must be"),
        ({"sizes": {"worker": 0}}, r"sizes\['worker'\] must be"),
        ({"min_idle": 6}, "min_idle must be"),
        ({"max_uses": 0, "policy": "reset"}, "max_uses must be"),
        ({"idle_timeout": 0.0}, "idle_timeout must be"),
        ({"health_interval": -1.0}, "health_interval must be"),
        ({"call_timeout": 0.0}, "call_timeout must be"),
        ({"grace_period": -1.0}, "grace_period must be"),
    ],
)
def test_wrong_configuration_is_refused_at_once(wrong: dict[str, Any], message: str) -> None:
    """What cannot be is said at construction, with the argument's name."""
    with pytest.raises(ValueError, match=message):
        SessionPool(Inn(), **wrong)


async def test_a_pool_is_entered_once_and_before_it_is_used() -> None:
    """Leasing from a pool that was not entered, and entering it twice, are errors."""
    pool = SessionPool(Inn())
    with pytest.raises(RuntimeError, match="async with"):
        await pool.acquire("worker", directory=HERE)
    async with pool:
        pass
    with pytest.raises(RuntimeError, match="entered once"):
        await cast("Any", pool).__aenter__()
