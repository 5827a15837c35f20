"""Where a run keeps what: the folders below `{storage.root}/{name}`."""

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
    """Folders of one run, as texts that `Storage` and fsspec take."""

    root: str
    """The run's folder, absolute, or a URI."""
    world: str
    """The built-in world's two corpora."""
    dataset: str
    """What ingest wrote with these settings: shards, tables, autoencoder, dataset.json."""
    inspection: str
    samples: str
    sweeps: str

    @classmethod
    def of(cls, config: RunConfig) -> "RunPaths":
        root = f"{absolute_root(config.storage.root)}/{config.name}"
        version = dataset_version(config.data, config.autoencoder, config.world.seed)
        return cls(
            root=root,
            world=f"{root}/world",
            dataset=f"{root}/dataset/{version}",
            inspection=f"{root}/inspection",
            samples=f"{root}/samples",
            sweeps=f"{root}/sweep",
        )

    def corpora(self, config: RunConfig) -> tuple[str, str]:
        """Absolute folders of SHORT and LONG: the user's, or the built-in world's."""
        if config.data.short is not None and config.data.long is not None:
            return absolute_root(config.data.short), absolute_root(config.data.long)
        return f"{self.world}/short", f"{self.world}/long"

    def seed(self, seed: int) -> str:
        """Everything trained and measured with one seed."""
        return f"{self.root}/seed-{seed}"

    def evaluation(self, seed: int) -> str:
        """Figures, plots and clips of `sostenuto evaluate`."""
        return f"{self.seed(seed)}/evaluation"
