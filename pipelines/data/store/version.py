"""What makes two datasets one: the hash of every setting that their rows depend on."""

import hashlib
import json
from dataclasses import asdict

from models.config import AutoencoderConfig
from pipelines.data.config import DataConfig

FORMAT = 2
"""Of the dataset's layout; another number never reads or extends this one's datasets."""

_PASSING = "short long limits block_bytes max_reject_share encode_batch min_actors max_actors".split()
_BUCKETS = ("shapes", "long_lengths")
"""Settings that count where they are set, so that a dataset from before them keeps its version."""


def hash_of(value: object) -> str:
    """sha256 of a plain value, as 64 hex digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def dataset_version(data: DataConfig, autoencoder: AutoencoderConfig, seed: int) -> str:
    """12 hex digits. Where the corpora lie, what is in them, what limits hold and how the work is spread are
    no part of it."""
    settings = {name: value for name, value in asdict(data).items() if name not in _PASSING}
    settings = {name: value for name, value in settings.items() if value or name not in _BUCKETS}
    return hash_of([FORMAT, settings, asdict(autoencoder), seed])[:12]
