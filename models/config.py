"""Settings of the networks, the flow, the losses and the samplers: frozen dataclasses, no torch needed."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

UnevenFrames: TypeAlias = Literal["refuse", "pad"]
"""What happens to a window whose frames a causal autoencoder does not take."""


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """How pixels become latents (models/autoencoders/pca.py)."""

    kind: Literal["pca", "wan"] = "pca"
    """`pca`: a linear code fitted at ingest; `wan`: the Wan 2.1 video autoencoder from `pretrained`."""
    patch_size: int = 0
    """Pixels on a side of the square that one code describes; 0 is the whole frame."""
    components: int | None = None
    """Numbers a patch; None takes those before a gap of the spectrum of 20x or more that lies after 95 % of
    the variance (the codec's noise begins there), and where there is none as many as explain 98 %."""
    max_components: int = 64
    """Most components that are looked at when `components` is None."""
    fit_frames: int = 2500
    """Frames, drawn from both corpora, that the code is fitted on."""
    pretrained: str | None = None
    """Folder of a pretrained autoencoder (`wan` only)."""
    uneven_frames: UnevenFrames = "refuse"
    """A window that is not 4k+1 frames long (`wan` only): `refuse` it, or `pad` it by repeating its last
    frame, which dataset.json then tells as `padded_frames`."""


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """How captions become conditioning (models/text/conditioning.py)."""

    kind: Literal["ngram", "umt5"] = "ngram"
    """`ngram`: hashed character n-grams, no weights; `umt5`: embeddings that ingest computes by UMT5."""
    pretrained: str | None = None
    """Folder with the encoder in text_encoder/ and the tokenizer in tokenizer/, or with both (`umt5`)."""
    dim: int = 64
    """Numbers a text token."""
    max_tokens: int = 8
    """Text tokens a caption; `ngram` makes one of each comma-separated phrase."""
    padding: Literal["mask", "zeros"] = "mask"
    """Captions shorter than others of their batch are filled up and `mask`ed; `zeros` fills all up to
    `max_tokens` with zeros that are attended to, as Wan 2.1 was trained."""
    negative_caption: str = ""
    """What guidance leads away from: the caption of the unconditional branch."""
    dropout: float = 0.1
    """Share of captions replaced by the empty caption in supervised training."""
    withheld_words: tuple[str, ...] = ()
    """Words that are left out of a caption with `withhold_probability`, all of them together."""
    withhold_probability: float = 0.0
    """Share of captions that lose their `withheld_words`, in every stage and in rollouts."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of the teacher, the critic and the student (models/dit.py, models/ddt.py)."""

    num_layers: int = 4
    """Transformer blocks from input to output."""
    head_layers: int = 2
    """Blocks of each student head; the encoder has the other `num_layers - head_layers`."""
    num_heads: int = 4
    """Attention heads; the width is `num_heads * head_dim`."""
    head_dim: int = 24
    """Channels an attention head, split over time, height and width for the rotary positions."""
    ffn_dim: int = 288
    """Hidden width of the feed-forward layers."""
    freq_dim: int = 256
    """Sinusoids of the timestep embedding."""
    patch_size: tuple[int, int, int] = (1, 1, 1)
    """Latent frames, rows and columns a token."""
    attention_pattern: str = "WGWG"
    """One letter a block: W sees `window` frames to each side, G sees the whole clip."""
    window: int = 8
    """Frames to each side that a W block sees."""
    rope_theta_windowed: float = 100.0
    """Base of the rotary frequencies in W blocks."""
    rope_theta_global: float = 100.0
    """Base of the rotary frequencies in G blocks."""
    clip_position: bool = True
    """Tell each frame its place in the clip (student only)."""
    precondition: bool = True
    """Predict x0 through a scaled skip connection (from-scratch training); False predicts the velocity."""
    init: Literal["wan", "look"] = "look"
    """`look`: attention heads that start by looking at the previous, next and own frame."""
    look_amplitude_windowed: float = 5.0
    """Logit per time frequency of the look initialisation, W blocks."""
    look_amplitude_global: float = 5.0
    """The same, G blocks."""
    heads: Literal["decoupled", "shared"] = "decoupled"
    """`shared`: one head serves both losses (the ablation)."""
    pretrained: str | None = None
    """Folder of a Wan 2.1 transformer in the diffusers layout: replaces the teacher stage."""


AdapterTarget = Literal["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]
"""Linear layers of a block, of both attentions where there are two, that an adapter can be put on."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters in place of full training (models/lora.py)."""

    rank: int = 0
    """Rank of the adapters of the student's and the critic's encoder; 0 trains all weights."""
    alpha: float = 32.0
    """An adapter's product is scaled by `alpha / rank`."""
    targets: tuple[AdapterTarget, ...] = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")
    """Layers of each block that get an adapter."""
    stages: tuple[Literal["sft", "mixed", "warmup", "distill"], ...] = ("sft", "mixed", "warmup", "distill")
    """Stages that train so; the others train all weights. What a stage has learned is merged at its end."""
    heads: Literal["full", "adapters"] = "full"
    """Whether the heads are trained in full, or by adapters as the encoder is."""


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """The timestep shift (models/flow.py)."""

    timestep_shift: float = 1.0
    """Shift of the times of clips up to `timestep_shift_frames` long: t' = s t / (1 + (s-1) t)."""
    timestep_shift_frames: int = 32
    """Latent frames beyond which the shift grows by the square root of the length."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights and conventions of the losses (models/losses.py)."""

    flow_matching_weight: float = 1.0
    """Weight of the flow-matching loss on LONG (mean seeking)."""
    reverse_kl_weight: float = 1.0
    """Weight of the reverse-KL loss on the windows of rollouts (mode seeking)."""
    anchor_weight: float = 0.5
    """Weight of the pull towards the frozen long-SFT network at t = 1, when the exit step is the first."""
    normalizer: Literal["window", "sample", "block"] = "window"
    """Over what mean|x - x0_teacher| is taken: a window, the unfolded video, or `normalizer_block` frames."""
    normalizer_block: int = 1
    """Latent frames a block when `normalizer` is `block`."""
    normalizer_floor: float = 1e-4
    """Smallest normaliser."""
    guidance_scale: float = 1.0
    """Teacher guidance u + s (c - u) in the reverse-KL score; 1 is none."""
    score_t_min: float = 0.02
    """Smallest time at which windows are scored."""
    score_t_max: float = 0.98
    """Largest time at which windows are scored."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """The samplers (models/sampling.py)."""

    steps: tuple[float, ...] = (1.0, 0.85, 0.65, 0.35)
    """Times of the few-step sampler before the timestep shift, falling from 1."""
    ode_steps: int = 50
    """Euler steps of the FM head's sampler."""
    guidance_scale: float = 1.0
    """Guidance of the ODE sampler; 1 is none."""
    rollout_steps: int = 25
    """Euler steps a window when the teacher is rolled out window by window."""
