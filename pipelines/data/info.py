"""dataset.json: what a dataset is, how much is in it, and the checksums of its files."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from models.autoencoders import Autoencoder, load_autoencoder
from models.errors import DataError
from pipelines.data.shards import ShardFile
from pipelines.storage import Storage

INFO_FILE = "dataset.json"
MANIFEST_FILE = "manifest.parquet"
REJECTS_FILE = "rejects.parquet"
AUTOENCODER_FOLDER = "autoencoder"


@dataclass(frozen=True, kw_only=True)
class CorpusInfo:
    """One corpus of a dataset."""

    videos: int
    """Videos with at least one window."""
    rejects: int
    windows: int
    """Training and holdout windows together."""
    holdout_windows: int
    frames: int
    """Of the videos, after resampling."""
    hours: float
    fps: float
    """Frames a second: data.fps, or the median of the videos."""
    captions: int
    """Different captions."""
    window_frames: int
    """Pixel frames a window."""
    window_stride: int
    """Pixel frames from one window to the next."""
    latent_shape: tuple[int, int, int, int]
    """[T, C, h, w] of a window."""
    files: tuple[ShardFile, ...]

    @property
    def latent_bytes(self) -> int:
        """Of all windows, decoded."""
        frames, channels, rows, columns = self.latent_shape
        return self.windows * frames * channels * rows * columns * 4


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """A finished dataset."""

    version: str
    """Hash of the settings and of the list of videos: what was asked for."""
    data_hash: str
    """Hash of the ids, captions and latents of all windows: what came out."""
    height: int
    """Pixels."""
    width: int
    """Pixels."""
    holdout: float
    seed: int
    autoencoder: dict[str, Any]
    """kind, channels, temporal_factor, reconstruction_error."""
    short: CorpusInfo
    long: CorpusInfo

    def corpus(self, name: str) -> CorpusInfo:
        """`short` or `long`."""
        return {"short": self.short, "long": self.long}[name]

    def to_json(self) -> dict[str, Any]:
        """Plain values for dataset.json."""
        return {"complete": True, **asdict(self)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "DatasetInfo":
        """The inverse of `to_json`; raises KeyError or TypeError when a field is missing."""
        plain = {k: v for k, v in value.items() if k != "complete"}
        return cls(**{**plain, "short": _corpus(plain["short"]), "long": _corpus(plain["long"])})


def _corpus(value: dict[str, Any]) -> CorpusInfo:
    files = tuple(ShardFile(**file) for file in value["files"])
    return CorpusInfo(**{**value, "files": files, "latent_shape": tuple(value["latent_shape"])})


def read_info(folder: str | Storage) -> DatasetInfo:
    """The description of a finished dataset.

    Raises:
        DataError: there is none, it is not finished, or it is damaged.
    """
    storage = folder if isinstance(folder, Storage) else Storage(folder)
    if not storage.exists(INFO_FILE):
        raise DataError(f"{storage} holds no dataset", "Run ingest first")
    value = storage.read_json(INFO_FILE)
    if not value.get("complete"):
        raise DataError(f"The dataset in {storage} is not finished", "Run the same ingest again; it resumes")
    try:
        return DatasetInfo.from_json(value)
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{storage}/{INFO_FILE} is damaged: {error}", "Delete the dataset and ingest again"
        ) from error


def dataset_autoencoder(folder: str | Storage) -> Autoencoder:
    """The autoencoder of a dataset, wherever the dataset is stored.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    storage = folder if isinstance(folder, Storage) else Storage(folder)
    with storage.on_disk(AUTOENCODER_FOLDER) as local:
        return load_autoencoder(local)


def is_holdout(window_id: str, share: float) -> bool:
    """Whether a window is kept out of training: a fixed property of its id and the share."""
    number = int.from_bytes(hashlib.sha256(window_id.encode()).digest()[:8], "big")
    return number < share * 2.0**64


def hash_of(value: object) -> str:
    """sha256 of a plain value, as 64 hex digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
