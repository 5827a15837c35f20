"""The text encoders there are, and what their settings alone decide; nothing here imports torch by itself.

A new one is a class in a file of its own, its kind here, and a line in KINDS. An encoder without weights
runs wherever captions are needed (`encoder`); one with weights runs at ingest alone (`embedder`), and
training reads the embeddings that it stored.
"""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, ClassVar

from models.config import TextConfig
from models.errors import ConfigError

if TYPE_CHECKING:
    from models.text.conditioning import TextEncoder
    from models.text.umt5 import Umt5Encoder


class TextKind:
    """What is known of a text encoder before its weights are there."""

    stored: ClassVar[bool]
    """Whether ingest stores the embeddings."""
    in_pipelines: ClassVar[bool]
    """Whether diffusers' pipelines embed a prompt with it."""
    tokens: ClassVar[str]
    """What `text.max_tokens` counts, for people."""

    def __init__(self, config: TextConfig) -> None:
        self.config = config

    def check_settings(self) -> None:
        """Raises ConfigError if a setting is missing."""

    def check_files(self) -> None:
        """Check the encoder's files without reading its weights.

        Raises:
            ConfigError: a library is missing, or a setting is not the encoder's.
            CheckpointError: a file is missing or damaged.
        """

    def cut_note(self, captions: Collection[str]) -> str:
        """How many of these captions are longer than `text.max_tokens` and cut; empty where none is."""
        most, lengths = self.config.max_tokens, self._token_counts(list(captions))
        if not (cut := sum(length > most for length in lengths)):
            return ""
        return (
            f"{cut} of {len(lengths)} captions have more than {most} {self.tokens}, up to {max(lengths)}; "
            f"the rest of each is cut: text.max_tokens={max(lengths)} keeps all"
        )

    def _token_counts(self, captions: list[str]) -> list[int]:
        """Tokens of each whole caption."""
        raise NotImplementedError

    def encoder(self) -> "TextEncoder":
        """The encoder of a kind that is not `stored`."""
        raise NotImplementedError

    def embedder(self, device: str) -> "Umt5Encoder":
        """The encoder of a `stored` kind, its weights loaded."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Hash of what decides the embeddings of a `stored` kind."""
        raise NotImplementedError


class NgramKind(TextKind):
    """Hashed character n-grams (models/text/conditioning.py)."""

    stored, in_pipelines = False, False
    tokens = "phrases between commas"

    def _token_counts(self, captions: list[str]) -> list[int]:
        from models.text.conditioning import phrases_of

        return [len(phrases_of(caption)) for caption in captions]

    def encoder(self) -> "TextEncoder":
        from models.text.conditioning import NgramEncoder

        return NgramEncoder(self.config)


class Umt5Kind(TextKind):
    """The text encoder of Wan 2.1 (models/text/umt5.py)."""

    stored, in_pipelines = True, True
    tokens = "tokens"

    def _token_counts(self, captions: list[str]) -> list[int]:
        from models.text.umt5 import token_counts

        return token_counts(self.config, captions)

    def check_settings(self) -> None:
        if self.config.pretrained is None:
            raise ConfigError(
                "text.kind=umt5 has no text.pretrained",
                "Name the folder with text_encoder/ and tokenizer/ in it",
            )

    def check_files(self) -> None:
        from models.text.umt5 import check_files

        self.check_settings()
        check_files(self.config)

    def embedder(self, device: str) -> "Umt5Encoder":
        from models.text.umt5 import Umt5Encoder

        self.check_settings()
        return Umt5Encoder.load(self.config, device)

    def fingerprint(self) -> str:
        from models.text.umt5 import fingerprint

        return fingerprint(self.config)


KINDS: Mapping[str, type[TextKind]] = {"ngram": NgramKind, "umt5": Umt5Kind}


def text_kind(config: TextConfig) -> TextKind:
    return KINDS[config.kind](config)
