"""`sostenuto ingest`: from two corpora of video to shards of latents."""

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.commands.world import render
from jobs.config.paths import RunPaths
from jobs.config.schema import RunConfig
from jobs.console import ConsoleProgress, print_line, print_table, tally_table, titled_table
from jobs.estimate.report import render as describe
from jobs.ray_session import ray_session
from jobs.tracking import command_run
from models.text.kinds import text_kind
from pipelines.data.checks import check_ingest
from pipelines.data.ingest.pipeline import ingest as run_ingest
from pipelines.data.ingest.preview import preview as run_preview
from pipelines.data.report.page import corpus_notes, count_rows
from pipelines.data.source.corpus import locate
from pipelines.data.store.caption_embeddings import embed_captions
from pipelines.data.store.index import read_index
from pipelines.data.store.info import MANIFEST_FILE, DatasetInfo, read_info, reconstruction_error
from pipelines.data.store.ledger import Status
from pipelines.data.tables import read_table
from pipelines.data.types import CORPORA
from pipelines.ray_map import Pool
from pipelines.storage import Storage


@dataclass(frozen=True, kw_only=True)
class Ingested:
    """A finished dataset, and what one run of ingest did for it; what earlier runs did does not count."""

    info: DatasetInfo
    windows: int
    video_hours: float
    num_bytes: int
    """Of the video files."""
    seconds: float
    """Wall-clock time."""

    @classmethod
    def of(cls, info: DatasetInfo, read: Sequence[Status], seconds: float) -> "Ingested":
        """What a run of so many seconds did that read these videos."""
        written = [status for status in read if status.status == "written"]
        return cls(
            info=info,
            windows=sum(status.num_windows for status in written),
            video_hours=sum(status.seconds for status in written) / 3600,
            num_bytes=sum(status.num_bytes for status in written),
            seconds=seconds,
        )

    @property
    def rates(self) -> dict[str, float]:
        """Windows per second, hours of video per hour, megabytes of video files per second."""
        return {
            "windows_per_second": self.windows / self.seconds,
            "video_hours_per_hour": self.video_hours * 3600 / self.seconds,
            "megabytes_per_second": self.num_bytes / 1e6 / self.seconds,
        }


def ingest(
    config: RunConfig, *, fresh: bool = False, as_json: bool = False, dry_run: bool = False
) -> DatasetInfo | None:
    """Decode, cut and encode what is missing of both corpora; the built-in world is rendered first.

    Args:
        config: the run's settings.
        fresh: remove the dataset, once it is known that a new one can be begun.
        as_json: print one JSON object on standard output and nothing else there.
        dry_run: print what it would keep and why; write nothing.

    Returns:
        What the dataset holds; None of a dry run.

    Raises:
        DataError: a corpus is missing or empty, or too many videos were refused.
        ClusterError: Ray, MLflow or the storage cannot be used.
    """
    if dry_run:
        preview(config)
        return None
    paths = RunPaths.of(config)
    require_inputs(config, paths)
    with (
        ConsoleProgress(to_stderr=as_json) as progress,
        ray_session(config.cluster),
        command_run(config, "dataset") as (_, tracker),
    ):
        done = ingest_corpora(config, paths, progress, fresh=fresh)
        rates = {f"data/{name}": rate for name, rate in done.rates.items()} if done.windows else {}
        tracker.tags({"sostenuto.data_hash": done.info.data_hash})
        tracker.metrics(0, rates)
    notes = ingest_notes(config, paths.dataset)
    if as_json:
        print_line(json.dumps(summary(paths.dataset, done, notes)))
    else:
        _print(paths.dataset, done, notes)
    return done.info


def preview(config: RunConfig) -> None:
    """Print the run's sizes and cost, then decode and judge every video of both corpora.

    Raises:
        DataError: a corpus is missing or empty.
        ClusterError: Ray or the storage cannot be used.
    """
    print_line(describe(config))
    paths = RunPaths.of(config)
    if config.uses_world and not Storage(paths.world).exists():
        print_line("the built-in world is not rendered yet, so no video was looked at")
        return
    with ConsoleProgress() as progress, ray_session(config.cluster):
        found = run_preview(*paths.corpora(config), paths.dataset, config.data, progress)
    table = titled_table("Kept")
    for name in ("corpus", "videos", "windows", "hours of video"):
        table.add_column(name, justify="left" if name == "corpus" else "right")
    for corpus, seen in found.items():
        table.add_row(corpus.upper(), f"{seen.videos}", f"{seen.windows}", f"{seen.hours:.3g}")
    print_table(table)
    if rejects := count_rows(found, "rejects", examples=1):
        print_table(tally_table("Rejected videos", ("stage", "videos", "such as"), rejects))
    if drops := count_rows(found, "drops", examples=1):
        print_table(tally_table("Dropped windows", ("reason", "windows", "such as"), drops))
    captions = frozenset[str]().union(*(seen.captions for seen in found.values()))
    print_line("\n".join(["", *_notes(config, found, captions), "nothing was encoded or written"]))


