"""Combinations of settings that cannot work, refused before anything is read, written or allocated."""

import itertools
import math
from collections.abc import Sequence

from jobs.config.schema import STAGES, RunConfig, settings
from jobs.config.shapes import latent_frames, pixels_per_latent, shapes
from models.autoencoders.kinds import autoencoder_kind
from models.errors import ConfigError
from models.text.kinds import text_kind
from pipelines.data.checks import check_data


def validate(config: RunConfig) -> None:
    """Refuse a config that cannot work.

    Raises:
        ConfigError: the first fault, naming the settings and the remedy.
    """
    if not config.name or "/" in config.name or config.name.startswith("."):
        raise ConfigError(
            f"name {config.name!r} cannot be a folder", "Use letters, digits, dots, dashes and underscores"
        )
    checks = (
        _corpora,
        _world,
        _captions,
        _network,
        _sizes,
        _windows,
        _rollouts,
        _courses,
        _lengths,
        _batches,
        _times,
        _machines,
        _sweep,
        _serve,
    )
    for check in checks:
        check(config)


def _corpora(config: RunConfig) -> None:
    data = config.data
    check_data(data)
    if (data.short is None) != (data.long is None):
        missing, given = ("data.short", "data.long") if data.short is None else ("data.long", "data.short")
        remedy = "Give both folders (--short and --long), or neither for the built-in world"
        raise ConfigError(f"{given} is given without {missing}", remedy)
    if data.short_frames > data.long_frames:
        problem = f"data.short_frames {data.short_frames} is longer than data.long_frames {data.long_frames}"
        raise ConfigError(problem, "SHORT windows must not be longer than LONG ones: lower data.short_frames")


def _world(config: RunConfig) -> None:
    """The built-in world's clips hold the windows that are cut from them."""
    data, world = config.data, config.world
    if not config.uses_world:
        return
    if config.evaluation.subject:
        problem = (
            f"evaluation.subject={config.evaluation.subject} is for your own clips, not the built-in world"
        )
        raise ConfigError(problem, "Set evaluation.subject=null, or give data.short and data.long")
    if (data.height, data.width) != (world.size, world.size):
        raise ConfigError(
            f"frames are {data.height}x{data.width}, but the built-in world is {world.size}x{world.size}",
            f"Set data.height={world.size} data.width={world.size}, or world.size",
        )
    for corpus in ("short", "long"):
        window, clip = getattr(data, f"{corpus}_frames"), getattr(world, f"{corpus}_frames")
        if data.fps is not None and data.fps != world.fps:
            clip = int(clip * data.fps / world.fps)
        if window > clip:
            problem = f"data.{corpus}_frames {window} is longer than the {clip} frames of a clip"
            raise ConfigError(problem, f"Lower data.{corpus}_frames or raise world.{corpus}_frames")


def _captions(config: RunConfig) -> None:
    text = config.text
    text_kind(text).check_settings()
    if text.withheld_words and not text.withhold_probability:
        problem = "text.withheld_words are named, but text.withhold_probability is 0"
        raise ConfigError(problem, "Set text.withhold_probability=0.3, or name no words")
    if text.withhold_probability and not text.withheld_words:
        problem = "text.withhold_probability is set, but text.withheld_words is empty"
        raise ConfigError(problem, "Name the words, or set the probability to 0")


