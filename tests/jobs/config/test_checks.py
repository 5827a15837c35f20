"""Combinations that cannot work are refused, each with the setting's name and a remedy that works."""

import re

import pytest

from jobs.config import load as configs
from jobs.config.load import bounds_of
from jobs.config.schema import settings
from jobs.config.shapes import latent_frames, scored_windows, shapes
from models.errors import ConfigError

REFUSED = [
    ("tiny", ["data.short_frames=40"], "data.short_frames", "lower data.short_frames"),
    ("tiny", ["data.long_frames=64"], "data.long_frames 64 is longer", "raise world.long_frames"),
    ("tiny", ["data.fps=4"], "is longer than the 4 frames", "Lower data.short_frames"),
    ("tiny", ["data.fps=0"], "data.fps", "above 0"),
    ("tiny", ["data.short=a"], "without data.long", "both folders"),
    ("tiny", ["data.long=a"], "without data.short", "both folders"),
    ("tiny", ["data.height=64"], "built-in world is 128x128", "world.size"),
    ("tiny", ["model.head_layers=5"], "model.head_layers 5", "4 or less"),
    ("tiny", ["model.attention_pattern=WG"], "'WG' is not one W or G", "WGWG"),
    ("tiny", ["model.attention_pattern=WGXG"], "'WGXG'", "WGWG"),
    ("tiny", ["model.head_dim=25"], "model.head_dim 25", "even"),
    ("tiny", ["model.head_dim=12"], "model.init=look", "model.init=wan"),
    ("tiny", ["model.num_heads=2"], "model.init=look", "model.num_heads"),
    ("mouse", ["model.num_heads=2"], "model.init=place", "model.num_heads"),
    ("tiny", ["model.patch_size=[3,1,1]"], "SHORT latent frames", "model.patch_size"),
    ("tiny", ["model.patch_size=[1,2,2]"], "latent rows", "model.patch_size"),
    ("tiny", ["autoencoder.patch_size=24"], "patch of 24 pixels does not tile", "multiples of 24"),
    ("tiny", ["distill.window_frames=33"], "longer than a clip of 32", "Lower distill.window_frames"),
    ("tiny", ["distill.window_frames=16"], "teacher's 8 frames", "distill.window_frames=8"),
    (
        "tiny",
        ["data.long_lengths=[16]", "distill.window_frames=17"],
        "longer than a clip of 16",
        "raise data.long_lengths",
    ),
    ("tiny", ["distill.window_stride=9"], "no window scores", "8 or less"),
    ("tiny", ["distill.windows_per_video=9"], "the tiling has 8 windows", "1 ... 8"),
    (
        "tiny",
        ["distill.scored_windows=last", "distill.windows_per_video=3"],
        "the tiling has 1 ",
        "null for all",
    ),
    ("tiny", ["distill.scored_windows=middle"], "distill.scored_windows", "distill.scored_windows"),
    ("minute", ["distill.rollout=noised_real"], "takes the 8 LONG clips", "distill.rollout_batch=8"),
    ("minute", ["distill.data_forcing_steps=9"], "takes the 8 LONG clips", "distill.rollout_batch=8"),
    ("tiny", ["distill.first_latent=reencoded"], "kind=pca may begin a clip", "distill.first_latent=masked"),
    ("tiny", ["loss.adversarial_weight=0.03"], "distill.short_batch is 0", "distill.short_batch=128"),
    (
        "wan-1.3b",
        ["loss.adversarial_weight=0.03", "distill.short_batch=16"],
        "their first latents alone",
        "distill.first_latent=reencoded",
    ),
    ("minute", ["distill.prefix_share=0.5"], "takes the 8 LONG clips", "distill.rollout_batch=8"),
    ("tiny", ["distill.prefix_share=0.5", "distill.short_batch=8"], "distill.short_batch is 8", "=32, or 0"),
    (
        "tiny",
        ["distill.prefix_share=0.5", "loss.forward_kl_weight=1"],
        "no room for",
        "distill.prefix_share=0",
    ),
    ("tiny", ["distill.ring_share=1", "distill.rollout=noised_real"], "no room for", "distill.ring_share=0"),
    ("tiny", ["distill.prefix_share=0.7", "distill.ring_share=0.6"], "more than all rollouts", "Lower one"),
    ("tiny", ["teacher.prefix_share=0.1"], "sees no LONG clips", "teacher.prefix_share=0"),
    ("tiny", ["distill.data_forcing_steps=211"], "more than the 210 steps", "=210 or less"),
    ("tiny", ["distill.ramp_follows=critic"], "distill.ramp_steps is 0", "distill.ramp_follows=steps"),
    (
        "tiny",
        ["distill.ramp_follows=critic", "distill.ramp_steps=9", "distill.watch_every=0"],
        "distill.watch_every is 0",
        "distill.watch_every above 0",
    ),
    (
        "tiny",
        ["loss.forward_kl_weight=0.1", "distill.exit_shares=[0,1,1,1]"],
        "of which there are none",
        "distill.exit_shares above 0",
    ),
    (
        "tiny",
        ["distill.rollout=noised_real", "distill.captions=a.txt"],
        "has LONG's captions",
        "captions=null",
    ),
    (
        "tiny",
        ["distill.encoder_gradient=flow_matching", "loss.flow_matching_weight=0"],
        "trains no encoder",
        "distill.encoder_gradient=both",
    ),
    ("tiny", ["distill.lengths=[[0,7]]"], "distill.lengths has clips of 7", "from 8 (a window) to 32"),
    ("tiny", ["sft.lengths=[[0,33]]"], "sft.lengths has clips of 33", "to 32 (a clip"),
    ("tiny", ["sft.lengths=[[9,8],[9,16]]"], "sft.lengths [[9, 8], [9, 16]] do not rise", "[500,null]"),
    ("tiny", ["cluster.num_workers=65"], "teacher.short_batch 64 leaves some", "teacher.short_batch=65"),
    ("tiny", ["distill.rollout_batch=31", "cluster.num_workers=32"], "distill.rollout_batch 31", "=32"),
    ("tiny", ["cluster.context_parallel=2", "cluster.num_workers=3"], "are no groups", "num_workers=2"),
    ("tiny", ["cluster.context_parallel=2", "cluster.num_workers=[2,4]"], "are no groups", "num_workers=2"),
    ("tiny", ["cluster.context_parallel=33", "cluster.num_workers=33"], "clips of 32", "context_parallel=32"),
    (
        "tiny",
        ["cluster.context_parallel=2", "cluster.num_workers=34", "distill.rollout_batch=16"],
        "of 17 groups of 2 workers",
        "=17",
    ),
    ("tiny", ["cluster.shard=full", "cluster.num_workers=[1,2]"], "whose number changes", "num_workers=2"),
    ("tiny", ["cluster.shard=hybrid", "cluster.num_workers=4"], "no groups of cluster.shard_group 8", "=4"),
    (
        "tiny",
        ["cluster.shard=full", "cluster.num_workers=2", "distill.critic_batch=9"],
        "distill.critic_batch 9 is no multiple of 2",
        "distill.critic_batch=10",
    ),
    (
        "tiny",
        ["cluster.shard=full", "cluster.num_workers=4", "cluster.context_parallel=2", "sft.long_batch=7"],
        "sft.long_batch 7 is no multiple of 2",
        "sft.long_batch=8",
    ),
    ("tiny", ["text.withheld_words=[amber]"], "withhold_probability is 0", "0.3"),
    ("tiny", ["text.withhold_probability=0.3"], "withheld_words is empty", "Name the words"),
    ("tiny", ["text.dropout=1.5"], "text.dropout", "0 ... 1"),
    ("tiny", ["teacher.steps=0"], "teacher.steps is 0", "teacher.steps"),
    ("tiny", ["teacher.micro_batch=0"], "teacher.micro_batch is 0", "above 0"),
    ("tiny", ["sft.long_batch=0"], "sft.long_batch is 0", "sft.long_batch"),
    ("tiny", ["distill.checkpoint_every=0"], "distill.checkpoint_every", "distill.checkpoint_every"),
    ("tiny", ["loss.reverse_kl_weight=-1"], "loss.reverse_kl_weight", "0 or more"),
    ("tiny", ["sampling.steps=[1.0,0.5,0.7]"], "do not fall", "1.0, 0.85"),
    ("tiny", ["sampling.steps=[0.9,0.5]"], "do not fall", "1.0, 0.85"),
    ("tiny", ["sampling.steps=[]"], "do not fall", "1.0, 0.85"),
    ("tiny", ["distill.exit_shares=[1,2]"], "exit_shares [1.0, 2.0] do not share", "[] for equal ones"),
    ("tiny", ["distill.exit_shares=[0,0,0,0]"], "do not share rollouts out over 4", "[] for equal"),
    ("tiny", ["sampling.steps=[1.0]", "distill.exit_shares=[]"], "keep to itself", "loss.anchor_weight=0"),
    ("tiny", ["loss.score_t_min=0.99"], "do not rise", "0.02"),
    ("tiny", ["evaluation.min_actors=3"], "evaluation.min_actors 3", "evaluation.max_actors"),
    ("tiny", ["cluster.logical_cpus=1"], "leaves no CPU", "cluster.logical_cpus=3"),
    ("tiny", ["model.pretrained=x"], "predict the velocity", "model.precondition=false"),
    ("tiny", ["lora.rank=-1"], "lora.rank is -1", "lora.rank=VALUE, 0 or more"),
    ("tiny", ["lora.rank=4", "lora.targets=[]"], "lora.targets", "lora.rank=0"),
    ("tiny", ["lora.targets=[to_x]"], "lora.targets: input should be 'to_q'", "lora.targets"),
    ("tiny", ["autoencoder.kind=conv"], "autoencoder.patch_size is 0", "patch_size to 8, or another of 2, 4"),
    ("tiny", ["autoencoder.kind=conv", "autoencoder.patch_size=8"], "components is None", "components=8"),
    ("tiny", ["evaluation.subject=dark_blob"], "not the built-in world", "evaluation.subject=null"),
    ("tiny", ["evaluation.subject=cat"], "input should be 'dark_blob'", "evaluation.subject"),
    ("tiny", ["autoencoder.kind=wan"], "autoencoder.pretrained", "folder"),
    ("tiny", ["text.kind=umt5"], "text.pretrained", "text_encoder/"),
    ("tiny", ["name=a/b"], "cannot be a folder", "letters"),
    ("tiny", ["sweep.space.nope=[1]"], "unknown setting 'nope'", "loss.reverse_kl_weight"),
    ("tiny", ["sweep.space.loss=[1]"], "unknown setting 'loss'", "loss.reverse_kl_weight"),
    ("tiny", ["sweep.space.seed=3"], "sweep.space.seed", "list of choices"),
    ("tiny", ["sweep.space.seed={low: 3, high: 1}"], "sweep.space.seed", "low"),
    ("tiny", ["sweep.reduction_factor=1"], "sweep.reduction_factor", "2 or more"),
    ("wan-1.3b", ["data.short_frames=80"], "4k+1 frames", "77 or 81"),
    ("wan-1.3b", ["data.long_lengths=[240]"], "4k+1 frames", "data.long_lengths to 237 or 241"),
    ("wan-1.3b", ["data.long_lengths=[77]"], "data.long_lengths", "below data.long_frames: 81 to 480"),
    ("wan-1.3b", ["data.long_lengths=[481]"], "data.long_lengths", "from data.short_frames up"),
    ("wan-1.3b", ["data.long_lengths=[x]"], "data.long_lengths", "data.long_lengths"),
    ("wan-1.3b", ["data.shapes=[[832,484]]"], "does not tile frames of 480x832, 832x484", "multiples of 8"),
    ("wan-1.3b", ["data.shapes=[[840,480]]"], "does not divide the 105 latent rows", "model.patch_size"),
    ("wan-1.3b", ["data.shapes=[[960,1664]]"], "one aspect ratio twice", "one size for each"),
    ("wan-1.3b", ["data.shapes=[832]"], "data.shapes", "data.shapes"),
    ("tiny", ["data.shapes=[[128,96]]"], "patch of 0 pixels does not tile", "autoencoder.patch_size"),
    (
        "minute",
        ["model.patch_size=[2,1,1]", "data.long_lengths=[31]"],
        "LONG latent frames",
        "model.patch_size",
    ),
    ("wan-1.3b", ["model.window=19"], "sees its whole clip of 21", "model.window=20 or more"),
    ("wan-1.3b", ["data.width=500"], "does not tile", "multiples of 8"),
    ("wan-1.3b", ["distill.window_stride=21"], "no window scores", "20 or less"),
]


