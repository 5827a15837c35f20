"""Where a run keeps what: every path below `{storage.root}/{name}`, named once."""

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from jobs.config.schema import RunConfig
from models.errors import ConfigError
from pipelines.data.store.info import dataset_version


def is_remote(root: str) -> bool:
    """Whether `storage.root` is an fsspec URI of something other than a local folder."""
    return urlsplit(root).scheme not in ("", "file", "local")


def absolute_root(root: str) -> str:
    """`storage.root` as every process sees it: a relative folder made absolute, a URI as it is."""
    if is_remote(root):
        return root.rstrip("/")
    return str(Path(root.removeprefix("file://").removeprefix("local://")).expanduser().absolute())


def require_lasting_root(root: str) -> None:
    """Refuse a relative root inside a Ray job, whose working directory is a temporary copy.

    Raises:
        ConfigError: the root is relative and this process was started by a Jobs server.
    """
    relative = not is_remote(root) and not Path(root.removeprefix("file://")).expanduser().is_absolute()
    if relative and "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        raise ConfigError(
            f"storage.root {root!r} is relative, and a job's working directory is temporary",
            "Set storage.root to a folder or URI that every node reaches: --set storage.root=/mnt/runs",
        )


@dataclass(frozen=True)
class RunPaths:
    """Folders and files of one run. All are texts that `Storage` and fsspec take."""

    root: str
    """The run's folder, absolute, or a URI."""
    version: str
    """Of the dataset."""

    @classmethod
    def of(cls, config: RunConfig) -> "RunPaths":
        """The paths of the run `config.name` in `config.storage.root`."""
        version = dataset_version(config.data, config.autoencoder, config.world.seed)
        return cls(f"{absolute_root(config.storage.root)}/{config.name}", version)

    @property
    def world(self) -> str:
        """The built-in world's two corpora."""
        return f"{self.root}/world"

    @property
    def dataset(self) -> str:
        """What ingest wrote with these settings: shards, tables, autoencoder, dataset.json."""
        return f"{self.root}/dataset/{self.version}"

    @property
    def inspection(self) -> str:
        """What `sostenuto inspect` saw in the dataset."""
        return f"{self.root}/inspection"

    @property
    def samples(self) -> str:
        """Videos of `sostenuto sample`."""
        return f"{self.root}/samples"

    @property
    def report(self) -> str:
        """The page that compares the systems."""
        return f"{self.root}/report.html"

    @property
    def summary(self) -> str:
        """The figures of all seeds, machine-readable."""
        return f"{self.root}/summary.json"

    @property
    def sweeps(self) -> str:
        """State and trials of `sostenuto sweep`."""
        return f"{self.root}/sweep"

    def corpora(self, config: RunConfig) -> tuple[str, str]:
        """Where SHORT and LONG lie, absolute: the user's, or the built-in world's."""
        if config.data.short is not None and config.data.long is not None:
            return absolute_root(config.data.short), absolute_root(config.data.long)
        return f"{self.world}/short", f"{self.world}/long"

    def seed(self, seed: int) -> str:
        """Everything trained and measured with one seed."""
        return f"{self.root}/seed-{seed}"

    def stage(self, seed: int, stage: str) -> str:
        """Checkpoints of a training stage."""
        return f"{self.seed(seed)}/{stage}"

    def evaluation(self, seed: int) -> str:
        """Figures, plots and clips of `sostenuto evaluate`."""
        return f"{self.seed(seed)}/evaluation"
