"""Verdicts on the numbers of runs that were good, and of runs that were broken on purpose."""

import dataclasses
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.config import FlowConfig, SamplingConfig
from models.flow import shift
from pipelines.training.config import DistillConfig, StageConfig
from pipelines.training.monitors.series import Curve, Series
from pipelines.training.monitors.verdicts import Facts, judge
from tests.pipelines.training.makers import recipe

DISTILL = Facts.of(dataclasses.replace(recipe(DistillConfig(steps=210), {"student": "x"}), name="distill"))
TEACHER = Facts.of(dataclasses.replace(recipe(StageConfig(steps=1000)), name="teacher"))
# Of `tiny`: two seeds, then that of the first with one thing wrong; at steps 10, 20 ... 50
GOOD = {
    "critic_loss": [0.702, 0.451, 0.442, 0.432, 0.425],
    "critic_gradient_norm": [1.484, 0.737, 0.591, 0.549, 0.592],
    "gradient_norm": [0.576, 0.674, 0.616, 0.625, 0.587],
    "reverse_kl": [0.274, 0.457, 0.467, 0.468, 0.426],
    "distance_to_teacher": [0.344, 0.33, 0.317, 0.31, 0.313],
    "flow_matching": [0.156, 0.17, 0.162, 0.154, 0.157],
    "layout_loss": [0.1538, 0.1547, 0.1541, 0.1539, 0.1537],
    "sharpness": [0.971, 1.002, 1.018, 1.032, 1.037],
    "contrast": [0.984, 0.991, 0.994, 0.998, 0.998],
    "saturation": [1.012, 1.012, 1.012, 1.012, 1.012],
    "motion": [0.692, 0.751, 0.775, 0.801, 0.813],
    "diversity": [1.155, 1.184, 1.195, 1.213, 1.215],
    "light_drift": [1.016, 1.006, 1.0, 1.003, 0.998],
    "time/data_share": [0.01, 0.0, 0.0, 0.0, 0.0],
}
ANOTHER = GOOD | {
    "critic_loss": [0.597, 0.431, 0.418, 0.419, 0.414],
    "reverse_kl": [0.275, 0.431, 0.424, 0.422, 0.444],
    "flow_matching": [0.168, 0.158, 0.165, 0.155, 0.168],
    "layout_loss": [0.164, 0.164, 0.164, 0.163, 0.164],
    "sharpness": [1.002, 1.02, 1.037, 1.048, 1.057],
    "diversity": [1.166, 1.202, 1.233, 1.245, 1.255],
}
BROKEN = {
    "critic rate 0": ("critic_moves", {"reverse_kl": [0.0] * 5, "critic_loss": [1.381, 1.335, 1.34, 1.346]}),
    "critic rate x 100": ("critic_loss", {"critic_loss": [86.2, 33.2, 9.13, 3.65]}),
    "no FM loss": ("layout_loss", {"layout_loss": [0.1563, 0.1629, 0.1683, 0.175, 0.1789]}),
    "guidance 20": ("guidance", {"distance_to_teacher": [5.742, 5.335, 5.214, 4.991, 4.979]}),
}


def series(rows: dict[str, list[float]], points: int = 5, every: int = 10) -> dict[str, Curve]:
    return {
        name: Curve([every * (i + 1) for i in range(len(values[:points]))], values[:points])
        for name, values in rows.items()
    }


def bad(facts: Facts, rows: dict[str, list[float]], points: int = 5, every: int = 10) -> set[str]:
    return {verdict.name for verdict in judge(facts, series(rows, points, every)) if not verdict.well}


