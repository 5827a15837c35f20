"""What a stage trains, and its checkpoints: everything that is needed to go on exactly.

A checkpoint is a folder of safetensors and JSON without pickle. Its manifest of sha256 sums is written last,
so that a folder that a crash left half written is not taken for a checkpoint; Ray Train names the latest one.
Where workers shard weights, each writes the rows that it has into files of its own, and whoever reads them,
with any number of workers, takes the rows that it wants: nobody has the whole.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.weights import Ema, TensorFiles, held, load_tensors, save_tensors
from pipelines.checkpoints import (
    MANIFEST_FILE,
    NETWORK_FILE,
    NetworkSpec,
    check_seal,
    part_name,
    parts_of,
    seal,
)
from pipelines.training.sharding import Shards, is_sharded

STATE_FILE = "state.json"


@dataclass(frozen=True)
class Rollout:
    """Videos the student has generated, kept for the critic.

    Args:
        latents: [B, T, C, h, w], the whole global batch; the rollouts of a pool may differ in shape.
        captions: B captions.
        exit: number of the step whose x0 they are.
        prefix: first frames that were given, not made.
        images: for each latent frame [B, T, C, h, w], the first latent of a clip that begins there, where
            windows are cut that way.
    """

    latents: Tensor
    captions: tuple[str, ...]
    exit: int
    prefix: int = 0
    images: Tensor | None = None


@dataclass
class TrainState:
    """Trained modules with their optimisers and averages; frozen ones are rebuilt by the stage.

    Args:
        modules: by role: those that are trained, and the student that a warm-up leaves alone.
        optimizers: of the roles that are trained.
        averages: EMA of the roles that are sampled.
        step: finished optimiser steps.
        pool: the last rollouts.
        cpu_seconds: processor time spent in steps, over all sessions.
        held_out_start: loss on held-out windows before the first step, where it was measured.
        ramped: steps that the reverse-KL weight has risen by.
        gaps: the last measurements of each `critic_gap_exit_K`, which the ramp may follow.
    """

    modules: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.AdamW]
    averages: dict[str, Ema]
    step: int = 0
    pool: list[Rollout] = field(default_factory=list)
    cpu_seconds: float = 0.0
    held_out_start: float | None = None
    ramped: int = 0
    gaps: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Snapshot:
    """A state, or a worker's part of it, as it was at one step, in main memory of its own: training goes on
    while it is written.

    Args:
        tensors: by file, then by name.
        rows: likewise, of those that are some rows of a tensor: the first one, and how many there are in all.
        plain: everything else, as JSON takes it; None where another worker writes that.
        manifest: name of its files' manifest.
    """

    tensors: dict[str, dict[str, Tensor]]
    rows: dict[str, dict[str, tuple[int, int]]]
    plain: dict[str, Any] | None
    manifest: str

    @property
    def bytes(self) -> int:
        """Bytes of its tensors."""
        return sum(tensor.nbytes for file in self.tensors.values() for tensor in file.values())

    def write(self, spec: NetworkSpec, folder: Path) -> None:
        """Fills an empty folder, the manifest last; `spec` is the network that is sampled."""
        for name, tensors in self.tensors.items():
            save_tensors(tensors, folder / name, self.rows.get(name))
        if self.plain is not None:
            (folder / STATE_FILE).write_text(json.dumps(self.plain))
            (folder / NETWORK_FILE).write_text(json.dumps(spec.to_json(), indent=1))
        seal(folder, self.manifest)


def snapshot(state: TrainState, shards: Shards | None = None, **more: Any) -> Snapshot:
    """Copies a state, or this worker's part of one that is sharded; `more` goes into its plain values."""
    files: dict[str, dict[str, Tensor]] = {}
    for role, module in state.modules.items():
        files[f"{role}.safetensors"] = module.state_dict()
    for role, optimizer in state.optimizers.items():
        states = optimizer.state_dict()["state"]
        tensors = {f"{i}.{name}": value for i, entry in states.items() for name, value in entry.items()}
        files[f"{role}.optimizer.safetensors"] = tensors
    for role, average in state.averages.items():
        files[f"{role}.average.safetensors"] = average.tensors
    if state.pool:
        files["pool.safetensors"] = {f"{i}": rollout.latents for i, rollout in enumerate(state.pool)}
        images = {f"{i}.images": r.images for i, r in enumerate(state.pool) if r.images is not None}
        files["pool.safetensors"] |= images
    number, count = (0, 1) if shards is None else (shards.number, shards.count)
    copies: dict[str, dict[str, Tensor]] = {}
    rows: dict[str, dict[str, tuple[int, int]]] = {}
    for file, tensors in files.items():
        parted = any(map(is_sharded, tensors.values()))
        if number and not parted:
            continue
        name = part_name(file, number, count) if parted else file
        copies[name], rows[name] = {}, {}
        for key, tensor in tensors.items():
            own, first = held(tensor.detach())
            if is_sharded(tensor):
                rows[name][key] = first, tensor.shape[0]
            elif number:
                continue
            copies[name][key] = own.to("cpu", copy=True)
    plain = {
        "step": state.step,
        "cpu_seconds": state.cpu_seconds,
        "held_out_start": state.held_out_start,
        "ramped": state.ramped,
        "gaps": state.gaps,
        "averages": {role: average.updates for role, average in state.averages.items()},
        "pool": [
            {"captions": rollout.captions, "exit": rollout.exit, "prefix": rollout.prefix}
            for rollout in state.pool
        ],
    }
    manifest = MANIFEST_FILE if shards is None else part_name(MANIFEST_FILE, number, count)
    return Snapshot(copies, rows, None if number else plain | more, manifest)


