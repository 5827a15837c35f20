"""UMT5, the text encoder of Wan 2.1, from a local folder: captions to token embeddings, at ingest only."""

import hashlib
import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.config import TextConfig
from models.device import compute_device
from models.errors import CheckpointError, ConfigError, DataError
from models.weights import CONFIG_FILE, read_config, weight_files

BATCH = 8
"""Captions that go through the encoder together."""
WEIGHTS = "model.safetensors"
_TOKENIZERS = ("tokenizer.json", "spiece.model")
_REMEDY = (
    "Set text.pretrained to a folder with text_encoder/ and tokenizer/, as a diffusers pipeline has them"
)


class Umt5Encoder:
    """transformers' UMT5EncoderModel, float32 on the CPU and bfloat16 on a GPU, and its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any, max_tokens: int, device: torch.device) -> None:
        self._model = model.requires_grad_(False).eval().to(device)
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._device = device

    @classmethod
    def load(cls, config: TextConfig, device: torch.device | str = "cpu") -> "Umt5Encoder":
        """Load `text.pretrained`; nothing is downloaded, no code of it is run.

        Raises:
            ConfigError: transformers or the GPU is missing, or `text.dim` is not the encoder's.
            CheckpointError: the folder holds no encoder in safetensors or no tokenizer, or a damaged one.
        """
        device = torch.device(device)
        compute_device(device.type == "cuda")
        check_files(config)
        from safetensors import SafetensorError
        from transformers import UMT5EncoderModel

        encoder, _ = _folders(config)
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        given = {"local_files_only": True, "use_safetensors": True, "dtype": dtype}
        try:
            model, found = UMT5EncoderModel.from_pretrained(str(encoder), **given, output_loading_info=True)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(
                f"the weights in {encoder} cannot be read: {_first_line(error)}", _REMEDY
            ) from error
        if missing := sorted(found["missing_keys"]):
            raise CheckpointError(
                f"{encoder} lacks {len(missing)} weights of its UMT5, the first is {missing[0]}", _REMEDY
            )
        return cls(model, _tokenizer(config), config.max_tokens, device)

    def embed(self, captions: Sequence[str]) -> list[Tensor]:
        """Tokens of each caption without padding, float16 [n, dim] on the CPU.

        float16 holds every value of a bfloat16 encoder between 6e-5 and 65504 exactly.

        Raises:
            DataError: a value is not finite in float16.
        """
        rows: list[Tensor] = []
        for start in range(0, len(captions), BATCH):
            given = self._tokenizer(
                [cleaned(caption) for caption in captions[start : start + BATCH]],
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
                parts = zip(hidden, mask.bool(), strict=True)
                rows += [row[kept].to("cpu", torch.float16) for row, kept in parts]
        for caption, row in zip(captions, rows, strict=True):
            if not bool(row.isfinite().all()):
                raise DataError(
                    f"the text encoder returns values that are not finite for the caption {caption[:60]!r}",
                    "Check the files of text.pretrained",
                )
        return rows


def token_counts(config: TextConfig, captions: Sequence[str]) -> list[int]:
    """Tokens of each whole caption; as `Umt5Encoder.load`, but for the weights."""
    if not captions:
        return []
    check_files(config)
    tokenizer = _tokenizer(config)
    return [len(tokenizer(cleaned(caption)).input_ids) for caption in captions]


def _tokenizer(config: TextConfig) -> Any:
    from transformers import T5TokenizerFast

    _, words = _folders(config)
    try:
        return T5TokenizerFast.from_pretrained(str(words), local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise CheckpointError(
            f"the tokenizer in {words} cannot be read: {_first_line(error)}", _REMEDY
        ) from error


def cleaned(caption: str) -> str:
    """A caption as Wan cleans it for its tokenizer: mended Unicode, no HTML entities, single spaces."""
    import ftfy

    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(caption)))).strip()


def check_files(config: TextConfig) -> None:
    """Check that the folder holds an encoder and its tokenizer, without reading the weights.

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
    fields = read_config(encoder, "UMT5", _REMEDY)
    if fields.get("model_type") != "umt5":
        raise CheckpointError(
            f"{encoder} holds a model of type {fields.get('model_type')}, not umt5", _REMEDY
        )
    dim = fields.get("d_model")
    if dim != config.dim:
        raise ConfigError(f"text.dim is {config.dim}, but {encoder} gives {dim}", f"Set text.dim={dim}")
    weight_files(encoder, WEIGHTS)
    if not any((tokenizer / name).is_file() for name in _TOKENIZERS):
        raise CheckpointError(f"{tokenizer} holds no tokenizer ({' or '.join(_TOKENIZERS)})", _REMEDY)


def fingerprint(config: TextConfig) -> str:
    """20 hex digits of what decides the embeddings: `text.max_tokens`, the configs, the tokenizer, and the
    weights by name and size."""
    encoder, tokenizer = _folders(config)
    files = [encoder / CONFIG_FILE, encoder / f"{WEIGHTS}.index.json"]
    found = hashlib.sha256(str(config.max_tokens).encode())
    for path in [*files, *(tokenizer / name for name in _TOKENIZERS)]:
        if path.is_file():
            found.update(hashlib.sha256(path.read_bytes()).digest())
    for path in weight_files(encoder, WEIGHTS):
        found.update(f"{path.name} {path.stat().st_size}".encode())
    return found.hexdigest()[:20]


def _folders(config: TextConfig) -> tuple[Path, Path]:
    """Of the encoder and of the tokenizer."""
    whole = Path(config.pretrained or "")
    if not config.pretrained or not whole.is_dir():
        raise CheckpointError(f"text.pretrained is {config.pretrained}, which is no folder", _REMEDY)
    encoder, tokenizer = whole / "text_encoder", whole / "tokenizer"
    return (encoder, tokenizer) if encoder.is_dir() else (whole, whole)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