@pytest.mark.parametrize(
    ("preset", "overrides", "problem", "remedy"), REFUSED, ids=lambda value: str(value)[:40]
)
def test_impossible_settings_are_refused(preset, overrides, problem, remedy):
    with pytest.raises(ConfigError) as caught:
        configs.load(preset, overrides)
    assert problem in caught.value.problem
    assert remedy in caught.value.remedy


def outside() -> list[tuple[str, float]]:
    """Every bounded setting with a value just outside each of its bounds."""
    found: list[tuple[str, float]] = []
    for name, kind in settings().items():
        if bounds := bounds_of(kind):
            found.append((name, -1 if bounds.gt is None else bounds.gt))
            found += [] if bounds.le is None else [(name, bounds.le + 1)]
    return found


@pytest.mark.parametrize(("name", "value"), outside())
def test_a_number_out_of_bounds_is_refused(name, value):
    with pytest.raises(ConfigError) as caught:
        configs.load("tiny", [f"{name}={value}"])
    assert caught.value.problem.startswith(f"{name} is {value}, but must be ")
    assert f"--set {name}=VALUE" in caught.value.remedy


def test_bounds_are_on_the_settings_that_need_them():
    bounded = {name for name, _ in outside()}
    assert {"teacher.t_std", "distill.steps", "lora.rank", "data.fps", "data.curation.max_flash"} <= bounded
    assert len(bounded) > 90


