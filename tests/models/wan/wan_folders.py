"""Folders of tiny random Wan transformers, in both layouts."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file
from torch import Tensor

from models.config import ModelConfig
from tests.models.builders import randomize

SHAPE = ModelConfig(
    num_layers=2,
    head_layers=1,
    num_heads=2,
    head_dim=12,
    ffn_dim=32,
    patch_size=(1, 2, 2),
    attention_pattern="GG",
    rope_theta_global=10000.0,
    rope_theta_windowed=10000.0,
    precondition=False,
    clip_position=False,
    init="wan",
)
CHANNELS, TEXT_DIM = 4, 10

# Module names of the original release, listed independently of models/wan.py.
BLOCK_LEAVES = {
    "attn1.to_q": "self_attn.q",
    "attn1.to_k": "self_attn.k",
    "attn1.to_v": "self_attn.v",
    "attn1.to_out.0": "self_attn.o",
    "attn1.norm_q": "self_attn.norm_q",
    "attn1.norm_k": "self_attn.norm_k",
    "attn2.to_q": "cross_attn.q",
    "attn2.to_k": "cross_attn.k",
    "attn2.to_v": "cross_attn.v",
    "attn2.to_out.0": "cross_attn.o",
    "attn2.norm_q": "cross_attn.norm_q",
    "attn2.norm_k": "cross_attn.norm_k",
    "norm2": "norm3",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
}
OUTER = {
    "patch_embedding": "patch_embedding",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "proj_out": "head.head",
}


def original(name: str) -> str:
    """A name of diffusers' class as the original release has it."""
    module, _, leaf = name.rpartition(".")
    if name == "scale_shift_table":
        return "head.modulation"
    if leaf == "scale_shift_table":
        return f"{module}.modulation"
    if not module.startswith("blocks."):
        return f"{OUTER[module]}.{leaf}"
    _, number, inner = module.split(".", 2)
    return f"blocks.{number}.{BLOCK_LEAVES[inner]}.{leaf}"


def twin(**changes: Any) -> WanTransformer3DModel:
    """Diffusers' class in the shape of SHAPE, with random weights."""
    fields = {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "text_dim": TEXT_DIM,
        "ffn_dim": 32,
        "num_layers": 2,
    }
    model = WanTransformer3DModel(**(fields | changes))
    randomize(model)
    return model


def original_fields(config: dict[str, Any]) -> dict[str, Any]:
    """config.json of the original release, from diffusers' fields."""
    heads = config["num_attention_heads"]
    return {
        "_class_name": "WanModel",
        "_diffusers_version": "0.30.0",
        "dim": heads * config["attention_head_dim"],
        "eps": 1e-6,
        "ffn_dim": config["ffn_dim"],
        "freq_dim": config["freq_dim"],
        "in_dim": config["in_channels"],
        "model_type": "t2v",
        "num_heads": heads,
        "num_layers": config["num_layers"],
        "out_dim": config["out_channels"],
        "text_dim": config["text_dim"],
        "text_len": 512,
    }


def write(folder: Path, layout: str = "diffusers", shard: str = "10GB") -> WanTransformer3DModel:
    """Write a folder in one of the layouts; return the model in it."""
    model = twin()
    model.save_pretrained(folder, max_shard_size=shard)
    if layout == "original":
        for path in folder.glob("*.safetensors"):
            rewrite(path, {original(name): tensor for name, tensor in tensors_of(path).items()})
        index = folder / "diffusion_pytorch_model.safetensors.index.json"
        if index.is_file():
            plain = json.loads(index.read_text())
            plain["weight_map"] = {original(name): file for name, file in plain["weight_map"].items()}
            index.write_text(json.dumps(plain))
        (folder / "config.json").write_text(json.dumps(original_fields(dict(model.config))))
    return model


def tensors_of(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, in memory of their own."""
    from models.weights import load_tensors

    return load_tensors(path)


def rewrite(path: Path, tensors: dict[str, Tensor]) -> None:
    """Replace a file."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, {"format": "pt"})


def set_fields(folder: Path, **fields: Any) -> None:
    """Change fields of config.json; None removes one."""
    path = folder / "config.json"
    plain = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in plain.items() if value is not None}))


def velocity(theirs: WanTransformer3DModel, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
    """Diffusers' output for our latents [B, T, C, h, w] and times, [B] or one per frame [B, T]."""
    if t.ndim == 2:
        t = t.repeat_interleave(x.shape[3] * x.shape[4] // 4, dim=1)
    out: Tensor = theirs(x.transpose(1, 2), 1000 * t, text).sample
    return out.transpose(1, 2)


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference in units of the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def inputs(frames: int = 3, rows: int = 8, columns: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Latents [2, frames, 4, rows, columns], times per frame [2, frames] and text [2, 5, 10]."""
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(2, frames, CHANNELS, rows, columns, generator=generator)
    t = torch.rand(2, frames, generator=generator)
    return x, t, torch.randn(2, 5, TEXT_DIM, generator=generator)