def require_inputs(config: RunConfig, paths: RunPaths) -> None:
    """Check what ingest is given, before anything is read or deleted.

    Raises:
        ConfigError: settings that no video can satisfy.
        DataError: a corpus is not there, or cannot be reached.
        CheckpointError: the text encoder's files are not there.
    """
    check_ingest(config.data)
    text_kind(config.text).check_files()
    if not config.uses_world:
        for location in paths.corpora(config):
            locate(location, config.data.links)


def ingest_corpora(
    config: RunConfig, paths: RunPaths, progress: ConsoleProgress, *, fresh: bool = False
) -> Ingested:
    """Render the built-in world where it is used, then ingest both corpora and embed their captions on the
    running Ray; `fresh` removes the dataset once both corpora are listed."""
    if config.uses_world:
        render(config, paths, progress)
    short, long = paths.corpora(config)
    read: list[Status] = []
    began = time.monotonic()
    info = run_ingest(
        short,
        long,
        paths.dataset,
        config.data,
        config.autoencoder,
        config.world.seed,
        progress,
        config.cluster.use_gpu,
        fresh=fresh,
        on_video=read.append,
    )
    pool = Pool(config.data.min_actors, config.data.max_actors, config.cluster.use_gpu)
    embed_captions(config.text, paths.dataset, pool=pool, progress=progress)
    return Ingested.of(info, read, time.monotonic() - began)


def ingest_notes(config: RunConfig, dataset: str) -> list[str]:
    """What a user has to know of a dataset's captions: which are only names, and which are cut."""
    info = read_info(dataset)
    index = read_index(Storage(dataset), info.index_sha256, ["caption", "kept"])
    captions = frozenset(index.filter(index["kept"])["caption"].to_pylist())
    return _notes(config, {corpus: info.corpus(corpus) for corpus in CORPORA}, captions)


def _notes(config: RunConfig, corpora: Mapping[str, Any], captions: frozenset[str]) -> list[str]:
    return [*corpus_notes(corpora), *filter(None, [text_kind(config.text).cut_note(captions)])]


def summary(dataset: str, done: Ingested, notes: Sequence[str]) -> dict[str, Any]:
    """What `--json` prints: the dataset's totals, and what this run did."""
    videos = read_table(Storage(dataset), MANIFEST_FILE).to_pylist()
    corpora = (done.info.short, done.info.long)
    rejected = Counter(video["stage"] for video in videos if video["status"] == "rejected")
    this_run = {name: getattr(done, name) for name in ("windows", "video_hours", "num_bytes", "seconds")}
    return {
        "dataset": dataset,
        "data_hash": done.info.data_hash,
        "sources": len(videos),
        "written": sum(corpus.videos for corpus in corpora),
        "windows": sum(corpus.windows for corpus in corpora),
        "rejects": dict(rejected.most_common()),
        "seconds": sum(video["seconds"] for video in videos),
        "bytes": sum(video["num_bytes"] for video in videos),
        "notes": notes,
        "this_run": this_run | done.rates,
    }


def _print(dataset: str, done: Ingested, notes: Sequence[str]) -> None:
    info = done.info
    for corpus in CORPORA:
        own = info.corpus(corpus)
        shape = "" if len(own.buckets) > 1 else f" of latents {list(own.latent_shape)}"
        print_line(
            f"{corpus.upper()}: {own.windows} windows{shape} from {own.videos} videos, {own.rejects} rejected"
        )
        for bucket in own.buckets if not shape else ():
            print_line(f"  {bucket}")
    for note in notes:
        print_line(note)
    print_line(f"reconstruction error {reconstruction_error(info.autoencoder)}; dataset: {dataset}")
    if not done.windows:
        print_line("nothing was left to do")
        return
    windows, hours, megabytes = done.rates.values()
    print_line(
        f"{done.windows} windows in {done.seconds:.1f} s: {windows:.3g} windows a second, "
        f"{hours:.3g} hours of video an hour, {megabytes:.3g} MB/s"
    )