@pytest.mark.parametrize("rows", [GOOD, ANOTHER])
def test_a_good_run_raises_no_alarm(rows: dict[str, list[float]]) -> None:
    for points in range(6):
        assert bad(DISTILL, rows, points) == set()
    verdicts = judge(DISTILL, series(rows))
    assert len(verdicts) == 15
    assert all(verdict.text == verdict.sentence for verdict in verdicts)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_run_is_named_within_a_fifth_of_its_steps(name: str) -> None:
    verdict, rows = BROKEN[name]
    points = DISTILL.steps // 5 // 10
    assert verdict in bad(DISTILL, GOOD | rows, points)
    assert not bad(DISTILL, GOOD | rows, 5) - {verdict}
    worst = judge(DISTILL, series(GOOD | rows, points))[0]
    assert worst.name == verdict
    assert worst.remedy in worst.text


def test_a_critic_is_unstable_before_it_is_worse_than_none() -> None:
    assert bad(DISTILL, GOOD | {"critic_loss": [0.6, 0.4, 0.5, 0.4, 0.76]}) == {"critic_loss"}


def test_a_critic_that_knows_less_than_the_teacher_cannot_teach() -> None:
    """One bad measurement of one exit is no alarm, two are; at first critic and teacher are one."""
    gaps = {"critic_gap_exit_1": [0.0, -0.4, -0.4], "critic_gap_exit_3": [0.0, 0.09, 0.01]}
    assert bad(DISTILL, GOOD | gaps, 2) == bad(DISTILL, GOOD | gaps) == set()
    (verdict,) = [
        one
        for one in judge(DISTILL, series(GOOD | gaps | {"critic_gap_exit_3": [0.0, -0.01, 0.05, 0.04]}))
        if not one.well
    ]
    assert "+0.040 at exit 3. This critic cannot teach" in verdict.text


@pytest.mark.parametrize(
    ("changes", "name", "word"),
    [
        ({"sharpness": [1.5]}, "sharpness", "edges ring"),
        ({"sharpness": [0.3]}, "sharpness", "blurred"),
        ({"saturation": [1.0, 1.4]}, "saturation", "colours burn"),
        ({"contrast": [1.0, 1.4]}, "contrast", "burn out"),
        ({"motion": [0.1]}, "motion", "stand still"),
        ({"diversity": [1.0, 0.2]}, "diversity", "alike"),
        ({"light_drift": [4.0]}, "light_drift", "drifts away"),
        ({"gradient_norm": [0.5, 0.6, 0.5, 7.0]}, "gradient_norm", "diverges"),
        ({"critic_gradient_norm": [0.5, 0.6, 0.5, 7.0]}, "critic_gradient_norm", "diverges"),
        ({"time/data_share": [0.1, 0.4]}, "data", "wait for data"),
        ({"teacher_gate_ratio": [5.0]}, "teacher", "Train the teacher longer"),
        (
            {"layout_loss": [0.15, 0.16, 0.17], "flow_matching": [0.15, 0.1, 0.05]},
            "layout_loss",
            "by heart",
        ),
    ],
)
def test_each_fault_has_its_words(changes: dict[str, list[float]], name: str, word: str) -> None:
    (verdict,) = [one for one in judge(DISTILL, series(GOOD | changes)) if not one.well]
    assert verdict.name == name
    assert word in verdict.text


def test_a_layout_that_swings_back_is_not_lost() -> None:
    minute = [0.0975, 0.1061, 0.102, 0.1004, 0.1006, 0.1016, 0.1009]
    for points in range(len(minute)):
        assert bad(DISTILL, GOOD | {"layout_loss": minute[: points + 1]}, points=7) == set()


def test_a_layout_that_is_lost_without_any_flow_matching_is_named() -> None:
    rows = {name: values for name, values in GOOD.items() if name != "flow_matching"}
    rows |= {"layout_loss": [0.1563, 0.1629, 0.1683, 0.175]}
    (verdict,) = [one for one in judge(DISTILL, series(rows)) if not one.well]
    assert "raise loss.flow_matching_weight" in verdict.text


def test_a_student_may_become_as_sharp_as_short() -> None:
    assert bad(DISTILL, GOOD | {"sharpness": [1.6]}) == {"sharpness"}
    assert bad(DISTILL, GOOD | {"sharpness": [1.6], "short_sharpness": [1.4]}) == set()
    assert bad(DISTILL, GOOD | {"sharpness": [1.4], "short_sharpness": [0.5]}) == {"sharpness"}


