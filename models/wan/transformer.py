"""Wan 2.1 transformers read from folders, and written as diffusers writes them."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.config import ModelConfig
from models.ddt import HeadName, Student
from models.dit import DiT
from models.errors import CheckpointError, ConfigError
from models.wan.layout import (
    WEIGHTS,
    attention_fields,
    is_windowed,
    layout_of,
    read_config,
    require_plain,
    spelling,
    weight_files,
)
from models.weights import TensorFiles, some

ROPE_FRAMES = 1024
"""Rotary positions per axis that diffusers' class prepares by default."""
SHARD = "5GB"
"""Largest size of one exported file."""


def read_transformer(folder: Path, config: ModelConfig, channels: int, text_dim: int) -> DiT:
    """Read a DiT in float32, whatever the files hold; each file is read once.

    Args:
        folder: with config.json and safetensors, named as in diffusers or in the original release.
        config: the shape that the run expects.
        channels: latent channels.
        text_dim: numbers per text token.

    Raises:
        CheckpointError: files are missing or damaged, or tensors do not fit.
        ConfigError: the folder's shape is not the config's.
    """
    read_config(folder).require(config, channels, text_dim)
    with TensorFiles(weight_files(folder)) as files:
        layout = layout_of(files.names())
        if layout is None:
            raise CheckpointError(
                f"{folder} has tensors of neither layout, diffusers or original: {some(files.names())}",
                "Set model.pretrained to the folder of a Wan 2.1 text-to-video transformer",
            )
        with torch.device("meta"):
            model = DiT(config, channels, text_dim)
        model.to_empty(device="cpu")
        files.copy_into(model, spelling(model.state_dict(), layout), f"{folder}, in the {layout} layout,")
    return model


def write_transformer(
    student: Student, head: HeadName, frames: int, folder: Path, shard: str = SHARD
) -> None:
    """Write the encoder and one head as diffusers' WanTransformer3DModel, in the student's number format.

    Args:
        student: the network.
        head: the head to keep.
        frames: latent frames of the clips it was trained on.
        folder: gets config.json and the weights.
        shard: largest size of one file.

    Raises:
        ConfigError: diffusers' class cannot represent this student, or huggingface_hub is missing.
    """
    require_exportable(student.config)
    try:
        from huggingface_hub import save_torch_state_dict
    except ImportError as error:
        raise ConfigError(
            "an export needs huggingface_hub", "Install the project with its extra `wan`"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    fields = _fields(student, frames)
    (folder / "config.json").write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
    pattern = WEIGHTS.replace(".", "{suffix}.")
    save_torch_state_dict(plain_stack(student, head), folder, filename_pattern=pattern, max_shard_size=shard)


def require_exportable(config: ModelConfig) -> None:
    """Check that diffusers' class can represent a student.

    Raises:
        ConfigError: names the setting that would have made it exportable.
    """
    if config.precondition:
        raise ConfigError(
            "a preconditioned student cannot be exported: diffusers' class predicts the velocity itself",
            "Train with model.precondition=false, as from model.pretrained",
        )
    if config.clip_position:
        raise ConfigError(
            "a student with clip positions cannot be exported: diffusers' class has no layer for them",
            "Train with model.clip_position=false",
        )
    require_plain(config)


def plain_stack(student: Student, head: HeadName) -> dict[str, Tensor]:
    """Weights of the encoder and one head, by diffusers' names."""
    module = student.heads[head if student.config.heads == "decoupled" else "flow_matching"]
    split = len(student.encoder.blocks)
    stack = dict(student.encoder.state_dict())
    for name, tensor in module.state_dict().items():
        if name.startswith("blocks."):
            _, number, leaf = name.split(".", 2)
            name = f"blocks.{split + int(number)}.{leaf}"
        stack[name] = tensor
    return stack


def _fields(student: Student, frames: int) -> dict[str, Any]:
    """config.json in diffusers' spelling, with a field of our own for windowed students."""
    config, embedder = student.config, student.encoder.condition_embedder
    channels = student.encoder.patch_embedding.in_channels
    own = {"sostenuto_attention": attention_fields(config)} if is_windowed(config, frames) else {}
    return own | {
        "_class_name": "WanTransformer3DModel",
        "patch_size": list(config.patch_size),
        "num_attention_heads": config.num_heads,
        "attention_head_dim": config.head_dim,
        "in_channels": channels,
        "out_channels": channels,
        "text_dim": embedder.text_embedder.linear_1.in_features,
        "freq_dim": config.freq_dim,
        "ffn_dim": config.ffn_dim,
        "num_layers": config.num_layers,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "eps": 1e-6,
        "image_dim": None,
        "added_kv_proj_dim": None,
        "pos_embed_seq_len": None,
        "rope_max_seq_len": max(ROPE_FRAMES, frames),
    }
