"""A training state as a folder, and back, bit for bit. No pickle: safetensors and JSON."""

import json
from pathlib import Path

import torch
from torch import Tensor

from models.ema import Ema
from models.weights import copy_into, load_tensors, save_tensors
from pipelines.checkpoints import NETWORK_FILE, NetworkSpec, check_seal, seal
from pipelines.training.state import Rollout, TrainState

STATE_FILE = "state.json"


def save_state(state: TrainState, spec: NetworkSpec, folder: Path) -> None:
    """Writes modules, averages, optimisers and the rollout pool, then the manifest.

    Args:
        state: what a stage trains.
        spec: the network that is sampled.
        folder: an empty folder.
    """
    for role, module in state.modules.items():
        save_tensors(module.state_dict(), folder / f"{role}.safetensors")
    for role, optimizer in state.optimizers.items():
        save_tensors(_optimizer_tensors(optimizer), folder / f"{role}.optimizer.safetensors")
    for role, average in state.averages.items():
        save_tensors(average.tensors(), folder / f"{role}.average.safetensors")
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
    """Fills a freshly made state from a folder, after checking its manifest.

    Raises:
        CheckpointError: the folder is damaged, or belongs to another network.
    """
    check_seal(folder)
    plain = json.loads((folder / STATE_FILE).read_text())
    for role, module in state.modules.items():
        copy_into(module, load_tensors(folder / f"{role}.safetensors"), str(folder))
    for role, optimizer in state.optimizers.items():
        _load_optimizer(optimizer, load_tensors(folder / f"{role}.optimizer.safetensors"))
    for role, average in state.averages.items():
        _load_average(average, load_tensors(folder / f"{role}.average.safetensors"), plain["averages"][role])
    if plain["pool"]:
        latents = load_tensors(folder / "pool.safetensors")
        device = next(state.modules["student"].parameters()).device
        state.pool = [
            Rollout(latents[f"{i}"].to(device, copy=True), tuple(c)) for i, c in enumerate(plain["pool"])
        ]
    state.step, state.cpu_seconds = plain["step"], plain["cpu_seconds"]
    state.held_out_start = plain.get("held_out_start")


def _load_average(average: Ema, tensors: dict[str, Tensor], updates: int) -> None:
    for name, tensor in average.average.items():
        tensor.copy_(tensors[name])
    average.updates = updates


def _optimizer_tensors(optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    states = optimizer.state_dict()["state"]
    return {f"{i}.{name}": value for i, entry in states.items() for name, value in entry.items()}


def _load_optimizer(optimizer: torch.optim.AdamW, tensors: dict[str, Tensor]) -> None:
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        states.setdefault(int(number), {})[name] = value.clone()
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": states, "param_groups": groups})
