"""Items come in order, as far ahead as allowed, and their errors come where they belong."""

import threading
from collections.abc import Generator, Iterator
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.data.ingest.read_ahead import read_ahead


@given(st.lists(st.integers() | st.none(), max_size=30), st.integers(1, 5))
def test_the_same_items_in_the_same_order(items: list[int | None], depth: int) -> None:
    with read_ahead((item for item in items), depth) as ahead:
        assert list(ahead) == items


def test_no_more_than_the_depth_is_made() -> None:
    made: list[int] = []
    third = threading.Event()

    def items() -> Generator[int, None, None]:
        for number in range(100):
            made.append(number)
            if number == 3:
                third.set()
            yield number

    with read_ahead(items(), depth=3) as ahead:
        assert next(ahead) == 0
        assert third.wait(10)
        assert len(made) == 4
    assert len(made) < 100


def test_an_error_comes_after_the_items_before_it() -> None:
    def items() -> Generator[int, None, None]:
        yield 1
        yield 2
        raise ZeroDivisionError

    with read_ahead(items(), depth=8) as ahead:
        assert list(islice(ahead, 2)) == [1, 2]
        with pytest.raises(ZeroDivisionError):
            next(ahead)


def test_leaving_early_closes_the_maker_and_ends_the_thread() -> None:
    closed = threading.Event()

    def items() -> Generator[int, None, None]:
        try:
            yield from range(1000)
        finally:
            closed.set()

    def leave(ahead: Iterator[int]) -> None:
        next(ahead)
        raise KeyError

    with pytest.raises(KeyError), read_ahead(items(), depth=2) as ahead:
        leave(ahead)
    assert closed.is_set()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]
