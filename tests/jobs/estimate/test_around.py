"""What a dry run tells besides training, against networks and files that are really there."""

import dataclasses
from pathlib import Path

import pytest

from jobs.config import load as configs
from jobs.estimate.around import (
    LEARNED_PIXELS,
    checkpoint_bytes,
    evaluation_cost,
    fit_seconds,
    ingest_frames,
    sampling_flops,
)
from jobs.estimate.flops import networks
from jobs.estimate.report import describe, plan, render
from models.config import LoraConfig
from pipelines.generation import Method
from pipelines.training.distill import DistillStage
from pipelines.training.state import save_state
from tests.pipelines.training import makers


@pytest.mark.parametrize("rank", [0, 4])
def test_a_checkpoint_is_as_large_as_said(rank: int, tmp_path: Path) -> None:
    """A real one of distillation after as many rollouts as are kept; 5 % is for names and headers."""
    made = makers.recipe(dataclasses.replace(makers.DISTILL, long_batch=4), makers.trained_starts(tmp_path))
    made = dataclasses.replace(made, lora=LoraConfig(rank=rank))
    stage = DistillStage(made, makers.CAPTIONS)
    state = stage.init("cpu")
    makers.run(stage, state, 3)
    (tmp_path / "kept").mkdir()
    save_state(state, stage.spec, tmp_path / "kept")
    real = sum(file.stat().st_size for file in (tmp_path / "kept").glob("*.safetensors"))

    data = "long_frames=12 long_stride=12 short_frames=4 short_stride=4".split()
    distill = "window_frames=4 window_stride=2".split()
    sizes = [*(f"data.{value}" for value in data), *(f"distill.{value}" for value in distill)]
    base = configs.load("tiny", ["autoencoder.components=4", *sizes])
    config = dataclasses.replace(base, model=made.model, text=made.text, lora=made.lora, distill=made.stage)
    told = checkpoint_bytes(config, "distill", networks(config, "distill"))
    assert told == pytest.approx(real, rel=0.05)


def test_sampling_counts_evaluations() -> None:
    config = configs.load("tiny")
    built = networks(config, "distill")
    few, many = (sampling_flops(config, Method("fm", "ode", steps), built) for steps in (4, 50))
    assert many == pytest.approx(12.5 * few)
    assert sampling_flops(config, Method("dm", "few_step", 4), built) == pytest.approx(few)
    guided = configs.load("tiny", ["sampling.guidance_scale=3"])
    assert sampling_flops(guided, Method("fm", "ode", 4), built) == pytest.approx(2 * few)


def test_evaluation_grows_with_its_videos_and_ingest_with_its_frames() -> None:
    config = configs.load("tiny")
    built = networks(config, "distill")
    videos, flops = evaluation_cost(config, built)
    assert videos == 8 * 600 + 2 * 4 * 600, "eight systems, two of them in five draws"
    half = configs.load("tiny", ["evaluation.videos=150", "evaluation.unseen_videos=150"])
    assert evaluation_cost(half, built) == (videos // 2, pytest.approx(flops / 2))
    assert ingest_frames(config) == 3000 * 8 + 192 * 32
    assert ingest_frames(configs.load("clips", ["data.short=a", "data.long=b"])) is None


def test_a_network_is_learned_from_as_many_pixels_as_it_sees() -> None:
    mouse, tiny = configs.load("mouse"), configs.load("tiny")
    assert fit_seconds(mouse) == pytest.approx(1500 * 16 * 48 * 64 / LEARNED_PIXELS)
    large = configs.load("mouse", ["data.height=480", "data.width=640", "autoencoder.fit_steps=300"])
    assert fit_seconds(large) == pytest.approx(300 * 16 * 64 * 64 / LEARNED_PIXELS), "crops of 64 pixels"
    assert fit_seconds(tiny) is None
    assert "autoencoder       1,500 steps at ingest, about 95 s" in render(mouse)
    assert "at ingest" not in render(tiny)


def test_the_dry_run_says_all_of_it() -> None:
    text = render(configs.load("tiny"))
    for word in ("a checkpoint", "ingest", "a sample", "evaluation"):
        assert f"{word} " in text


def test_the_plan_is_the_dry_runs_own() -> None:
    config = configs.load("tiny", ["cluster.num_workers=2"])
    for cost in describe(config).stages:
        assert plan(config, cost.stage).flops * cost.steps == pytest.approx(cost.flops)
        assert cost.seconds == pytest.approx(cost.flops / plan(config, cost.stage).speed / 2)
