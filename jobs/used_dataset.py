"""The corpora of a run as MLflow's column of datasets shows them."""

import json
from dataclasses import dataclass

from jobs.config.paths import absolute_root
from jobs.config.schema import RunConfig
from pipelines.data.store.info import read_info
from pipelines.data.types import CORPORA


@dataclass(frozen=True)
class UsedDataset:
    """What MLflow's column of datasets shows of a run."""

    name: str
    """The corpora's."""
    digest: str
    """What came out of ingest."""
    source: str
    """Folder or URI."""
    profile: str
    """Windows of each corpus, as JSON."""
    context: str
    """`training` or `evaluation`."""


def used_dataset(config: RunConfig, folder: str, context: str) -> UsedDataset:
    """The dataset in `folder`, used for training or for evaluation.

    Raises:
        DataError: there is no finished dataset.
    """
    info = read_info(folder)
    profile = {corpus: info.corpus(corpus).windows for corpus in CORPORA}
    return UsedDataset(corpora_name(config), info.data_hash[:36], folder, json.dumps(profile), context)


def corpora_name(config: RunConfig) -> str:
    """What people call the corpora: the names of their folders."""
    if config.data.short is None or config.data.long is None:
        return "built-in world"
    return " + ".join(
        absolute_root(root).rsplit("/", 1)[-1] for root in (config.data.short, config.data.long)
    )
