"""Weights as safetensors: loading runs no code, and values are copied into parameters that exist."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.errors import CheckpointError


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes tensors (contiguous, on the CPU) to one safetensors file."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(plain, path, dict(metadata or {}))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Reads a safetensors file.

    Raises:
        CheckpointError: there is no such file, or it is damaged.
    """
    try:
        tensors: dict[str, Tensor] = load_file(path)
        return tensors
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}", "restore the file, or train again"
        ) from error


@torch.no_grad()
def copy_into(module: nn.Module, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Copies tensors into the module's own parameters and buffers, name by name.

    Mapped or assigned tensors would lie at other addresses, and CPU kernels then differ in the last bits.

    Raises:
        CheckpointError: a name is missing or unknown, or a shape differs.
    """
    own = module.state_dict()
    if own.keys() != tensors.keys():
        names = sorted(own.keys() ^ tensors.keys())
        raise CheckpointError(
            f"{origin} does not fit the network: {len(names)} names differ, the first is {names[0]}",
            "use the config that the weights were saved with",
        )
    for name, parameter in own.items():
        if parameter.shape != tensors[name].shape:
            raise CheckpointError(
                f"{origin}: {name} is {tuple(tensors[name].shape)}, the network has {tuple(parameter.shape)}",
                "use the config that the weights were saved with",
            )
        parameter.copy_(tensors[name])
