"""The end of ingest: refuse what cannot be trained on, write the tables, and describe the dataset."""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import reduce

import pyarrow as pa
import pyarrow.compute as pc

from models.errors import DataError
from pipelines.data.ingest.worker import Task
from pipelines.data.source.manifest import Source
from pipelines.data.store.files import ShardFile
from pipelines.data.store.index import build_index, write_index
from pipelines.data.store.info import (
    MANIFEST_FILE,
    REJECTS_FILE,
    Bucket,
    CorpusInfo,
    DatasetInfo,
    dataset_autoencoder,
    write_sealed,
)
from pipelines.data.store.ledger import Ledger, Status, merge_moments, read_ledgers
from pipelines.data.store.shards import open_shard
from pipelines.data.tables import table_of, write_table
from pipelines.data.types import CORPORA, NOT_A_VIDEO, SAME_BYTES
from pipelines.storage import Storage, hash_of

UNCOUNTED = (SAME_BYTES, NOT_A_VIDEO)
NAMED_REJECTS = 5
"""Rejects listed in an error message."""


def finalize(
    storage: Storage,
    task: Task,
    seed: int,
    made_from: str,
    videos: Mapping[str, Sequence[Source]],
    statuses: Sequence[Status],
    notes: Mapping[str, str],
) -> DatasetInfo:
    """Write manifest.parquet, rejects.parquet, index.parquet and, last, a complete dataset.json.

    Everything is known before a file is replaced; between the first and the last the dataset is unfinished.

    Args:
        notes: each corpus's `note`.

    Raises:
        DataError: as `check_rejects`, or every window of a corpus is a near duplicate.
    """
    statuses = sorted(statuses, key=lambda s: (s.corpus, s.source))
    check_rejects(storage, task, statuses)
    ledgers: dict[str, list[Ledger]] = {}
    for corpus in CORPORA:
        ids = {source.id for source in videos[corpus]}
        found = read_ledgers(storage, corpus)
        ledgers[corpus] = [ledger for ledger in found if any(s.source_id in ids for s in ledger.statuses)]
    index = build_index(ledgers, videos, task.data.holdout, task.data.curation)
    autoencoder = dataset_autoencoder(storage)
    factor = autoencoder.temporal_factor
    corpora = {
        corpus: _describe(storage, task, corpus, statuses, ledgers[corpus], index, factor, notes[corpus])
        for corpus in CORPORA
    }
    write_sealed(storage, {"complete": False, "version": task.version})
    write_table(storage, MANIFEST_FILE, table_of(Status, statuses))
    _write_rejects(storage, statuses)
    latents = [[s.corpus, s.source_id, s.latents_sha256] for s in statuses if s.status == "written"]
    counted = index.filter(index["kept"]).select(["window_id", "caption"])
    error = autoencoder.reconstruction_error
    info = DatasetInfo(
        version=task.version,
        made_from=made_from,
        data_hash=hash_of([sorted(latents), counted.to_pydict()])[:16],
        index_sha256=write_index(storage, index),
        height=task.data.height,
        width=task.data.width,
        holdout=task.data.holdout,
        seed=seed,
        autoencoder={
            "kind": storage.read_json("autoencoder/config.json")["kind"],
            "channels": autoencoder.channels,
            "temporal_factor": autoencoder.temporal_factor,
            "crop_safe": autoencoder.crop_safe,
            "reconstruction_error": error if math.isfinite(error) else None,
        },
        **corpora,
    )
    write_sealed(storage, info.to_json())
    return info


def _write_rejects(storage: Storage, statuses: Sequence[Status]) -> None:
    rejects = table_of(Status, [s for s in statuses if s.status == "rejected"])
    columns = rejects.select(["corpus", "source", "source_id", "stage", "reason"])
    write_table(storage, REJECTS_FILE, columns.rename_columns({"source": "path"}))


