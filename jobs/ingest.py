"""`longtake ingest`: from two folders of video to shards of latents."""

from jobs.console import Progress, say
from jobs.paths import RunPaths, is_remote
from jobs.ray_session import ray_session
from jobs.settings import RunConfig
from jobs.world import render
from models.errors import DataError
from pipelines.data.dataset import DatasetInfo
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
    with Progress() as progress:
        if config.uses_world:
            render(config, paths, lambda done, total: progress("world", done, total))
        short, long = paths.corpora(config)
        with ray_session(config.cluster):
            info = run_ingest(
                short, long, paths.dataset, config.data, config.autoencoder, config.world.seed, progress
            )
    return info
