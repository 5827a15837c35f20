"""What a stage trains, and its checkpoints: everything that is needed to go on exactly.

A checkpoint is a folder of safetensors and JSON without pickle. Its manifest of sha256 sums is written last,
so that a folder that a crash left half written is not taken for a checkpoint; Ray Train names the latest one.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

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
    """

    latents: Tensor
    captions: tuple[str, ...]


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
    """

    modules: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.AdamW]
    averages: dict[str, Ema]
    step: int = 0
    pool: list[Rollout] = field(default_factory=list)
    cpu_seconds: float = 0.0
    held_out_start: float | None = None


def save_state(state: TrainState, spec: NetworkSpec, folder: Path) -> None:
    """Writes a state into an empty folder, the manifest last; `spec` is the network that is sampled."""
    for role, module in state.modules.items():
        save_tensors(module.state_dict(), folder / f"{role}.safetensors")
    for role, optimizer in state.optimizers.items():
        states = optimizer.state_dict()["state"]
        tensors = {f"{i}.{name}": value for i, entry in states.items() for name, value in entry.items()}
        save_tensors(tensors, folder / f"{role}.optimizer.safetensors")
    for role, average in state.averages.items():
        save_tensors(average.tensors, folder / f"{role}.average.safetensors")
    if state.pool:
        latents = {f"{i}": rollout.latents for i, rollout in enumerate(state.pool)}
        save_tensors(latents, folder / "pool.safetensors")
    plain = {
        "step": state.step,
        "cpu_seconds": state.cpu_seconds,
        "held_out_start": state.held_out_start,
        "averages": {role: average.updates for role, average in state.averages.items()},
        "pool": [list(rollout.captions) for rollout in state.pool],
    }
    (folder / STATE_FILE).write_text(json.dumps(plain))
    (folder / NETWORK_FILE).write_text(json.dumps(spec.to_json(), indent=1))
    seal(folder)


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
        latents = load_tensors(folder / "pool.safetensors")
        device = next(state.modules["student"].parameters()).device
        state.pool = [
            Rollout(latents[f"{i}"].to(device, copy=True), tuple(c)) for i, c in enumerate(plain["pool"])
        ]
    state.step, state.cpu_seconds = plain["step"], plain["cpu_seconds"]
    state.held_out_start = plain.get("held_out_start")
