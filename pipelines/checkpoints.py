"""Networks as folders: weights in safetensors, their shape in network.json, a manifest of sha256 sums."""

import dataclasses
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from models.config import FlowConfig, LoraConfig, ModelConfig, SamplingConfig, TextConfig
from models.ddt import Student
from models.dit import DiT
from models.errors import CheckpointError
from models.lora import add_adapters, merge_adapters
from models.weights import TensorFiles, save_tensors
from pipelines.storage import Storage, file_sha256

Role = Literal["teacher", "student", "critic"]
NETWORK_FILE = "network.json"
MANIFEST_FILE = "manifest.json"


@dataclass(frozen=True)
class NetworkSpec:
    """What a network is: enough to build it before its weights are read."""

    role: Role
    """`teacher` is a plain stack, `student` has two heads, `critic` is a stack that is told the exit step."""
    model: ModelConfig
    text: TextConfig
    channels: int
    shape: tuple[int, int, int, int]
    """Latents of a clip, [T, C, h, w]."""
    lora: LoraConfig = LoraConfig()
    """Adapters in its files, if any; loading merges them."""
    distilled: bool = False
    """Whether distillation, not just its warm-up, has trained a student's DM head."""
    flow: FlowConfig = FlowConfig()
    """The shift that it was trained with."""
    sampling: SamplingConfig = SamplingConfig()
    """Its samplers; distillation trains the DM head for these few steps."""

    def build(self, device: torch.device | str = "cpu") -> DiT | Student:
        """The network with unset weights."""
        shape, exits = (self.model, self.channels, self.text.dim), len(self.sampling.steps)
        with torch.device(device):
            if self.role == "student":
                return Student(*shape)
            return DiT(*shape, exits=exits if self.role == "critic" else 0)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "NetworkSpec":
        parts: dict[str, Any] = {
            "model": ModelConfig(**_tupled(values["model"])),
            "text": TextConfig(**_tupled(values["text"])),
            "lora": LoraConfig(**_tupled(values.get("lora", {}))),
            "flow": FlowConfig(**values["flow"]),
            "sampling": SamplingConfig(**_tupled(values["sampling"])),
        }
        return NetworkSpec(**_tupled(values) | parts)


