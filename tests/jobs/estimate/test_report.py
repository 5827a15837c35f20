"""--dry-run: counts that are the networks' own, and costs that grow as they should."""

import json

import pytest

from jobs.config import load as configs
from jobs.estimate.gpus import gpu
from jobs.estimate.report import describe, render, to_json


def test_the_tiny_networks_have_the_sizes_of_the_recipe():
    described = describe(configs.load("tiny"))
    assert described.teacher_parameters == 633_517
    assert described.student_parameters > described.teacher_parameters


def test_wan_has_the_size_of_wan():
    described = describe(configs.load("wan-1.3b"))
    assert described.teacher_parameters == 1_418_996_800
    assert [stage.stage for stage in described.stages] == ["sft", "mixed", "warmup", "distill"]


def test_wan_14b_has_the_size_that_its_layers_add_up_to():
    """Width D, feed-forward F, text and time at D: counted by hand, bias by bias."""
    d, f = 5120, 13824
    block = 8 * (d * d + d) + 4 * d + 2 * d + (2 * d * f + f + d) + 6 * d
    outside = (16 * 4 * d + d) + (256 * d + d + d * d + d) + 6 * (d * d + d) + (4096 * d + d + d * d + d)
    assert describe(configs.load("wan-14b"), "sft").teacher_parameters == 40 * block + outside + 2 * d + (
        d * 64 + 64
    )


def test_the_object_holds_what_the_text_says():
    config = configs.load("tiny")
    told = json.loads(to_json(config, described := describe(config)))
    assert told["parameters"]["teacher"] == described.teacher_parameters
    assert told["tokens"] | {"text": 0} == {
        "frame": 1, "short_window": 8, "long_window": 32, "scored_window": 8, "text": 0
    }  # fmt: skip
    assert told["fits"] is told["gpu"] is None
    assert set(told["stages"]) == {"teacher", "sft", "mixed", "distill"}
    for cost in described.stages:
        stage = told["stages"][cost.stage]
        assert stage["flops_a_step"] * cost.steps == pytest.approx(cost.flops)
        assert stage["checkpoint_bytes"] == cost.checkpoint
        assert stage["bytes_a_worker"] == sum(stage["bytes"].values()) == cost.bytes


def test_no_memory_is_taken_for_the_weights():
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    describe(configs.load("wan-1.3b"))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 1 << 20, "KiB; the weights would take 12 GiB"


@pytest.mark.parametrize("stage", ["teacher", "sft", "mixed", "distill"])
def test_twice_the_steps_cost_twice(stage):
    once, twice = (describe(configs.load("tiny", [f"{stage}.steps={steps}"])) for steps in (100, 200))
    cost = {d.stage: d.flops for d in once.stages}
    assert {d.stage: d.flops for d in twice.stages}[stage] == pytest.approx(2 * cost[stage])


def test_windowed_blocks_grow_linearly_and_global_ones_do_not():
    """Attention alone: what is left when the part that grows with the tokens is taken away."""
    from jobs.estimate.flops import Tokens

    assert Tokens(240, 1, 1).pairs(8) - Tokens(120, 1, 1).pairs(8) == 120 * 17
    assert Tokens(240, 1, 1).pairs(None) == 4 * Tokens(120, 1, 1).pairs(None)


def test_more_workers_are_faster():
    one, two = (describe(configs.load("tiny", [f"cluster.num_workers={n}"])).seconds for n in (1, 2))
    assert two == pytest.approx(one / 2)


@pytest.mark.parametrize("name", configs.presets())
def test_every_preset_can_be_described(name):
    text = render(configs.load(name))
    assert f"name: {configs.load(name).name}" in text
    for word in ("parameters", "tokens", "steps", "MiB per worker", "nothing was read or written"):
        assert word in text


def test_latent_channels_are_said_to_be_a_guess_only_where_they_are():
    assert "assumed here" in render(configs.load("tiny"))
    assert "assumed here" not in render(configs.load("ci"))


def test_on_a_gpu_seconds_are_told_by_phase_and_for_other_meshes():
    mesh = ["cluster.context_parallel=8", "cluster.shard=full", "distill.micro_batch=1"]
    config, h100 = configs.load("wan-1.3b", mesh), gpu("h100")
    (cost,) = (described := describe(config, "distill", h100)).stages
    told = json.loads(to_json(config, described, h100))["stages"]["distill"]
    parts = [part for spent in told["seconds"].values() for part in spent.values()]
    assert cost.seconds == pytest.approx(cost.steps * sum(parts))
    assert told["layer_bytes"]["G"] > told["layer_bytes"]["W"] > 0
    assert [mesh["workers"] for mesh in told["meshes"]] == [2, 4, 8]
    text = render(config, described, h100)
    for word in ("gets per step", "seconds a step", "GPU-hours", "smallest mesh   2 GPUs", "or  "):
        assert word in text
    assert "seconds a step" not in render(config, describe(config, "distill"))
