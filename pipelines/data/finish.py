"""The end of ingest: judge what was rejected, write the manifests, and say what the dataset is."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from typing import NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

from models.errors import DataError
from pipelines.data.info import (
    INFO_FILE,
    MANIFEST_FILE,
    REJECTS_FILE,
    CorpusInfo,
    DatasetInfo,
    dataset_autoencoder,
    hash_of,
    is_holdout,
)
from pipelines.data.shards import CORPORA, ShardFile, Status, open_shard
from pipelines.data.tasks import Task
from pipelines.storage import Storage

NAMED_REJECTS = 5
"""Rejects that an error message lists."""


class Outcome(NamedTuple):
    """What became of all videos."""

    statuses: list[Status]
    files: list[ShardFile]


def finish(storage: Storage, task: Task, seed: int, outcome: Outcome) -> DatasetInfo:
    """Write manifest.parquet, rejects.parquet and, last, a complete dataset.json.

    Raises:
        DataError: a corpus has no window, or more rejects than data.max_reject_share; the manifests are
            there.
    """
    statuses = sorted(outcome.statuses, key=lambda s: (s.corpus, s.source))
    rejects = [s for s in statuses if s.status == "rejected"]
    _write_table(storage, MANIFEST_FILE, statuses, [f.name for f in fields(Status)])
    _write_table(storage, REJECTS_FILE, rejects, ["corpus", "source", "source_id", "stage", "reason"])
    for corpus in CORPORA:
        _judge(storage, task, corpus, [s for s in statuses if s.corpus == corpus])
    autoencoder = dataset_autoencoder(storage)
    corpora = {corpus: _corpus_info(storage, task, corpus, statuses, outcome.files) for corpus in CORPORA}
    written = [s for s in statuses if s.status == "written"]
    info = DatasetInfo(
        version=task.version,
        data_hash=hash_of([[s.corpus, s.source_id, s.caption, s.latents_sha256] for s in written])[:16],
        height=task.data.height,
        width=task.data.width,
        holdout=task.data.holdout,
        seed=seed,
        autoencoder={
            "kind": storage.read_json("autoencoder/config.json")["kind"],
            "channels": autoencoder.channels,
            "temporal_factor": autoencoder.temporal_factor,
            "reconstruction_error": autoencoder.reconstruction_error,
        },
        **corpora,
    )
    storage.write_json(INFO_FILE, info.to_json())
    return info


def _write_table(storage: Storage, file: str, statuses: Sequence[Status], names: Sequence[str]) -> None:
    kinds = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    columns = [(f.name, kinds[cast(type, f.type)]) for f in fields(Status) if f.name in names]
    rows = [{name: getattr(status, name) for name in names} for status in statuses]
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist(rows, schema=pa.schema(columns))
    pq.write_table(table, sink, write_page_checksum=True)
    storage.write_bytes(file, sink.getvalue().to_pybytes())


def _judge(storage: Storage, task: Task, corpus: str, statuses: Sequence[Status]) -> None:
    """Refuse a corpus with no window or too many rejects."""
    rejects = [s for s in statuses if s.status == "rejected"]
    share = len(rejects) / len(statuses)
    if len(rejects) < len(statuses) and share <= task.data.max_reject_share:
        return
    shown = ", ".join(f"{s.source} ({s.stage}: {s.reason})" for s in rejects[:NAMED_REJECTS])
    rest = f" and {len(rejects) - NAMED_REJECTS} more" if len(rejects) > NAMED_REJECTS else ""
    problem = f"{corpus.upper()}: {len(rejects)} of {len(statuses)} videos were rejected: {shown}{rest}"
    commonest = Counter(s.stage for s in rejects).most_common(1)[0][0]
    remedy = f"Mend or remove them (all are in {storage}/{REJECTS_FILE}), or raise data.max_reject_share"
    if commonest == "window":
        remedy = f"Lower data.{corpus}_frames (now {task.window(corpus)[0]}), or give longer videos"
    raise DataError(problem, remedy)


def _corpus_info(
    storage: Storage, task: Task, corpus: str, statuses: Sequence[Status], files: Sequence[ShardFile]
) -> CorpusInfo:
    own = [s for s in statuses if s.corpus == corpus]
    written = [s for s in own if s.status == "written"]
    shards = sorted((f for f in files if f.file.startswith(f"{corpus}/")), key=lambda f: f.file)
    with open_shard(storage, shards[0].file) as shard:
        shape = tuple(shard.schema_arrow.field("latents").type.shape)
    length, stride = task.window(corpus)
    return CorpusInfo(
        videos=len(written),
        rejects=len(own) - len(written),
        windows=sum(s.num_windows for s in written),
        holdout_windows=sum(_holdout(storage, shard.file, task.data.holdout) for shard in shards),
        frames=sum(s.num_frames for s in written),
        hours=sum(s.seconds for s in written) / 3600,
        fps=task.data.fps or statistics.median(s.source_fps for s in written),
        captions=len({s.caption for s in written}),
        window_frames=length,
        window_stride=stride,
        latent_shape=shape,
        files=tuple(shards),
    )


def _holdout(storage: Storage, file: str, share: float) -> int:
    if share == 0:
        return 0
    with open_shard(storage, file) as shard:
        ids = shard.read(columns=["window_id"])["window_id"].to_pylist()
    return sum(is_holdout(i, share) for i in ids)
