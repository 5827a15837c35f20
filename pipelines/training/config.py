"""Settings of the training stages."""

from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from models.config import (
    Bounds,
    Checkpointing,
    FlowConfig,
    LoraConfig,
    LossConfig,
    ModelConfig,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SamplingConfig,
    Share,
    TextConfig,
)
from models.windows import Span, spans

VerdictName: TypeAlias = Literal[
    "gradient_norm", "critic_gradient_norm", "learning", "data", "shift", "last_step", "teacher",
    "critic_loss", "critic_moves", "critic_gap", "guidance", "sharpness", "contrast", "saturation", "motion",
    "diversity", "light_drift", "layout_loss", "held_out_loss",
]  # fmt: skip
"""What is asked of a stage (pipelines/training/monitors/verdicts.py)."""


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """A supervised stage: teacher, sft or mixed (pipelines/training/supervised.py)."""

    steps: PositiveInt = 1000
    """Optimiser steps."""
    short_batch: NonNegativeInt = 0
    """SHORT windows per step, over all workers."""
    long_batch: NonNegativeInt = 0
    """LONG windows per step, over all workers."""
    micro_batch: PositiveInt | None = None
    """Clips or windows that go through a worker's networks at once; gradients add up to those of the whole
    batch. None is a worker's whole share."""
    lengths: tuple[tuple[NonNegativeInt, PositiveInt | None], ...] = ()
    """Curriculum of lengths, [step, latent frames] each: from that step on LONG clips are cut to so many
    first frames, which are the latents of the shorter clip. None, and before the first pair: whole clips."""
    prefix_share: Share = 0.0
    """Share of LONG clips, and in distillation of rollouts, whose first frames are given clean: any number of
    them up to half. The network learns to go on from them, and the frames after them count."""
    learning_rate: PositiveFloat = 1.5e-3
    """Peak learning rate of AdamW."""
    beta1: float = 0.9
    """AdamW's first moment."""
    beta2: float = 0.99
    """AdamW's second moment."""
    weight_decay: float = 0.01
    """AdamW's weight decay."""
    warmup_steps: int = 50
    """Steps of linear learning-rate warm-up."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """How the learning rate goes on after the warm-up."""
    clip_norm: PositiveFloat = 1.0
    """Largest gradient norm."""
    ema_decay: Share = 0.995
    """Decay of the weight average, ramped as (1 + k) / (10 + k)."""
    t_distribution: Literal["logit_normal", "uniform"] = "logit_normal"
    """How the training time t is drawn before the shift."""
    t_mean: float = 0.0
    """Mean of the normal distribution whose sigmoid is t (`logit_normal`)."""
    t_std: PositiveFloat = 1.0
    """Its standard deviation."""
    skip_steps: tuple[NonNegativeInt, ...] = ()
    """Steps, from 0, that are left out with their batches: those at which this run diverged."""
    checkpoint_every: PositiveInt = 500
    """Steps between checkpoints; the last step is always saved."""
    checkpoint_minutes: PositiveFloat = 30.0
    """Longest time between checkpoints: one is due at the end of the step that exceeds it."""
    keep_checkpoints: Annotated[int, Bounds("2 or more", ge=2)] = 2
    """Newest checkpoints that are kept; the one with the least held-out loss stays beside them."""
    preview_every: int = 0
    """Steps between preview videos in MLflow, with one more at the end; 0 turns them off."""
    log_every: PositiveInt = 25
    """Steps between progress lines."""
    watch_every: NonNegativeInt = 100
    """Steps between samples of the averaged weights that are measured, beside the first and the last step; 0
    measures none."""

    stop_on: tuple[VerdictName, ...] = ()
    """Verdicts that end the stage, after a checkpoint, when they are not well."""

    def is_watched(self, step: int) -> bool:
        """Whether samples are measured after so many steps."""
        return bool(self.watch_every) and (step % self.watch_every == 0 or step == self.steps)

    def is_shown(self, step: int) -> bool:
        """Whether preview videos are filed after so many steps."""
        return bool(self.preview_every) and (step % self.preview_every == 0 or step == self.steps)

    def at_once(self, workers: int) -> int:
        """Videos that each of so many workers can take at once without a graph: no more than in a step."""
        share = max(1, min(batch for batch in (self.short_batch, self.long_batch) if batch) // workers)
        return min(share, self.micro_batch or share)

    def frames_at(self, step: int, longest: int) -> int:
        """Latent frames, at a step, of a LONG clip that has `longest`."""
        due = [frames for first, frames in self.lengths if first <= step]
        return min([longest, *(frames for frames in due[-1:] if frames is not None)])


@dataclass(frozen=True, kw_only=True)
class WarmupConfig:
    """FM head copied to DM head, critic from the teacher, then critic-only steps as `distill` takes them."""

    steps: NonNegativeInt = 0
    """Critic-only steps before distillation; 0 skips the warm-up."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig(StageConfig):
    """FM and DM losses together (models/losses.py, pipelines/training/distill.py)."""

    steps: PositiveInt = 150
    long_batch: PositiveInt = 32
    learning_rate: PositiveFloat = 5e-5
    beta1: float = 0.0
    schedule: Literal["cosine", "constant"] = "constant"
    warmup_steps: int = 0
    ema_decay: Share = 0.98
    t_mean: float = 0.6
    checkpoint_every: PositiveInt = 50
    log_every: PositiveInt = 10
    watch_every: NonNegativeInt = 20
    rollout_batch: PositiveInt = 32
    """Videos per rollout, over all workers."""
    exit_shares: tuple[float, ...] = ()
    """How often rollouts stop at each of `sampling.steps`, relative to each other; empty: equally."""
    caption_source: Literal["long", "short", "both"] = "both"
    """Corpus that rollout captions come from; `both` takes half from each."""
    rollout: Literal["backward_simulation", "noised_real"] = "backward_simulation"
    """What the DM head is given: `backward_simulation`, what its own sampler has reached from noise;
    `noised_real`, LONG clips of the batch, noised to the exit step's time, with their captions."""
    ring_share: Share = 0.0
    """Share of rollouts made as rings, whose last frame is followed by the first, and scored cut open at any
    frame: for loops."""
    captions: str | None = None
    """A text file, a caption per line, that rollout captions come from instead: a path or URI that every node
    reaches."""
    ramp_steps: NonNegativeInt = 0
    """Steps over which the reverse-KL weight rises from 0."""
    ramp_follows: Literal["steps", "critic"] = "steps"
    """What lets it rise: `steps`, each of them; `critic`, those at which the last measurements do not say
    that the critic cannot teach (the verdict `critic_gap`)."""
    data_forcing_steps: NonNegativeInt = 0
    """Last steps of which every other, on average, has the teacher judge LONG clips of the rollout's captions
    in place of the rollout (arXiv 2606.18478, with 100 to 300)."""
    window_frames: PositiveInt = 8
    """Latent frames per window: the teacher's length."""
    window_stride: PositiveInt = 4
    """Latent frames between windows; the phase of the tiling is random."""
    scored_windows: Literal["all", "first", "last"] = "all"
    """Windows that are scored and that the critic sees: a tiling of the whole video; or one that does not
    slide, the first of each video; or the last, which is all that is scored of a self-forcing rollout."""
    windows_per_video: int | None = None
    """Windows of the tiling to score, drawn at random; None scores all."""
    first_latent: Literal["masked", "reencoded"] = "masked"
    """The first latent of a window from the middle of a video, with a causal autoencoder, which would encode
    a clip's first picture alone: it counts in no loss, and networks see it as it is, or `reencoded`, that
    picture decoded and encoded anew (as arXiv 2506.08009 does)."""
    encoder_gradient: Literal["both", "flow_matching"] = "both"
    """Losses that train the encoder: those of both heads, or the FM head's alone."""
    critic_learning_rate: PositiveFloat = 5e-4
    """The critic's peak learning rate, and an adversary's; it rises and falls as the student's does, so that
    both come to rest together."""
    critic_updates: NonNegativeInt = 1
    """Critic steps per iteration."""
    critic_batch: PositiveInt = 128
    """Windows per critic step, over all workers, drawn from the rollout pool."""
    rollout_pool: PositiveInt = 3
    """Rollouts kept for the critic."""
    teacher_gate: Literal["refuse", "warn"] = "warn"
    """What to do when the teacher's windows are far from the corpus."""
    teacher_gate_ratio: PositiveFloat = 3.0
    """Largest Frechet distance of the teacher's windows to SHORT, in units of SHORT's own floor."""

    def tiling(self, num_frames: int, phase: int = 0, prefix: int = 0) -> list[Span]:
        """The windows of a video of `num_frames` latent frames, but those that lie in its first `prefix`; the
        phase is in [0, window_stride)."""
        if self.scored_windows == "all":
            every = spans(num_frames, self.window_frames, self.window_stride, phase)
            return [window for window in every if window.stop > prefix]
        start = 0 if self.scored_windows == "first" else num_frames - self.window_frames
        return [Span(start, self.window_frames)]

    def shares(self, steps: int, *, without_first: bool) -> list[float]:
        """Shares of the rollouts that stop at each of `steps` steps; those at the first may be left out."""
        given = list(self.exit_shares or (1.0,) * steps)
        if without_first:
            given[0] = 0.0
        return [share / sum(given) for share in given]


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """What training asks of Ray (pipelines/training/trainer.py)."""

    num_workers: PositiveInt | tuple[PositiveInt, PositiveInt] = 1
    """Data-parallel training workers, or `[least, most]`: as many as the cluster has room for. Batches and
    draws stay the same."""
    context_parallel: PositiveInt = 1
    """Neighbouring workers that share the frames of each of a student's clips: one holds a part of the
    activations and takes a part of the time. Groups of so many share the batches. Losses stay the same.
    Groups make different videos in `sample`."""
    shard: Literal["none", "full", "hybrid"] = "none"
    """Who has the weights, gradients, moments and averages: `none`, every worker all of them; `full`, all
    workers a part each; `hybrid`, each group of `shard_group` workers all of them, a worker of it a part.
    A block's weights are gathered while it computes."""
    shard_group: PositiveInt = 8
    """Neighbouring workers, those of a machine, that have a part of the weights each with `shard: hybrid`."""
    resize_seconds: PositiveFloat = 60.0
    """How often an elastic group looks for room for more workers; it starts again with them from the last
    checkpoint."""
    hang_minutes: PositiveFloat = 10.0
    """How long workers wait for one that does not come on in a step, before it is named and all start again
    from the last checkpoint. Longer than one worker's part of a step takes."""
    use_gpu: bool = False
    """One GPU per worker, bfloat16, Triton kernels."""
    activation_checkpointing: Checkpointing = "none"
    """What the backward pass computes again of a block's activations, of which fewer are kept: `full`, all of
    them, for a fraction of the memory and a third more operations; `selective`, all but what self-attention
    gives, the most costly of them."""
    max_failures: NonNegativeInt = 2
    """Worker failures a stage survives, from its last checkpoint."""
    price_per_hour: NonNegativeFloat = 0.0
    """What an hour of a worker costs, for the log to say what is spent and left; 0 is unknown."""
    logical_cpus: int | None = None
    """CPUs that a local Ray counts; None is the machine's, at least 4, so that controllers never wait."""

    @property
    def least_workers(self) -> int:
        """Workers without which training waits."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def most_workers(self) -> int:
        """Workers when the cluster has room for all."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Every setting that training reads; a run's settings (jobs/config/schema.py) extend it."""

    seed: int = 0
    """Seed of training and sampling; `quickstart --seeds 3` runs seed, seed + 1 and seed + 2."""
    text: TextConfig = TextConfig()
    model: ModelConfig = ModelConfig()
    lora: LoraConfig = LoraConfig()
    flow: FlowConfig = FlowConfig()
    loss: LossConfig = LossConfig()
    sampling: SamplingConfig = SamplingConfig()
    teacher: StageConfig = StageConfig(steps=1500, short_batch=64, learning_rate=3e-3, t_std=1.2)
    sft: StageConfig = StageConfig(long_batch=32, t_mean=0.6)
    mixed: StageConfig = StageConfig(short_batch=64, long_batch=32, t_mean=0.6)
    warmup: WarmupConfig = WarmupConfig()
    distill: DistillConfig = DistillConfig()
    cluster: ClusterConfig = ClusterConfig()
