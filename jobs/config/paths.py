"""Where a run keeps what: the folders below `{storage.root}/{name}`."""

import dataclasses
import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from jobs.config.schema import RunConfig
from models.errors import ConfigError
from pipelines.data.store.info import dataset_version


def is_remote(root: str) -> bool:
    """Whether `storage.root` is an fsspec URI of something other than a local folder."""
    protocol = re.match(r"([\w.+-]+)://", root)
    return protocol is not None and protocol[1] not in ("file", "local")


def absolute_root(root: str) -> str:
    """`storage.root` as every process sees it: a relative folder made absolute, a URI as it is."""
    if is_remote(root):
        return root.rstrip("/")
    return str(Path(root.removeprefix("file://").removeprefix("local://")).expanduser().absolute())


def sqlite_uri(path: str | Path) -> str:
    """A database file as the URI that MLflow and SQLAlchemy open, whatever letters its path has."""
    quoted = str(path).replace("%", "%25").replace("?", "%3F")
    # with the driver's name MLflow leaves the path alone; else it makes a folder of the quoted name, too
    return f"sqlite{'+pysqlite' if quoted != str(path) else ''}:///{quoted}"


def absolute_uri(uri: str) -> str:
    """MLflow's address as every process sees it: a relative SQLite file or folder made absolute.

    Raises:
        ConfigError: the address cannot be read.
    """
    scheme, path = urlsplit(uri).scheme, Path(unquote(urlsplit(uri).path))
    if scheme == "file" and not path.is_absolute():
        return path.absolute().as_uri()
    if not scheme and uri != "databricks":
        return absolute_root(uri)
    if scheme.partition("+")[0] != "sqlite":
        return uri
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    try:
        url = make_url(uri)
    except SQLAlchemyError as error:
        raise ConfigError(
            f"tracking.uri {uri!r} cannot be read: {error}", "Write sqlite:///mlflow.db"
        ) from error
    if url.database in (None, "", ":memory:") or "uri" in url.query or Path(url.database).is_absolute():
        return uri
    _, mark, query = uri.partition("?")
    return f"{sqlite_uri(Path(url.database).absolute())}{mark}{query}"


def resolved(config: RunConfig, *, runs: bool = True) -> RunConfig:
    """The config for processes in any folder: `storage.root`, `data.links`, `distill.captions`,
    `evaluation.i3d`, `serve.folder` and MLflow's address, which is $MLFLOW_TRACKING_URI where `tracking.uri`
    is not set, are absolute.

    Args:
        config: as it was given in this process's working directory.
        runs: whether it is going to be run, and not only looked at.

    Raises:
        ConfigError: one of them is relative in a Ray job, whose working directory is a temporary copy.
    """
    root, uri = config.storage.root, config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    address = absolute_uri(uri) if uri else None
    if runs and "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        if not is_remote(root) and not Path(root.removeprefix("file://")).expanduser().is_absolute():
            problem = f"storage.root {root!r} is relative, and a job's working directory is temporary"
            remedy = (
                "Set storage.root to a folder or URI that every node reaches: --set storage.root=/mnt/runs"
            )
            raise ConfigError(problem, remedy)
        if address != uri:
            problem = f"MLflow's address {uri!r} is relative, and a job's working directory is temporary"
            raise ConfigError(problem, "Set it to a server: --set tracking.uri=http://mlflow:5000")
    links, captions, i3d = config.data.links, config.distill.captions, config.evaluation.i3d
    folder = config.serve.folder
    return dataclasses.replace(
        config,
        storage=dataclasses.replace(config.storage, root=absolute_root(root)),
        data=dataclasses.replace(config.data, links=links and absolute_root(links)),
        distill=dataclasses.replace(config.distill, captions=captions and absolute_root(captions)),
        evaluation=dataclasses.replace(config.evaluation, i3d=i3d and absolute_root(i3d)),
        serve=dataclasses.replace(config.serve, folder=folder and absolute_root(folder)),
        tracking=dataclasses.replace(config.tracking, uri=address),
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
    serve: str
    """What the page has made."""

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
            sweeps=f"{root}/{config.sweep.folder}",
            serve=config.serve.folder or f"{root}/serve",
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
