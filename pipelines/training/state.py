"""What a stage trains, and its checkpoints: everything that is needed to go on exactly.

A checkpoint is a folder of safetensors and JSON without pickle. Its manifest of sha256 sums is written last,
so that a folder that a crash left half written is not taken for a checkpoint; Ray Train names the latest one.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.weights import Ema, copy_into, load_tensors, save_tensors
from pipelines.checkpoints import NETWORK_FILE, NetworkSpec, check_seal, seal

STATE_FILE = "state.json"


@dataclass(frozen=True)
class Rollout:
    """Videos the student has generated, kept for the critic.

    Args:
        latents: [B, T, C, h, w], the whole global batch; the rollouts of a pool may differ in shape.
        captions: B captions.
        exit: number of the step whose x0 they are.
        images: for each latent frame [B, T, C, h, w], the first latent of a clip that begins there, where
            windows are cut that way.
    """

    latents: Tensor
    captions: tuple[str, ...]
    exit: int
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
    """A state as it was at one step, in main memory of its own: training goes on while it is written.

    Args:
        tensors: by file, then by name.
        plain: everything else, as JSON takes it.
    """

    tensors: dict[str, dict[str, Tensor]]
    plain: dict[str, Any]

    @property
    def bytes(self) -> int:
        """Bytes of its tensors."""
        return sum(tensor.nbytes for file in self.tensors.values() for tensor in file.values())

    def write(self, spec: NetworkSpec, folder: Path) -> None:
        """Fills an empty folder, the manifest last; `spec` is the network that is sampled."""
        for name, tensors in self.tensors.items():
            save_tensors(tensors, folder / name)
        (folder / STATE_FILE).write_text(json.dumps(self.plain))
        (folder / NETWORK_FILE).write_text(json.dumps(spec.to_json(), indent=1))
        seal(folder)


def snapshot(state: TrainState, **more: Any) -> Snapshot:
    """Copies a state; `more` goes into its plain values."""
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
    copies = {
        name: {key: tensor.detach().to("cpu", copy=True) for key, tensor in tensors.items()}
        for name, tensors in files.items()
    }
    plain = {
        "step": state.step,
        "cpu_seconds": state.cpu_seconds,
        "held_out_start": state.held_out_start,
        "ramped": state.ramped,
        "gaps": state.gaps,
        "averages": {role: average.updates for role, average in state.averages.items()},
        "pool": [{"captions": rollout.captions, "exit": rollout.exit} for rollout in state.pool],
    }
    return Snapshot(copies, plain | more)


def save_state(state: TrainState, spec: NetworkSpec, folder: Path) -> None:
    """Writes a state into an empty folder, and waits until it is there."""
    snapshot(state).write(spec, folder)


def load_state(state: TrainState, folder: Path) -> None:
    """Fills a fresh state from a folder, bit for bit, after checking its manifest.

    Raises:
        CheckpointError: the folder is damaged, or belongs to another network.
    """
    check_seal(folder)
    plain = json.loads((folder / STATE_FILE).read_text())
    for role, module in state.modules.items():
        copy_into(module, load_tensors(folder / f"{role}.safetensors"), str(folder))
    for role, optimizer in state.optimizers.items():
        states: dict[int, dict[str, Tensor]] = {}
        for key, value in load_tensors(folder / f"{role}.optimizer.safetensors").items():
            number, name = key.split(".", 1)
            states.setdefault(int(number), {})[name] = value.clone()
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": states, "param_groups": groups})
    for role, average in state.averages.items():
        tensors = load_tensors(folder / f"{role}.average.safetensors")
        for name, tensor in average.tensors.items():
            tensor.copy_(tensors[name])
        average.updates = plain["averages"][role]
    if plain["pool"]:
        device = next(state.modules["student"].parameters()).device
        saved = load_tensors(folder / "pool.safetensors").items()
        held = {name: tensor.to(device, copy=True) for name, tensor in saved}
        state.pool = [
            Rollout(held[f"{i}"], tuple(kept["captions"]), kept["exit"], held.get(f"{i}.images"))
            for i, kept in enumerate(plain["pool"])
        ]
    state.step, state.cpu_seconds = plain["step"], plain["cpu_seconds"]
    state.held_out_start = plain.get("held_out_start")
    state.ramped, state.gaps = plain.get("ramped", state.step), plain.get("gaps", {})
