"""Settings of the networks, the flow, the losses and the samplers: frozen dataclasses, no torch needed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias


@dataclass(frozen=True)
class Bounds:
    """Limits of a number that pydantic enforces, by its own keywords, when it builds a config.

    A mark of our own: a machine with torch alone has neither pydantic nor annotated_types.
    """

    description: str
    gt: float | None = None
    ge: float | None = None
    le: float | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        limits = {"gt": self.gt, "ge": self.ge, "le": self.le}
        return handler(source) | {name: limit for name, limit in limits.items() if limit is not None}


PositiveInt: TypeAlias = Annotated[int, Bounds("above 0", gt=0)]
PositiveFloat: TypeAlias = Annotated[float, Bounds("above 0", gt=0)]
NonNegativeInt: TypeAlias = Annotated[int, Bounds("0 or more", ge=0)]
NonNegativeFloat: TypeAlias = Annotated[float, Bounds("0 or more", ge=0)]
Share: TypeAlias = Annotated[float, Bounds("0 ... 1", ge=0, le=1)]

UnevenFrames: TypeAlias = Literal["refuse", "pad"]
"""What happens to a window of a length that a causal autoencoder does not take."""

Checkpointing: TypeAlias = Literal["none", "selective", "full"]
"""What of a block the backward pass computes again: nothing, all but self-attention, or all."""


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """How pixels become latents (models/autoencoders/)."""

    kind: Literal["pca", "conv", "wan"] = "pca"
    """`pca`: a linear code fitted at ingest; `conv`: a small convolutional network learned at ingest, for
    footage; `wan`: the Wan 2.1 video autoencoder from `pretrained`."""
    patch_size: NonNegativeInt = 0
    """Side in pixels of the square that a latent describes (`pca`, `conv`); 0 is the whole frame (`pca`)."""
    components: int | None = None
    """Latent channels: components per patch (`pca`) or channels of the code (`conv`, which needs them). For
    `pca`, None keeps those before a gap of 20x in the spectrum after 95 % of the variance, where the codec's
    noise begins; without such a gap, as many as explain 98 %."""
    max_components: PositiveInt = 64
    """Largest number of components when `components` is None."""
    fit_frames: PositiveInt = 2500
    """Frames that the code is fitted on, drawn from both corpora."""
    fit_steps: PositiveInt = 1500
    """Steps of 16 frames that the network learns for (`conv`)."""
    pretrained: str | None = None
    """Folder of a pretrained autoencoder (`wan`)."""
    uneven_frames: UnevenFrames = "refuse"
    """A window that is not 4k+1 frames long (`wan`): `refuse` it, or `pad` it by repeating its last frame,
    which dataset.json counts as `padded_frames`."""


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """How captions become conditioning (models/text/)."""

    kind: Literal["ngram", "umt5"] = "ngram"
    """`ngram`: hashed character n-grams, without weights; `umt5`: UMT5 embeddings, computed at ingest."""
    pretrained: str | None = None
    """Folder with text_encoder/ and tokenizer/, or with the files of both (`umt5`)."""
    dim: PositiveInt = 64
    """Numbers per text token."""
    max_tokens: PositiveInt = 8
    """Largest number of text tokens per caption; `ngram` makes one of each comma-separated phrase."""
    padding: Literal["mask", "zeros"] = "mask"
    """`mask`: captions are padded to the longest of their batch, and the padding is masked; `zeros`: to
    `max_tokens` with zeros that are attended to, as Wan 2.1 was trained."""
    negative_caption: str = ""
    """Caption of the unconditional branch, which guidance leads away from."""
    dropout: Share = 0.1
    """Share of captions emptied in supervised training."""
    withheld_words: tuple[str, ...] = ()
    """Words left out of a caption, all together, with `withhold_probability`."""
    withhold_probability: Share = 0.0
    """Share of captions without their `withheld_words`, in every stage and in rollouts."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of the teacher, the critic and the student (models/dit.py, models/ddt.py)."""

    num_layers: PositiveInt = 4
    """Transformer blocks from input to output."""
    head_layers: PositiveInt = 2
    """Blocks of each student head; the encoder has the other `num_layers - head_layers`."""
    num_heads: PositiveInt = 4
    """Attention heads; the width is `num_heads * head_dim`."""
    head_dim: PositiveInt = 24
    """Channels per attention head, split over time, height and width for the rotary positions."""
    ffn_dim: PositiveInt = 288
    """Hidden width of the feed-forward layers."""
    freq_dim: PositiveInt = 256
    """Sinusoids of the timestep embedding."""
    patch_size: tuple[int, int, int] = (1, 1, 1)
    """Latent frames, rows and columns per token."""
    attention_pattern: str = "WGWG"
    """One letter per block: W sees `window` frames to each side, G sees the whole clip."""
    window: PositiveInt = 8
    """Frames to each side that a W block sees."""
    rope_theta_windowed: PositiveFloat = 100.0
    """Base of the rotary frequencies in W blocks."""
    rope_theta_global: PositiveFloat = 100.0
    """Base of the rotary frequencies in G blocks."""
    clip_position: bool = True
    """Tell each frame its place in the clip (student only)."""
    precondition: bool = True
    """Predict x0 through a scaled skip connection (from-scratch training); False predicts the velocity."""
    init: Literal["wan", "look", "place"] = "look"
    """`look`: attention heads that start by looking at the previous, next and own frame; `place`: at their
    own row and column there, for frames of many tokens."""
    look_amplitude_windowed: float = 5.0
    """Logit per time frequency of the look initialisation, W blocks."""
    look_amplitude_global: float = 5.0
    """The same, G blocks."""
    heads: Literal["decoupled", "shared"] = "decoupled"
    """`shared`: one head serves both losses (the ablation)."""
    pretrained: str | None = None
    """Folder of a Wan 2.1 transformer in the diffusers layout: replaces the teacher stage."""

    def is_windowed(self, frames: int) -> bool:
        """Whether a block sees less than the whole of a clip of `frames` latent frames."""
        return "W" in self.attention_pattern and self.window < frames // self.patch_size[0] - 1