def test_a_teacher_that_learns_nothing_or_by_heart() -> None:
    learns = {"loss": [0.60, 0.278, 0.225, 0.202, 0.208], "held_out_loss": [0.44, 0.264, 0.226, 0.209, 0.199]}
    assert bad(TEACHER, learns, every=100) == set()
    flat = {"loss": [1.0, 1.01, 0.99, 1.0, 1.0]}
    assert bad(TEACHER, flat, every=40) == {"learning"}
    assert bad(TEACHER, flat, every=10) == set(), "it has only begun"
    same_batch = {"loss": [0.59, 0.268, 0.214, 0.181], "held_out_loss": [0.44, 0.272, 0.237, 0.229]}
    for by_heart in (same_batch, learns | {"held_out_loss": [0.44, 0.264, 0.226, 0.209, 0.217]}):
        (verdict,) = [one for one in judge(TEACHER, series(by_heart, every=100)) if not one.well]
        assert verdict.name == "held_out_loss"
        assert "by heart" in verdict.text


def test_samples_of_noise_are_no_alarm_while_a_network_learns_from_it() -> None:
    rows = {"sharpness": [6.0, 4.0, 3.0, 2.0, 1.6]}
    assert bad(TEACHER, rows, every=90) == set()
    assert bad(TEACHER, rows, every=110) == {"sharpness"}
    assert bad(TEACHER, rows, points=4, every=200) == set()


def facts(frames: int, flow: FlowConfig, stage: StageConfig) -> Facts:
    made = recipe(stage, {"student": "x"})
    shape, sampling = (frames, *made.long_shape[1:]), SamplingConfig(steps=(1.0, 0.75, 0.5, 0.25))
    return Facts.of(dataclasses.replace(made, long_shape=shape, flow=flow, sampling=sampling))


WAN = DistillConfig(t_mean=0.6)


def test_a_toy_shift_on_long_clips_is_named_before_the_first_step() -> None:
    toy = facts(121, FlowConfig(timestep_shift=5.0, timestep_shift_frames=21), WAN)
    assert bad(toy, {}) == {"shift", "last_step"}
    fixed = FlowConfig(timestep_shift=5.0, timestep_shift_frames=None)
    assert bad(facts(121, fixed, DistillConfig(t_mean=0.0)), {}) == set()
    assert bad(facts(121, fixed, dataclasses.replace(WAN, t_distribution="uniform")), {}) == set()


@given(
    st.floats(0.5, 15), st.sampled_from(["uniform", "logit_normal"]), st.floats(-1, 1), st.floats(0.5, 1.5)
)
def test_the_share_of_clear_times_is_that_of_the_draws(
    amount: float, distribution: str, mean: float, std: float
) -> None:
    stage = DistillConfig(t_distribution=distribution, t_mean=mean, t_std=std)  # type: ignore[arg-type]
    found = facts(8, FlowConfig(timestep_shift=amount, timestep_shift_frames=None), stage).clear_times
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(20_000, generator=generator)
    normal = torch.randn(20_000, generator=generator)
    drawn = uniform if distribution == "uniform" else torch.sigmoid(mean + std * normal)
    assert found == pytest.approx(float((shift(drawn, amount) < 0.5).float().mean()), abs=0.015)


def test_facts_and_series_travel_as_json() -> None:
    for one in (DISTILL, TEACHER):
        assert Facts(**json.loads(json.dumps(dataclasses.asdict(one)))) == one
        assert all(math.isfinite(v) for v in dataclasses.asdict(one).values() if isinstance(v, float))


def test_what_was_not_measured_is_not_judged() -> None:
    assert {verdict.name for verdict in judge(DISTILL, {})} == {"shift", "last_step"}
    held = Series()
    held.add(10, {"sharpness": 1.0})
    held.forget(0)
    assert {verdict.name for verdict in judge(DISTILL, held.curves)} == {"shift", "last_step"}
