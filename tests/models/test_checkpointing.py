"""Blocks that keep less for the backward pass have the same gradients, and compute again what they should."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.recompute import ATTENTION
from models.blocks import checkpoint_blocks
from models.config import Checkpointing
from models.ddt import Student
from tests.models.builders import TINY, captions, latents, randomize

MODEL = dataclasses.replace(TINY, num_layers=4, head_layers=1, window=2, attention_pattern="WGWG")
"""On clips of 12 x 9 tokens and captions of 90, each attention is one operator on a CPU, too."""
LINEAR = torch.ops.aten.addmm.default


class Calls(TorchDispatchMode):
    """Counts attention among a clip's tokens, to its caption's, and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.found = Counter[str]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in ATTENTION:
            self.found["self" if args[1].shape[2] == args[0].shape[2] else "cross"] += 1
        self.found["linear"] += func is LINEAR
        return func(*args, **(kwargs or {}))


def gradients(checkpointing: Checkpointing, *, half: bool) -> tuple[dict[str, Tensor], list[Counter[str]]]:
    """Of two passes in one region of autocast, whose backward passes come after it, as they do in a thread of
    autograd's; and what is called forward and backward."""
    student = Student(MODEL, 4, 10)
    randomize(student)
    checkpoint_blocks(student, checkpointing)
    clips, t, text = latents(2, 12, 4, 3), torch.tensor([0.2, 0.7]), captions(tokens=90)
    with Calls() as forward, torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
        out = [student.flow_matching(clips, t, text), student.distribution_matching(clips, t, text)]
    with Calls() as backward:
        torch.stack(out).square().mean().backward()
    found = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
    return found, [forward.found, backward.found]


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_what_is_computed_again_changes_no_gradient(half: bool) -> None:
    kept, _ = gradients("none", half=half)
    assert len(kept) > 50
    for checkpointing in get_args(Checkpointing)[1:]:
        again, _ = gradients(checkpointing, half=half)
        assert kept.keys() == again.keys()
        assert [name for name in kept if not torch.equal(kept[name], again[name])] == [], checkpointing


def test_all_but_self_attention_is_computed_again() -> None:
    counts = {kind: gradients(kind, half=False)[1] for kind in get_args(Checkpointing)}
    forward, backward = counts["none"]
    assert forward["self"] == forward["cross"] == 8
    assert backward["self"] == backward["cross"] == backward["linear"] == 0
    for kind, again in (("full", 8), ("selective", 0)):
        assert counts[kind][0] == forward
        assert counts[kind][1]["self"] == again
        assert counts[kind][1]["cross"] == 8
        assert counts[kind][1]["linear"] == counts["full"][1]["linear"] > 0


def test_a_graph_may_be_gone_through_twice() -> None:
    student = Student(MODEL, 4, 10)
    randomize(student)
    checkpoint_blocks(student, "selective")
    out = student.flow_matching(latents(1, 12, 4, 3), torch.tensor([0.2]), captions(1, 90)).square().mean()
    once = torch.autograd.grad(out, student.encoder.parameters(), retain_graph=True, allow_unused=True)
    twice = torch.autograd.grad(out, student.encoder.parameters(), allow_unused=True)
    for one, other in zip(once, twice, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)
