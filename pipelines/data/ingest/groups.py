"""Groups of videos: what one Ray task is given."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.data.config import DataConfig
from pipelines.data.source.manifest import Source
from pipelines.storage import hash_of


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every group needs to know."""

    out: str
    """Root of the dataset's storage."""
    folders: dict[str, str]
    """Corpus -> where it is."""
    version: str
    data: DataConfig
    device: str = "cpu"
    """Where a neural autoencoder works."""

    def window(self, corpus: str) -> tuple[int, int]:
        """Frames of a window and from one to the next; of the longest where there are several."""
        return self.data.cuts_of(corpus)[0]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Videos of one corpus that one task reads."""

    corpus: str
    sources: tuple[Source, ...]
    picks: tuple[int, ...] = ()
    """Frames wanted of each source, when fitting."""

    @property
    def num_bytes(self) -> int:
        """Of its videos."""
        return sum(source.num_bytes for source in self.sources)

    def __str__(self) -> str:
        return f"the videos from {self.sources[0].path} on"


def shard_name(task: Task, sources: Sequence[Source]) -> str:
    """Name of what a group writes: depends on the dataset's version and the videos only."""
    return hash_of([task.version, [source.id for source in sources]])[:20]


def group_by_bytes(corpus: str, sources: Sequence[Source], block_bytes: int, most: int) -> list[Group]:
    """Neighbours together, up to `block_bytes` and `most` videos; a larger video is alone."""
    groups: list[list[Source]] = []
    room = 0
    for source in sources:
        if not groups or source.num_bytes > room or len(groups[-1]) == most:
            groups.append([])
            room = block_bytes
        groups[-1].append(source)
        room -= source.num_bytes
    return [Group(corpus=corpus, sources=tuple(group)) for group in groups]
