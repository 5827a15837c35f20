"""Combinations of settings that cannot work, refused before anything is read, written or allocated."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

from jobs.config.schema import SUPERVISED_STAGES, RunConfig
from jobs.estimate import shapes
from models.autoencoders.kinds import autoencoder_kind
from models.errors import ConfigError
from models.text.kinds import text_kind
from models.wan.layout import is_windowed
from models.windows import spans
from pipelines.data.curate.quality import check_curation
from pipelines.data.ingest import buckets

_POSITIVE = (
    "world.size world.fps world.short_clips world.short_frames world.long_clips world.long_frames "
    "data.height data.width data.short_frames data.short_stride data.long_frames data.long_stride "
    "data.block_bytes autoencoder.max_components autoencoder.fit_frames text.dim text.max_tokens "
    "model.num_layers model.head_layers model.num_heads model.head_dim model.ffn_dim model.freq_dim "
    "model.window model.rope_theta_windowed model.rope_theta_global flow.timestep_shift "
    "flow.timestep_shift_frames lora.alpha "
    "loss.normalizer_block loss.normalizer_floor sampling.ode_steps sampling.rollout_steps "
    "teacher.steps sft.steps mixed.steps distill.steps teacher.short_batch sft.long_batch mixed.short_batch "
    "mixed.long_batch distill.long_batch distill.rollout_batch distill.critic_batch distill.rollout_pool "
    "distill.window_frames distill.window_stride distill.critic_learning_rate distill.teacher_gate_ratio "
    "evaluation.videos evaluation.draws evaluation.reference_videos evaluation.windows_per_video "
    "evaluation.batch_size evaluation.min_actors evaluation.max_actors "
    "sweep.videos sweep.trials sweep.max_concurrent sweep.grace_reports cluster.num_workers"
).split()
_OF_STAGES = "learning_rate clip_norm t_std checkpoint_every log_every".split()
_SHARES = (
    "data.holdout data.max_reject_share text.dropout text.withhold_probability "
    "teacher.ema_decay sft.ema_decay mixed.ema_decay distill.ema_decay"
).split()
_NOT_NEGATIVE = (
    "autoencoder.patch_size lora.rank loss.flow_matching_weight loss.reverse_kl_weight loss.anchor_weight "
    "warmup.steps distill.ramp_steps distill.critic_updates cluster.max_failures "
    "evaluation.showcase world.long_noise"
).split()


def validate(config: RunConfig) -> None:
    """Refuse a config that cannot work.

    Raises:
        ConfigError: the first fault, naming the settings and the remedy.
    """
    for check in _CHECKS:
        check(config)


def value_of(config: RunConfig, name: str) -> Any:
    """The value under a dotted name."""
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _refuse(problem: str, remedy: str) -> None:
    raise ConfigError(problem, remedy)


def _ranges(config: RunConfig) -> None:
    stages = [f"{stage}.{name}" for stage in (*SUPERVISED_STAGES, "distill") for name in _OF_STAGES]
    for name in (*_POSITIVE, *stages):
        if value_of(config, name) <= 0:
            _refuse(
                f"{name} is {value_of(config, name)}, but must be above 0", f"Set it by --set {name}=VALUE"
            )
    for name in _NOT_NEGATIVE:
        if value_of(config, name) < 0:
            _refuse(
                f"{name} is {value_of(config, name)}, but must not be below 0", f"Set --set {name}=0 or more"
            )
    for name in _SHARES:
        if not 0 <= value_of(config, name) <= 1:
            _refuse(f"{name} is {value_of(config, name)}, but is a share", f"Set --set {name}= to 0 ... 1")


def _name(config: RunConfig) -> None:
    if not config.name or "/" in config.name or config.name.startswith("."):
        _refuse(
            f"name {config.name!r} cannot be a folder", "Use letters, digits, dots, dashes and underscores"
        )


def _corpora(config: RunConfig) -> None:
    data = config.data
    check_curation(data.curation)
    buckets.check(data)
    if data.fps is not None and data.fps <= 0:
        _refuse(f"data.fps is {data.fps}", "Set it above 0, or to null to keep every frame")
    if (data.short is None) != (data.long is None):
        missing, given = ("data.short", "data.long") if data.short is None else ("data.long", "data.short")
        _refuse(
            f"{given} is given without {missing}",
            "Give both folders (--short and --long), or neither for the built-in world",
        )
    if data.short_frames > data.long_frames:
        _refuse(
            f"data.short_frames {data.short_frames} is longer than data.long_frames {data.long_frames}",
            "SHORT windows must not be longer than LONG ones: lower data.short_frames",
        )
    if config.uses_world:
        _world(config)


def _world(config: RunConfig) -> None:
    """The built-in world's clips hold the windows that are cut from them."""
    data, world = config.data, config.world
    if (data.height, data.width) != (world.size, world.size):
        _refuse(
            f"frames are {data.height}x{data.width}, but the built-in world is {world.size}x{world.size}",
            f"Set data.height={world.size} data.width={world.size}, or world.size",
        )
    for corpus in ("short", "long"):
        window, clip = getattr(data, f"{corpus}_frames"), getattr(world, f"{corpus}_frames")
        if data.fps is not None and data.fps != world.fps:
            clip = int(clip * data.fps / world.fps)
        if window > clip:
            _refuse(
                f"data.{corpus}_frames {window} is longer than the {clip} frames of a clip",
                f"Lower data.{corpus}_frames or raise world.{corpus}_frames",
            )