def check_rejects(storage: Storage, task: Task, statuses: Sequence[Status]) -> None:
    """Refuse a corpus with no window or too many rejects; a video that is there twice counts once, a still
    picture not at all.

    Args:
        statuses: of all videos, those not yet read as written.

    Raises:
        DataError: rejects.parquet is written; a finished dataset stays as it is.
    """
    for corpus in CORPORA:
        own = [s for s in statuses if s.corpus == corpus and not s.reason.startswith(UNCOUNTED)]
        rejects = [s for s in own if s.status == "rejected"]
        if len(rejects) < len(own) and len(rejects) / len(own) <= task.data.max_reject_share:
            continue
        _write_rejects(storage, statuses)
        named = ", ".join(f"{s.source} ({s.stage}: {s.reason})" for s in rejects[:NAMED_REJECTS])
        more = f" and {len(rejects) - NAMED_REJECTS} more" if len(rejects) > NAMED_REJECTS else ""
        commonest = Counter(s.stage for s in rejects).most_common(1)[0][0]
        remedy = f"Mend or remove them (all are in {storage}/{REJECTS_FILE}), or raise data.max_reject_share"
        if commonest == "window":
            shorter = ", add to data.long_lengths" if corpus == "long" else ""
            frames = f"data.{corpus}_frames (now {task.data.cuts_of(corpus)[0][0]})"
            remedy = f"Lower {frames}{shorter}, or give longer videos"
        if commonest == "curation":
            remedy = (
                "Loosen data.curation (`sostenuto ingest --dry-run` shows what it keeps), "
                "or give other videos"
            )
        raise DataError(
            f"{corpus.upper()}: {len(rejects)} of {len(own)} videos were rejected: {named}{more}", remedy
        )


def _describe(
    storage: Storage,
    task: Task,
    corpus: str,
    statuses: Sequence[Status],
    ledgers: Sequence[Ledger],
    index: pa.Table,
    temporal_factor: int,
    note: str,
) -> CorpusInfo:
    own = [s for s in statuses if s.corpus == corpus]
    written = [s for s in own if s.status == "written"]
    windows = index.filter(pc.equal(index["corpus"], corpus))
    kept = windows.filter(windows["kept"])
    if not kept.num_rows:
        raise DataError(
            f"{corpus.upper()}: every window is a near duplicate of another corpus's",
            "Set data.curation.duplicates_across to false, or give other videos",
        )
    used = set(kept["file"].to_pylist())
    files = sorted((f for ledger in ledgers for f in ledger.files if f.file in used), key=lambda f: f.file)
    length, stride = task.data.cuts_of(corpus)[0]
    buckets = _buckets(storage, task, corpus, files, kept) if task.data.has_buckets else ()
    padded = -(length - 1) % temporal_factor
    sums = reduce(merge_moments, (ledger.moments for ledger in ledgers))
    assert sums is not None
    mean = [total / sums.positions for total in sums.total]
    square = [total / sums.positions for total in sums.squares]
    std = [math.sqrt(max(0.0, s - m * m)) for m, s in zip(mean, square, strict=True)]
    return CorpusInfo(
        videos=len(written),
        rejects=len(own) - len(written),
        windows=kept.num_rows,
        holdout_windows=kept.filter(pc.equal(kept["split"], "holdout")).num_rows,
        dropped_windows=windows.num_rows - kept.num_rows,
        frames=sum(s.num_frames for s in written),
        hours=sum(s.seconds for s in written) / 3600,
        fps=task.data.fps or statistics.median(s.source_fps for s in written),
        captions=len({s.caption for s in written}),
        window_frames=length + padded,
        window_stride=stride,
        latent_shape=buckets[0].latent_shape if buckets else _latent_shape(storage, files[0].file),
        latent_mean=tuple(mean),
        latent_std=tuple(std),
        files=tuple(files),
        padded_frames=padded,
        buckets=buckets,
        note=note,
    )


def _buckets(
    storage: Storage, task: Task, corpus: str, files: Sequence[ShardFile], kept: pa.Table
) -> tuple[Bucket, ...]:
    """The shapes of the kept windows, the main one first, the others from many windows to few.

    Raises:
        DataError: no window has the main shape, which samples, previews and evaluation have.
    """
    shape_of = {file.file: file.pixels for file in files}
    counts = Counter(shape_of[file] for file in kept["file"].to_pylist())
    main = (task.data.cuts_of(corpus)[0][0], task.data.height, task.data.width)
    if not counts[main]:
        others = ", ".join(f"{frames} of {width}x{height}" for frames, height, width in sorted(counts))
        raise DataError(
            f"{corpus.upper()}: no window has {main[0]} frames of {main[2]}x{main[1]} pixels, only {others}",
            f"Set data.height, data.width and data.{corpus}_frames to a shape that the corpus has",
        )
    order = sorted(counts, key=lambda pixels: (pixels != main, -counts[pixels], pixels))
    some = {file.pixels: file.file for file in files}
    return tuple(
        Bucket(pixels=pixels, latent_shape=_latent_shape(storage, some[pixels]), windows=counts[pixels])
        for pixels in order
    )


def _latent_shape(storage: Storage, file: str) -> tuple[int, int, int, int]:
    with open_shard(storage, file) as shard:
        frames, channels, rows, columns = shard.schema_arrow.field("latents").type.shape
        return frames, channels, rows, columns
