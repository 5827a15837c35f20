"""What a step of distillation tells: losses that hide no dice, and how its gradients agree."""

import dataclasses

import pytest
import torch
from torch import Tensor

from models.ddt import Student
from pipelines.training import distill
from pipelines.training.distill import DistillStage
from pipelines.training.state import TrainState
from tests.pipelines.training.makers import CAPTIONS, DISTILL, LONG, recipe, run, trained_starts


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return trained_starts(tmp_path_factory.mktemp("starts"))


def unanchored(starts: dict[str, str], steps: int) -> list[dict[str, float]]:
    """Metrics of steps whose every exit is scored."""
    made = recipe(dataclasses.replace(DISTILL, steps=steps), starts)
    made = dataclasses.replace(made, loss=dataclasses.replace(made.loss, anchor_weight=0.0))
    stage = DistillStage(made, CAPTIONS)
    return run(stage, stage.init("cpu"), steps)


def test_losses_are_told_by_exit(starts: dict[str, str]) -> None:
    """The student's under the exit that was drawn, the critic's under those of the rollouts that it saw."""
    drawn = set()
    for step, metrics in enumerate(unanchored(starts, 12)):
        own = {name: value for name, value in metrics.items() if name.startswith("reverse_kl_exit_")}
        assert own == {f"reverse_kl_exit_{metrics['exit_step']:.0f}": metrics["reverse_kl"]}
        drawn |= set(own)
        critic = [value for name, value in metrics.items() if name.startswith("critic_loss_exit_")]
        assert min(critic) * 0.9999 <= metrics["critic_loss"] <= max(critic) * 1.0001
        if step == 0:
            assert critic == [pytest.approx(metrics["critic_loss"])]
    assert len(drawn) > 1


def test_the_thirds_of_a_video_add_up_to_the_loss(starts: dict[str, str]) -> None:
    frames = [len(part) for part in torch.arange(LONG[0]).tensor_split(3)]
    # at first the critic is the teacher, and the score 0
    for metrics in unanchored(starts, 3)[1:]:
        thirds = [metrics[f"reverse_kl_{name}"] for name in ("first", "middle", "last")]
        assert len(set(thirds)) == 3
        mean = sum(n * third for n, third in zip(frames, thirds, strict=True)) / sum(frames)
        assert mean == pytest.approx(metrics["reverse_kl"], rel=1e-5)


def test_the_critics_gradient_norm_is_told(starts: dict[str, str]) -> None:
    assert all(metrics["critic_gradient_norm"] > 0 for metrics in unanchored(starts, 2))


def gradient(
    starts: dict[str, str], flow_matching: float, reverse_kl: float, patch: pytest.MonkeyPatch
) -> tuple[Tensor, dict[str, float]]:
    """The gradient of the encoder's last block at a watched step, with these weights of the losses."""
    made = recipe(dataclasses.replace(DISTILL, ramp_steps=0, watch_every=1), starts)
    loss = dataclasses.replace(
        made.loss, flow_matching_weight=flow_matching, reverse_kl_weight=reverse_kl, anchor_weight=0.0
    )
    stage = DistillStage(dataclasses.replace(made, loss=loss), CAPTIONS)
    state = stage.init("cpu")
    with torch.no_grad():
        for parameter in state.modules["critic"].parameters():
            parameter.mul_(1.1)
    seen: list[Tensor] = []

    def update(state: TrainState, role: str, *rest: object) -> Tensor:
        if role == "student":
            student = state.modules["student"]
            assert isinstance(student, Student)
            block = student.encoder.blocks[-1]
            seen.append(torch.cat([p.grad.flatten() for p in block.parameters() if p.grad is not None]))
        return torch.zeros(())

    patch.setattr(distill, "apply_update", update)
    (metrics,) = run(stage, state, 1)
    return seen[0].double(), metrics


def test_the_cosine_is_that_of_both_losses_alone(
    starts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    both, told = gradient(starts, 1.0, 1.0, monkeypatch)
    fm, alone = gradient(starts, 1.0, 0.0, monkeypatch)
    dm, _ = gradient(starts, 0.0, 1.0, monkeypatch)
    torch.testing.assert_close(both, fm + dm, atol=1e-6, rtol=1e-3)
    assert told["gradient_cosine"] == pytest.approx(float(fm @ dm / fm.norm() / dm.norm()), abs=1e-4)
    assert told["gradient_ratio"] == pytest.approx(float(fm.norm() / dm.norm()), rel=1e-3)
    assert not {"gradient_cosine", "gradient_ratio"} & set(alone)
