"""The dry run's operations are those that torch's counter sees in real passes and real steps."""

import dataclasses
from typing import get_args

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from jobs.config.schema import DataConfig, RunConfig
from jobs.estimate.flops import Tokens, networks, phases, stack_flops
from models.blocks import checkpoint_blocks
from models.config import AutoencoderConfig, Checkpointing, LoraConfig, ModelConfig, SamplingConfig
from models.ddt import Student
from models.dit import DiT
from models.lora import add_adapters
from models.rng import Key
from models.text.conditioning import Conditioning
from pipelines.training.config import WarmupConfig
from pipelines.training.distill import DistillStage
from pipelines.training.supervised import SupervisedStage
from tests.pipelines.training import makers

MODEL = ModelConfig(
    num_heads=2, head_dim=12, ffn_dim=64, freq_dim=16, patch_size=(1, 2, 2), window=2, precondition=False
)
CASES = {
    "plain": (MODEL, None),
    "global": (dataclasses.replace(MODEL, attention_pattern="GGGG"), None),
    "wider than the clip": (dataclasses.replace(MODEL, window=9), None),
    "preconditioned": (dataclasses.replace(MODEL, precondition=True, clip_position=False), None),
    "adapters": (MODEL, LoraConfig(rank=3)),
    "adapters without places": (dataclasses.replace(MODEL, clip_position=False), LoraConfig(rank=3)),
    "adapters everywhere": (MODEL, LoraConfig(rank=3, heads="adapters")),
    "few adapters": (MODEL, LoraConfig(rank=5, targets=("to_q", "ffn.net.2"))),
}


def counted(call):
    """Operations of a forward and of a backward pass, by torch."""
    with FlopCounterMode(display=False) as forward:
        out = call()
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


def inputs(frames=7, side=6, text=5, batch=1):
    with torch.device("meta"):
        clip = torch.empty(batch, frames, 4, side, side)
        return clip, torch.empty(batch), Conditioning(torch.empty(batch, text, 10))


@pytest.mark.usefixtures("plain_attention")
@pytest.mark.parametrize("checkpointing", ["none", "full"])
@pytest.mark.parametrize("role", ["teacher", "student"])
@pytest.mark.parametrize("case", CASES)
def test_a_pass_costs_what_torch_counts(case, role, checkpointing):
    config, lora = CASES[case]
    with torch.device("meta"):
        network = DiT(config, 4, 10) if role == "teacher" else Student(config, 4, 10)
    if lora is not None:
        add_adapters(network, lora)
    checkpoint_blocks(network, checkpointing)
    head = network.head if role == "teacher" else network.heads["distribution_matching"]
    call = network if role == "teacher" else network.distribution_matching
    ours = stack_flops(network.encoder, head, config, Tokens(7, 9, 5))
    forward, backward = counted(lambda: call(*inputs()))
    assert ours.forward == pytest.approx(forward, rel=0.01)
    assert ours.backward == pytest.approx(backward, rel=0.01)


def attention_flops(window, *, backward=False):
    """What an attention operator takes, of 12 frames of 9 tokens or of those and a caption's."""

    def count(*shapes, **_):
        q, k = shapes[1:3] if backward else shapes[:2]
        pairs = Tokens(12, 9, 1).pairs(window) if q[2] == k[2] else q[2] * k[2]
        return (4 if backward else 2) * 2 * pairs * q[0] * q[1] * q[3]

    return count