def _captions(config: RunConfig) -> None:
    text = config.text
    text_kind(text).check_settings()
    if text.withheld_words and not text.withhold_probability:
        _refuse(
            "text.withheld_words are named, but text.withhold_probability is 0",
            "Set text.withhold_probability=0.3, or name no words",
        )
    if text.withhold_probability and not text.withheld_words:
        _refuse(
            "text.withhold_probability is set, but text.withheld_words is empty",
            "Name the words, or set the probability to 0",
        )


def _network(config: RunConfig) -> None:
    model = config.model
    if model.head_layers > model.num_layers:
        _refuse(
            f"model.head_layers {model.head_layers} is more than model.num_layers {model.num_layers}",
            f"A head is the last blocks of the stack: set model.head_layers to {model.num_layers} or less",
        )
    pattern = model.attention_pattern
    if len(pattern) != model.num_layers or set(pattern) - set("WG"):
        _refuse(
            f"model.attention_pattern {pattern!r} is not one W or G for each of {model.num_layers} blocks",
            f"Set model.attention_pattern={('WG' * model.num_layers)[: model.num_layers]}",
        )
    if model.head_dim % 2 or model.head_dim < 6:
        _refuse(
            f"model.head_dim {model.head_dim} cannot be split over time, height and width",
            "Set an even number of 6 or more",
        )
    if model.init == "look" and (model.num_heads < 3 or model.head_dim < 24):
        _refuse(
            f"model.init=look needs 3 heads of 24 channels, not {model.num_heads} of {model.head_dim}",
            "Raise model.num_heads and model.head_dim, or set model.init=wan",
        )
    if model.pretrained is not None and model.precondition:
        _refuse(
            "model.pretrained weights predict the velocity, but model.precondition is true",
            "Set model.precondition=false",
        )
    if config.lora.rank and not (config.lora.targets and config.lora.stages):
        _refuse(
            "lora.rank is set, but lora.targets or lora.stages is empty",
            "Name layers and stages, or set lora.rank=0",
        )
    autoencoder_kind(config.autoencoder).check_settings()


def _sizes(config: RunConfig) -> None:
    data, kind = config.data, autoencoder_kind(config.autoencoder)
    kind.check_sizes(data.sizes)
    shorter = [("long_lengths", frames) for frames in data.long_lengths]
    for name, frames in (("short_frames", data.short_frames), ("long_frames", data.long_frames), *shorter):
        factor = kind.temporal_factor
        if config.autoencoder.uneven_frames == "refuse" and (frames - 1) % factor:
            down = (frames - 1) // factor * factor + 1
            setting = f"data.{name}=" if (name, frames) not in shorter else f"that one of data.{name} to "
            _refuse(
                f"data.{name} is {frames}, but the autoencoder takes {factor}k+1 frames",
                f"Set {setting}{down} or {down + factor}, or autoencoder.uneven_frames=pad",
            )
    _patches(config)


