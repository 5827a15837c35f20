"""Adapters change nothing at the start, are all that trains in the encoder, and merge without a trace."""

import copy

import pytest
import torch
from torch import nn

from models.config import LoraConfig
from models.ddt import Student
from models.dit import DiT
from models.lora import add_adapters, merge_adapters, start_adapters
from models.rng import Key
from models.text.conditioning import Conditioning
from tests.models.builders import randomize
from tests.models.wan.wan_folders import CHANNELS, SHAPE, TEXT_DIM, inputs, relative

LORA = LoraConfig(rank=3, alpha=6.0)
TARGETS = {"to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"}


def student() -> Student:
    model = Student(SHAPE, CHANNELS, TEXT_DIM)
    randomize(model)
    return model


def adapted(model: DiT | Student, config: LoraConfig = LORA, seed: int = 0) -> DiT | Student:
    model = copy.deepcopy(model)
    add_adapters(model, config)
    start_adapters(model, Key(seed, purpose="adapters"))
    return model


def outputs(model: Student) -> torch.Tensor:
    x, t, text = inputs()
    with torch.no_grad():
        heads = (model.flow_matching, model.distribution_matching)
        return torch.stack([head(x, t, Conditioning(text)) for head in heads])


def trained(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def stir(model: nn.Module) -> None:
    """Give every adapter weight another value, B too."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=Key(1, purpose=name).torch()))


@pytest.mark.parametrize("heads", ["full", "adapters"])
def test_nothing_changes_at_the_start(heads: str) -> None:
    base = student()
    assert torch.equal(outputs(adapted(base, LoraConfig(rank=3, heads=heads))), outputs(base))


@pytest.mark.parametrize("heads", ["full", "adapters"])
def test_what_is_trained(heads: str) -> None:
    model = adapted(student(), LoraConfig(rank=3, heads=heads))
    names = trained(model)
    encoder = {name for name in names if name.startswith("encoder.")}
    assert encoder
    assert all(".lora_" in name for name in encoder)
    in_heads = names - encoder
    if heads == "full":
        assert in_heads == {name for name, _ in model.named_parameters() if name.startswith("heads.")}
    else:
        assert in_heads
        assert all(".lora_" in name for name in in_heads)
    layers = {name.split(".lora_")[0].split(".", 3)[-1] for name in encoder}
    assert {part.removeprefix("attn1.").removeprefix("attn2.") for part in layers} == TARGETS


def test_targets_are_the_named_layers() -> None:
    names = trained(adapted(student(), LoraConfig(rank=2, targets=("to_q", "ffn.net.2"), heads="adapters")))
    assert {name.split(".lora_")[0].rpartition("blocks.0.")[2] for name in names} == {
        "attn1.to_q", "attn2.to_q", "ffn.net.2",
    }  # fmt: skip


@pytest.mark.parametrize("heads", ["full", "adapters"])
def test_merging_changes_no_output(heads: str) -> None:
    base = student()
    model = adapted(base, LoraConfig(rank=3, alpha=6.0, heads=heads))
    stir(model)
    before = outputs(model)
    merge_adapters(model)
    assert list(model.state_dict()) == list(base.state_dict())
    assert relative(outputs(model), before) < 1e-5
    assert relative(before, outputs(base)) > 1e-2


def test_the_scale_is_alpha_over_rank() -> None:
    model = adapted(student(), LoraConfig(rank=4, alpha=8.0, targets=("to_q",)))
    stir(model)
    layer = model.encoder.blocks[0].attn1.to_q
    weight = layer.base_layer.weight + 2.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    merge_adapters(model)
    assert torch.allclose(model.encoder.blocks[0].attn1.to_q.weight, weight, atol=1e-6)


def test_the_start_is_keyed() -> None:
    base = student()
    torch.manual_seed(1)
    first = adapted(base).state_dict()
    torch.manual_seed(2)
    second, third = adapted(base).state_dict(), adapted(base, seed=1).state_dict()
    drawn = [name for name in first if ".lora_A." in name]
    assert drawn
    assert all(torch.equal(first[name], second[name]) for name in drawn)
    assert not any(torch.equal(first[name], third[name]) for name in drawn)
    assert len({tuple(first[name].flatten()[:3].tolist()) for name in drawn}) == len(drawn)
    assert all(float(first[name].abs().max()) <= first[name].shape[1] ** -0.5 for name in drawn)


def test_a_critic_keeps_its_output_layer_in_full() -> None:
    critic = DiT(SHAPE, CHANNELS, TEXT_DIM)
    randomize(critic)
    names = trained(adapted(critic))
    assert {name for name in names if ".lora_" not in name} == {
        "head.scale_shift_table", "head.proj_out.weight", "head.proj_out.bias",
    }  # fmt: skip


def test_adapters_on_the_meta_device_take_no_memory() -> None:
    with torch.device("meta"):
        model = Student(SHAPE, CHANNELS, TEXT_DIM)
    add_adapters(model, LORA)
    assert all(p.is_meta for p in model.parameters())
    assert set(dict(model.named_parameters())) == set(dict(adapted(student()).named_parameters()))
