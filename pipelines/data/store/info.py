"""dataset.json: what a dataset is, how much is in it, and the checksums of its files.

A dataset is one version: the hash of every setting that its rows depend on.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from models.autoencoders.kinds import Autoencoder, load_autoencoder
from models.config import AutoencoderConfig
from models.errors import DataError
from pipelines.data.config import DataConfig
from pipelines.data.store.files import ShardFile, plain_values, tuples
from pipelines.data.types import CORPORA, REMEDY
from pipelines.storage import Storage, hash_of

FORMAT = 2
"""Of the dataset's layout; datasets of another number are neither read nor extended."""

INFO_FILE = "dataset.json"
MANIFEST_FILE = "manifest.parquet"
REJECTS_FILE = "rejects.parquet"
AUTOENCODER_FOLDER = "autoencoder"

_NOT_IN_VERSION = (
    "short long links limits block_bytes max_reject_share encode_batch min_actors max_actors".split()
)
_IN_VERSION_IF_SET = ("shapes", "long_lengths")
"""Left out where they are empty, so that datasets from before these settings keep their version."""


def dataset_version(data: DataConfig, autoencoder: AutoencoderConfig, seed: int) -> str:
    """12 hex digits. Where the corpora lie, what is in them, the limits and the distribution of the work do
    not count."""
    settings = {name: value for name, value in asdict(data).items() if name not in _NOT_IN_VERSION}
    settings = {name: value for name, value in settings.items() if value or name not in _IN_VERSION_IF_SET}
    code = asdict(autoencoder)
    if autoencoder.kind != "conv":
        del code["fit_steps"]
    return hash_of([FORMAT, settings, code, seed])[:12]


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Windows of one shape; a batch is of one bucket."""

    pixels: tuple[int, ...]
    """Frames, height and width of a window."""
    latent_shape: tuple[int, int, int, int]
    """[T, C, h, w] of a window."""
    windows: int
    """Kept windows, holdout included."""

    @property
    def size(self) -> str:
        """Width x height."""
        return f"{self.pixels[2]}x{self.pixels[1]}"

    def __str__(self) -> str:
        return f"{self.windows} of {self.pixels[0]} frames, {self.size}, latents {list(self.latent_shape)}"


@dataclass(frozen=True, kw_only=True)
class CorpusInfo:
    videos: int
    """Videos that gave at least one window, near duplicates included."""
    rejects: int
    windows: int
    """Kept windows, holdout included."""
    holdout_windows: int
    dropped_windows: int
    frames: int
    """Of the videos, after resampling."""
    hours: float
    fps: float
    """data.fps, or the median of the videos."""
    captions: int
    """Distinct captions."""
    window_frames: int
    """Pixel frames per window of the main bucket, padding included."""
    window_stride: int
    """Pixel frames from one window to the next, in the main bucket."""
    latent_shape: tuple[int, int, int, int]
    """[T, C, h, w] of a window of the main bucket: the longest windows, at the dataset's height x width."""
    latent_mean: tuple[float, ...]
    """Per channel, over all windows in its ledgers: near duplicates and removed videos too."""
    latent_std: tuple[float, ...]
    files: tuple[ShardFile, ...]
    padded_frames: int = 0
    """Frames of a window that repeat its last one, because the autoencoder takes 4k+1."""
    buckets: tuple[Bucket, ...] = ()
    """The shapes of its windows, the main one first; empty where the settings allow one shape only."""
    note: str = ""
    """What its listing had to tell (source/manifest.py: Listing.note)."""

    @property
    def latent_bytes(self) -> int:
        """Of all rows of its files, decoded, windows that were dropped later included."""
        return sum(file.rows * math.prod(self.shape_of(file)) * 4 for file in self.files)

    def shape_of(self, file: ShardFile) -> tuple[int, int, int, int]:
        """Latents [T, C, h, w] of a shard's windows."""
        shapes = {bucket.pixels: bucket.latent_shape for bucket in self.buckets}
        return shapes[file.pixels] if file.pixels else self.latent_shape


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    version: str
    """Hash of the settings."""
    made_from: str
    """Hash of the list of videos and of the limits on them: with the version, all that was asked for."""
    data_hash: str
    """Hash of the ids, captions and latents of all windows: what came out."""
    index_sha256: str
    """Of index.parquet."""
    height: int
    width: int
    holdout: float
    seed: int
    autoencoder: dict[str, Any]
    """kind, channels, temporal_factor, crop_safe, reconstruction_error (None where it was not measured)."""
    short: CorpusInfo
    long: CorpusInfo

    def corpus(self, name: str) -> CorpusInfo:
        return {"short": self.short, "long": self.long}[name]

    def to_json(self) -> dict[str, Any]:
        return {"complete": True, **plain_values(self)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "DatasetInfo":
        """The inverse of `to_json`; raises KeyError or TypeError when a field is missing."""
        plain = tuples({name: part for name, part in value.items() if name != "complete"})
        for name in CORPORA:
            corpus = plain[name]
            corpus["files"] = tuple(ShardFile(**file) for file in corpus.get("files", ()))
            corpus["buckets"] = tuple(Bucket(**bucket) for bucket in corpus.get("buckets", ()))
            plain[name] = CorpusInfo(**corpus)
        return cls(**plain)


def reconstruction_error(autoencoder: dict[str, Any]) -> str:
    """The reconstruction error in DatasetInfo.autoencoder, for people."""
    error = autoencoder["reconstruction_error"]
    return "not measured" if error is None else f"{error:.4g}"


def write_sealed(storage: Storage, value: dict[str, Any]) -> None:
    """Write dataset.json with a checksum of itself."""
    storage.write_json(INFO_FILE, {**value, "sha256": hash_of(value)})


def read_sealed(storage: Storage) -> dict[str, Any]:
    """What dataset.json says, finished or not.

    Raises:
        DataError: it is damaged.
    """
    value = storage.read_json(INFO_FILE)
    content = {name: part for name, part in value.items() if name != "sha256"}
    if value.get("sha256") != hash_of(content):
        raise DataError(f"{storage}/{INFO_FILE} is damaged: its sha256 differs", REMEDY)
    return content


def read_info(folder: str | Storage) -> DatasetInfo:
    """The description of a finished dataset.

    Raises:
        DataError: there is none, it is not finished, or it is damaged.
    """
    storage = Storage(folder)
    if not storage.exists(INFO_FILE):
        raise DataError(f"{storage} holds no dataset", "Run ingest first, with the same settings")
    value = read_sealed(storage)
    if not value.get("complete"):
        raise DataError(f"The dataset in {storage} is not finished", "Run the same ingest again; it resumes")
    try:
        return DatasetInfo.from_json(value)
    except (KeyError, TypeError) as error:
        raise DataError(f"{storage}/{INFO_FILE} is damaged: {error}", REMEDY) from error


def dataset_autoencoder(folder: str | Storage, device: torch.device | str = "cpu") -> Autoencoder:
    """The autoencoder of a dataset, wherever the dataset is stored.

    Raises:
        ConfigError: the device is not there.
        CheckpointError: it is missing or damaged.
    """
    with Storage(folder).on_disk(AUTOENCODER_FOLDER) as local:
        return load_autoencoder(local, device)
