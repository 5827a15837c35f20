"""The MLflow run `dataset`: what ingest made and inspect saw."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from jobs.config.load import config_hash, flatten
from jobs.config.schema import RunConfig
from jobs.tracking import factory, open_run
from pipelines.storage import Storage
from pipelines.tracking import Tracker

RUN = "dataset"


@dataclass(frozen=True)
class DatasetRun:
    """The open run."""

    tracker: Tracker

    def record(self, data_hash: str, metrics: Mapping[str, float]) -> None:
        """Say which data it is, and its numbers."""
        self.tracker.tags({"sostenuto.data_hash": data_hash})
        self.tracker.metrics(0, metrics)

    def artifacts(self, folder: str, names: tuple[str, ...]) -> None:
        """File a folder's files under its name, wherever it is stored."""
        with Storage(folder).on_disk() as local:
            for name in names:
                self.tracker.artifact(str(local / name), "inspection")


@contextmanager
def dataset_run(config: RunConfig) -> Iterator[DatasetRun]:
    """The config's run `dataset` for the length of a `with` block; it records nothing where tracking is off.

    Raises:
        ConfigError: there is no place for MLflow's file.
        ClusterError: MLflow does not answer or refuses.
    """
    tracker = factory(open_run(config, RUN, tags={"sostenuto.config_hash": config_hash(config)}))()
    tracker.params(flatten(config))
    try:
        yield DatasetRun(tracker)
    except BaseException:
        tracker.close("FAILED")
        raise
    tracker.close()