@pytest.mark.parametrize("checkpointing", get_args(Checkpointing))
def test_attention_that_is_kept_is_not_counted_again(checkpointing):
    """Where each attention is an operator, as on a GPU: torch sees how often, and tests tell its products."""
    model = dataclasses.replace(MODEL, attention_pattern="WGWG")
    network = DiT(model, 4, 10)
    checkpoint_blocks(network, checkpointing)
    clip, text = torch.randn(1, 12, 4, 6, 6), Conditioning(torch.randn(1, 90, 10))
    aten = torch.ops.aten
    told = {
        torch.ops.sostenuto.window_attention: attention_flops(model.window),
        torch.ops.sostenuto.window_attention_backward: attention_flops(model.window, backward=True),
        aten._scaled_dot_product_flash_attention_for_cpu: attention_flops(None),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_flops(None, backward=True),
    }
    with FlopCounterMode(display=False, custom_mapping=told) as forward:
        out = network(clip, torch.rand(1), text)
    with FlopCounterMode(display=False, custom_mapping=told) as backward:
        out.sum().backward()
    ours = stack_flops(network.encoder, network.head, model, Tokens(12, 9, 90))
    assert ours.forward == pytest.approx(forward.get_total_flops(), rel=0.01)
    assert ours.backward == pytest.approx(backward.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("window", [None, 0, 1, 3, 20])
@pytest.mark.parametrize("frames", [1, 2, 7])
def test_pairs_are_those_that_see_each_other(frames, window):
    seen = sum(
        window is None or abs(i - j) <= window
        for i in range(frames)
        for j in range(frames)
        for _ in range(3 * 3)
    )
    assert Tokens(frames, 3, 1).pairs(window) == seen


TEXT = dataclasses.replace(makers.TEXT, max_tokens=1)


def run_config(recipe, **stages):
    """The settings that a recipe of the makers comes from."""
    return RunConfig(
        data=DataConfig(short_frames=makers.SHORT[0], long_frames=makers.LONG[0]),
        autoencoder=AutoencoderConfig(components=makers.LONG[1]),
        text=TEXT, model=recipe.model, lora=recipe.lora, loss=recipe.loss, sampling=recipe.sampling, **stages,
    )  # fmt: skip


def step_flops(stage, state, key, short=0, long=4):
    with FlopCounterMode(display=False) as counter:
        result = stage.step(state, makers.batches(0, stage.workers, short, long), key)
    return counter.get_total_flops(), result.metrics


@pytest.mark.usefixtures("plain_attention")
@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("name", ["teacher", "sft", "mixed"])
def test_a_supervised_step_costs_its_phases(name, rank, starts):
    settings = {
        "teacher": makers.TEACHER,
        "sft": makers.SFT,
        "mixed": dataclasses.replace(makers.SFT, short_batch=4),
    }[name]
    start = {} if name == "teacher" else {"teacher": starts["teacher"]}
    lora = LoraConfig(rank=0 if name == "teacher" else rank)
    recipe = dataclasses.replace(makers.recipe(settings, start), lora=lora)
    stage = SupervisedStage(recipe)
    state = stage.init("cpu")
    seen, _ = step_flops(stage, state, Key(0), settings.short_batch, settings.long_batch)
    config = run_config(recipe, **{name: settings})
    assert sum(phases(config, name, networks(config, name)).values()) == pytest.approx(seen, rel=0.01)


def distill_recipe(starts, rank, guidance, settings=makers.DISTILL, **losses):
    base = makers.recipe(settings, starts)
    loss = dataclasses.replace(base.loss, guidance_scale=guidance, **losses)
    return dataclasses.replace(
        base, lora=LoraConfig(rank=rank), loss=loss, sampling=SamplingConfig(steps=(1.0, 0.5))
    )


LAST = {"scored_windows": "last", "windows_per_video": None}


@pytest.mark.usefixtures("plain_attention")
@pytest.mark.parametrize(
    ("rank", "guidance", "settings", "losses"),
    [
        (0, 1.0, {}, {}),
        (0, 3.0, {}, {}),
        (2, 3.0, {}, {}),
        (0, 1.0, {**LAST, "rollout": "noised_real"}, {"flow_matching_weight": 0.0}),
        (0, 1.0, {"encoder_gradient": "flow_matching"}, {}),
        (0, 1.0, {}, {"forward_kl_weight": 0.1}),
    ],
)
def test_a_step_of_distillation_costs_its_phases_on_average(rank, guidance, settings, losses, starts):
    settings = dataclasses.replace(makers.DISTILL, **settings)
    recipe = distill_recipe(starts, rank, guidance, settings, **losses)
    stage = DistillStage(recipe, makers.CAPTIONS)
    state = stage.init("cpu")
    seen = {}
    for number in range(20):
        critic_steps = bool(state.pool)
        flops, metrics = step_flops(stage, state, Key(0, number))
        if critic_steps:
            seen[metrics["exit_step"]] = flops
        if len(seen) == 2:
            break
    config = run_config(recipe, distill=settings)
    ours = sum(phases(config, "distill", networks(config, "distill")).values())
    assert ours == pytest.approx(sum(seen.values()) / 2, rel=0.01)


@pytest.mark.usefixtures("plain_attention")
def test_a_step_of_the_warm_up_costs_rollout_and_critic(starts):
    recipe = distill_recipe(starts, 0, 3.0)
    recipe = dataclasses.replace(
        recipe,
        sampling=SamplingConfig(steps=(1.0,)),
        loss=dataclasses.replace(recipe.loss, anchor_weight=0.0),
        critic_only=True,
    )
    stage = DistillStage(recipe, makers.CAPTIONS)
    seen, _ = step_flops(stage, stage.init("cpu"), Key(0))
    config = run_config(recipe, distill=makers.DISTILL, warmup=WarmupConfig(steps=1))
    ours = phases(config, "warmup", networks(config, "warmup"))
    assert set(ours) == {"rollout", "critic_forward", "critic_backward"}
    assert sum(ours.values()) == pytest.approx(seen, rel=0.01)
