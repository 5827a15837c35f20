"""dataset.json: what a dataset is, how much is in it, and the checksums of its files."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from models.autoencoders.kinds import Autoencoder, load_autoencoder
from models.errors import DataError
from pipelines.data.store.ledger import ShardFile
from pipelines.data.store.tables import REMEDY
from pipelines.data.store.version import hash_of
from pipelines.storage import Storage

INFO_FILE = "dataset.json"
MANIFEST_FILE = "manifest.parquet"
REJECTS_FILE = "rejects.parquet"
AUTOENCODER_FOLDER = "autoencoder"


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Windows of one shape; a batch is of one bucket."""

    pixels: tuple[int, ...]
    """Frames, height and width of a window."""
    latent_shape: tuple[int, int, int, int]
    """[T, C, h, w] of a window."""
    windows: int
    """That are kept, training and holdout windows together."""

    @property
    def frames(self) -> int:
        """Of a window, as it was cut."""
        return self.pixels[0]

    @property
    def picture(self) -> str:
        """Width and height for people."""
        return f"{self.pixels[2]}x{self.pixels[1]}"

    @property
    def told(self) -> str:
        """For people."""
        return f"{self.windows} of {self.frames} frames, {self.picture}, latents {list(self.latent_shape)}"


@dataclass(frozen=True, kw_only=True)
class CorpusInfo:
    """One corpus of a dataset."""

    videos: int
    """Videos that gave at least one window, though it may resemble another's."""
    rejects: int
    windows: int
    """That are kept, training and holdout windows together."""
    holdout_windows: int
    dropped_windows: int
    frames: int
    """Of the videos, after resampling."""
    hours: float
    fps: float
    """Frames a second: data.fps, or the median of the videos."""
    captions: int
    """Different captions."""
    window_frames: int
    """Pixel frames a window of the main bucket, those included that an autoencoder was padded with."""
    window_stride: int
    """Pixel frames from one window to the next, in the main bucket."""
    latent_shape: tuple[int, int, int, int]
    """[T, C, h, w] of a window of the main bucket: the longest windows, at the dataset's height x width."""
    latent_mean: tuple[float, ...]
    """Of each channel, over all windows in its ledgers: near duplicates and videos that were removed too."""
    latent_std: tuple[float, ...]
    files: tuple[ShardFile, ...]
    padded_frames: int = 0
    """How many of a window's frames repeat its last one, because the autoencoder takes 4k+1."""
    buckets: tuple[Bucket, ...] = ()
    """The shapes of its windows, the main one first; empty where the settings allow one shape only."""

    @property
    def latent_bytes(self) -> int:
        """Of all rows of its files, decoded; some are of windows that do not count."""
        return sum(file.rows * math.prod(self.shape_of(file)) * 4 for file in self.files)

    def shape_of(self, file: ShardFile) -> tuple[int, int, int, int]:
        """Latents [T, C, h, w] of a shard's windows."""
        shapes = {bucket.pixels: bucket.latent_shape for bucket in self.buckets}
        return shapes[file.pixels] if file.pixels else self.latent_shape

    def to_json(self) -> dict[str, Any]:
        """Plain values; without buckets these are left out."""
        plain = asdict(self) | {"files": [file.to_json() for file in self.files]}
        return plain if self.buckets else {name: value for name, value in plain.items() if name != "buckets"}


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """A finished dataset."""

    version: str
    """Hash of the settings."""
    made_from: str
    """Hash of the list of videos and of the limits on them: with the version, all that was asked for."""
    data_hash: str
    """Hash of the ids, captions and latents of all windows: what came out."""
    index_sha256: str
    """Of index.parquet."""
    height: int
    """Pixels."""
    width: int
    """Pixels."""
    holdout: float
    seed: int
    autoencoder: dict[str, Any]
    """kind, channels, temporal_factor, crop_safe, reconstruction_error (None where it was not measured)."""
    short: CorpusInfo
    long: CorpusInfo

    def corpus(self, name: str) -> CorpusInfo:
        """`short` or `long`."""
        return {"short": self.short, "long": self.long}[name]

    def to_json(self) -> dict[str, Any]:
        """Plain values for dataset.json."""
        corpora = {"short": self.short.to_json(), "long": self.long.to_json()}
        return {"complete": True, **asdict(self), **corpora}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "DatasetInfo":
        """The inverse of `to_json`; raises KeyError or TypeError when a field is missing."""
        plain = {k: v for k, v in value.items() if k != "complete"}
        return cls(**{**plain, "short": _corpus(plain["short"]), "long": _corpus(plain["long"])})


def told_error(autoencoder: dict[str, Any]) -> str:
    """The reconstruction error for people."""
    error = autoencoder["reconstruction_error"]
    return "not measured" if error is None else f"{error:.4g}"


def _corpus(value: dict[str, Any]) -> CorpusInfo:
    files = tuple(ShardFile.from_json(file) for file in value["files"])
    buckets = tuple(_bucket(bucket) for bucket in value.get("buckets", ()))
    tuples = {name: tuple(value[name]) for name in ("latent_shape", "latent_mean", "latent_std")}
    return CorpusInfo(**{**value, **tuples, "files": files, "buckets": buckets})


def _bucket(value: dict[str, Any]) -> Bucket:
    return Bucket(**{**value, "pixels": tuple(value["pixels"]), "latent_shape": tuple(value["latent_shape"])})


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
    storage = folder if isinstance(folder, Storage) else Storage(folder)
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

    Args:
        folder: of the dataset.
        device: where a neural autoencoder works.

    Raises:
        ConfigError: the device is not there.
        CheckpointError: it is missing or damaged.
    """
    storage = folder if isinstance(folder, Storage) else Storage(folder)
    with storage.on_disk(AUTOENCODER_FOLDER) as local:
        return load_autoencoder(local, device)
