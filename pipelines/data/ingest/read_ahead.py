"""Reading ahead: the next items are made in a thread while the present one is used."""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

_END = object()


@contextmanager
def read_ahead(items: Generator[T, None, None], depth: int) -> Iterator[Iterator[T]]:
    """The same items in the same order, made at most `depth` ahead by a thread of their own.

    What making an item raises is raised where the item would have come. Leaving the context closes `items`.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
    waiting: deque[Future[object]] = deque(pool.submit(next, items, _END) for _ in range(depth))

    def given() -> Iterator[T]:
        while (item := waiting.popleft().result()) is not _END:
            waiting.append(pool.submit(next, items, _END))
            yield item  # type: ignore[misc]  # _END is the only thing in there that is no T

    try:
        yield given()
    finally:
        pool.shutdown(cancel_futures=True)
        items.close()
