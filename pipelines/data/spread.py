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

from models.errors import ClusterError, DataError
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
        DataError: `work` raised, which stops everything: one video's fault is an answer, not an exception.
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

    rows = [{"index": index} for index in range(len(groups))]
    with _quiet():
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            answer, compute=_slots(), max_retries=MAX_RETRIES
        )
        for row in dataset.iter_rows():
            if row["problem"]:
                raise DataError(**json.loads(row["problem"]))
            yield groups[row["index"]], row


def _slots() -> TaskPoolStrategy:
    """On one machine no more tasks at a time than it has cores, however many CPUs it was told to pretend."""
    alone = sum(node["Alive"] for node in ray.nodes()) == 1
    return TaskPoolStrategy(size=max(1, os.cpu_count() or 1)) if alone else TaskPoolStrategy()


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray Data without bars, banners and its own log below errors, and going on when a block is lost."""
    context = ray.data.DataContext.get_current()
    wanted = {"enable_progress_bars": False, "print_on_execution_start": False, "max_errored_blocks": -1}
    before = {name: getattr(context, name) for name in wanted}
    log = logging.getLogger("ray.data")
    level = log.level
    for name, value in wanted.items():
        setattr(context, name, value)
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # max_retries has no named parameter yet
            warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
            yield
    finally:
        log.setLevel(level)
        for name, value in before.items():
            setattr(context, name, value)
