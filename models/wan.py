"""Wan 2.1 transformers on disk: in the layout of diffusers or of the original release."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from models.config import ModelConfig
from models.ddt import HeadName, Student
from models.dit import DiT
from models.errors import CheckpointError, ConfigError
from models.weights import CONFIG_FILE, PICKLES, TensorFiles, read_config, some, weight_files

Layout = Literal["diffusers", "original"]

WEIGHTS = "diffusion_pytorch_model.safetensors"
CLASSES: dict[str, Layout] = {"WanTransformer3DModel": "diffusers", "WanModel": "original"}
"""From `_class_name` in config.json to the spelling of its fields."""
NEIGHBOURS = frozenset({"Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth"})
"""Pickles beside the transformer in the original release; they are never opened."""
ROPE_THETA = 10000.0
"""Base of Wan's rotary frequencies, which its config.json omits."""
ROPE_FRAMES = 1024
"""Rotary positions per axis that diffusers' class prepares by default."""
SHARD = "5GB"
"""Largest size of one exported file."""

_ORIGINAL = (
    ("condition_embedder.time_embedder.linear_1.", "time_embedding.0."),
    ("condition_embedder.time_embedder.linear_2.", "time_embedding.2."),
    ("condition_embedder.text_embedder.linear_1.", "text_embedding.0."),
    ("condition_embedder.text_embedder.linear_2.", "text_embedding.2."),
    ("condition_embedder.time_proj.", "time_projection.1."),
    (".attn1.to_out.0.", ".self_attn.o."),
    (".attn2.to_out.0.", ".cross_attn.o."),
    (".attn1.to_", ".self_attn."),
    (".attn2.to_", ".cross_attn."),
    (".attn1.", ".self_attn."),
    (".attn2.", ".cross_attn."),
    (".norm2.", ".norm3."),
    (".ffn.net.0.proj.", ".ffn.0."),
    (".ffn.net.2.", ".ffn.2."),
    (".scale_shift_table", ".modulation"),
    ("proj_out.", "head.head."),
)
_MARKS: dict[Layout, str] = {"diffusers": ".attn1.to_q.", "original": ".self_attn.q."}
_FIELDS = {
    "num_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "attention_head_dim": "head_dim",
    "ffn_dim": "ffn_dim",
    "freq_dim": "freq_dim",
    "patch_size": "patch_size",
}
"""From fields of config.json to those of ModelConfig."""
_FIXED = {"cross_attn_norm": True, "qk_norm": "rms_norm_across_heads", "eps": 1e-6}
_ORIGINAL_DEFAULTS: dict[str, Any] = {
    "text_dim": 4096,
    "patch_size": [1, 2, 2],
    "cross_attn_norm": True,
    "qk_norm": True,
    "eps": 1e-6,
}
_IMAGE = ("image_dim", "added_kv_proj_dim", "pos_embed_seq_len")
_GIVE_TEXT_TO_VIDEO = "Set model.pretrained to the folder of a Wan 2.1 text-to-video transformer"


def diffusers_name(own: str) -> str:
    """A tensor's name in diffusers' WanTransformer3DModel, from its name in our DiT."""
    return own.split(".", 1)[1]


def original_name(diffusers: str) -> str:
    """A tensor's name in the original release, from its name in diffusers."""
    if diffusers == "scale_shift_table":
        return "head.modulation"
    for theirs, original in _ORIGINAL:
        diffusers = diffusers.replace(theirs, original)
    return diffusers


def layout_of(names: Iterable[str]) -> Layout | None:
    """The spelling of tensor names; None for neither."""
    starts = [name for name in names if name.startswith("blocks.0.")]
    return next((layout for layout, mark in _MARKS.items() if any(mark in name for name in starts)), None)


def spelling(own: Iterable[str], layout: Layout) -> dict[str, str]:
    """From names in files of a layout to our own."""
    plain = {diffusers_name(name): name for name in own}
    return plain if layout == "diffusers" else {original_name(name): ours for name, ours in plain.items()}


def read_transformer(folder: Path, config: ModelConfig, channels: int, text_dim: int) -> DiT:
    """Read a DiT in float32, whatever the files hold; each file is read once.

    Args:
        folder: with config.json and safetensors, named as in diffusers or in the original release.
        config, channels, text_dim: the shape that the run expects.

    Raises:
        CheckpointError: files are missing or damaged, or tensors do not fit.
        ConfigError: the folder's shape is not the config's.
    """
    _require_settings(folder, transformer_fields(folder), config, channels, text_dim)
    with TensorFiles(transformer_files(folder)) as files:
        layout = layout_of(files.names())
        if layout is None:
            raise CheckpointError(
                f"{folder} has tensors of neither layout, diffusers or original: {some(files.names())}",
                _GIVE_TEXT_TO_VIDEO,
            )
        with torch.device("meta"):
            model = DiT(config, channels, text_dim)
        model.to_empty(device="cpu")
        files.copy_into(model, spelling(model.state_dict(), layout), f"{folder}, in the {layout} layout,")
    return model


