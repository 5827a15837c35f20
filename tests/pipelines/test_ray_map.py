"""Each item goes to its own task and comes back as it is; what a worker raises stops everything."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray import cloudpickle

from models.errors import CheckpointError, ClusterError, DataError
from pipelines import ray_map as module
from pipelines.data.ingest.worker import Group
from pipelines.data.source.manifest import Source
from pipelines.data.store.caption_embeddings import CaptionGroup
from pipelines.ray_map import MAX_RETRIES, Pool, Tasks, ray_map, ray_map_all


def groups(count: int) -> list[Group]:
    videos = [
        Source(id=f"{i:064x}", path=f"{i}.mp4", caption="words " * 9, num_bytes=1) for i in range(count)
    ]
    return [Group(corpus="short", sources=(video,), picks=3) for video in videos]


class Mapped:
    """A dataset that is asked to map, and notes what each of its tasks would load."""

    loaded = 0

    def map(self, function: Callable[..., Any], **options: Any) -> "Mapped":
        self.loaded = len(cloudpickle.dumps((function, options.get("fn_constructor_args"))))
        return self


@pytest.mark.parametrize("workers", [Tasks(), Pool(1, 2)])
def test_what_every_task_loads_does_not_grow_with_the_items(
    workers: Tasks | Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.ray, "nodes", lambda: [{"Alive": True}])
    monkeypatch.setattr(module.ray.data, "from_items", lambda *_, **__: Mapped())
    sizes = [module._dataset(str, groups(count), workers).loaded for count in (2, 200)]  # type: ignore[attr-defined]
    assert sizes[0] == sizes[1]


def test_items_and_results_travel_as_they_are(ray_local: None) -> None:
    items = [*groups(2), CaptionGroup(("one", "two")), ("a tuple", 1), np.arange(6).reshape(2, 3)]
    results = ray_map_all(lambda item: (repr(item), item), items, Tasks(max_tasks=2))
    assert [text for text, _ in results] == [repr(item) for item in items]
    assert [type(item) for _, item in results] == [type(item) for item in items]


def test_results_come_back_in_order_and_are_counted(ray_local: None) -> None:
    counted: list[int] = []
    results = ray_map_all(lambda n: np.full(n + 1, n**2), range(5), Pool(1, 2), counted.append)
    assert [result.tolist() for result in results] == [[n**2] * (n + 1) for n in range(5)]
    assert counted == [1, 2, 3, 4, 5]
    assert ray_map_all(str, [], None, counted.append) == []


def test_a_pool_grows_while_items_wait(ray_local: None) -> None:
    def work(_: int) -> int:
        time.sleep(0.5)
        return os.getpid()

    workers = ray_map_all(work, range(40), Pool(1, 2))
    assert {workers.count(pid) > 5 for pid in set(workers)} == {True}
    assert len(set(workers)) == 2


def test_a_workers_error_keeps_its_kind_and_remedy(ray_local: None) -> None:
    def broken(_: int) -> None:
        raise CheckpointError("the weights are gone", "train again")

    with pytest.raises(CheckpointError, match="train again"):
        list(ray_map(broken, [1, 2]))


def test_a_defect_names_its_item_and_carries_the_traceback(ray_local: None) -> None:
    def broken(_: Group) -> int:
        return {}["missing"]  # type: ignore[no-any-return]

    with pytest.raises(DataError, match=r"the videos from 0\.mp4 on failed: KeyError: 'missing'") as caught:
        list(ray_map(broken, groups(1)))
    assert "in broken" in caught.value.__notes__[0]


def test_a_worker_that_dies_each_time_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(_work: object, items: list[str], _workers: object) -> Iterator[tuple[int, str]]:
        passes.append(items)
        yield from ((place, item) for place, item in enumerate(items) if item != "item 1")

    passes: list[list[str]] = []
    monkeypatch.setattr(module, "ray_map", lose)
    with pytest.raises(ClusterError, match="Work on item 1 was lost"):
        ray_map_all(str, ["item 0", "item 1", "item 2"])
    assert passes == [["item 0", "item 1", "item 2"], ["item 1"]]


def test_what_is_lost_once_goes_to_new_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(_work: object, items: list[str], _workers: object) -> Iterator[tuple[int, str]]:
        yield from ((place, item) for place, item in enumerate(items) if len(items) < 4 or item in "ac")

    counted: list[int] = []
    monkeypatch.setattr(module, "ray_map", lose)
    assert ray_map_all(str, ["a", "b", "c", "d"], None, counted.append) == ["a", "b", "c", "d"]
    assert counted == [1, 2, 3, 4]


class Unstartable:
    """Work that the first `deaths` actors cannot load: the node is going, and the code on it is gone."""

    def __init__(self, folder: Path, deaths: int) -> None:
        self.folder, self.deaths = folder, deaths

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for death in range(self.deaths):
            with suppress(FileExistsError):
                (self.folder / str(death)).touch(exist_ok=False)
                raise FileNotFoundError("the working directory is gone")

    def __call__(self, number: int) -> int:
        return 2 * number


@pytest.mark.parametrize("deaths", [pytest.param(1, marks=pytest.mark.long), MAX_RETRIES])
def test_an_actor_that_cannot_be_started_is_replaced(deaths: int, ray_local: None, tmp_path: Path) -> None:
    work = Unstartable(tmp_path, deaths)
    assert ray_map_all(work, range(3), Pool(1, 1)) == [0, 2, 4]
    assert len(list(tmp_path.iterdir())) == deaths


def test_actors_that_can_never_be_started_are_told(ray_local: None, tmp_path: Path) -> None:
    with pytest.raises(
        ClusterError,
        match=f"{1 + MAX_RETRIES} workers in a row died while they started: .*working directory is gone",
    ) as caught:
        ray_map_all(Unstartable(tmp_path, 99), range(3), Pool(1, 1))
    assert "ray status" in caught.value.remedy
    assert len(list(tmp_path.iterdir())) == 1 + MAX_RETRIES


def test_ray_datas_settings_are_put_back(ray_local: None, monkeypatch: pytest.MonkeyPatch) -> None:
    context = ray.data.DataContext.get_current()
    monkeypatch.setattr(context, "max_errored_blocks", 3)
    monkeypatch.setattr(context, "enable_progress_bars", True)
    list(ray_map(str, [1]))
    assert (context.max_errored_blocks, context.enable_progress_bars) == (3, True)
