"""A function over items on a Ray cluster, by Ray Data: one block per item, so that a lost worker costs one.

An item whose worker dies is tried `MAX_RETRIES` times more and then left out; an actor that cannot start,
because its node is going, is replaced. Items and results travel as Python objects, each item to its own task
alone.
"""

import logging
import os
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Generic, NamedTuple, TypeVar

import ray
import ray.data
from ray.data import ActorPoolStrategy, TaskPoolStrategy
from ray.exceptions import RayActorError, RuntimeEnvSetupError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from models.errors import ClusterError, DataError, SostenutoError

MAX_RETRIES, PASSES = 2, 2

LOST = (RayActorError, RuntimeEnvSetupError)
"""What Ray raises for an actor that cannot be started."""

T = TypeVar("T")
R = TypeVar("R")


class Tasks(NamedTuple):
    """Stateless Ray tasks."""

    max_tasks: int | None = None
    """At a time. None: as many as the cluster takes; on a single machine one more than it has cores, so that
    no core waits while Ray hands out the next item."""
    use_gpu: bool = False
    """One GPU per task."""


class Pool(NamedTuple):
    """Ray actors: what `work` caches in its process, such as a model, stays from item to item."""

    min_actors: int
    """At the start."""
    max_actors: int
    """Ray adds actors while items are waiting."""
    use_gpu: bool = False
    """One GPU per actor."""


def on_this_node() -> NodeAffinitySchedulingStrategy:
    """Where an actor lives as long as the driver that makes it, whatever befalls other nodes."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


class _Opaque:
    """Hides a value from Ray Data, which turns tuples and arrays into Arrow lists and tensors."""

    def __init__(self, value: Any) -> None:
        self.value = value


class _Worker(Generic[T, R]):
    def __init__(self, work: Callable[[T], R]) -> None:
        self._work = work

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        # an exception travels as a result: Ray Data would take it for a lost block and leave it out
        item: T = row["item"].value
        result: R | SostenutoError
        try:
            result = self._work(item)
        except SostenutoError as error:
            result = error
        except Exception as error:  # noqa: BLE001
            result = DataError(
                f"Work on {item} failed: {type(error).__name__}: {error}",
                "This is a defect of the program; run it again with --debug and report it",
            )
            result.add_note(traceback.format_exc())
        return {"index": row["index"], "result": _Opaque(result)}


def ray_map(
    work: Callable[[T], R], items: Sequence[T], workers: Tasks | Pool | None = None
) -> Iterator[tuple[int, R]]:
    """(index of an item, its result) as they finish; an item that is left out has none.

    Args:
        work: called with an item in a worker process.
        items: str(item) names it in error messages.
        workers: None is `Tasks()`.

    Raises:
        ClusterError: Ray is not running, or starts no worker.
        SostenutoError: what `work` raised, which stops everything; another exception as a DataError.
    """
    if not items:
        return
    if not ray.is_initialized():
        raise ClusterError("Ray is not running", "Start it with ray.init()")
    workers = workers or Tasks()
    deaths = MAX_RETRIES * workers.max_actors if isinstance(workers, Pool) else 0
    with _quiet(deaths):
        try:
            for row in _dataset(work, items, workers).iter_rows():
                result = row["result"].value
                if isinstance(result, SostenutoError):
                    raise result
                yield row["index"], result
        except LOST as error:
            reason = str(error).strip().splitlines()[-1]
            raise ClusterError(
                f"{1 + deaths} workers in a row died while they started: {reason}",
                "Look at the nodes (ray status), and give the command again: what is finished is kept",
            ) from error


def ray_map_all(
    work: Callable[[T], R],
    items: Sequence[T],
    workers: Tasks | Pool | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[R]:
    """The result of every item, in order; what is lost goes to new workers once more.

    An actor whose node was taken away refuses its item as long as it moves, which may be for all its retries.

    Args:
        progress: called with the number of finished items.

    Raises:
        ClusterError: Ray is not running, or the worker of an item died each time.
        SostenutoError: as `ray_map`.
    """
    results: dict[int, R] = {}
    waiting = list(range(len(items)))
    for _ in range(PASSES):
        for place, result in ray_map(work, [items[index] for index in waiting], workers):
            results[waiting[place]] = result
            if progress is not None:
                progress(len(results))
        waiting = [index for index in waiting if index not in results]
    if waiting:
        raise ClusterError(
            f"Work on {items[waiting[0]]} was lost: its worker died {PASSES * (1 + MAX_RETRIES)} times",
            "Give the workers more memory, or have fewer of them; what is finished is kept",
        )
    return [results[index] for index in range(len(items))]


def _dataset(work: Callable[[T], R], items: Sequence[T], workers: Tasks | Pool) -> "ray.data.Dataset":
    rows = [{"index": index, "item": _Opaque(item)} for index, item in enumerate(items)]
    num_gpus = 1 if workers.use_gpu else None
    with warnings.catch_warnings():
        # max_retries has no named parameter yet
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
        dataset = ray.data.from_items(rows, override_num_blocks=len(items))
        if isinstance(workers, Tasks):
            worker = _Worker(work)
            max_tasks = workers.max_tasks
            if max_tasks is None and sum(node["Alive"] for node in ray.nodes()) == 1:
                max_tasks = (os.cpu_count() or 1) + 1
            return dataset.map(
                lambda row: worker(row),
                compute=TaskPoolStrategy(size=max_tasks and min(len(items), max_tasks)),
                num_gpus=num_gpus,
                max_retries=MAX_RETRIES,
            )
        return dataset.map(
            _Worker,
            fn_constructor_args=(work,),
            # with more in flight, an item that kills its actor takes those that wait behind it along
            compute=ActorPoolStrategy(
                min_size=min(workers.min_actors, len(items)),
                max_size=min(workers.max_actors, len(items)),
                max_tasks_in_flight_per_actor=1,
            ),
            num_gpus=num_gpus,
            max_task_retries=MAX_RETRIES,
        )


@contextmanager
def _quiet(deaths: int) -> Iterator[None]:
    """Ray Data without bars, banners and its own log below errors, and going on when a block is lost.

    Args:
        deaths: actors in a row that may die while they start.
    """
    with warnings.catch_warnings():
        # making the context trips over a deprecation of its own
        warnings.simplefilter("ignore", DeprecationWarning)
        context = ray.data.DataContext.get_current()
    settings = {
        "enable_progress_bars": False,
        "print_on_execution_start": False,
        "max_errored_blocks": -1,
        "max_consecutive_actor_init_deaths": deaths,
        "enable_fallback_to_arrow_object_ext_type": True,
        # an actor has one item at a time: no pool is fuller than 1, and Ray would add actors from 1.75 on
        "autoscaling_config": replace(
            context.autoscaling_config,
            actor_pool_util_upscaling_threshold=1.0,
            actor_pool_util_downscaling_threshold=0.0,
        ),
    }
    before = {name: getattr(context, name) for name in settings}
    log = logging.getLogger("ray.data")
    level = log.level
    for name, value in settings.items():
        setattr(context, name, value)
    log.setLevel(max(level, logging.ERROR))
    try:
        yield
    finally:
        log.setLevel(level)
        for name, value in before.items():
            setattr(context, name, value)