def transformer_fields(folder: Path) -> dict[str, Any]:
    """A transformer's config.json, in diffusers' spelling whatever its own.

    Raises:
        CheckpointError: it is missing, unreadable, of a class that we do not build, of an image-to-video
            variant, or of blocks that are not Wan 2.1's.
    """
    path, inner = folder / CONFIG_FILE, folder / "transformer"
    better = inner if inner.is_dir() else f"a folder with {CONFIG_FILE}"
    fields = read_config(folder, "transformer", f"Set model.pretrained to {better}")
    name = fields.get("_class_name")
    if name not in CLASSES:
        raise CheckpointError(
            f"{path} is of class {name}, not one of {', '.join(CLASSES)}", _GIVE_TEXT_TO_VIDEO
        )
    if CLASSES[name] == "original":
        fields = _from_original(fields)
    image = {name: fields[name] for name in _IMAGE if fields.get(name) is not None}
    if fields.get("model_type", "t2v") != "t2v":
        image["model_type"] = fields["model_type"]
    if fields.get("in_channels") != fields.get("out_channels"):
        image["in_channels"] = fields.get("in_channels")
    if image:
        found = ", ".join(f"{name} {value}" for name, value in image.items())
        raise CheckpointError(
            f"{path} is of an image-to-video transformer ({found}), which takes an image beside the text",
            "Set model.pretrained to the text-to-video variant of the same size",
        )
    for name, value in _FIXED.items():
        if fields.get(name) != value:
            raise CheckpointError(
                f"{path} has {name} {fields.get(name)}, but Wan 2.1 blocks have {value}", _GIVE_TEXT_TO_VIDEO
            )
    return fields


def _from_original(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The original release's fields in diffusers' spelling, with its class's defaults for those omitted."""
    given = _ORIGINAL_DEFAULTS | dict(fields)
    heads = given.get("num_heads")
    return given | {
        "num_attention_heads": heads,
        "attention_head_dim": given["dim"] // heads if heads and "dim" in given else None,
        "in_channels": given.get("in_dim"),
        "out_channels": given.get("out_dim"),
        "qk_norm": _FIXED["qk_norm"] if given["qk_norm"] else None,
    }


def _require_settings(
    folder: Path, fields: Mapping[str, Any], config: ModelConfig, channels: int, text_dim: int
) -> None:
    """Refuse settings that describe another network, naming every one that has to change."""
    path = folder / CONFIG_FILE
    given = {own: fields.get(name) for name, own in _FIELDS.items()}
    given = {own: tuple(value) if isinstance(value, list) else value for own, value in given.items()}
    wrong = {name: value for name, value in given.items() if value != getattr(config, name)}
    if wrong:
        differs = ", ".join(f"{name} {value} (here {getattr(config, name)})" for name, value in wrong.items())
        settings = " ".join(
            f"model.{name}={json.dumps(value, separators=(',', ':'))}" for name, value in wrong.items()
        )
        raise ConfigError(f"the transformer of {path} has {differs}", f"Set {settings}")
    for name, value in (("in_channels", channels), ("out_channels", channels), ("text_dim", text_dim)):
        if fields.get(name) != value:
            raise ConfigError(
                f"the transformer of {path} has {name} {fields.get(name)}, this run has {value}",
                "Use the autoencoder and the text encoder that it was trained with",
            )
    _require_plain(config)
    attention, own = fields.get("sostenuto_attention"), _attention_fields(config)
    if attention is not None and attention != own:
        raise ConfigError(
            f"{path} is a student with {attention}, this run has {own}",
            f"Set model.attention_pattern={attention['pattern']} model.window={attention['window']}",
        )


def _require_plain(config: ModelConfig) -> None:
    """Refuse settings under which our blocks are not Wan's."""
    if config.precondition:
        raise ConfigError(
            "a pretrained transformer predicts the velocity itself", "Set model.precondition=false"
        )
    for letter, name in (("W", "rope_theta_windowed"), ("G", "rope_theta_global")):
        if letter in config.attention_pattern and getattr(config, name) != ROPE_THETA:
            raise ConfigError(
                f"Wan's rotary base is {ROPE_THETA:g}, but model.{name} is {getattr(config, name):g}",
                f"Set model.{name}={ROPE_THETA:g} before training",
            )


def _attention_fields(config: ModelConfig) -> dict[str, Any]:
    """What the config.json of an exported student says of its attention."""
    return {"pattern": config.attention_pattern, "window": config.window}


def transformer_files(folder: Path) -> list[Path]:
    """The safetensors files of a transformer.

    Raises:
        CheckpointError: as `weight_files`, or a pickle lies among them.
    """
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in PICKLES and path.name not in NEIGHBOURS:
            raise CheckpointError(
                f"{path} is a pickle, which can run code when it is read",
                "Move it out of the folder, and use the same weights as safetensors",
            )
    return weight_files(folder, WEIGHTS)


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
    _require_plain(config)


def write_transformer(
    student: Student, head: HeadName, frames: int, folder: Path, shard: str = SHARD
) -> None:
    """Write the encoder and one head as diffusers' WanTransformer3DModel, in the student's number format.

    Args:
        student, head: the network, and the head to keep.
        frames: latent frames of the clips it was trained on.
        folder: gets config.json and the weights.
        shard: largest size of one file.

    Raises:
        ConfigError: diffusers' class cannot represent this student, or huggingface_hub is missing.
    """
    config = student.config
    require_exportable(config)
    try:
        from huggingface_hub import save_torch_state_dict
    except ImportError as error:
        raise ConfigError(
            "an export needs huggingface_hub", "Install the project with its extra `wan`"
        ) from error
    channels = student.encoder.patch_embedding.in_channels
    fields = {name: getattr(config, own) for name, own in _FIELDS.items()} | _FIXED | dict.fromkeys(_IMAGE)
    fields |= {
        "_class_name": "WanTransformer3DModel",
        "in_channels": channels,
        "out_channels": channels,
        "text_dim": student.encoder.condition_embedder.text_embedder.linear_1.in_features,
        "rope_max_seq_len": max(ROPE_FRAMES, frames),
    }
    if config.is_windowed(frames):
        fields["sostenuto_attention"] = _attention_fields(config)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
    pattern = WEIGHTS.replace(".", "{suffix}.")
    save_torch_state_dict(_plain_stack(student, head), folder, filename_pattern=pattern, max_shard_size=shard)


def _plain_stack(student: Student, head: HeadName) -> dict[str, Tensor]:
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