def _tupled(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields from JSON, with the tuples that they had been."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


@dataclass(frozen=True)
class Network:
    """A network ready to sample from: averaged weights, on its device, in evaluation mode."""

    model: DiT | Student
    spec: NetworkSpec


def part_name(file: str, number: int, count: int) -> str:
    """The file in which the `number`-th of `count` workers has its part of a file's tensors."""
    path = Path(file)
    return f"{path.stem}-{number + 1:05}-of-{count:05}{path.suffix}"


def parts_of(file: str, names: Collection[str]) -> list[str]:
    """Those of a checkpoint's files that hold a file's tensors: itself, or every worker's part; none where it
    is not there, or a part is missing."""
    if file in names:
        return [file]
    path = Path(file)
    first = re.compile(rf"{re.escape(path.stem)}-00001-of-(\d{{5}}){re.escape(path.suffix)}")
    for found in filter(None, map(first.fullmatch, names)):
        parts = [part_name(file, number, int(found[1])) for number in range(int(found[1]))]
        return parts if set(parts) <= set(names) else []
    return []


def seal(folder: Path, manifest: str = MANIFEST_FILE) -> None:
    """Flushes a folder's files to disk, then writes their manifest: without one a folder is no checkpoint.

    Args:
        folder: on this machine's disk.
        manifest: its name; a worker that has a part of a checkpoint's files gives its part another.
    """
    sums = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
        sums[path.name] = file_sha256(path)
    (folder / manifest).write_text(json.dumps(sums, indent=1))


def seal_parts(stage: Storage, name: str, count: int) -> None:
    """Writes the manifest of a checkpoint to which `count` workers have brought their parts and manifests."""
    manifests = [f"{name}/{part_name(MANIFEST_FILE, number, count)}" for number in range(count)]
    sums: dict[str, str] = {}
    for manifest in manifests:
        sums |= stage.read_json(manifest)
    stage.write_json(f"{name}/{MANIFEST_FILE}", sums)
    for manifest in manifests:
        stage.delete(manifest)


def check_seal(folder: Path, names: Sequence[str] | None = None, place: str | None = None) -> None:
    """Compares files with the manifest.

    Args:
        folder: of a checkpoint, on this machine's disk.
        names: files to compare; None is all.
        place: the folder's name in error messages; None is its path.

    Raises:
        CheckpointError: no manifest, a missing file, or one that has changed.
    """
    place = place or str(folder)
    sums = _sums(folder, place)
    for name in sums if names is None else names:
        path = folder / name
        if not path.is_file() or file_sha256(path) != sums.get(name):
            raise CheckpointError(f"{place}/{name} is missing or damaged", "use an earlier checkpoint")


def _sums(folder: Path, place: str) -> dict[str, str]:
    """A checkpoint's manifest."""
    try:
        return dict(json.loads((folder / MANIFEST_FILE).read_text()))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{place} is not a whole checkpoint: {error}", "use an earlier one") from error


@contextmanager
def checkpoint_files(folder: str | Path, name: str) -> Iterator[list[Path]]:
    """One file of a checkpoint in local or remote storage, or its parts, on this machine's disk, equal to the
    manifest.

    Raises:
        CheckpointError: no manifest, a missing file, or one that has changed.
    """
    storage = Storage(folder)
    with storage.on_disk(only=(MANIFEST_FILE,)) as local:
        names = parts_of(name, _sums(local, str(storage))) or [name]
    with storage.on_disk(only=(MANIFEST_FILE, *names)) as local:
        check_seal(local, names, str(storage))
        yield [local / one for one in names]


@contextmanager
def checkpoint_file(folder: str | Path, name: str) -> Iterator[Path]:
    """As `checkpoint_files`, a file that has no parts."""
    with checkpoint_files(folder, name) as (path,):
        yield path


def manifest_sha256(folder: str | Path) -> str:
    """What tells the content of a checkpoint folder from that of any other."""
    return Storage(folder).sha256(MANIFEST_FILE)


def read_spec(folder: str | Path) -> NetworkSpec:
    """The network described in a checkpoint folder of local or remote storage.

    Raises:
        CheckpointError: the folder is not a whole checkpoint, or describes no network.
    """
    with checkpoint_file(folder, NETWORK_FILE) as path:
        try:
            return NetworkSpec.from_json(json.loads(path.read_text()))
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{folder} holds no network of this version: {error}",
                "Give the folder of a finished stage, or train it again",
            ) from error


def load_network(folder: str | Path, device: torch.device | str = "cpu") -> Network:
    """A checkpoint's averaged network, from local or remote storage.

    Raises:
        CheckpointError: the folder is not a whole checkpoint.
    """
    spec = read_spec(folder)
    with checkpoint_files(folder, f"{spec.role}.average.safetensors") as paths:
        model = _read(spec, paths, device)
    return Network(model.eval().requires_grad_(False), spec)


def critic_weights(folder: str | Path) -> dict[str, Tensor]:
    """The critic of a warm-up or distillation checkpoint, adapters merged; from local or remote storage.

    Raises:
        CheckpointError: the folder is not a whole checkpoint.
    """
    spec = dataclasses.replace(read_spec(folder), role="critic")
    with checkpoint_files(folder, "critic.safetensors") as paths:
        return _read(spec, paths).state_dict()


def _read(spec: NetworkSpec, paths: Sequence[Path], device: torch.device | str = "cpu") -> DiT | Student:
    """A network from its files, with its adapters merged."""
    model = spec.build("meta")
    if spec.lora.rank:
        add_adapters(model, spec.lora)
    model.to_empty(device=device)
    with TensorFiles(paths) as files:
        files.copy_into(model)
    if spec.lora.rank:
        merge_adapters(model)
    return model


def save_network(model: DiT | Student, spec: NetworkSpec, folder: Path) -> None:
    """Writes a network that is not in training, so that `load_network` reads it."""
    save_tensors(model.state_dict(), folder / f"{spec.role}.average.safetensors")
    (folder / NETWORK_FILE).write_text(json.dumps(spec.to_json(), indent=1))
    seal(folder)
