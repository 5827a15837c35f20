"""Every choice of distillation: what it trains, and that a resumed run is the unbroken one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines.training import distill
from pipelines.training.state import TrainState, load_state, save_state
from tests.pipelines.training.makers import distill_stage, run, tensors_of

CHOICES: dict[str, dict[str, Any]] = {
    "last window": {"scored_windows": "last", "windows_per_video": None},
    "noised clips": {"rollout": "noised_real"},
    "encoder of the FM head": {"encoder_gradient": "flow_matching"},
    "DM only": {"loss": {"flow_matching_weight": 0.0}},
}


@pytest.mark.parametrize("name", CHOICES)
def test_resuming_is_bit_exact(name: str, starts: dict[str, str], tmp_path: Path) -> None:
    whole, stage, again = (distill_stage(starts, **CHOICES[name]) for _ in range(3))
    unbroken = whole.init("cpu")
    expected = run(whole, unbroken, 8)
    state = stage.init("cpu")
    run(stage, state, 4)
    save_state(state, stage.spec, tmp_path)
    resumed = again.init("cpu")
    load_state(resumed, tmp_path)
    assert run(again, resumed, 4) == expected[4:]
    ours, theirs = tensors_of(resumed), tensors_of(unbroken)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


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
