"""Two corpora of video in, a verified dataset of latents out. Run again, it does only what is missing.

list -> fit the autoencoder -> group -> per group, in a Ray task: decode, judge, cut into windows, encode and
write (worker.py) -> finalize.

A dataset is one version: the hash of its settings. What it is made from may grow or shrink: a video is read
once, whatever its name and its caption, and the index says which windows count.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial

from models.autoencoders.kinds import autoencoder_kind
from models.config import AutoencoderConfig
from models.errors import DataError
from pipelines.data.checks import check_ingest
from pipelines.data.config import DataConfig
from pipelines.data.ingest.finalize import check_rejects, finalize
from pipelines.data.ingest.fit_autoencoder import check_autoencoder, prepare_autoencoder
from pipelines.data.ingest.lease import LEASE_FILE, hold_lease
from pipelines.data.ingest.worker import Group, Task, new_status, rejected_status, write_group
from pipelines.data.source.manifest import SOURCES_FILE, Listing, Source, list_corpora, save_hashes
from pipelines.data.store.info import (
    AUTOENCODER_FOLDER,
    INFO_FILE,
    MANIFEST_FILE,
    DatasetInfo,
    dataset_version,
    read_info,
    read_sealed,
    write_sealed,
)
from pipelines.data.store.ledger import Status, read_ledgers
from pipelines.data.tables import read_table
from pipelines.data.types import CORPORA, Reject
from pipelines.ray_map import Pool, ray_map
from pipelines.storage import Storage, hash_of
from pipelines.tracking import Progress, no_progress

GROUP_VIDEOS = 512
"""Most videos per task."""
SHARES = 32
"""Groups per corpus, at least, so that workers stay busy to the end."""
PASSING = frozenset({"limits", "timeout", "memory", "crash", "fetch"})
"""Stages whose rejects are tried again when there is other work."""
RETRIED = frozenset({"fetch", "worker"})
"""Stages whose rejects are work by themselves."""


def ingest(
    short: str,
    long: str,
    out: str,
    data: DataConfig,
    autoencoder: AutoencoderConfig,
    seed: int,
    progress: Progress = no_progress,
    use_gpu: bool = False,
    *,
    fresh: bool = False,
    on_video: Callable[[Status], object] = lambda _: None,
) -> DatasetInfo:
    """Decode, judge, encode and store both corpora on the running Ray.

    Args:
        short, long: the corpora, as `list_corpora` takes them; every worker can reach them.
        out: folder or URI of the dataset; what an earlier run of the same version finished stays as it is.
        seed: of the autoencoder's fitting sample.
        progress: called with a stage (`fit`, `short`, `long`), videos done and videos in all.
        use_gpu: one GPU for each actor that holds a neural autoencoder.
        fresh: delete what `out` holds, once both corpora are listed.
        on_video: called with the status of each video that this run reads.

    Raises:
        ConfigError: settings that no video can satisfy.
        DataError: a corpus that is missing, empty or unreadable, too many rejects, or a folder that holds
            something else.
        ClusterError: Ray is not running, the storage cannot be used, or another ingest is writing there.
    """
    check_ingest(data)
    kind = autoencoder_kind(autoencoder)
    kind.check_sizes(data.sizes)
    storage, version = Storage(out), dataset_version(data, autoencoder, seed)
    complete = not fresh and _is_complete(storage, version)

    listings = list_corpora(storage, {"short": short, "long": long}, data.links, rehash=fresh)
    made_from = _made_from(listings, data)
    if complete and (info := _unchanged(storage, made_from)):
        save_hashes(storage, listings)
        return info
    task = Task(
        out=str(storage),
        folders={corpus: listing.root for corpus, listing in listings.items()},
        version=version,
        data=data,
        device="cuda" if use_gpu and kind.neural else "cpu",
    )
    if fresh:
        check_autoencoder(task, autoencoder)
    with hold_lease(storage):
        statuses = _begin(storage, task, listings, fresh)
        videos = {corpus: listing.sources for corpus, listing in listings.items()}
        done = _done_before(storage, videos)
        prepare_autoencoder(task, videos, autoencoder, seed, progress)
        pool = Pool(data.min_actors, data.max_actors, use_gpu) if kind.neural else None
        statuses += done.values()
        for status in read_videos(task, videos, done, write_group, progress, pool):
            on_video(status)
            statuses.append(status)
        labelled = [replace(s, metadata=listings[s.corpus].metadata.get(s.source, "")) for s in statuses]
        notes = {corpus: listing.note for corpus, listing in listings.items()}
        return finalize(storage, task, seed, made_from, videos, labelled, notes)


def _is_complete(storage: Storage, version: str) -> bool:
    """Whether the folder holds a finished dataset of this version.

    Raises:
        DataError: it holds something else.
    """
    if not storage.exists(INFO_FILE):
        if set(storage.list()) - {LEASE_FILE}:
            raise DataError(
                f"{storage} is not empty and holds no dataset", "Choose another folder, or empty it"
            )
        return False
    present = read_sealed(storage)
    if present.get("version") != version:
        raise DataError(
            f"{storage} holds a dataset of other settings",
            "Delete that folder to ingest again, or choose another",
        )
    return bool(present.get("complete"))


def _made_from(listings: Mapping[str, Listing], data: DataConfig) -> str:
    """Hash of what decides the dataset's content beside its settings."""
    videos = {
        corpus: [
            [[s.id, s.path, s.caption] for s in listing.sources],
            [path for path, _ in listing.rejects],
            listing.metadata,
            *filter(None, [listing.note]),
        ]
        for corpus, listing in listings.items()
    }
    return hash_of([videos, asdict(data.limits), data.max_reject_share])[:16]


