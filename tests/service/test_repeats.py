"""When a composition counts as asked for again and again."""

from service.repeats import Repeats


def due(times: int, seconds: float, asked: list[float]) -> list[bool]:
    """What each of several requests for one composition, at these times, is told."""
    clock = iter(asked)
    repeats = Repeats(times, seconds, lambda: next(clock))
    return [repeats.due("a") for _ in asked]


def test_the_last_of_enough_requests_within_the_window_makes_it_due():
    assert due(3, 10, [0, 5, 10]) == [False, False, True]


def test_requests_that_are_too_far_apart_do_not():
    assert due(3, 10, [0, 5, 11, 20]) == [False, False, False, False]
    assert due(3, 10, [0, 9, 11, 12]) == [False, False, False, True]


def test_compositions_are_counted_apart():
    repeats = Repeats(2, 10)
    assert [repeats.due(digest) for digest in "abab"] == [False, False, True, True]


def test_zero_is_never():
    assert due(0, 10, [0, 0, 0]) == [False, False, False]


def test_what_was_asked_for_long_ago_is_forgotten_so_that_the_books_stay_small():
    repeats = Repeats(2, 10)
    repeats.due("first")
    for i in range(5000):
        repeats.due(str(i))
    assert not repeats.due("first")
