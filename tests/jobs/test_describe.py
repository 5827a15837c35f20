"""--dry-run: counts that are the networks' own, and costs that grow as they should."""

import pytest

from jobs import config as configs
from jobs.describe import describe, forward_flops, render


def test_the_tiny_networks_have_the_sizes_of_the_recipe():
    described = describe(configs.load("tiny"))
    assert described.teacher_parameters == 633_517
    assert described.student_parameters > described.teacher_parameters


def test_wan_has_the_size_of_wan():
    described = describe(configs.load("wan-1.3b"))
    assert described.teacher_parameters == 1_418_996_800
    assert [stage.stage for stage in described.stages] == ["sft", "mixed", "warmup", "distill"]


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
    windowed, everywhere = (
        configs.load("minute", [f"model.attention_pattern={p}"]) for p in ("WWWW", "GGGG")
    )
    assert forward_flops(windowed, 0, 240) == pytest.approx(2 * forward_flops(windowed, 0, 120))
    assert forward_flops(everywhere, 0, 240) == pytest.approx(4 * forward_flops(everywhere, 0, 120))


def test_more_workers_are_faster():
    one, two = (describe(configs.load("tiny", [f"cluster.num_workers={n}"])).seconds for n in (1, 2))
    assert two == pytest.approx(one / 2)


@pytest.mark.parametrize("name", configs.presets())
def test_every_preset_can_be_described(name):
    text = render(configs.load(name))
    assert f"name: {configs.load(name).name}" in text
    for word in ("parameters", "tokens", "steps", "MiB a worker", "nothing was read or written"):
        assert word in text


def test_latent_channels_are_said_to_be_a_guess_only_where_they_are():
    assert "assumed here" in render(configs.load("tiny"))
    assert "assumed here" not in render(configs.load("ci"))