def _network(config: RunConfig) -> None:
    model = config.model
    if model.head_layers > model.num_layers:
        raise ConfigError(
            f"model.head_layers {model.head_layers} is more than model.num_layers {model.num_layers}",
            f"A head is the last blocks of the stack: set model.head_layers to {model.num_layers} or less",
        )
    pattern = model.attention_pattern
    if len(pattern) != model.num_layers or set(pattern) - set("WG"):
        raise ConfigError(
            f"model.attention_pattern {pattern!r} is not one W or G for each of {model.num_layers} blocks",
            f"Set model.attention_pattern={('WG' * model.num_layers)[: model.num_layers]}",
        )
    if model.head_dim % 2 or model.head_dim < 6:
        problem = f"model.head_dim {model.head_dim} cannot be split over time, height and width"
        raise ConfigError(problem, "Set an even number of 6 or more")
    if model.init != "wan" and (model.num_heads < 3 or model.head_dim < 24):
        problem = (
            f"model.init={model.init} needs 3 heads of 24 channels, not {model.num_heads} of {model.head_dim}"
        )
        raise ConfigError(problem, "Raise model.num_heads and model.head_dim, or set model.init=wan")
    if model.pretrained is not None and model.precondition:
        problem = "model.pretrained weights predict the velocity, but model.precondition is true"
        raise ConfigError(problem, "Set model.precondition=false")
    if config.lora.rank and not (config.lora.targets and config.lora.stages):
        problem = "lora.rank is set, but lora.targets or lora.stages is empty"
        raise ConfigError(problem, "Name layers and stages, or set lora.rank=0")
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
            raise ConfigError(
                f"data.{name} is {frames}, but the autoencoder takes {factor}k+1 frames",
                f"Set {setting}{down} or {down + factor}, or autoencoder.uneven_frames=pad",
            )
    # the network's patches tile the latents of every bucket
    (rows, columns), patch = pixels_per_latent(config), config.model.patch_size
    sizes = [("SHORT latent frames", latent_frames(config, data.short_frames), patch[0])]
    for frames, _ in data.cuts_of("long"):
        sizes.append(("LONG latent frames", latent_frames(config, frames), patch[0]))
    for height, width in data.sizes:
        sizes += [("latent rows", height // rows, patch[1]), ("latent columns", width // columns, patch[2])]
    for what, size, part in sizes:
        if part < 1 or size % part:
            problem = f"model.patch_size {list(patch)} does not divide the {size} {what}"
            raise ConfigError(problem, "Set model.patch_size so that it does, or the sizes in data")


def _windows(config: RunConfig) -> None:
    distill, sizes = config.distill, shapes(config)
    length = distill.window_frames
    shortest = latent_frames(config, config.data.cuts_of("long")[-1][0])
    if length > shortest:
        setting = "data.long_lengths" if config.data.long_lengths else "data.long_frames"
        problem = f"distill.window_frames {length} is longer than a clip of {shortest} latent frames"
        raise ConfigError(problem, f"Lower distill.window_frames, or raise {setting}")
    if length > sizes.short_frames:
        problem = f"distill.window_frames {length} is longer than the teacher's {sizes.short_frames} frames"
        raise ConfigError(problem, f"Set distill.window_frames={sizes.short_frames}")
    if config.model.pretrained is not None and config.model.is_windowed(sizes.short_frames):
        raise ConfigError(
            f"the pretrained teacher sees its whole clip of {sizes.short_frames} latent frames, but "
            f"model.window is {config.model.window}",
            f"Set model.window={sizes.short_frames // config.model.patch_size[0] - 1} or more",
        )
    most = length - (0 if autoencoder_kind(config.autoencoder).crop_safe else 1)
    if distill.window_stride > most:
        problem = f"distill.window_stride {distill.window_stride} leaves frames that no window scores"
        raise ConfigError(problem, f"Set it to {most} or less")
    tiling = len(distill.tiling(sizes.long_frames))
    if distill.windows_per_video is not None and not 1 <= distill.windows_per_video <= tiling:
        raise ConfigError(
            f"distill.windows_per_video is {distill.windows_per_video}, but the tiling has {tiling} windows",
            f"Set it to 1 ... {tiling}, or null for all",
        )


def _rollouts(config: RunConfig) -> None:
    """What distillation is given, and what its losses train."""
    distill, loss = config.distill, config.loss
    for name, follows in (
        ("distill.rollout=noised_real", distill.rollout == "noised_real"),
        ("distill.data_forcing_steps", distill.data_forcing_steps > 0),
        ("distill.prefix_share", distill.prefix_share > 0),
    ):
        if follows and distill.rollout_batch != distill.long_batch:
            raise ConfigError(
                f"{name} takes the {distill.long_batch} LONG clips of a batch, but distill.rollout_batch is "
                f"{distill.rollout_batch}",
                f"Set distill.rollout_batch={distill.long_batch}",
            )
    if distill.rollout == "noised_real" and distill.captions is not None:
        problem = (
            f"distill.captions is {distill.captions}, but distill.rollout=noised_real has LONG's captions"
        )
        raise ConfigError(problem, "Set distill.captions=null, or distill.rollout=backward_simulation")
    causal = not autoencoder_kind(config.autoencoder).crop_safe
    if distill.first_latent == "reencoded" and not causal:
        kind = config.autoencoder.kind
        problem = (
            f"distill.first_latent=reencoded, but any latent of autoencoder.kind={kind} may begin a clip"
        )
        raise ConfigError(problem, "Set distill.first_latent=masked: nothing is masked either")
    if loss.adversarial_weight and not distill.short_batch:
        problem = "loss.adversarial_weight needs real windows of SHORT, but distill.short_batch is 0"
        raise ConfigError(problem, f"Set distill.short_batch={distill.critic_batch}, or the weight to 0")
    if loss.adversarial_weight and causal and distill.first_latent == "masked":
        problem = "with distill.first_latent=masked an adversary tells windows by their first latents alone"
        raise ConfigError(problem, "Set distill.first_latent=reencoded, or the weight to 0")
    if distill.data_forcing_steps > distill.steps:
        problem = (
            f"distill.data_forcing_steps {distill.data_forcing_steps} are more than the {distill.steps} steps"
        )
        raise ConfigError(problem, f"Set distill.data_forcing_steps={distill.steps} or less")
    if distill.ramp_follows == "critic" and not (distill.ramp_steps and distill.watch_every):
        missing = "watch_every" if distill.ramp_steps else "ramp_steps"
        problem = f"distill.ramp_follows=critic, but distill.{missing} is 0"
        raise ConfigError(problem, f"Set distill.{missing} above 0, or distill.ramp_follows=steps")
    if loss.forward_kl_weight and distill.exit_shares and not distill.exit_shares[0]:
        problem = (
            "loss.forward_kl_weight acts on rollouts that stop at the first step, of which there are none"
        )
        raise ConfigError(
            problem, "Set loss.forward_kl_weight=0, or the first of distill.exit_shares above 0"
        )
    if distill.encoder_gradient == "flow_matching" and not loss.flow_matching_weight:
        problem = "distill.encoder_gradient=flow_matching with loss.flow_matching_weight=0 trains no encoder"
        raise ConfigError(problem, "Set distill.encoder_gradient=both, or a weight above 0")


def _courses(config: RunConfig) -> None:
    """What some of the rollouts go on from, and that some are rings."""
    distill, loss = config.distill, config.loss
    for name, share, other, excludes in (
        (
            "distill.prefix_share",
            distill.prefix_share,
            "distill.rollout=noised_real",
            distill.rollout == "noised_real",
        ),
        (
            "distill.ring_share",
            distill.ring_share,
            "distill.rollout=noised_real",
            distill.rollout == "noised_real",
        ),
        ("distill.prefix_share", distill.prefix_share, "loss.forward_kl_weight", loss.forward_kl_weight > 0),
        (
            "distill.prefix_share",
            distill.prefix_share,
            "distill.scored_windows=first",
            distill.scored_windows == "first",
        ),
    ):
        if share and excludes:
            raise ConfigError(
                f"{name} is {share:g}, which {other} leaves no room for",
                f"Set {name}=0, or leave out {other}",
            )
    if distill.prefix_share + distill.ring_share > 1:
        problem = (
            f"distill.prefix_share {distill.prefix_share:g} and distill.ring_share {distill.ring_share:g}"
        )
        raise ConfigError(
            f"{problem} are more than all rollouts", "Lower one, so that they add up to 1 at most"
        )
    if config.teacher.prefix_share:
        raise ConfigError(
            "teacher.prefix_share is above 0, but it sees no LONG clips", "Set teacher.prefix_share=0"
        )
    if distill.prefix_share and distill.short_batch not in (0, distill.rollout_batch):
        raise ConfigError(
            f"distill.prefix_share goes on from SHORT windows, too, but distill.short_batch is "
            f"{distill.short_batch} and distill.rollout_batch {distill.rollout_batch}",
            f"Set distill.short_batch={distill.rollout_batch}, or 0 for LONG clips alone",
        )


def _lengths(config: RunConfig) -> None:
    """A curriculum's clips are shorter ones of LONG, and hold a window."""
    patch, longest = config.model.patch_size[0], shapes(config).long_frames
    for name in STAGES:
        pairs = getattr(getattr(config, name), "lengths", ())
        least = config.distill.window_frames if name == "distill" else 1
        if any(later <= earlier for (earlier, _), (later, _) in itertools.pairwise(pairs)):
            problem = f"the steps of {name}.lengths {[list(pair) for pair in pairs]} do not rise"
            raise ConfigError(problem, f"Set, for example, {name}.lengths=[[0,{least}],[500,null]]")
        for frames in (frames for _, frames in pairs if frames is not None):
            if frames % patch or not least <= frames <= longest:
                raise ConfigError(
                    f"{name}.lengths has clips of {frames} latent frames",
                    f"Take multiples of {patch} from {least} (a window) to {longest} (a clip of LONG)",
                )


def _batches(config: RunConfig) -> None:
    """Supervised stages have the corpora they are named for; every worker has a part of each batch."""
    for name in ("teacher.short_batch", "sft.long_batch", "mixed.short_batch", "mixed.long_batch"):
        stage, batch = name.split(".")
        if getattr(getattr(config, stage), batch) == 0:
            raise ConfigError(f"{name} is 0, but must be above 0", f"Set it by --set {name}=VALUE, above 0")
    every, alike = config.cluster.most_workers, config.cluster.context_parallel
    for stage in STAGES:
        for batch in ("short_batch", "long_batch", "rollout_batch", "critic_batch"):
            size = getattr(getattr(config, stage), batch, 0)
            whole_clips = stage == "teacher" or batch == "critic_batch"
            workers = every if whole_clips else every // alike
            if 0 < size < workers:
                who = "workers" if whole_clips or alike == 1 else f"groups of {alike} workers"
                raise ConfigError(
                    f"{stage}.{batch} {size} leaves some of {workers} {who} without a row",
                    f"Set {stage}.{batch}={workers}, or fewer cluster.num_workers",
                )
            if config.cluster.shard != "none" and size % workers:
                raise ConfigError(
                    f"{stage}.{batch} {size} is no multiple of {workers}: with cluster.shard="
                    f"{config.cluster.shard} all workers go through a network equally often",
                    f"Set {stage}.{batch}={-(-size // workers) * workers}, or cluster.shard=none",
                )


def check_times(times: Sequence[float], name: str) -> None:
    """Refuse times of the few-step sampler that do not fall from 1.

    Raises:
        ConfigError: naming them by `name`.
    """
    falling = all(later < earlier for earlier, later in itertools.pairwise(times))
    if not times or times[0] != 1.0 or times[-1] <= 0 or not falling:
        problem = f"{name} {list(times)} do not fall from 1 towards 0"
        raise ConfigError(problem, "Take, for example, 1.0, 0.85, 0.65 and 0.35")


def _times(config: RunConfig) -> None:
    steps, shares = config.sampling.steps, config.distill.exit_shares
    check_times(steps, "sampling.steps")
    if shares and (len(shares) != len(steps) or min(shares) < 0 or not any(shares)):
        problem = f"distill.exit_shares {list(shares)} do not share rollouts out over {len(steps)} exits"
        raise ConfigError(problem, "Give one for each of sampling.steps, or [] for equal ones")
    if config.loss.anchor_weight and len(steps) == 1:
        problem = "sampling.steps has one step, which the anchor would keep to itself"
        raise ConfigError(problem, "Set loss.anchor_weight=0, or take more steps")
    loss = config.loss
    if not 0 < loss.score_t_min < loss.score_t_max < 1:
        raise ConfigError(
            f"loss.score_t_min {loss.score_t_min}, score_t_max {loss.score_t_max} do not rise in 0 ... 1",
            "Set, for example, 0.02 and 0.98",
        )


def _machines(config: RunConfig) -> None:
    evaluation, cluster = config.evaluation, config.cluster
    if evaluation.min_actors > evaluation.max_actors:
        raise ConfigError(
            f"evaluation.min_actors {evaluation.min_actors} is more than max_actors {evaluation.max_actors}",
            "Raise evaluation.max_actors",
        )
    least, most = cluster.least_workers, cluster.most_workers
    if least > most:
        problem = f"cluster.num_workers [{least}, {most}] are not the least and the most workers"
        raise ConfigError(problem, f"Set cluster.num_workers=[{most},{least}]")
    alike, frames = cluster.context_parallel, shapes(config).long_frames
    if alike > 1 and (least < most or most % alike):
        raise ConfigError(
            f"cluster.num_workers {cluster.num_workers} are no groups of context_parallel {alike} workers",
            f"Set cluster.num_workers={alike}, or another multiple of it",
        )
    if alike > frames:
        problem = f"cluster.context_parallel {alike} workers share clips of {frames} latent frames"
        raise ConfigError(problem, f"Set cluster.context_parallel={frames}, or less")
    if cluster.shard != "none" and least < most:
        problem = f"cluster.shard={cluster.shard} shares weights out over workers whose number changes"
        raise ConfigError(problem, f"Set cluster.num_workers={most}, or cluster.shard=none")
    if cluster.shard == "hybrid" and most % cluster.shard_group:
        raise ConfigError(
            f"{most} workers are no groups of cluster.shard_group {cluster.shard_group}",
            f"Set cluster.shard_group={math.gcd(most, cluster.shard_group)}, or cluster.shard=full",
        )
    if cluster.logical_cpus is not None and cluster.logical_cpus <= most:
        raise ConfigError(
            f"cluster.logical_cpus {cluster.logical_cpus} leaves no CPU beside {most} workers",
            f"Set cluster.logical_cpus={most + 2} or null",
        )


def _sweep(config: RunConfig) -> None:
    if "/" in config.sweep.name:
        raise ConfigError(
            f"sweep.name {config.sweep.name!r} cannot be a folder",
            "Use letters, digits, dots, dashes and underscores",
        )
    for name, values in config.sweep.space.items():
        if name not in settings():
            problem = f"sweep.space has the unknown setting {name!r}"
            raise ConfigError(problem, "Name a setting, such as loss.reverse_kl_weight")
        if isinstance(values, dict):
            known = {"low", "high"} <= set(values) <= {"low", "high", "log", "integer"}
            good = known and values["low"] < values["high"]
        else:
            good = isinstance(values, list) and bool(values)
        if not good:
            problem = f"sweep.space.{name} is {values!r}"
            raise ConfigError(problem, "Write {low: 0.1, high: 1.0, log: true}, or a list of choices")
    if config.sweep.reduction_factor < 2:
        raise ConfigError(f"sweep.reduction_factor is {config.sweep.reduction_factor}", "Set it to 2 or more")


def _serve(config: RunConfig) -> None:
    least, most = config.serve.min_replicas, config.serve.max_replicas
    if least > most:
        raise ConfigError(
            f"serve.min_replicas {least} is more than serve.max_replicas {most}",
            f"Set serve.max_replicas={least} or more",
        )
