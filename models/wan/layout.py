"""Wan 2.1 transformers on disk: config.json and tensor names as diffusers and the original spell them."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from models import folders
from models.config import ModelConfig
from models.errors import CheckpointError, ConfigError

Layout = Literal["diffusers", "original"]

WEIGHTS = "diffusion_pytorch_model.safetensors"
CLASSES = {"WanTransformer3DModel": "diffusers", "WanModel": "original"}
"""From `_class_name` in config.json to the spelling of its fields."""
NEIGHBOURS = frozenset({"Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth"})
"""Pickles beside the transformer in the original release; they are never opened."""
ROPE_THETA = 10000.0
"""Base of Wan's rotary frequencies, which its config.json omits."""

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
_FIXED = {"cross_attn_norm": True, "qk_norm": "rms_norm_across_heads", "eps": 1e-6}
_IMAGE = ("image_dim", "added_kv_proj_dim", "pos_embed_seq_len")


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


@dataclass(frozen=True)
class WanConfig:
    """A folder's config.json; `fields` in diffusers' spelling."""

    path: Path
    fields: Mapping[str, Any]

    def require(self, config: ModelConfig, channels: int, text_dim: int) -> None:
        """Check that a run's settings describe this network.

        Raises:
            ConfigError: names every setting that has to change.
        """
        given = {own: self.fields.get(name) for name, own in _FIELDS.items()}
        given = {own: tuple(value) if isinstance(value, list) else value for own, value in given.items()}
        wrong = [name for name, value in given.items() if value != getattr(config, name)]
        if wrong:
            differs = ", ".join(f"{name} {given[name]} (here {getattr(config, name)})" for name in wrong)
            settings = " ".join(f"model.{name}={_plain(given[name])}" for name in wrong)
            raise ConfigError(f"the transformer of {self.path} has {differs}", f"Set {settings}")
        for name, value in (("in_channels", channels), ("out_channels", channels), ("text_dim", text_dim)):
            found = self.fields.get(name)
            if found != value:
                raise ConfigError(
                    f"the transformer of {self.path} has {name} {found}, this run has {value}",
                    "Use the autoencoder and the text encoder that it was trained with",
                )
        require_plain(config)
        own = self.fields.get("sostenuto_attention")
        if own is not None and own != attention_fields(config):
            raise ConfigError(
                f"{self.path} is a student with {own}, this run has {attention_fields(config)}",
                f"Set model.attention_pattern={own['pattern']} model.window={own['window']}",
            )


def attention_fields(config: ModelConfig) -> dict[str, Any]:
    """What the config.json of an exported student says of its attention."""
    return {"pattern": config.attention_pattern, "window": config.window}


def _plain(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value).replace(" ", "")


def is_windowed(config: ModelConfig, frames: int) -> bool:
    """Whether a block sees less than the whole of a clip of `frames` latent frames."""
    return "W" in config.attention_pattern and config.window < frames // config.patch_size[0] - 1


def require_plain(config: ModelConfig) -> None:
    """Check that our blocks are Wan's under these settings.

    Raises:
        ConfigError: names the setting to change.
    """
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


def read_config(folder: Path) -> WanConfig:
    """Read the config.json of a transformer, in either spelling.

    Raises:
        CheckpointError: it is missing, unreadable, or of a class that we do not build.
    """
    path, inner = folder / folders.CONFIG_FILE, folder / "transformer"
    better = inner if inner.is_dir() else f"a folder with {folders.CONFIG_FILE}"
    fields = folders.read_config(folder, "transformer", f"Set model.pretrained to {better}")
    name = fields.get("_class_name")
    if name not in CLASSES:
        raise CheckpointError(
            f"{path} is of class {name}, not one of {', '.join(CLASSES)}",
            "Set model.pretrained to the folder of a Wan 2.1 text-to-video transformer",
        )
    fields = fields if CLASSES[name] == "diffusers" else _from_original(fields)
    _require_text_to_video(path, fields)
    return WanConfig(path, fields)


def _from_original(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The original release's fields in diffusers' spelling, with its class's defaults for those omitted."""
    heads = fields.get("num_heads")
    return {
        "num_layers": fields.get("num_layers"),
        "num_attention_heads": heads,
        "attention_head_dim": fields["dim"] // heads if heads and "dim" in fields else None,
        "ffn_dim": fields.get("ffn_dim"),
        "freq_dim": fields.get("freq_dim"),
        "in_channels": fields.get("in_dim"),
        "out_channels": fields.get("out_dim"),
        "text_dim": fields.get("text_dim", 4096),
        "patch_size": fields.get("patch_size", [1, 2, 2]),
        "cross_attn_norm": fields.get("cross_attn_norm", True),
        "qk_norm": "rms_norm_across_heads" if fields.get("qk_norm", True) else None,
        "eps": fields.get("eps", 1e-6),
        "model_type": fields.get("model_type", "t2v"),
    }


def _require_text_to_video(path: Path, fields: Mapping[str, Any]) -> None:
    """Refuse image-to-video variants, and blocks that are not Wan 2.1's."""
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
                f"{path} has {name} {fields.get(name)}, but Wan 2.1 blocks have {value}",
                "Set model.pretrained to the folder of a Wan 2.1 text-to-video transformer",
            )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a transformer.

    Raises:
        CheckpointError: as `folders.weight_files`, or a pickle lies among them.
    """
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in folders.PICKLES and path.name not in NEIGHBOURS:
            raise CheckpointError(
                f"{path} is a pickle, which can run code when it is read",
                "Move it out of the folder, and use the same weights as safetensors",
            )
    return folders.weight_files(folder, WEIGHTS)
