"""Stages that train by adapters: what moves, what is kept, and that the next stage starts where one ended."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.config import LoraConfig
from models.ddt import Student
from pipelines.checkpoints import NetworkSpec, critic_weights, load_network
from pipelines.training.distill import DistillStage
from pipelines.training.recipes import Recipe
from pipelines.training.state import TrainState, load_state, save_state
from pipelines.training.supervised import SupervisedStage
from tests.models.builders import captions, latents
from tests.pipelines.training.makers import CAPTIONS, DISTILL, SFT, recipe, run, trained_starts

LORA = LoraConfig(rank=2, alpha=4.0)


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return trained_starts(tmp_path_factory.mktemp("starts"))


def adapted(recipe: Recipe) -> Recipe:
    return dataclasses.replace(recipe, lora=LORA)


def sft(starts: dict[str, str]) -> SupervisedStage:
    return SupervisedStage(adapted(recipe(SFT, {"teacher": starts["teacher"]})))


def distill(starts: dict[str, str], critic_only: bool = False) -> DistillStage:
    return DistillStage(adapted(recipe(DISTILL, starts, critic_only)), CAPTIONS)


def weights(state: TrainState) -> dict[str, Tensor]:
    named = {f"{role}.{n}": t for role, m in state.modules.items() for n, t in m.state_dict().items()}
    named |= {f"average.{role}.{n}": t for role, e in state.averages.items() for n, t in e.tensors.items()}
    return {name: tensor.clone() for name, tensor in named.items()}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def outputs(student: Student) -> Tensor:
    x, t, text = latents(2, 12), torch.tensor([0.2, 0.7]), captions()
    with torch.no_grad():
        return torch.stack([student.flow_matching(x, t, text), student.distribution_matching(x, t, text)])


def may_move(name: str) -> bool:
    return any(part in name for part in (".lora_", ".heads.", "critic.head.", ".clip_position.", ".exits."))


def test_step_zero_is_the_base(starts: dict[str, str]) -> None:
    with_adapters = sft(starts).init("cpu").modules["student"]
    without = SupervisedStage(recipe(SFT, {"teacher": starts["teacher"]})).init("cpu").modules["student"]
    assert torch.equal(outputs(with_adapters), outputs(without))


def test_only_adapters_and_full_heads_move_and_have_optimiser_state(starts: dict[str, str]) -> None:
    for stage in (sft(starts), distill(starts)):
        state = stage.init("cpu")
        before = weights(state)
        run(stage, state, 3)
        changed = moved(before, weights(state))
        assert changed
        assert all(may_move(name) for name in changed), changed
        roles = ("student", "critic") if isinstance(stage, DistillStage) else ("student",)
        for role in roles:
            assert any(name.startswith(f"{role}.encoder") for name in changed)
            held = {id(p) for group in state.optimizers[role].param_groups for p in group["params"]}
            named = dict(state.modules[role].named_parameters())
            assert held == {id(p) for p in named.values() if p.requires_grad}
            assert all(may_move(f"{role}.{name}") for name, p in named.items() if id(p) in held)


def test_resuming_is_exact(starts: dict[str, str], tmp_path: Path) -> None:
    stage = distill(starts)
    state = stage.init("cpu")
    run(stage, state, 2)
    save_state(state, stage.spec, tmp_path)
    again = distill(starts)
    resumed = again.init("cpu")
    load_state(resumed, tmp_path)
    assert run(again, resumed, 2) == run(stage, state, 2)
    assert moved(weights(state), weights(resumed)) == set()


def test_a_checkpoint_loads_as_a_plain_network_that_computes_the_same(
    starts: dict[str, str], tmp_path: Path
) -> None:
    stage = sft(starts)
    state = stage.init("cpu")
    run(stage, state, 3)
    save_state(state, stage.spec, tmp_path)
    network = load_network(tmp_path)
    assert not any("lora" in name or "base_layer" in name for name in network.model.state_dict())
    module = state.modules["student"]
    with state.averages["student"].standing_in(module):
        ours, merged = outputs(module), outputs(network.model)
    assert float((ours - merged).abs().max() / ours.abs().max()) < 1e-5


def test_the_next_stage_starts_from_what_was_learned(starts: dict[str, str], tmp_path: Path) -> None:
    """Long SFT by adapters, a warm-up of the critic by adapters, then both into distillation."""
    first = sft(starts)
    state = first.init("cpu")
    run(first, state, 3)
    (tmp_path / "student").mkdir()
    save_state(state, first.spec, tmp_path / "student")
    begins = {"teacher": starts["teacher"], "student": str(tmp_path / "student")}
    warm = distill(begins, critic_only=True)
    state = warm.init("cpu")
    base = weights(state)
    run(warm, state, 2)
    assert not any(name.startswith("student.") for name in moved(base, weights(state)))
    (tmp_path / "critic").mkdir()
    save_state(state, warm.spec, tmp_path / "critic")
    joint = distill(begins | {"critic": str(tmp_path / "critic")})
    state = joint.init("cpu")
    learned = load_network(tmp_path / "student").model
    assert torch.equal(outputs(state.modules["student"])[0], outputs(learned)[0])
    critic, x, t, text = state.modules["critic"], latents(2, 4), torch.tensor([0.2, 0.7]), captions()
    plain = NetworkSpec("critic", joint.spec.model, joint.spec.text, 4, (4, 4, 1, 1)).build()
    plain.load_state_dict(critic_weights(tmp_path / "critic"))
    with torch.no_grad():
        exits = torch.tensor([1, 3])
        assert torch.equal(critic(x, t, text, exits), plain(x, t, text, exits))
        assert not torch.allclose(critic(x, t, text), joint.teacher(x, t, text), atol=1e-5)


def test_a_spec_without_adapters_is_read_as_before() -> None:
    spec = SupervisedStage(recipe(SFT, {"teacher": "x"})).spec
    plain = spec.to_json()
    del plain["lora"]
    assert NetworkSpec.from_json(plain) == spec
    with_lora = dataclasses.replace(spec, lora=LORA)
    assert NetworkSpec.from_json(with_lora.to_json()) == with_lora
