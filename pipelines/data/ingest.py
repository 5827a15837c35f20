"""Two folders of video in, a verified dataset of latents out. Run again, it does only what is missing.

A dataset is one version: the hash of its settings and of the list of videos with their captions.
dataset.json names the version from the start and is complete at the end; another version never mixes into
the same folder.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from models.config import AutoencoderConfig
from models.errors import ConfigError, DataError
from pipelines.data.config import DataConfig
from pipelines.data.finish import Outcome, finish
from pipelines.data.fit import Progress, prepare_autoencoder
from pipelines.data.info import INFO_FILE, DatasetInfo, hash_of, read_info
from pipelines.data.manifest import Listing, Source, sources
from pipelines.data.rejects import Reject
from pipelines.data.shards import CORPORA, ShardFile, Status, finished
from pipelines.data.spread import run_groups
from pipelines.data.tasks import Group, Task, group_by_bytes, new_status, rejected_status, write_group
from pipelines.storage import Storage

FORMAT = 1
"""Of the dataset's layout; another number never reads or extends this one's datasets."""
GROUP_VIDEOS = 512
"""Most videos a task reads."""


def ingest(
    short: str,
    long: str,
    out: str,
    data: DataConfig,
    autoencoder: AutoencoderConfig,
    seed: int,
    progress: Progress | None = None,
) -> DatasetInfo:
    """Decode, encode and store both corpora on the running Ray.

    Args:
        short: folder of the SHORT corpus, visible to every worker.
        long: folder of the LONG corpus.
        out: folder or URI of the dataset; what an earlier run of the same version finished stays as it is.
        seed: of the autoencoder's fitting sample.
        progress: called with a stage (`fit`, `short`, `long`), videos done and videos in all.

    Raises:
        ConfigError: settings that no video can satisfy.
        DataError: a corpus that is missing, empty or unreadable, too many rejects, or a folder that holds
            something else.
        ClusterError: Ray is not running, or the storage cannot be used.
    """
    _check(data)
    say = progress or _say_nothing
    listings = {"short": sources(short), "long": sources(long)}
    version = _version(listings, data, autoencoder, seed)
    storage = Storage(out)
    if _claim(storage, version):
        return read_info(storage)
    task = Task(
        out=str(storage),
        folders={"short": _absolute(short), "long": _absolute(long)},
        version=version,
        data=data,
    )
    videos = {corpus: listing.sources for corpus, listing in listings.items()}
    prepare_autoencoder(task, videos, autoencoder, seed, say)
    written = write_all(task, videos, write_group, say)
    refused = [s for corpus, listing in listings.items() for s in _refused(corpus, listing)]
    return finish(storage, task, seed, Outcome([*refused, *written.statuses], written.files))


def _say_nothing(_stage: str, _done: int, _total: int) -> None:
    return


def _absolute(folder: str) -> str:
    return Storage(folder).local()


def _check(data: DataConfig) -> None:
    for name in ("height", "width", "short_frames", "short_stride", "long_frames", "long_stride"):
        if getattr(data, name) < 1:
            raise ConfigError(f"data.{name} = {getattr(data, name)}", "Set it to 1 or more")
    if data.fps is not None and not data.fps > 0:
        raise ConfigError(f"data.fps = {data.fps}", "Set it above 0, or to null to keep every frame")
    if not 0 <= data.holdout < 1:
        raise ConfigError(f"data.holdout = {data.holdout}", "Set it to a share from 0 up to, not with, 1")


def _version(
    listings: dict[str, Listing], data: DataConfig, autoencoder: AutoencoderConfig, seed: int
) -> str:
    """Of everything that the rows depend on; where the folders lie and what limits hold is no part of it."""
    passing = ("short", "long", "limits", "block_bytes", "max_reject_share")
    settings = {name: value for name, value in asdict(data).items() if name not in passing}
    videos = {c: [[s.id, s.path, s.caption] for s in listing.sources] for c, listing in listings.items()}
    return hash_of([FORMAT, settings, asdict(autoencoder), seed, videos])[:16]


def _claim(storage: Storage, version: str) -> bool:
    """Whether the folder holds this very dataset, complete. An empty folder is claimed for it."""
    if not storage.exists(INFO_FILE):
        if storage.list():
            raise DataError(
                f"{storage} is not empty and holds no dataset", "Choose another folder, or empty it"
            )
        storage.write_json(INFO_FILE, {"complete": False, "version": version})
        return False
    present = storage.read_json(INFO_FILE)
    if present.get("version") != version:
        raise DataError(
            f"{storage} holds a dataset of other settings or other videos",
            "Delete that folder to ingest again, or give the run another name",
        )
    if not present.get("complete"):
        storage.delete_unfinished("")
    return bool(present.get("complete"))


def _refused(corpus: str, listing: Listing) -> list[Status]:
    """Statuses of what was refused before it had an id."""
    nobody = Source(id="", path="", caption="", num_bytes=0)
    return [
        rejected_status(new_status(corpus, replace(nobody, path=path)), reject)
        for path, reject in listing.rejects
    ]


def write_all(
    task: Task,
    videos: dict[str, list[Source]],
    work: Callable[[Task, Group], dict[str, Any]],
    progress: Progress,
) -> Outcome:
    """Bring every video to its end: written before, written now, or rejected.

    Videos whose group was lost with its worker are tried once more, each alone, so that one costs no other.

    Args:
        work: what a worker does with a group: `write_group`.
    """
    before = [finished(Storage(task.out), corpus) for corpus in CORPORA]
    statuses = {(s.corpus, s.source_id): s for found, _ in before for s in found}
    files = [file for _, kept in before for file in kept]
    for most in (GROUP_VIDEOS, 1):
        groups = [
            group
            for corpus in CORPORA
            for group in group_by_bytes(
                corpus, _missing(corpus, videos, statuses), task.data.block_bytes, most
            )
        ]
        for group, row in run_groups(groups, lambda group: {"answer": json.dumps(work(task, group))}):
            answer = json.loads(row["answer"])
            statuses.update({(group.corpus, v["source_id"]): Status(**v) for v in answer["statuses"]})
            files += [ShardFile(**value) for value in answer["files"]]
            total = len(videos[group.corpus])
            progress(group.corpus, total - len(_missing(group.corpus, videos, statuses)), total)
    dead = Reject("worker", "the worker that read it died each time")
    for corpus in CORPORA:
        for source in _missing(corpus, videos, statuses):
            statuses[corpus, source.id] = rejected_status(new_status(corpus, source), dead)
    return Outcome(list(statuses.values()), files)


def _missing(
    corpus: str, videos: dict[str, list[Source]], statuses: dict[tuple[str, str], Status]
) -> list[Source]:
    return [source for source in videos[corpus] if (corpus, source.id) not in statuses]