def save_state(state: TrainState, spec: NetworkSpec, folder: Path) -> None:
    """Writes a state into an empty folder, and waits until it is there."""
    snapshot(state).write(spec, folder)


def load_state(state: TrainState, folder: Path) -> None:
    """Fills a fresh state from a folder, bit for bit, after checking its manifest; however many workers have
    written it, and whatever part of it this one has.

    Raises:
        CheckpointError: the folder is damaged, or belongs to another network.
    """
    check_seal(folder)
    plain = json.loads((folder / STATE_FILE).read_text())
    for role, module in state.modules.items():
        with _files(folder, f"{role}.safetensors") as files:
            files.fill(module.state_dict(), str(folder))
    for role, optimizer in state.optimizers.items():
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        states: dict[int, dict[str, Tensor]] = {}
        with _files(folder, f"{role}.optimizer.safetensors") as files:
            for key in files.names():
                number, name = key.split(".", 1)
                like = parameters[int(number)].detach()
                if is_sharded(like) and files.shape(key) == like.shape:
                    files.read(key, value := torch.empty_like(like))
                else:
                    value = files.tensor(key)
                states.setdefault(int(number), {})[name] = value
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": states, "param_groups": groups})
    for role, average in state.averages.items():
        with _files(folder, f"{role}.average.safetensors") as files:
            files.fill(average.tensors, str(folder))
        average.updates = plain["averages"][role]
    if plain["pool"]:
        device = next(state.modules["student"].parameters()).device
        saved = load_tensors(folder / "pool.safetensors").items()
        held_there = {name: tensor.to(device, copy=True) for name, tensor in saved}
        state.pool = [
            Rollout(
                held_there[f"{i}"],
                tuple(kept["captions"]),
                kept["exit"],
                kept.get("prefix", 0),
                held_there.get(f"{i}.images"),
            )
            for i, kept in enumerate(plain["pool"])
        ]
    state.step, state.cpu_seconds = plain["step"], plain["cpu_seconds"]
    state.held_out_start = plain.get("held_out_start")
    state.ramped, state.gaps = plain.get("ramped", state.step), plain.get("gaps", {})


def _files(folder: Path, file: str) -> TensorFiles:
    """A file of a checkpoint, or its parts."""
    names = parts_of(file, [path.name for path in folder.iterdir()]) or [file]
    return TensorFiles(folder / name for name in names)
