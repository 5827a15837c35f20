"""Wan 2.1 transformers on disk: two spellings of tensor names and of config.json, and which files count."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from models.config import ModelConfig
from models.errors import CheckpointError, ConfigError

Layout = Literal["diffusers", "original"]

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
CLASSES = {"WanTransformer3DModel": "diffusers", "WanModel": "original"}
"""`_class_name` of config.json to the spelling of its fields."""
PICKLES = frozenset({".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"})
NEIGHBOURS = frozenset({"Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth"})
"""Pickles that lie beside the transformer in the original release. They are never opened."""
ROPE_THETA = 10000.0
"""Base of Wan's rotary frequencies; its config.json does not name it."""

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
    """Our DiT's name of a tensor as diffusers' WanTransformer3DModel spells it."""
    return own.split(".", 1)[1]


def original_name(diffusers: str) -> str:
    """A tensor's name in the original release from the one in diffusers."""
    if diffusers == "scale_shift_table":
        return "head.modulation"
    for theirs, original in _ORIGINAL:
        diffusers = diffusers.replace(theirs, original)
    return diffusers


def layout_of(names: Iterable[str]) -> Layout | None:
    """Which spelling tensor names have; None is neither."""
    starts = [name for name in names if name.startswith("blocks.0.")]
    return next((layout for layout, mark in _MARKS.items() if any(mark in name for name in starts)), None)


def spelling(own: Iterable[str], layout: Layout) -> dict[str, str]:
    """Names in the files to our own."""
    plain = {diffusers_name(name): name for name in own}
    return plain if layout == "diffusers" else {original_name(name): ours for name, ours in plain.items()}


@dataclass(frozen=True)
class WanConfig:
    """A folder's config.json in diffusers' spelling.

    Args:
        path: the file.
        fields: its fields.
    """

    path: Path
    fields: Mapping[str, Any]

    def require(self, config: ModelConfig, channels: int, text_dim: int) -> None:
        """Refuses a run whose settings describe another network.

        Raises:
            ConfigError: with every setting that has to change.
        """
        given = {own: self._value(name) for name, own in _FIELDS.items()}
        wrong = [name for name, value in given.items() if value != getattr(config, name)]
        if wrong:
            told = ", ".join(f"{name} {given[name]} (here {getattr(config, name)})" for name in wrong)
            settings = " ".join(f"model.{name}={_plain(given[name])}" for name in wrong)
            raise ConfigError(f"the transformer of {self.path} has {told}", f"Set {settings}")
        for name, value in (("in_channels", channels), ("out_channels", channels), ("text_dim", text_dim)):
            found = self.fields.get(name)
            if found != value:
                raise ConfigError(
                    f"the transformer of {self.path} has {name} {found}, this run has {value}",
                    "Use the autoencoder and the text encoder that it was trained with",
                )
        require_plain(config)
        self._require_attention(config)

    def _value(self, name: str) -> Any:
        value = self.fields.get(name)
        return tuple(value) if isinstance(value, list) else value

    def _require_attention(self, config: ModelConfig) -> None:
        """An exported student's attention pattern is part of what it is."""
        own = self.fields.get("sostenuto_attention")
        if own is not None and own != attention_fields(config):
            raise ConfigError(
                f"{self.path} is a student with {own}, this run has {attention_fields(config)}",
                f"Set model.attention_pattern={own['pattern']} model.window={own['window']}",
            )


def attention_fields(config: ModelConfig) -> dict[str, Any]:
    """What config.json says of a student with windowed blocks."""
    return {"pattern": config.attention_pattern, "window": config.window}


def _plain(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value).replace(" ", "")


def is_windowed(config: ModelConfig, frames: int) -> bool:
    """Whether a block sees less than the whole of a clip of `frames` latent frames."""
    return "W" in config.attention_pattern and config.window < frames // config.patch_size[0] - 1


def require_plain(config: ModelConfig) -> None:
    """Refuses settings under which our blocks are not Wan's.

    Raises:
        ConfigError: with the setting to change.
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
    """config.json of a transformer, in either spelling.

    Raises:
        CheckpointError: there is none, it cannot be read, or it is of a class that we do not build.
    """
    path = folder / "config.json"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        name = fields.get("_class_name")
    except (OSError, ValueError, AttributeError) as error:
        inner = folder / "transformer"
        remedy = f"{inner}" if (inner / "config.json").is_file() else "a folder with config.json"
        raise CheckpointError(
            f"{folder} holds no transformer: {error}", f"Set model.pretrained to {remedy}"
        ) from error
    if name not in CLASSES:
        raise CheckpointError(
            f"{path} is of class {name}, not one of {', '.join(CLASSES)}",
            "Set model.pretrained to the folder of a Wan 2.1 text-to-video transformer",
        )
    fields = fields if CLASSES[name] == "diffusers" else _from_original(fields)
    _require_text_to_video(path, fields)
    return WanConfig(path, fields)


def _from_original(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The original release's fields in diffusers' spelling; what it leaves out has its class's value."""
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
    """Refuses image-to-video variants by the field that tells, and blocks that are not Wan 2.1's."""
    image = {name: fields[name] for name in _IMAGE if fields.get(name) is not None}
    if fields.get("model_type", "t2v") != "t2v":
        image["model_type"] = fields["model_type"]
    if fields.get("in_channels") != fields.get("out_channels"):
        image["in_channels"] = fields.get("in_channels")
    if image:
        told = ", ".join(f"{name} {value}" for name, value in image.items())
        raise CheckpointError(
            f"{path} is of an image-to-video transformer ({told}), which takes an image beside the text",
            "Set model.pretrained to the text-to-video variant of the same size",
        )
    for name, value in _FIXED.items():
        if fields.get(name) != value:
            raise CheckpointError(
                f"{path} has {name} {fields.get(name)}, but Wan 2.1 blocks have {value}",
                "Set model.pretrained to the folder of a Wan 2.1 text-to-video transformer",
            )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a transformer, those that its index names if it has one.

    Raises:
        CheckpointError: a file is missing, lies outside, or is a pickle.
    """
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in PICKLES and path.name not in NEIGHBOURS:
            raise CheckpointError(
                f"{path} is a pickle, which can run code when it is read",
                "Move it out of the folder, and use the same weights as safetensors",
            )
    if (folder / INDEX).is_file():
        return [_shard(folder, name) for name in _shard_names(folder / INDEX)]
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    there = ", ".join(path.name for path in sorted(folder.glob("*.safetensors"))) or "no safetensors file"
    raise CheckpointError(
        f"{folder} holds neither {WEIGHTS} nor {INDEX}, but {there}",
        "Restore the file, or copy the folder again",
    )


def _shard_names(index: Path) -> list[str]:
    try:
        return sorted({str(name) for name in json.loads(index.read_text())["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is damaged: {error!r}", "Copy it again") from error


def _shard(folder: Path, name: str) -> Path:
    if Path(name).name != name:
        raise CheckpointError(
            f"{folder / INDEX} names a file outside its folder: {name}", "Restore the folder"
        )
    if not (folder / name).is_file():
        raise CheckpointError(f"{folder / name} is missing, but {INDEX} names it", "Copy the shard again")
    return folder / name
