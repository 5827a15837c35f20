"""Datasets of generated clips, for other people's training: made by Ray actors, each clip exactly once.

The samples of a seed are cut into parts. A part's files are written first and its ledger last, each
in one step, and a clip's bytes depend on its seed and number alone, so that a run that was killed goes on
where it was, a run again adds nothing, and a larger count adds the difference.

clips/00003/7-00000750.mp4   one file per clip of seed 7, with metadata.jsonl for readers of video folders
shards/00003.tar             or a tar per part, a clip's .mp4, .txt and .json together, for webdataset
.parts/00003.json            the ledger of a part: the rows of metadata.jsonl

Readers guess what a folder holds by the files that they see, so ours are hidden.
"""

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from typing import Any, Literal

import numpy as np
import torch

from models.config import SamplingConfig
from models.device import compute_device
from models.errors import DataError
from models.rng import Key
from pipelines.checkpoints import load_network, read_spec
from pipelines.creation import Maker, Request
from pipelines.data.store.caption_embeddings import embed_captions, text_encoder
from pipelines.data.store.info import dataset_autoencoder, read_info
from pipelines.generation import Method
from pipelines.media.color import Frames
from pipelines.media.video import encode
from pipelines.ray_map import Pool, ray_map
from pipelines.storage import Storage, hash_of
from pipelines.tracking import Progress, no_progress
from pipelines.world.captions import COLOURS, SPEEDS, TEXTURES, parse
from pipelines.world.factors import LEVEL
from pipelines.world.measures import FactorReader, present

VERSION = 1
"""Raised when the same settings give other files."""
IDENTITY = ".synthesis.json"
"""What the clips of a folder are made by; others are refused."""
METADATA = "metadata.jsonl"
LEDGERS, CLIPS, SHARDS = ".parts", "clips", "shards"
"""Folders."""
Form = Literal["mp4", "webdataset"]
Clip = tuple[dict[str, Any], bytes]
"""What is said of a clip, and its MP4."""


@dataclass(frozen=True, kw_only=True)
class Synthesis:
    """What the clips are made by, wherever and in whatever order."""

    checkpoint: str
    """Folder or URI of the network."""
    weights: str
    """Hash of its manifest."""
    dataset: str
    """Folder or URI of the dataset it was trained on."""
    system: str
    """In words, for the metadata."""
    method: Method
    sampling: SamplingConfig
    seed: int
    frames: int
    """Of a clip."""
    form: Form
    captions: tuple[str, ...]
    """Given in turn, in another order in each round: each as often as the others."""
    is_world: bool
    """The captions are the built-in world's, so clips have exact labels."""
    batch: int
    """Clips that an actor makes at once."""
    part: int = 250
    """Clips of a ledger and of a tar."""

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides a clip's bytes."""
        decides = asdict(self)
        del decides["checkpoint"], decides["dataset"]
        return {"version": VERSION, **decides, "captions": hash_of(list(self.captions))}

    def caption(self, sample: int) -> str:
        """Of a sample."""
        number, place = divmod(sample, len(self.captions))
        order = Key(self.seed, number, purpose="synthesis/captions").numpy().permutation(len(self.captions))
        return self.captions[int(order[place])]


@dataclass(frozen=True)
class Part:
    """Samples that are made together."""

    number: int
    samples: range

    @property
    def ledger(self) -> str:
        """Its file."""
        return f"{LEDGERS}/{self.number:05d}.json"

    @property
    def clips(self) -> str:
        """Folder of its clips."""
        return f"{CLIPS}/{self.number:05d}"

    @property
    def shard(self) -> str:
        """Its tar."""
        return f"{SHARDS}/{self.number:05d}.tar"

    def __str__(self) -> str:
        return f"clips {self.samples.start} to {self.samples.stop - 1}"


def synthesize(
    synthesis: Synthesis, count: int, out: str, workers: Pool, progress: Progress = no_progress
) -> int:
    """Make the clips that a folder lacks of the first `count`, and say how many; Ray must be running.

    Raises:
        DataError: the folder holds clips of other settings, or a part was lost; what is finished is kept.
    """
    storage = Storage(out)
    _claim(storage, synthesis)
    parts = [
        Part(number, range(start, min(start + synthesis.part, count)))
        for number, start in enumerate(range(0, count, synthesis.part))
    ]
    missing = [part for part in parts if len(_rows(storage, part)) < len(part.samples)]
    text, place = read_spec(synthesis.checkpoint).text, Pool(1, 1, workers.use_gpu)
    embed_captions(text, synthesis.dataset, set(synthesis.captions), pool=place)
    made, wanted = 0, sum(len(part.samples) for part in missing)
    work = partial(_make, synthesis, out, workers.use_gpu)
    for _, clips in ray_map(work, missing, workers):
        made += clips
        progress("clips", made, wanted)
    if made < wanted:
        raise DataError(
            f"{wanted - made} clips were lost: their workers died each time",
            "Give the workers more memory, and the command again: what is finished is kept",
        )
    lines = (f"{json.dumps(row)}\n" for part in parts for row in _rows(storage, part)[: len(part.samples)])
    storage.write_bytes(METADATA, "".join(lines).encode())
    for folder in ("", LEDGERS, SHARDS, *(part.clips for part in parts)):
        storage.delete_unfinished(folder)
    return made


