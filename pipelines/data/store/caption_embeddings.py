"""Embeddings of a dataset's captions: computed once each, stored beside the latents, read when needed.

text/ holds parts: a parquet file with a row group for each caption, and, written last, a ledger that names
the captions and the file's sha256. Parts are only ever added.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from models.config import TextConfig
from models.errors import DataError
from models.text.conditioning import Conditioning, TextEncoder, batched, withhold
from models.text.kinds import text_kind
from models.text.umt5 import Umt5Encoder
from pipelines.data.store.index import read_index
from pipelines.data.store.info import read_info
from pipelines.data.store.shards import RowGroups
from pipelines.ray_map import Pool, ray_map
from pipelines.storage import Storage, hash_of
from pipelines.tracking import Progress, no_progress

FOLDER = "text"
PART_CAPTIONS = 64
"""Captions per part; of 512 tokens of 4096 numbers they are 256 MiB."""
CACHE_BYTES = 256 << 20
"""Embeddings that a reader holds in memory."""
_SCHEMA = pa.schema([("caption", pa.string()), ("num_tokens", pa.int32()), ("tokens", pa.large_binary())])
"""`tokens` is float16 [num_tokens, dim], row by row, little-endian."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """The ledger of a part."""

    encoder: str
    """Fingerprint of the encoder and tokenizer."""
    max_tokens: int
    dim: int
    file: str
    sha256: str
    captions: tuple[str, ...]
    """In the order of the row groups."""


@dataclass(frozen=True)
class CaptionGroup:
    """Captions of one part: the work of one task."""

    captions: tuple[str, ...]

    def __str__(self) -> str:
        return f"the captions from {self.captions[0][:60]!r} on"


def text_encoder(config: TextConfig, dataset: str | Storage) -> TextEncoder:
    """The encoder of a dataset's captions in training and sampling: stored embeddings, or a small network.

    Raises:
        DataError: embeddings that are missing, damaged or of other settings; also when encoding.
    """
    kind = text_kind(config)
    return StoredEmbeddings(config, dataset) if kind.stored else kind.encoder()


def embed_captions(
    config: TextConfig,
    dataset: str | Storage,
    captions: Iterable[str] | None = None,
    *,
    device: str = "cpu",
    pool: Pool | None = None,
    progress: Progress = no_progress,
) -> int:
    """Compute and store the missing embeddings: of captions, also with words withheld, and of the negative
    and the empty one.

    Args:
        config: without a `stored` encoder there is nothing to do.
        dataset: folder or URI of a finished dataset.
        captions: None is all of the dataset's.
        device: where the encoder works when there is no pool.
        pool: actors on the running Ray that each keep an encoder; None loads it here, for this call.
        progress: called with `text`, captions done and captions in all.

    Returns: how many captions were embedded.

    Raises:
        ConfigError, CheckpointError: the encoder cannot be loaded.
        DataError: the dataset's embeddings are another encoder's, or a worker died each time.
    """
    kind = text_kind(config)
    if not kind.stored:
        return 0
    storage = Storage(dataset)
    if captions is None:
        index = read_index(storage, read_info(storage).index_sha256, ["caption", "kept"])
        captions = index.filter(index["kept"])["caption"].to_pylist()
    wanted = set(captions)
    wanted |= {withhold(caption, config.withheld_words) for caption in wanted if config.withheld_words}
    wanted |= {"", config.negative_caption}
    parts = read_parts(storage, config)
    missing = sorted(wanted.difference(*(part.captions for part in parts)))
    if not missing:
        return 0
    kind.check_files()
    fingerprint = kind.fingerprint()
    if any(part.encoder != fingerprint for part in parts):
        raise DataError(
            f"{storage}/{FOLDER} was made by another encoder than {config.pretrained}",
            f"Give that one, or delete {storage}/{FOLDER} and ingest again: only captions are embedded anew",
        )
    groups = [
        CaptionGroup(tuple(missing[i : i + PART_CAPTIONS])) for i in range(0, len(missing), PART_CAPTIONS)
    ]
    counts: Iterable[int]
    if pool is None:
        encoder = kind.embedder(device)
        counts = (_write_part(config, storage, encoder, group) for group in groups)
    else:
        work = partial(_write_part_in_actor, config, str(storage), "cuda" if pool.use_gpu else "cpu")
        counts = (count for _, count in ray_map(work, groups, pool))
    done = 0
    for count in counts:
        done += count
        progress("text", done, len(missing))
    if done < len(missing):
        raise DataError(
            f"{len(missing) - done} captions were not embedded: the worker died each time",
            "Give the workers more memory, or set data.max_actors=1, and run it again: the rest is kept",
        )
    return done


@lru_cache(maxsize=1)
def _embedder(config: TextConfig, device: str) -> Umt5Encoder:
    """Loaded once in each actor."""
    torch.set_num_threads(1)
    return text_kind(config).embedder(device)


def _write_part_in_actor(config: TextConfig, out: str, device: str, part: CaptionGroup) -> int:
    return _write_part(config, Storage(out), _embedder(config, device), part)


def _write_part(config: TextConfig, storage: Storage, encoder: Umt5Encoder, group: CaptionGroup) -> int:
    """Embed captions and store them, their ledger last; how many."""
    rows = encoder.embed(group.captions)
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, _SCHEMA, compression="none", write_page_checksum=True) as writer:
        for caption, row in zip(group.captions, rows, strict=True):
            column = {"caption": [caption], "num_tokens": [len(row)], "tokens": [row.numpy().tobytes()]}
            writer.write_table(pa.table(column, schema=_SCHEMA))
    data = sink.getvalue().to_pybytes()
    fingerprint = text_kind(config).fingerprint()
    stem = f"{FOLDER}/{hash_of([fingerprint, group.captions])[:20]}"
    storage.write_bytes(f"{stem}.parquet", data)
    part = Part(
        encoder=fingerprint,
        max_tokens=config.max_tokens,
        dim=config.dim,
        file=f"{stem}.parquet",
        sha256=hashlib.sha256(data).hexdigest(),
        captions=group.captions,
    )
    storage.write_json(f"{stem}.json", {**asdict(part), "ledger_sha256": hash_of(asdict(part))})
    return len(group.captions)


def read_parts(storage: Storage, config: TextConfig) -> list[Part]:
    """The parts that are whole.

    Raises:
        DataError: a ledger is damaged, or was made with other settings.
    """
    parts = []
    remedy = f"Delete {storage}/{FOLDER} and ingest again: only the captions are embedded anew"
    for name in storage.list(FOLDER):
        if not name.endswith(".json"):
            continue
        plain = storage.read_json(f"{FOLDER}/{name}")
        try:
            seal = plain.pop("ledger_sha256")
            part = Part(**{**plain, "captions": tuple(plain["captions"])})
            if seal != hash_of(plain):
                raise ValueError("its sha256 differs")
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DataError(f"{storage}/{FOLDER}/{name} is damaged: {error}", remedy) from error
        if (part.max_tokens, part.dim) != (config.max_tokens, config.dim):
            raise DataError(
                f"{storage}/{FOLDER} holds up to {part.max_tokens} tokens of {part.dim} numbers, but "
                f"text.max_tokens and text.dim are {config.max_tokens} and {config.dim}",
                remedy,
            )
        parts.append(part)
    return parts


class StoredEmbeddings:
    """Conditioning from a dataset's embeddings; the latest stay in memory.

    Args:
        config: `max_tokens` and `dim` must be those of the embeddings.
        dataset: folder or URI of the dataset.
        cache_bytes: the most that is held.
    """

    def __init__(self, config: TextConfig, dataset: str | Storage, cache_bytes: int = CACHE_BYTES) -> None:
        self._config = config
        self._storage = Storage(dataset)
        remedy = f"Delete {self._storage}/{FOLDER} and ingest again: only the captions are embedded anew"
        self._rows = RowGroups(self._storage, "tokens", cache_bytes, remedy=remedy)
        self._places: dict[str, tuple[Part, int]] = {}
        self._find()

    def encode(self, captions: Sequence[str]) -> Conditioning:
        """Conditioning [len(captions), L, dim] on the CPU.

        Raises:
            DataError: a caption has no embedding, or its file is damaged.
        """
        if any(caption not in self._places for caption in captions):
            self._find()
        rows = [self._tokens(caption) for caption in captions]
        return batched(rows, self._config, self._tokens(self._config.negative_caption))

    def _find(self) -> None:
        """Locate each caption by the ledgers of this moment."""
        for part in read_parts(self._storage, self._config):
            self._places |= {caption: (part, row) for row, caption in enumerate(part.captions)}

    def _tokens(self, caption: str) -> Tensor:
        """float16 [L, dim]."""
        if caption not in self._places:
            raise DataError(
                f"The caption {caption[:60]!r} has no embedding in {self._storage}/{FOLDER}",
                "Run ingest again with the same settings: it embeds what is missing",
            )
        part, row = self._places[caption]
        values = self._rows.read(part.file, part.sha256, row)[0].as_py()
        return torch.from_numpy(np.frombuffer(values, np.float16).reshape(-1, part.dim).copy())
