"""Two corpora of video in, a verified dataset of latents out. Run again, it does only what is missing.

A dataset is one version: the hash of its settings. What it was made from may grow or shrink: a video is read
once, whatever it is called and however it is captioned, and the index says which windows count.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial

from models.autoencoders.kinds import autoencoder_kind
from models.config import AutoencoderConfig
from models.errors import ConfigError, DataError
from pipelines.data.config import DataConfig
from pipelines.data.curate.quality import check_curation
from pipelines.data.curate.shots import require_detector
from pipelines.data.ingest.buckets import check as check_buckets
from pipelines.data.ingest.finalize import finish, judge
from pipelines.data.ingest.fit_autoencoder import Progress, check_autoencoder, prepare_autoencoder
from pipelines.data.ingest.groups import Group, Task, group_by_bytes
from pipelines.data.ingest.lease import CLAIM_FILE, claimed
from pipelines.data.ingest.video import new_status, rejected_status
from pipelines.data.ingest.worker import write_group
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

GROUP_VIDEOS = 512
"""Most videos a task reads."""
SHARES = 32
"""Parts of a corpus that are enough to keep workers busy to the end."""
PASSING = frozenset({"limits", "timeout", "memory", "crash", "fetch"})
"""Stages whose rejects are tried again when there is anything else to do."""
RETRIED = frozenset({"fetch", "worker"})
"""Stages whose rejects are themselves something to do."""

Statuses = dict[tuple[str, str], Status]
Work = Callable[[Task, Group], list[Status]]


def ingest(
    short: str,
    long: str,
    out: str,
    data: DataConfig,
    autoencoder: AutoencoderConfig,
    seed: int,
    progress: Progress | None = None,
    use_gpu: bool = False,
    *,
    fresh: bool = False,
    tell: Callable[[Status], object] | None = None,
) -> DatasetInfo:
    """Decode, judge, encode and store both corpora on the running Ray.

    Args:
        short: the SHORT corpus, as `sources` takes it; every worker can reach it.
        long: the LONG corpus.
        out: folder or URI of the dataset; what an earlier run of the same version finished stays as it is.
        seed: of the autoencoder's fitting sample.
        progress: called with a stage (`fit`, `short`, `long`), videos done and videos in all.
        use_gpu: one GPU for each actor that holds a neural autoencoder.
        fresh: delete what `out` holds, once both corpora are listed.
        tell: called with the end of each video that this run read.

    Raises:
        ConfigError: settings that no video can satisfy.
        DataError: a corpus that is missing, empty or unreadable, too many rejects, or a folder that holds
            something else.
        ClusterError: Ray is not running, the storage cannot be used, or another ingest is writing there.
    """
    check(data)
    kind = autoencoder_kind(autoencoder)
    kind.check_sizes(data.sizes)
    storage = Storage(out)
    version = dataset_version(data, autoencoder, seed)
    complete = not fresh and _is_complete(storage, version)
    listings = list_corpora(storage, {"short": short, "long": long}, rehash=fresh)
    made_from = _made_from(listings, data)
    if complete and (info := _unchanged(storage, made_from)):
        save_hashes(storage, listings)
        return info
    folders = {corpus: listing.root for corpus, listing in listings.items()}
    device = "cuda" if use_gpu and kind.neural else "cpu"
    task = Task(out=str(storage), folders=folders, version=version, data=data, device=device)
    if fresh:
        check_autoencoder(task, autoencoder)
    with claimed(storage):
        ends = _begin(storage, task, listings, fresh)
        videos = {corpus: listing.sources for corpus, listing in listings.items()}
        done = _statuses_before(storage, videos)
        say = progress or _ignore
        prepare_autoencoder(task, videos, autoencoder, seed, say)
        pool = Pool(data.min_actors, data.max_actors, use_gpu) if kind.neural else None
        for status in write_all(task, videos, done, write_group, say, pool):
            (tell or _ignore)(status)
        ends += _labelled(listings, done.values())
        return finish(storage, task, seed, made_from, videos, ends)


def _begin(storage: Storage, task: Task, listings: Mapping[str, Listing], fresh: bool) -> list[Status]:
    """Make the dataset's folder ready for work, and judge the listings before any is done.

    Returns:
        Statuses of what was refused before it had an id.
    """
    storage.delete_unfinished("")
    if not storage.exists(INFO_FILE):
        write_sealed(storage, {"complete": False, "version": task.version})
    if fresh:
        storage.delete(SOURCES_FILE)
    save_hashes(storage, listings)
    unread = [s for corpus, listing in listings.items() for s in refused(corpus, listing)]
    waiting = [new_status(corpus, s) for corpus, listing in listings.items() for s in listing.sources]
    judge(storage, task, [*unread, *waiting])
    if fresh:
        _empty(storage, task.version)
    return _labelled(listings, unread)


def _empty(storage: Storage, version: str) -> None:
    """Delete what was ingested; the autoencoder last, so that no latents are ever left without theirs."""
    write_sealed(storage, {"complete": False, "version": version})
    for name in sorted(storage.list(), key=lambda name: name == AUTOENCODER_FOLDER):
        if name not in (INFO_FILE, SOURCES_FILE, CLAIM_FILE):
            storage.delete(name)


def _labelled(listings: Mapping[str, Listing], statuses: Iterable[Status]) -> list[Status]:
    """With what their metadata says beside the caption."""
    return [replace(s, metadata=listings[s.corpus].metadata.get(s.source, "")) for s in statuses]


def _unchanged(storage: Storage, made_from: str) -> DatasetInfo | None:
    """A finished dataset to which there is nothing to do."""
    info = read_info(storage)
    if info.made_from != made_from:
        return None
    stages = read_table(storage, MANIFEST_FILE, ["stage"])["stage"].to_pylist()
    return info if RETRIED.isdisjoint(stages) else None


def _ignore(*_told: object) -> None:
    return


def check(data: DataConfig) -> None:
    """Refuse settings that no video can satisfy.

    Raises:
        ConfigError: names the setting.
    """
    positive = "height width short_frames short_stride long_frames long_stride encode_batch min_actors"
    for name in positive.split():
        if getattr(data, name) < 1:
            raise ConfigError(f"data.{name} = {getattr(data, name)}", "Set it to 1 or more")
    if data.max_actors < data.min_actors:
        raise ConfigError(
            f"data.max_actors = {data.max_actors} and data.min_actors = {data.min_actors}",
            "Set data.max_actors to data.min_actors or more",
        )
    if data.fps is not None and not data.fps > 0:
        raise ConfigError(f"data.fps = {data.fps}", "Set it above 0, or to null to keep every frame")
    if not 0 <= data.holdout < 1:
        raise ConfigError(f"data.holdout = {data.holdout}", "Set it to a share from 0 up to, not with, 1")
    check_curation(data.curation)
    check_buckets(data)
    if data.curation.cuts:
        require_detector()


def _made_from(listings: Mapping[str, Listing], data: DataConfig) -> str:
    """Hash of everything outside the settings that decides what the dataset holds."""
    videos = {
        corpus: [
            [[s.id, s.path, s.caption] for s in listing.sources],
            [path for path, _ in listing.rejects],
            listing.metadata,
        ]
        for corpus, listing in listings.items()
    }
    return hash_of([videos, asdict(data.limits), data.max_reject_share])[:16]


def _is_complete(storage: Storage, version: str) -> bool:
    """Whether the folder holds a finished dataset of this version.

    Raises:
        DataError: it holds something else.
    """
    if not storage.exists(INFO_FILE):
        if set(storage.list()) - {CLAIM_FILE}:
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


def _statuses_before(storage: Storage, videos: Mapping[str, Sequence[Source]]) -> Statuses:
    """What earlier runs recorded of the videos that are there.

    Raises:
        DataError: they read other videos only, which the autoencoder was fitted on.
    """
    statuses: Statuses = {}
    known = False
    for corpus in CORPORA:
        listed = {source.id: source for source in videos[corpus]}
        for ledger in read_ledgers(storage, corpus):
            known = True
            for status in ledger.statuses:
                source = listed.get(status.source_id)
                if source and status.stage not in PASSING:
                    statuses[corpus, source.id] = replace(status, source=source.path, caption=source.caption)
    if known and not statuses and storage.exists("autoencoder/config.json"):
        raise DataError(
            f"{storage} was made from other videos: none of those in the two corpora is in it",
            "Give the run another name, or say --fresh to replace its dataset",
        )
    return statuses


def refused(corpus: str, listing: Listing) -> list[Status]:
    """Statuses of what was refused before it had an id."""
    nobody = Source(id="", path="", caption="", num_bytes=0)
    return [
        rejected_status(new_status(corpus, replace(nobody, path=path)), reject)
        for path, reject in listing.rejects
    ]


def write_all(
    task: Task,
    videos: Mapping[str, Sequence[Source]],
    done: Statuses,
    work: Work,
    progress: Progress,
    pool: Pool | None = None,
) -> list[Status]:
    """Bring every video to its end: written before, written now, or rejected.

    Videos whose group was lost with its worker are tried once more, each alone, so that one costs no other.

    Args:
        done: statuses by (corpus, id) of the videos that are done; the others' are added.
        work: what a worker does with a group: `write_group`.
        pool: actors that keep their autoencoder; None for tasks.

    Returns:
        The statuses that were added.
    """
    added: list[Status] = []
    ended = Counter(corpus for corpus, _ in done)
    for most in (GROUP_VIDEOS, 1):
        groups = [
            group
            for corpus in CORPORA
            for group in _groups(corpus, _missing(corpus, videos, done), task.data.block_bytes, most)
        ]
        groups.sort(key=lambda group: -group.num_bytes)
        for index, statuses in ray_map(partial(work, task), groups, pool):
            group = groups[index]
            added += statuses
            done.update({(group.corpus, s.source_id): s for s in statuses})
            ended[group.corpus] += len(statuses)
            progress(group.corpus, ended[group.corpus], len(videos[group.corpus]))
    dead = Reject("worker", "the worker that read it died each time")
    for corpus in CORPORA:
        lost = [
            rejected_status(new_status(corpus, source), dead) for source in _missing(corpus, videos, done)
        ]
        added += lost
        done.update({(corpus, s.source_id): s for s in lost})
    return added


def _groups(corpus: str, sources: list[Source], block_bytes: int, most: int) -> list[Group]:
    share = sum(source.num_bytes for source in sources) // SHARES + 1
    return group_by_bytes(corpus, sources, min(block_bytes, share), most)


def _missing(corpus: str, videos: Mapping[str, Sequence[Source]], done: Statuses) -> list[Source]:
    return [source for source in videos[corpus] if (corpus, source.id) not in done]
