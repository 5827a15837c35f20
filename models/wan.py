"""Wan 2.1 transformers in the diffusers layout: a folder with config.json and safetensors files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from models.config import ModelConfig
from models.dit import DiT
from models.errors import CheckpointError, ConfigError
from models.weights import copy_into, load_tensors

WEIGHTS = "diffusion_pytorch_model.safetensors"
_HEAD = ("scale_shift_table", "proj_out.")
_FIELDS = {
    "num_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "attention_head_dim": "head_dim",
    "ffn_dim": "ffn_dim",
    "freq_dim": "freq_dim",
    "patch_size": "patch_size",
}


def from_diffusers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of diffusers' WanTransformer3DModel as names of our DiT; tensors stay as they are."""
    return {("head." if name.startswith(_HEAD) else "encoder.") + name: t for name, t in tensors.items()}


def read_transformer(folder: Path, config: ModelConfig, channels: int, text_dim: int) -> DiT:
    """A DiT with the weights of a diffusers folder.

    Args:
        folder: holds config.json and one safetensors file, or several and their index.
        config: the shape that the run expects.
        channels, text_dim: latent channels and numbers a text token.

    Raises:
        CheckpointError: files are missing or damaged, or tensors do not fit.
        ConfigError: the folder's shape is not the config's.
    """
    try:
        theirs = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder} holds no transformer: {error}", "Set model.pretrained to a folder with config.json"
        ) from error
    _compare(theirs, config, channels, text_dim)
    model = DiT(config, channels, text_dim)
    copy_into(model, from_diffusers(_read(folder)), str(folder))
    return model


def _compare(theirs: Mapping[str, Any], config: ModelConfig, channels: int, text_dim: int) -> None:
    expected = {name: getattr(config, own) for name, own in _FIELDS.items()}
    expected |= {"in_channels": channels, "out_channels": channels, "text_dim": text_dim}
    for name, value in expected.items():
        given = theirs.get(name)
        if (tuple(given) if isinstance(given, list) else given) != value:
            remedy = (
                f"Set model.{_FIELDS[name]}={given}"
                if name in _FIELDS
                else "Use the autoencoder and text it was trained with"
            )
            raise ConfigError(f"the pretrained transformer has {name} {given}, this run has {value}", remedy)
    if config.precondition:
        raise ConfigError(
            "a pretrained transformer predicts the velocity itself", "Set model.precondition=false"
        )


def _read(folder: Path) -> dict[str, Tensor]:
    index = folder / f"{WEIGHTS}.index.json"
    if not index.is_file():
        return load_tensors(folder / WEIGHTS)
    files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    tensors: dict[str, Tensor] = {}
    for name in files:
        if Path(name).name != name:
            raise CheckpointError(f"{index} names a file outside its folder: {name}", "Restore the folder")
        tensors |= load_tensors(folder / name)
    return tensors