def _unchanged(storage: Storage, made_from: str) -> DatasetInfo | None:
    """The finished dataset, if nothing is left to do."""
    info = read_info(storage)
    if info.made_from != made_from:
        return None
    stages = read_table(storage, MANIFEST_FILE, ["stage"])["stage"].to_pylist()
    return info if RETRIED.isdisjoint(stages) else None


def _begin(storage: Storage, task: Task, listings: Mapping[str, Listing], fresh: bool) -> list[Status]:
    """Make the dataset's folder ready, and check the listings before any work; statuses of refused videos."""
    storage.delete_unfinished("")
    if not storage.exists(INFO_FILE):
        write_sealed(storage, {"complete": False, "version": task.version})
    if fresh:
        storage.delete(SOURCES_FILE)
    save_hashes(storage, listings)
    refused = refused_listings(listings)
    waiting = [new_status(corpus, s) for corpus, listing in listings.items() for s in listing.sources]
    check_rejects(storage, task, [*refused, *waiting])
    if fresh:
        write_sealed(storage, {"complete": False, "version": task.version})
        # the autoencoder last, so that no latents are ever left without theirs
        for name in sorted(storage.list(), key=lambda name: name == AUTOENCODER_FOLDER):
            if name not in (INFO_FILE, SOURCES_FILE, LEASE_FILE):
                storage.delete(name)
    return refused


def refused_listings(listings: Mapping[str, Listing]) -> list[Status]:
    """Statuses of the videos that were refused before they had an id."""
    return [
        rejected_status(new_status(corpus, Source(path=path, num_bytes=0)), reject)
        for corpus, listing in listings.items()
        for path, reject in listing.rejects
    ]


def _done_before(storage: Storage, videos: Mapping[str, Sequence[Source]]) -> dict[tuple[str, str], Status]:
    """What earlier runs recorded of the listed videos, by corpus and id.

    Raises:
        DataError: they read only other videos, which the autoencoder was fitted on.
    """
    done: dict[tuple[str, str], Status] = {}
    known = False
    for corpus in CORPORA:
        listed = {source.id: source for source in videos[corpus]}
        for ledger in read_ledgers(storage, corpus):
            known = True
            for status in ledger.statuses:
                source = listed.get(status.source_id)
                if source and status.stage not in PASSING:
                    done[corpus, source.id] = replace(status, source=source.path, caption=source.caption)
    if known and not done and storage.exists(f"{AUTOENCODER_FOLDER}/config.json"):
        raise DataError(
            f"{storage} was made from other videos: none of those in the two corpora is in it",
            "Give the run another name, or use --fresh to replace its dataset",
        )
    return done


def read_videos(
    task: Task,
    videos: Mapping[str, Sequence[Source]],
    done: Iterable[tuple[str, str]],
    work: Callable[[Task, Group], list[Status]],
    progress: Progress,
    pool: Pool | None = None,
) -> Iterator[Status]:
    """Bring every other video to its end: written, or rejected.

    Videos whose group was lost with its worker are tried once more, each alone, so that one costs no other.

    Args:
        done: corpus and id of the videos that are done.
        work: what a worker does with a group: `write_group`.
        pool: actors that keep their autoencoder; None for tasks.
    """
    ended = set(done)
    counts = Counter(corpus for corpus, _ in ended)
    for most in (GROUP_VIDEOS, 1):
        groups = [
            group
            for corpus in CORPORA
            for group in group_by_bytes(corpus, _missing(corpus, videos, ended), task.data.block_bytes, most)
        ]
        groups.sort(key=lambda group: -group.num_bytes)
        for index, statuses in ray_map(partial(work, task), groups, pool):
            corpus = groups[index].corpus
            ended.update((corpus, status.source_id) for status in statuses)
            counts[corpus] += len(statuses)
            progress(corpus, counts[corpus], len(videos[corpus]))
            yield from statuses
    reject = Reject("worker", "the worker that read it died each time")
    for corpus in CORPORA:
        for source in _missing(corpus, videos, ended):
            yield rejected_status(new_status(corpus, source), reject)


def _missing(
    corpus: str, videos: Mapping[str, Sequence[Source]], ended: set[tuple[str, str]]
) -> list[Source]:
    return [source for source in videos[corpus] if (corpus, source.id) not in ended]


def group_by_bytes(corpus: str, sources: Sequence[Source], block_bytes: int, most: int) -> list[Group]:
    """Neighbours together, up to `block_bytes` (a 1/SHARES of the corpus, if that is less) and `most` videos;
    a larger video is alone."""
    room_of_group = min(block_bytes, sum(source.num_bytes for source in sources) // SHARES + 1)
    groups: list[list[Source]] = []
    room = 0
    for source in sources:
        if not groups or source.num_bytes > room or len(groups[-1]) == most:
            groups.append([])
            room = room_of_group
        groups[-1].append(source)
        room -= source.num_bytes
    return [Group(corpus=corpus, sources=tuple(group)) for group in groups]
