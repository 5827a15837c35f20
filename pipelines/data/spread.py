"""Groups of videos over a Ray cluster by Ray Data: one block a group, so that a lost worker costs one group.

A group whose worker dies is tried `MAX_RETRIES` times more and then left out; what Ray Data would else
retry for ever.
"""

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
import ray.data
from ray.data import TaskPoolStrategy

from models.errors import ClusterError, DataError, LongtakeError
from pipelines.data.tasks import Group, explain

MAX_RETRIES = 2


def run_groups(
    groups: Sequence[Group], work: Callable[[Group], dict[str, Any]]
) -> Iterator[tuple[Group, dict[str, Any]]]:
    """(group, answer) of every group whose worker lived, as they finish.

    Args:
        work: called with a group in a worker process; gives plain values (JSON and bytes) under string keys.

    Raises:
        ClusterError: Ray is not running.
        LongtakeError: what `work` raised, which stops everything (DataError if it was no LongtakeError): one
            video's fault is an answer, not an exception.
    """
    if not groups:
        return
    if not ray.is_initialized():
        raise ClusterError("Ray is not running", "Start it with ray.init() before ingest")

    def answer(row: dict[str, Any]) -> dict[str, Any]:
        group = groups[row["index"]]
        try:
            return {"index": row["index"], "problem": "", **work(group)}
        except Exception as error:  # noqa: BLE001  Ray Data would drop it silently
            return {"index": row["index"], "problem": json.dumps(explain(error, group))}

    with _quiet():
        for row in _mapped(len(groups), answer).iter_rows():
            if row["problem"]:
                raise _raised(json.loads(row["problem"]))
            yield groups[row["index"]], row


def _mapped(count: int, answer: Callable[[dict[str, Any]], dict[str, Any]]) -> "ray.data.Dataset":
    rows = [{"index": index} for index in range(count)]
    with warnings.catch_warnings():
        # max_retries has no named parameter yet
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
        return ray.data.from_items(rows, override_num_blocks=count).map(
            answer, compute=_slots(count), max_retries=MAX_RETRIES
        )


def _raised(told: dict[str, str]) -> LongtakeError:
    """The error that a worker met, as its own kind."""
    kinds = {kind.__name__: kind for kind in LongtakeError.__subclasses__()}
    return kinds.get(told["kind"], DataError)(told["problem"], told["remedy"])


def _slots(count: int) -> TaskPoolStrategy:
    """On one machine no more tasks at a time than it has cores, however many CPUs it was told to pretend."""
    alone = sum(node["Alive"] for node in ray.nodes()) == 1
    return TaskPoolStrategy(size=min(count, os.cpu_count() or 1)) if alone else TaskPoolStrategy()


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray Data without bars, banners and its own log below errors, and going on when a block is lost."""
    with warnings.catch_warnings():
        # making the context trips over a deprecation of its own
        warnings.simplefilter("ignore", DeprecationWarning)
        context = ray.data.DataContext.get_current()
    wanted = {"enable_progress_bars": False, "print_on_execution_start": False, "max_errored_blocks": -1}
    before = {name: getattr(context, name) for name in wanted}
    log = logging.getLogger("ray.data")
    level = log.level
    for name, value in wanted.items():
        setattr(context, name, value)
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
        for name, value in before.items():
            setattr(context, name, value)