def follow(remedy: str) -> list[str]:
    """The overrides that a remedy spells out."""
    return re.findall(r"[a-z_]+\.[a-z_]+=[\w.]+", remedy)


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.attention_pattern=WG"],
        ["distill.window_frames=16"],
        ["cluster.logical_cpus=1"],
        ["distill.rollout_batch=31", "cluster.num_workers=32"],
    ],
)
def test_doing_what_the_remedy_says_helps(overrides):
    with pytest.raises(ConfigError) as caught:
        configs.load("tiny", overrides)
    assert configs.load("tiny", [*overrides, *follow(caught.value.remedy)])


def test_shapes_of_the_presets():
    tiny = shapes(configs.load("tiny"))
    assert (tiny.channels, tiny.height, tiny.width, tiny.short_frames, tiny.long_frames) == (13, 1, 1, 8, 32)
    assert not tiny.channels_known
    clips = shapes(configs.load("clips"))
    assert (clips.height, clips.width, clips.tokens_per_frame) == (4, 4, 16)
    wan = shapes(configs.load("wan-1.3b"))
    assert (wan.channels, wan.height, wan.width, wan.short_frames, wan.long_frames) == (16, 60, 104, 21, 121)
    assert wan.tokens_per_frame == 30 * 52


def test_shapes_are_those_of_the_largest_bucket():
    """So that a dry run says what memory is needed: the longest windows of the picture with most pixels."""
    plain = shapes(configs.load("wan-1.3b"))
    smaller = configs.load("wan-1.3b", ["data.long_lengths=[81,241]", "data.shapes=[[832,464],[480,480]]"])
    assert shapes(smaller) == plain
    larger = shapes(configs.load("wan-1.3b", ["data.shapes=[[832,480],[960,960]]"]))
    assert (larger.height, larger.width, larger.long_frames) == (120, 120, 121)
    assert larger.tokens_per_frame == 60 * 60


@pytest.mark.parametrize(("frames", "latents"), [(1, 1), (5, 2), (81, 21), (481, 121)])
def test_the_wan_autoencoder_keeps_one_frame_and_then_one_of_four(frames, latents):
    assert latent_frames(configs.load("wan-1.3b"), frames) == latents


def test_a_padded_window_counts_as_the_next_4k_and_1():
    padded = configs.load("wan-1.3b", ["autoencoder.uneven_frames=pad", "data.short_frames=78"])
    assert shapes(padded).short_frames == 21


def test_scored_windows_are_counted_as_they_are_tiled():
    assert scored_windows(configs.load("tiny")) == (32 - 8) // 4 + 2
    assert scored_windows(configs.load("minute")) == 16