def _claim(storage: Storage, synthesis: Synthesis) -> None:
    """Say what a new folder's clips are made by, or see that they are made by the same.

    Raises:
        DataError: they are not.
    """
    if not storage.exists(IDENTITY):
        storage.write_json(IDENTITY, synthesis.identity)
        return
    there, wanted = storage.read_json(IDENTITY), json.loads(json.dumps(synthesis.identity))
    if differ := sorted(name for name in wanted if there.get(name) != wanted[name]):
        raise DataError(
            f"{storage} holds clips made by other settings: {', '.join(differ)} differ",
            "Give another folder, or the same checkpoint, seed and settings",
        )


def _rows(storage: Storage, part: Part) -> list[dict[str, Any]]:
    """What a part's ledger says of its clips; nothing before it is finished."""
    if not storage.exists(part.ledger):
        return []
    rows: list[dict[str, Any]] = storage.read_json(part.ledger)
    return rows


def _make(synthesis: Synthesis, out: str, use_gpu: bool, part: Part) -> int:
    """The work of an actor: a part's files, then its ledger; how many clips."""
    storage, clips = Storage(out), _clips(synthesis, _maker(synthesis, use_gpu), part.samples)
    if synthesis.form == "webdataset":
        rows = _write_tar(storage, part.shard, clips)
    else:
        rows = []
        for row, video in clips:
            name = f"{part.clips}/{row['id']}.mp4"
            storage.write_bytes(name, video)
            rows.append({"file_name": name, **row})
    storage.write_json(part.ledger, rows)
    return len(rows)


@lru_cache(maxsize=1)
def _maker(synthesis: Synthesis, use_gpu: bool) -> Maker:
    """This actor's."""
    device = compute_device(use_gpu)
    if not use_gpu:
        torch.set_num_threads(1)
    network = load_network(synthesis.checkpoint, device)
    return Maker(
        network,
        synthesis.method,
        dataset_autoencoder(synthesis.dataset, device),
        text_encoder(network.spec.text, synthesis.dataset),
        synthesis.sampling,
        read_info(synthesis.dataset).long.fps,
    )


def _clips(synthesis: Synthesis, maker: Maker, samples: range) -> Iterator[Clip]:
    """The row and the MP4 of each sample, a batch at a time."""
    request, key = Request(frames=synthesis.frames), Key(synthesis.seed, purpose="synthesis")
    for start in range(samples.start, samples.stop, synthesis.batch):
        batch = range(start, min(start + synthesis.batch, samples.stop))
        captions = [synthesis.caption(sample) for sample in batch]
        videos = np.concatenate(list(maker.create(request, captions, key, batch)), axis=1)
        for sample, caption, frames in zip(batch, captions, videos, strict=True):
            row = {
                "id": f"{synthesis.seed}-{sample:08d}",
                "caption": caption,
                "seed": synthesis.seed,
                "sample": sample,
                "system": synthesis.system,
                "checkpoint": synthesis.weights,
            }
            if synthesis.is_world:
                row |= world_labels(caption, frames)
            with io.BytesIO() as file:
                encode(file, frames, maker.fps, faststart=False)
                yield row, file.getvalue()


def world_labels(caption: str, frames: Frames) -> dict[str, Any]:
    """What a clip of the built-in world shows: sky, colour and motion of its caption, and of each frame
    [F, H, W, 3] whether the sun is there and how light it is, read from its pixels."""
    sky, colour, motion = parse(caption)
    factors = FactorReader(frames.shape[1]).factors(frames)
    return {
        "sky": TEXTURES[sky],
        "colour": None if colour is None else COLOURS[colour],
        "motion": SPEEDS[motion],
        "sun": present(factors[None])[0].astype(int).tolist(),
        "light": np.round(factors[:, LEVEL].astype(float), 3).tolist(),
    }


def _write_tar(storage: Storage, name: str, clips: Iterable[Clip]) -> list[dict[str, Any]]:
    """Clips as a shard, whose rows are returned: the files of one clip share a name, and equal clips give
    equal bytes."""
    rows = []
    pending = storage.pending(name)
    try:
        with tarfile.open(pending.path, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for row, video in clips:
                parts = {"mp4": video, "txt": row["caption"].encode(), "json": json.dumps(row).encode()}
                for suffix, data in parts.items():
                    entry = tarfile.TarInfo(f"{row['id']}.{suffix}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
                rows.append({"file_name": f"{row['id']}.mp4", "shard": name, **row})
        pending.commit()
    except BaseException:
        pending.abort()
        raise
    return rows
