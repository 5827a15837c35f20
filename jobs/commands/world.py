"""`sostenuto world`: the built-in world as two folders of video files."""

import os

from jobs.config.paths import RunPaths, is_remote
from jobs.config.schema import RunConfig
from jobs.console import ConsoleProgress, print_line
from models.errors import ConfigError
from pipelines.storage import Storage, temporary_folder
from pipelines.tracking import Progress
from pipelines.world.render import write_world


def world(config: RunConfig, *, fresh: bool = False) -> None:
    """Render what is missing of both corpora below the run's folder.

    Args:
        config: the run's settings.
        fresh: remove what is there first.

    Raises:
        ConfigError: the config names corpora of the user's, or sizes that cannot be rendered.
        DataError: the folder holds a world of other settings.
        ClusterError: the folder cannot be written.
    """
    if not config.uses_world:
        problem = "this config takes its videos from data.short and data.long"
        raise ConfigError(problem, "Leave the world out, or use a config of the built-in world, such as tiny")
    paths = RunPaths.of(config)
    if fresh:
        Storage(paths.root).delete("world")
    with ConsoleProgress() as progress:
        render(config, paths, progress)
    print_line(
        f"world: {config.world.short_clips} SHORT and {config.world.long_clips} LONG clips in {paths.world}"
    )


def render(config: RunConfig, paths: RunPaths, progress: Progress) -> None:
    """Write the world where the run keeps it; an object store gets it from a temporary folder."""
    workers = os.cpu_count() or 1
    if not is_remote(paths.world):
        write_world(config.world, paths.world, progress, workers)
        return
    with temporary_folder() as folder:
        write_world(config.world, folder, progress, workers)
        Storage(paths.root).put_folder(folder, "world")
