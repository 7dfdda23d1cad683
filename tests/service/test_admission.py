"""Who goes next: shares of tenants and adapters, slots, and what is shed when too many wait."""

import asyncio
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.admission import Admission, Queue, Turn
from service.errors import DeadlineExceeded, Overloaded
from service.metrics import Metrics
from service.settings import Settings


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def queue(capacity: int = 2, slots: int = 8, limit: int = 10_000) -> tuple[Queue, Clock]:
    clock = Clock()
    return Queue(capacity, slots, limit, clock), clock


async def serve(queue: Queue, clock: Clock, turns: list[Turn], seconds: float = 1.0) -> list[str]:
    """Let every turn run for so many seconds, in the order of admission; whose they were."""
    order: list[str] = []
    left = set(turns)
    while left:
        now = [t for t in turns if t in left and t.admitted.done()]
        assert now, "nothing runs, though something waits"
        clock.now += seconds
        for turn in now:
            order.append(f"{turn.flow.tenant}/{turn.flow.adapter}")
            left.discard(turn)
            queue.leave(turn)
    return order


async def test_what_an_engine_takes_goes_at_once_and_the_rest_in_order():
    q, clock = queue(capacity=2)
    turns = [q.join("t", None) for _ in range(5)]
    assert [turn.admitted.done() for turn in turns] == [True, True, False, False, False]
    q.leave(turns[0])
    assert [turn.admitted.done() for turn in turns[2:]] == [True, False, False]
    assert (q.running, q.waiting) == (2, 2)


async def test_a_tenant_with_one_request_does_not_wait_for_anothers_hundred():
    q, clock = queue(capacity=1)
    flood = [q.join("flood", None) for _ in range(100)]
    one = q.join("one", None)
    clock.now += 1
    q.leave(flood[0])
    assert one.admitted.done()


async def test_adapters_that_are_asked_for_unequally_are_served_equally():
    q, clock = queue(capacity=4, slots=2)
    names = [f"a{i}" for i in range(10)]
    turns = [q.join("t", name) for i, name in enumerate(names) for _ in range(20 + 40 * (i == 0))]
    order = await serve(q, clock, turns)
    half = Counter(order[: len(order) // 2])
    assert max(half.values()) - min(half.values()) <= 8 + 4  # a turn, and what runs
    assert len(half) == 10


async def test_a_tenant_of_many_adapters_has_the_share_of_a_tenant_of_one():
    q, clock = queue(capacity=2, slots=16)
    many = [q.join("many", f"a{i}") for i in range(8) for _ in range(40)]
    one = [q.join("one", "b") for _ in range(100)]
    order = await serve(q, clock, many + one)
    first = Counter(whose.partition("/")[0] for whose in order[:160])
    assert 0.7 <= first["one"] / first["many"] <= 1.4


async def test_no_more_adapters_run_at_a_time_than_have_slots():
    q, clock = queue(capacity=8, slots=3)
    turns = [q.join("t", f"a{i % 7}") for i in range(70)]
    left = list(turns)
    while left:
        now = [turn for turn in left if turn.admitted.done()]
        assert len({turn.flow.adapter for turn in now}) <= 3
        turn = random.Random(len(left)).choice(now)
        clock.now += 0.1
        left.remove(turn)
        q.leave(turn)


async def test_an_adapter_without_a_slot_comes_though_others_go_on_asking():
    q, clock = queue(capacity=2, slots=1)
    busy = [q.join("t", "busy") for _ in range(4)]
    late = q.join("t", "late")
    for _ in range(10):
        if late.admitted.done():
            break
        clock.now += 1
        done = next(turn for turn in busy if turn.admitted.done())
        busy.remove(done)
        q.leave(done)
        busy.append(q.join("t", "busy"))
    assert late.admitted.done()


async def test_above_the_limit_the_newest_of_the_longest_is_shed():
    q, clock = queue(capacity=1, limit=4)
    running = q.join("t", "a")
    flood = [q.join("t", "a") for _ in range(4)]
    other = q.join("u", "b")
    assert isinstance(flood[-1].admitted.exception(), Overloaded)
    assert not other.admitted.done()
    again = q.join("t", "a")
    assert isinstance(again.admitted.exception(), Overloaded)
    assert q.waiting == 4
    clock.now += 1
    q.leave(running)
    assert other.admitted.done()


@given(st.integers(0, 10**9))
def test_whatever_comes_and_goes_the_books_are_right(seed: int):
    async def play() -> None:
        chance = random.Random(seed)
        q, clock = queue(capacity=chance.randint(1, 4), slots=chance.randint(1, 3), limit=12)
        turns: list[Turn] = []
        for _ in range(200):
            clock.now += chance.random()
            if chance.random() < 0.55:
                adapter = chance.choice([None, "a", "b", "c", "d"])
                turns.append(q.join(chance.choice("xyz"), adapter))
            elif turns:
                q.leave(turns.pop(chance.randrange(len(turns))))
            turns = [turn for turn in turns if not shed(turn)]
            admitted = [turn for turn in turns if turn.admitted.done()]
            assert len(admitted) == q.running
            assert len(turns) - len(admitted) == q.waiting <= 12
        for turn in turns:
            q.leave(turn)
        assert (q.running, q.waiting, q._flows, q._adapters) == (0, 0, {}, {})

    def shed(turn: Turn) -> bool:
        return turn.admitted.done() and turn.admitted.exception() is not None

    asyncio.run(play())


async def test_a_turn_that_comes_too_late_is_refused_at_once_where_that_is_known(
    settings: Settings,
):
    one = settings.model_copy(update={"engine_concurrent_requests": 1})
    admission, loop = Admission(one, Metrics()), asyncio.get_running_loop()
    async with admission.turn("demo", "t", None, None):
        with pytest.raises(Overloaded):
            async with admission.turn("demo", "t", None, loop.time() + 0.01):
                pass
        with pytest.raises(DeadlineExceeded):
            async with admission.turn("demo", "t", None, loop.time() + 1.05):
                pass
    async with admission.turn("demo", "t", None, loop.time() + 0.01):
        pass
