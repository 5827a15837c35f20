"""Work whose parts wait for each other, a few at a time."""

from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from graphlib import TopologicalSorter


def run_graph(graph: Mapping[str, set[str]], work: Callable[[str], object], slots: int) -> None:
    """Calls `work(name)` for every name once all that it waits for is done, at most `slots` at once.

    Args:
        graph: name to the names it waits for; names that are ready together start in the graph's order.
        work: a blocking call; its first exception ends the rest.
        slots: how many run side by side.
    """
    sorter = TopologicalSorter(graph)
    sorter.prepare()
    pool = ThreadPoolExecutor(slots, thread_name_prefix="stage")
    running: dict[Future[object], str] = {}
    order = list(graph)
    try:
        while sorter.is_active():
            for name in sorted(sorter.get_ready(), key=order.index):
                running[pool.submit(work, name)] = name
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()
                sorter.done(running.pop(future))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