def _patches(config: RunConfig) -> None:
    """The network's patches tile the latents of every bucket."""
    data, (rows, columns), patch = config.data, shapes.pixels_per_latent(config), config.model.patch_size
    for what, size, part in (
        ("SHORT latent frames", shapes.latent_frames(config, data.short_frames), patch[0]),
        *(
            ("LONG latent frames", shapes.latent_frames(config, frames), patch[0])
            for frames, _ in data.cuts_of("long")
        ),
        *(("latent rows", height // rows, patch[1]) for height, _ in data.sizes),
        *(("latent columns", width // columns, patch[2]) for _, width in data.sizes),
    ):
        if part < 1 or size % part:
            _refuse(
                f"model.patch_size {list(patch)} does not divide the {size} {what}",
                "Set model.patch_size so that it does, or the sizes in data",
            )


def _windows(config: RunConfig) -> None:
    distill, sizes = config.distill, shapes.shapes(config)
    length = distill.window_frames
    shortest = shapes.latent_frames(config, config.data.cuts_of("long")[-1][0])
    if length > shortest:
        setting = "data.long_lengths" if config.data.long_lengths else "data.long_frames"
        _refuse(
            f"distill.window_frames {length} is longer than a clip of {shortest} latent frames",
            f"Lower distill.window_frames, or raise {setting}",
        )
    if length > sizes.short_frames:
        _refuse(
            f"distill.window_frames {length} is longer than the teacher's {sizes.short_frames} frames",
            f"Set distill.window_frames={sizes.short_frames}",
        )
    if config.model.pretrained is not None and is_windowed(config.model, sizes.short_frames):
        _refuse(
            f"the pretrained teacher sees its whole clip of {sizes.short_frames} latent frames, but "
            f"model.window is {config.model.window}",
            f"Set model.window={sizes.short_frames // config.model.patch_size[0] - 1} or more",
        )
    most = length - (0 if autoencoder_kind(config.autoencoder).crop_safe else 1)
    if distill.window_stride > most:
        _refuse(
            f"distill.window_stride {distill.window_stride} leaves frames that no window scores",
            f"Set it to {most} or less",
        )
    tiling = len(spans(sizes.long_frames, length, distill.window_stride))
    if distill.windows_per_video is not None and not 1 <= distill.windows_per_video <= tiling:
        _refuse(
            f"distill.windows_per_video is {distill.windows_per_video}, but the tiling has {tiling} windows",
            f"Set it to 1 ... {tiling}, or null for all",
        )


def _batches(config: RunConfig) -> None:
    workers = config.cluster.num_workers
    for stage in (*SUPERVISED_STAGES, "warmup", "distill"):
        for name in ("short_batch", "long_batch", "rollout_batch", "critic_batch"):
            size = getattr(getattr(config, stage), name, 0)
            if size < 0 or size % workers:
                up = -(-max(size, 1) // workers) * workers
                _refuse(
                    f"{stage}.{name} {size} does not divide among cluster.num_workers {workers}",
                    f"Set {stage}.{name}={up}, or another number of workers",
                )


def _times(config: RunConfig) -> None:
    steps = config.sampling.steps
    falling = all(later < earlier for earlier, later in itertools.pairwise(steps))
    if not steps or steps[0] != 1.0 or steps[-1] <= 0 or not falling:
        _refuse(
            f"sampling.steps {list(steps)} do not fall from 1 towards 0",
            "Set, for example, sampling.steps=[1.0,0.85,0.65,0.35]",
        )
    loss = config.loss
    if not 0 < loss.score_t_min < loss.score_t_max < 1:
        _refuse(
            f"loss.score_t_min {loss.score_t_min}, score_t_max {loss.score_t_max} do not rise in 0 ... 1",
            "Set, for example, 0.02 and 0.98",
        )


def _machines(config: RunConfig) -> None:
    evaluation, cluster = config.evaluation, config.cluster
    if evaluation.min_actors > evaluation.max_actors:
        _refuse(
            f"evaluation.min_actors {evaluation.min_actors} is more than max_actors {evaluation.max_actors}",
            "Raise evaluation.max_actors",
        )
    if cluster.logical_cpus is not None and cluster.logical_cpus <= cluster.num_workers:
        _refuse(
            f"cluster.logical_cpus {cluster.logical_cpus} leaves no CPU beside {cluster.num_workers} workers",
            f"Set cluster.logical_cpus={cluster.num_workers + 2} or null",
        )


def _sweep(config: RunConfig) -> None:
    for name, values in config.sweep.space.items():
        try:
            value = value_of(config, name)
        except AttributeError:
            value = config
        if dataclasses.is_dataclass(value):
            _refuse(
                f"sweep.space has the unknown setting {name!r}",
                "Name a setting, such as loss.reverse_kl_weight",
            )
        if isinstance(values, dict):
            extra = set(values) - {"low", "high", "log", "integer"}
            if extra or not {"low", "high"} <= set(values) or values["low"] >= values["high"]:
                _refuse(
                    f"sweep.space.{name} is {values}",
                    "Write {low: 0.1, high: 1.0, log: true}, or a list of choices",
                )
        elif not isinstance(values, list) or not values:
            _refuse(
                f"sweep.space.{name} is {values!r}",
                "Write {low: 0.1, high: 1.0, log: true}, or a list of choices",
            )
    if config.sweep.reduction_factor < 2:
        _refuse(f"sweep.reduction_factor is {config.sweep.reduction_factor}", "Set it to 2 or more")


_CHECKS: tuple[Callable[[RunConfig], None], ...] = (
    _name, _ranges, _corpora, _captions, _network, _sizes, _windows, _batches, _times, _machines, _sweep,
)  # fmt: skip
