"""The text encoder of Wan 2.1, UMT5, from a local folder: captions to tokens, outside training only."""

import hashlib
import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.config import TextConfig
from models.errors import CheckpointError, ConfigError, DataError

BATCH = 8
"""Captions that go through the encoder together."""
WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
_TOKENIZERS = ("tokenizer.json", "spiece.model")
_REMEDY = (
    "Set text.pretrained to a folder with text_encoder/ and tokenizer/, as a diffusers pipeline has them"
)


class Umt5Encoder:
    """Encoder and tokenizer, float32 on the CPU, bfloat16 on a GPU.

    Args:
        model: transformers' UMT5EncoderModel.
        tokenizer: its tokenizer.
        max_tokens: longer captions are cut.
        device: where it works.
    """

    def __init__(
        self, model: Any, tokenizer: Any, max_tokens: int, device: torch.device | str = "cpu"
    ) -> None:
        self._model = model.requires_grad_(False).eval().to(device)
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._device = torch.device(device)

    @classmethod
    def load(cls, config: TextConfig, device: torch.device | str = "cpu") -> "Umt5Encoder":
        """Read `text.pretrained`; nothing is downloaded, and no code of the folder is run.

        Raises:
            ConfigError: transformers or the GPU is not there, or `text.dim` is not the encoder's.
            CheckpointError: the folder holds no encoder in safetensors or no tokenizer, or a damaged one.
        """
        if torch.device(device).type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                "The text encoder was sent to a GPU, and none is seen", "Set cluster.use_gpu=false"
            )
        encoder, tokenizer = _folders(config)
        check_files(config)
        loaded = load_tokenizer(tokenizer)
        return cls(_load_model(encoder, device), loaded, config.max_tokens, device)

    def embed(self, captions: Sequence[str]) -> list[Tensor]:
        """Tokens of each caption and no padding, float16 [n, dim] on the CPU.

        float16 holds every value of a bfloat16 encoder between 6e-5 and 65504 exactly.

        Raises:
            DataError: a value is not finite in float16.
        """
        rows: list[Tensor] = []
        for start in range(0, len(captions), BATCH):
            rows += self._embed_batch([cleaned(caption) for caption in captions[start : start + BATCH]])
        for caption, row in zip(captions, rows, strict=True):
            if not bool(row.isfinite().all()):
                raise DataError(
                    f"the text encoder gives numbers that are not finite for the caption {caption[:60]!r}",
                    "Check the files of text.pretrained",
                )
        return rows

    def _embed_batch(self, captions: list[str]) -> list[Tensor]:
        given = self._tokenizer(
            captions,
            padding="longest",
            truncation=True,
            max_length=self._max_tokens,
            add_special_tokens=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        ids, mask = given.input_ids.to(self._device), given.attention_mask.to(self._device)
        with torch.inference_mode():
            hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
            return [row[kept].to("cpu", torch.float16) for row, kept in zip(hidden, mask.bool(), strict=True)]


def cleaned(caption: str) -> str:
    """A caption as Wan's own tokenizer is given it: mended Unicode, no HTML entities, single spaces."""
    import ftfy

    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(caption)))).strip()


def check_files(config: TextConfig) -> None:
    """Refuse what cannot be an encoder and its tokenizer, without reading the weights.

    Raises:
        ConfigError: a library or the setting is missing, or `text.dim` is not the encoder's.
        CheckpointError: names the folder and what it lacks.
    """
    try:
        import ftfy  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"text.kind = umt5 needs {error.name}", "Install the project with its extra `wan`"
        ) from error
    encoder, tokenizer = _folders(config)
    dim = _read_config(encoder).get("d_model")
    if dim != config.dim:
        raise ConfigError(f"text.dim is {config.dim}, but {encoder} gives {dim}", f"Set text.dim={dim}")
    _check_weights(encoder)
    if not any((tokenizer / name).is_file() for name in _TOKENIZERS):
        raise CheckpointError(f"{tokenizer} holds no tokenizer ({' or '.join(_TOKENIZERS)})", _REMEDY)


def fingerprint(config: TextConfig) -> str:
    """20 hex digits of what decides the embeddings: the configs, the tokenizer, and the weights by name and
    size."""
    encoder, tokenizer = _folders(config)
    names = ["config.json", INDEX]
    files = [encoder / name for name in names] + [tokenizer / name for name in _TOKENIZERS]
    found = hashlib.sha256(str(config.max_tokens).encode())
    for path in files:
        if path.is_file():
            found.update(hashlib.sha256(path.read_bytes()).digest())
    for path in weight_files(encoder):
        found.update(f"{path.name} {path.stat().st_size}".encode())
    return found.hexdigest()[:20]


def _folders(config: TextConfig) -> tuple[Path, Path]:
    """Of the encoder and of the tokenizer."""
    if not config.pretrained:
        raise ConfigError("text.kind = umt5 without a folder", _REMEDY)
    whole = Path(config.pretrained)
    if not whole.is_dir():
        raise CheckpointError(f"{whole} is no folder", _REMEDY)
    encoder, tokenizer = whole / "text_encoder", whole / "tokenizer"
    return encoder if encoder.is_dir() else whole, tokenizer if encoder.is_dir() else whole


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = dict(json.loads((folder / "config.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{folder} holds no readable config.json of UMT5", _REMEDY) from error
    if config.get("model_type") != "umt5":
        raise CheckpointError(f"{folder} holds a model of type {config.get('model_type')}, not umt5", _REMEDY)
    return config


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that weights are read from: one, or those that the index names."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    try:
        named = set(json.loads((folder / INDEX).read_text())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    return [folder / name for name in sorted(named)]


def _check_weights(folder: Path) -> None:
    files = weight_files(folder)
    lost = [path for path in files if not path.is_file()]
    if lost:
        raise CheckpointError(f"{lost[0]} is missing, which {INDEX} names", "Copy the folder again, whole")
    if not files:
        pickles = sorted(path.name for path in folder.glob("*") if path.suffix in {".bin", ".pt", ".pth"})
        found = f", only {pickles[0]}, a pickle, which could run code" if pickles else ""
        raise CheckpointError(f"{folder} holds no {WEIGHTS}{found}", "Give the weights as safetensors")


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a local folder.

    Raises:
        CheckpointError: it cannot be read.
    """
    from transformers import T5TokenizerFast

    try:
        return T5TokenizerFast.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise CheckpointError(
            f"the tokenizer in {folder} cannot be read: {_first_line(error)}", _REMEDY
        ) from error


def _load_model(folder: Path, device: torch.device | str) -> Any:
    from safetensors import SafetensorError
    from transformers import UMT5EncoderModel

    dtype = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    try:
        model, found = UMT5EncoderModel.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, dtype=dtype, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"the weights in {folder} cannot be read: {_first_line(error)}", _REMEDY
        ) from error
    missing = sorted(found["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} weights of its UMT5, the first is {missing[0]}", _REMEDY
        )
    return model


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
