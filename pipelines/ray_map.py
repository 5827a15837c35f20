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
from typing import Any, Generic, NamedTuple, TypeVar

import ray
import ray.data
from ray.data import ActorPoolStrategy, TaskPoolStrategy

from models.errors import ClusterError, DataError, SostenutoError
from pipelines.data.ingest.groups import Work, explain

MAX_RETRIES = 2

Row = dict[str, Any]
G = TypeVar("G", bound=Work)


class Pool(NamedTuple):
    """Actors that keep a model from group to group."""

    min_actors: int
    """At the start."""
    max_actors: int
    """At most; Ray adds them while work is waiting."""
    use_gpu: bool = False
    """One GPU an actor."""


class _Worker(Generic[G]):
    """What runs in a Ray worker: a group in, its answer out."""

    def __init__(self, work: Callable[[G], Row]) -> None:
        self._work = work

    def __call__(self, row: Row) -> Row:
        group = row["group"]
        try:
            return {"index": row["index"], "problem": "", **self._work(group)}
        except Exception as error:  # noqa: BLE001  Ray Data would drop it silently
            return {"index": row["index"], "problem": json.dumps(explain(error, group))}


def run_groups(
    groups: Sequence[G], work: Callable[[G], Row], pool: Pool | None = None
) -> Iterator[tuple[G, Row]]:
    """(group, answer) of every group whose worker lived, as they finish.

    Args:
        groups: dataclasses; each travels to its own task alone.
        work: called with a group in a worker process; gives plain values (JSON and bytes) under string keys.
        pool: actors that do the work; None for tasks.

    Raises:
        ClusterError: Ray is not running.
        SostenutoError: what `work` raised, which stops everything (DataError if it was another error). One
            video's fault is an answer, not an exception.
    """
    if not groups:
        return
    if not ray.is_initialized():
        raise ClusterError("Ray is not running", "Start it with ray.init() before ingest")
    with _quiet():
        for row in _mapped(groups, work, pool).iter_rows():
            if row["problem"]:
                raise _raised(json.loads(row["problem"]))
            yield groups[row["index"]], row


def _mapped(groups: Sequence[G], work: Callable[[G], Row], pool: Pool | None) -> "ray.data.Dataset":
    rows = [{"index": index, "group": group} for index, group in enumerate(groups)]
    with warnings.catch_warnings():
        # how often a task is tried has no named parameter yet
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
        dataset = ray.data.from_items(rows, override_num_blocks=len(groups))
        if pool is None:
            worker = _Worker(work)
            return dataset.map(lambda row: worker(row), compute=_slots(len(groups)), max_retries=MAX_RETRIES)
        return dataset.map(
            _Worker,
            fn_constructor_args=(work,),
            # one at a time, or a group that kills its actor would take those that wait behind it along
            compute=ActorPoolStrategy(
                min_size=pool.min_actors, max_size=pool.max_actors, max_tasks_in_flight_per_actor=1
            ),
            num_gpus=1 if pool.use_gpu else None,
            max_task_retries=MAX_RETRIES,
        )


def _raised(told: dict[str, str]) -> SostenutoError:
    """The error that a worker met, as its own kind."""
    kinds = {kind.__name__: kind for kind in SostenutoError.__subclasses__()}
    return kinds.get(told["kind"], DataError)(told["problem"], told["remedy"])


def _slots(count: int) -> TaskPoolStrategy:
    """On one machine one task more than it has cores: none waits for Ray to hand it a group."""
    alone = sum(node["Alive"] for node in ray.nodes()) == 1
    return TaskPoolStrategy(size=min(count, (os.cpu_count() or 1) + 1)) if alone else TaskPoolStrategy()


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