AdapterTarget = Literal["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]
"""Linear layers of a block that can have an adapter; the names stand for both attentions."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters in place of full training (models/lora.py)."""

    rank: NonNegativeInt = 0
    """Rank of the adapters on the encoders of the student and the critic; 0 trains all weights."""
    alpha: PositiveFloat = 32.0
    """Adapters are scaled by `alpha / rank`."""
    targets: tuple[AdapterTarget, ...] = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")
    """Layers of each block that get an adapter."""
    stages: tuple[Literal["sft", "mixed", "warmup", "distill"], ...] = ("sft", "mixed", "warmup", "distill")
    """Stages that train adapters, merged at their end; the others train all weights."""
    heads: Literal["full", "adapters"] = "full"
    """Train the heads in full, or by adapters like the encoder."""


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """The timestep shift (models/flow.py)."""

    timestep_shift: PositiveFloat = 1.0
    """Shift of the times of clips up to `timestep_shift_frames` long: t' = s t / (1 + (s-1) t)."""
    timestep_shift_frames: PositiveInt | None = 32
    """Latent frames beyond which the shift grows by the square root of the length; None: it never grows."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights and conventions of the losses (models/losses.py)."""

    flow_matching_weight: NonNegativeFloat = 1.0
    """Weight of the flow-matching loss on LONG (mean seeking)."""
    reverse_kl_weight: NonNegativeFloat = 1.0
    """Weight of the reverse-KL loss on the windows of rollouts (mode seeking)."""
    anchor_weight: NonNegativeFloat = 0.5
    """Weight of the pull towards the frozen long-SFT network at t = 1, when the exit step is the first."""
    forward_kl_weight: NonNegativeFloat = 0.0
    """Weight of the pull of the DM head's first step towards the path of the frozen long-SFT network's ODE
    sampler, which covers modes (HiAR, arXiv 2603.08703, with .1); on rollouts that stop there."""
    adversarial_weight: NonNegativeFloat = 0.0
    """Weight of an adversarial term on the teacher's features of the scored windows, whose adversary
    (pipelines/training/distillation/) learns them from `distill.short_batch` windows of SHORT; others take
    .003 to .03."""
    normalizer: Literal["window", "sample", "block"] = "window"
    """Extent of mean|x - x0_teacher|: a window, the unfolded video, or `normalizer_block` frames."""
    normalizer_block: PositiveInt = 1
    """Latent frames per block when `normalizer` is `block`."""
    normalizer_floor: PositiveFloat = 1e-4
    """Smallest normaliser."""
    guidance_scale: float = 1.0
    """Teacher guidance u + s (c - u) in the reverse-KL score; 1 is none."""
    score_t_min: float = 0.02
    """Smallest time at which windows are scored."""
    score_t_max: float = 0.98
    """Largest time at which windows are scored."""
    score_time: Literal["uniform", "falling"] = "uniform"
    """How that time is drawn: `uniform` between the two; `falling`: the largest falls linearly over the stage
    to halfway between them, so that layout is scored first and detail last (arXiv 2305.16213)."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """The samplers (models/sampling.py)."""

    steps: tuple[float, ...] = (1.0, 0.85, 0.65, 0.35)
    """Times of the few-step sampler before the timestep shift, falling from 1."""
    ode_steps: PositiveInt = 50
    """Euler steps of the FM head's sampler."""
    guidance_scale: float = 1.0
    """Guidance of the ODE sampler; 1 is none."""
    rollout_steps: PositiveInt = 25
    """Euler steps per window when the teacher is rolled out window by window."""
