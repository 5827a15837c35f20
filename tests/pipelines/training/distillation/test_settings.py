"""Every choice of distillation: what it trains, and that a resumed run is the unbroken one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.rng import Key
from pipelines.training import distill
from pipelines.training.state import TrainState, load_state, save_state
from tests.pipelines.training.makers import distill_stage, run, tensors_of

CHOICES: dict[str, dict[str, Any]] = {
    "last window": {"scored_windows": "last", "windows_per_video": None},
    "noised clips": {"rollout": "noised_real"},
    "encoder of the FM head": {"encoder_gradient": "flow_matching"},
    "DM only": {"loss": {"flow_matching_weight": 0.0}},
    "forward KL": {"loss": {"forward_kl_weight": 0.1}},
    "forward KL without an anchor": {"loss": {"forward_kl_weight": 0.1, "anchor_weight": 0.0}},
    "data forcing": {"steps": 8, "data_forcing_steps": 6},
    "adversary": {"short_batch": 4, "loss": {"adversarial_weight": 0.03}, "critic_updates": 2},
    "falling times": {"loss": {"score_time": "falling"}},
    "ramp of the critic": {"ramp_follows": "critic", "ramp_steps": 20},
}


@pytest.mark.parametrize("name", CHOICES)
def test_resuming_is_bit_exact(name: str, starts: dict[str, str], tmp_path: Path) -> None:
    whole, stage, again = (distill_stage(starts, **CHOICES[name]) for _ in range(3))
    unbroken, short = whole.init("cpu"), whole.config.short_batch
    expected = run(whole, unbroken, 8, short)
    state = stage.init("cpu")
    run(stage, state, 4, short)
    save_state(state, stage.spec, tmp_path)
    resumed = again.init("cpu")
    load_state(resumed, tmp_path)
    assert run(again, resumed, 4, short) == expected[4:]
    ours, theirs = tensors_of(resumed), tensors_of(unbroken)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_the_first_step_has_both_the_anchor_and_the_path(starts: dict[str, str]) -> None:
    stage = distill_stage(starts, exit_shares=(1.0, 1.0, 1.0, 1.0), loss={"forward_kl_weight": 0.1})
    state = stage.init("cpu")
    for told in run(stage, state, 10):
        first = told["exit_step"] == 0
        assert ("forward_kl" in told, "anchor" in told, "reverse_kl" in told) == (first, first, not first)
        if first:
            own = 4 * (0.1 * told["forward_kl"] + 0.5 * told["anchor"])
            assert told["loss"] == pytest.approx(own + told["flow_matching"])


def test_the_teacher_looks_at_long_clips_in_half_of_the_last_steps(starts: dict[str, str]) -> None:
    stage = distill_stage(starts, steps=400, data_forcing_steps=300)
    forced = [stage._is_forced(step, Key(0, step, purpose="step")) for step in range(400)]
    assert not any(forced[:100])
    assert 110 < sum(forced[100:]) < 190


def test_data_forcing_needs_the_captions_of_the_clips(starts: dict[str, str]) -> None:
    settings = {"exit_shares": (0.0, 1.0, 1.0, 1.0), "rollout_pool": 9}
    stage = distill_stage(starts, steps=8, data_forcing_steps=8, **settings)
    state = stage.init("cpu")
    run(stage, state, 8)
    plain = distill_stage(starts, steps=8, **settings)
    other = plain.init("cpu")
    run(plain, other, 8)
    forced = [stage._is_forced(step, Key(0, step, purpose="step")) for step in range(8)]
    assert {True, False} == set(forced)
    for follows, ours, theirs in zip(forced, state.pool, other.pool, strict=True):
        assert (ours.captions == theirs.captions) == (not follows)


def test_the_ramp_rises_only_while_the_critic_can_teach(starts: dict[str, str]) -> None:
    def ramps(gaps: list[list[float]], follows: str = "critic") -> list[float]:
        stage = distill_stage(starts, ramp_follows=follows, ramp_steps=4)
        state = stage.init("cpu")
        found = []
        for last in gaps:
            state.gaps = {"critic_gap_exit_1": [-0.1] * 3, "critic_gap_exit_3": last}
            found += [told["ramp"] for told in run(stage, state, 1)]
        return found

    good, bad = [0.0, -0.01, 0.03], [0.0, 0.04, 0.04]
    assert ramps([good] * 5) == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert ramps([good, bad, bad, good, good]) == [0.25, 0.25, 0.25, 0.5, 0.75]
    assert ramps([[0.0, 0.9]] * 2) == [0.25, 0.5], "two measurements say nothing yet"
    assert ramps([bad] * 4, "steps") == [0.25, 0.5, 0.75, 1.0]


def gradients(
    starts: dict[str, str], patch: pytest.MonkeyPatch, **settings: Any
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Of the student in the first step, whose critic is not the teacher; and what the step tells."""
    stage = distill_stage(starts, ramp_steps=0, watch_every=1, exit_shares=(0.0, 1.0, 1.0, 1.0), **settings)
    state = stage.init("cpu")
    with torch.no_grad():
        for parameter in state.modules["critic"].parameters():
            parameter.mul_(1.1)
    seen: dict[str, Tensor] = {}

    def update(state: TrainState, role: str, *rest: object) -> Tensor:
        if role == "student":
            for name, parameter in state.modules["student"].named_parameters():
                if parameter.grad is not None:
                    seen[name] = parameter.grad.clone()
        return torch.zeros(())

    patch.setattr(distill, "apply_update", update)
    (metrics,) = run(stage, state, 1)
    return seen, metrics


def test_without_the_gradient_of_the_dm_head_the_encoder_has_that_of_flow_matching(
    starts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    both, _ = gradients(starts, monkeypatch)
    own, told = gradients(starts, monkeypatch, encoder_gradient="flow_matching")
    alone, _ = gradients(starts, monkeypatch, loss={"reverse_kl_weight": 0.0})
    encoder = [name for name in own if name.startswith("encoder.")]
    assert encoder
    assert all(torch.equal(own[name], alone[name]) for name in encoder)
    assert not all(torch.equal(own[name], both[name]) for name in encoder)
    heads = own.keys() - set(encoder)
    assert any("distribution_matching" in name for name in heads)
    assert all(torch.equal(own[name], both[name]) for name in heads)
    assert "gradient_cosine" not in told


def test_dm_alone_leaves_the_fm_head_and_its_average_as_they_were(starts: dict[str, str]) -> None:
    loss = {"flow_matching_weight": 0.0, "anchor_weight": 0.0}
    stage = distill_stage(starts, loss=loss, watch_every=1, ramp_steps=0)
    state = stage.init("cpu")
    before = tensors_of(state)
    metrics = run(stage, state, 3)
    after = tensors_of(state)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not [name for name in changed if "heads.flow_matching" in name]
    assert any("student.encoder" in name for name in changed)
    assert any("heads.distribution_matching" in name for name in changed)
    for told in metrics:
        assert told["loss"] == told["reverse_kl"]
        assert not {"flow_matching", "gradient_cosine"} & told.keys()


def test_one_window_gets_all_of_the_gradient(starts: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss by thirds is 0 where no window is."""
    for scored, place in (("first", 0), ("last", 2)):
        _, told = gradients(starts, monkeypatch, scored_windows=scored, windows_per_video=None)
        thirds = [told[f"reverse_kl_{name}"] for name in ("first", "middle", "last")]
        assert [third > 0 for third in thirds] == [number == place for number in range(3)]
