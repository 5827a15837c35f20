"""What travels to a worker is its own group, however many others there are."""

from collections.abc import Callable
from typing import Any

import pytest
from ray import cloudpickle

from pipelines import ray_map as spread
from pipelines.data.ingest.groups import Group
from pipelines.data.source.manifest import Source
from pipelines.data.store.caption_embeddings import CaptionGroup
from pipelines.ray_map import Pool, run_groups


def groups(count: int) -> list[Group]:
    videos = [
        Source(id=f"{i:064x}", path=f"{i}.mp4", caption="words " * 9, num_bytes=1) for i in range(count)
    ]
    return [Group(corpus="short", sources=(video,), picks=(3,)) for video in videos]


class Mapped:
    """A dataset that is asked to map, and notes what each of its tasks would load."""

    loaded = 0

    def map(self, function: Callable[..., Any], **options: Any) -> "Mapped":
        self.loaded = len(cloudpickle.dumps((function, options.get("fn_constructor_args"))))
        return self


@pytest.mark.parametrize("pool", [None, Pool(1, 2)])
def test_what_every_task_loads_does_not_grow_with_the_groups(
    pool: Pool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spread.ray, "nodes", lambda: [{"Alive": True}])
    monkeypatch.setattr(spread.ray.data, "from_items", lambda *_, **__: Mapped())
    sizes = [spread._mapped(groups(count), lambda group: {}, pool).loaded for count in (2, 200)]
    assert sizes[0] == sizes[1]


def test_each_group_arrives_as_it_is(ray_local: None) -> None:
    sent = [*groups(3), CaptionGroup(("one", "two")), CaptionGroup(())]
    found = run_groups(sent, lambda group: {"kind": type(group).__name__, "told": repr(group)})
    assert {group: (row["kind"], row["told"]) for group, row in found} == {
        group: (type(group).__name__, repr(group)) for group in sent
    }
