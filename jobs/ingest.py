"""`longtake ingest`: from two folders of video to shards of latents."""

from jobs.console import Progress, say
from jobs.paths import RunPaths
from jobs.ray_session import ray_session
from jobs.settings import RunConfig
from jobs.world import render
from pipelines.data.info import DatasetInfo
from pipelines.data.ingest import ingest as run_ingest
from pipelines.storage import Storage


def ingest(config: RunConfig, *, fresh: bool = False) -> DatasetInfo:
    """Decode, cut and encode what is missing of both corpora; the built-in world is rendered first.

    Args:
        config: the run's settings.
        fresh: remove the dataset first.

    Returns:
        What the dataset holds.

    Raises:
        DataError: a folder is missing or empty, or too many videos were refused.
        ClusterError: Ray or the storage cannot be used.
    """
    paths = RunPaths.of(config)
    if fresh:
        Storage(paths.root).delete("dataset")
    with Progress() as progress, ray_session(config.cluster):
        info = ingest_corpora(config, paths, progress)
    for name, corpus in (("SHORT", info.short), ("LONG", info.long)):
        told = f"{corpus.windows} windows of latents {list(corpus.latent_shape)}"
        say(f"{name}: {told} from {corpus.videos} videos, {corpus.rejects} rejected")
    say(f"reconstruction error {info.autoencoder['reconstruction_error']:.4g}; dataset: {paths.dataset}")
    return info


def ingest_corpora(config: RunConfig, paths: RunPaths, progress: Progress) -> DatasetInfo:
    """Render the built-in world where it is used, then ingest both corpora on the running Ray."""
    if config.uses_world:
        render(config, paths, lambda done, total: progress("world", done, total))
    short, long = paths.corpora(config)
    return run_ingest(
        short, long, paths.dataset, config.data, config.autoencoder, config.world.seed, progress
    )
