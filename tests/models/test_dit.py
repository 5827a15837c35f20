"""What each frame and token sees, and the student against its teacher."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from models.blocks import TokenGrid, axis_channels, checkpoint_blocks, frequencies, rotate, rotations
from models.config import ModelConfig
from models.ddt import HeadName, Student
from models.dit import DiT, clip_positions, initialize, token_grid
from models.rng import Key
from models.text.conditioning import Conditioning
from tests.models.builders import TINY, captions, latents, randomize


def test_the_time_of_a_frame_reaches_only_that_frame() -> None:
    """With attention windows of one frame, changing one frame's time moves no other frame."""
    model = DiT(dataclasses.replace(TINY, window=0, attention_pattern="WWWW"), 4, 10)
    randomize(model)
    t = torch.full((2, 8), 0.4)
    changed = t.clone()
    changed[:, 3] = 0.9
    with torch.no_grad():
        difference = (model(latents(), t, captions()) - model(latents(), changed, captions())).abs()
    moved = difference.flatten(2).amax(dim=(0, 2)) > 1e-6
    assert moved.tolist() == [frame == 3 for frame in range(8)]


@pytest.mark.parametrize("heads", ["decoupled", "shared"])
def test_a_student_starts_as_its_teacher(heads: str) -> None:
    config = dataclasses.replace(TINY, heads=heads)
    teacher, student = DiT(config, 4, 10), Student(config, 4, 10)
    randomize(teacher)
    student.start_from(teacher)
    t = torch.tensor([0.2, 0.7])
    with torch.no_grad():
        expected = teacher(latents(), t, captions())
        assert torch.equal(student.flow_matching(latents(), t, captions()), expected)
        assert torch.equal(student.distribution_matching(latents(), t, captions()), expected)


def test_both_heads_send_gradients_into_the_encoder_and_none_to_each_other() -> None:
    student = Student(TINY, 4, 10)
    randomize(student)
    for name, other in (
        ("flow_matching", "distribution_matching"),
        ("distribution_matching", "flow_matching"),
    ):
        student.zero_grad(set_to_none=True)
        student.head(name)(latents(), torch.tensor([0.2, 0.7]), captions()).square().mean().backward()
        assert all(p.grad is not None for p in student.encoder.blocks.parameters())
        assert all(p.grad is None for p in student.heads[other].parameters())


def test_a_detached_head_answers_the_same_and_leaves_the_encoder_alone() -> None:
    student = Student(TINY, 4, 10)
    randomize(student)
    t = torch.tensor([0.2, 0.7])
    plain = student.head("distribution_matching")(latents(), t, captions())
    detached = student.head("distribution_matching", detached=True)(latents(), t, captions())
    assert torch.equal(plain, detached)
    detached.square().mean().backward()
    trained = {name.split(".")[0] for name, p in student.named_parameters() if p.grad is not None}
    assert trained == {"heads"}
    with torch.no_grad():
        assert not student.head("distribution_matching", detached=True)(
            latents(), t, captions()
        ).requires_grad


def test_the_first_head_can_be_copied_to_the_second() -> None:
    student = Student(TINY, 4, 10)
    randomize(student)
    t = torch.tensor([0.2, 0.7])
    with torch.no_grad():
        before = student.distribution_matching(latents(), t, captions())
        student.copy_flow_matching_head()
        after = student.distribution_matching(latents(), t, captions())
        assert not torch.allclose(before, after)
        assert torch.equal(after, student.flow_matching(latents(), t, captions()))


def test_clip_positions_distinguish_the_ends_and_scale_with_the_clip() -> None:
    short, long = clip_positions(9, torch.device("cpu")), clip_positions(17, torch.device("cpu"))
    assert short.shape == (9, 16)
    assert torch.allclose(short, long[::2], atol=1e-6)
    assert float((short[0] - short[-1]).abs().max()) == pytest.approx(2, abs=1e-5)


def test_a_windowed_frame_does_not_see_far() -> None:
    config = dataclasses.replace(TINY, attention_pattern="WWWW", window=1)
    model = DiT(config, 4, 10)
    randomize(model)
    x = latents(1, 12)
    other = x.clone()
    other[:, 0] += 1.0
    t, text = torch.tensor([0.5]), captions(1)
    with torch.no_grad():
        moved = (model(x, t, text) - model(other, t, text)).abs().flatten(2).amax(dim=(0, 2)) > 0
    assert moved.tolist() == [frame <= 4 for frame in range(12)]


def test_masked_text_tokens_are_not_seen() -> None:
    model = DiT(TINY, 4, 10)
    randomize(model)
    text = captions(2, tokens=4).text
    mask = torch.tensor([[True, True, False, False]] * 2)
    t = torch.tensor([0.2, 0.7])
    with torch.no_grad():
        masked = model(latents(), t, Conditioning(text, mask))
        short = model(latents(), t, Conditioning(text[:, :2]))
    assert torch.allclose(masked, short, atol=1e-5)


def test_latents_that_do_not_divide_into_patches_are_refused() -> None:
    with pytest.raises(ValueError, match="patches"):
        token_grid((1, 4, 3, 5, 6), (1, 2, 2))


def test_rotary_channels_and_relative_positions() -> None:
    assert axis_channels(128) == (44, 42, 42)
    assert axis_channels(24) == (8, 8, 8)
    q, k = torch.randn(2, 1, 24, generator=torch.Generator().manual_seed(0)).unbind(0)

    def logit(i: int, j: int) -> Tensor:
        cos, sin = rotations(TokenGrid.whole(20, 1, 1), 24, 100.0, torch.device("cpu"))
        return (rotate(q, cos[i : i + 1], sin[i : i + 1]) * rotate(k, cos[j : j + 1], sin[j : j + 1])).sum()

    assert torch.allclose(logit(3, 7), logit(13, 17), atol=1e-5)
    assert not torch.allclose(logit(3, 7), logit(3, 8), atol=1e-3)


def _first_attention(model: DiT, *grid: int) -> Tensor:
    """Attention probabilities of the first block for clips of frames, rows and columns, [heads, tokens,
    tokens], the mean over random ones."""
    attention, tokens = model.encoder.blocks[0].attn1, math.prod(grid)
    q, k, _ = attention.project(
        *(2 * [torch.randn(64, tokens, 96, generator=torch.Generator().manual_seed(3))])
    )
    cos, sin = rotations(TokenGrid.whole(*grid), 24, attention.theta, torch.device("cpu"))
    logits = rotate(q, cos, sin) @ rotate(k, cos, sin).transpose(-1, -2) / 24**0.5
    return logits.softmax(-1).mean(0)


def test_look_heads_look_at_the_previous_the_next_and_their_own_frame() -> None:
    model = DiT(ModelConfig(), 13, 64)
    initialize(model, Key(0))
    with torch.no_grad():
        seen = _first_attention(model, 17, 1, 1)
    middle = slice(2, 15)
    for head, offset in ((0, -1), (1, 1), (2, 0)):
        assert torch.equal(seen[head].argmax(-1)[middle], torch.arange(17)[middle] + offset)
        wanted = seen[head].diagonal(offset)[3:-3]
        assert 0.5 < float(wanted.min()) < float(wanted.max()) < 0.9
    assert float(seen[3].max()) < 0.2


def test_heads_that_look_at_a_place_look_at_their_own_row_and_column() -> None:
    model, (frames, rows, columns) = DiT(ModelConfig(init="place"), 13, 64), (6, 5, 7)
    initialize(model, Key(0))
    with torch.no_grad():
        seen = _first_attention(model, frames, rows, columns)
    per_frame = rows * columns
    own = torch.arange(per_frame, (frames - 1) * per_frame)
    for head, offset in ((0, -1), (1, 1), (2, 0)):
        wanted = own + offset * per_frame
        assert torch.equal(seen[head].argmax(-1)[own], wanted)
        assert float(seen[head][own, wanted].min()) > 0.15


def test_initialisation_is_keyed_and_starts_at_a_zero_output() -> None:
    first, second, third = (DiT(ModelConfig(), 13, 64) for _ in range(3))
    initialize(first, Key(0))
    initialize(second, Key(0))
    initialize(third, Key(1))
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(first.encoder.patch_embedding.weight, third.encoder.patch_embedding.weight)
    assert not first.head.proj_out.weight.any()


def test_time_frequencies_follow_theta() -> None:
    assert frequencies(8, 100.0).tolist() == pytest.approx([1, 0.1**0.5, 0.1, 0.1**1.5])


@pytest.mark.parametrize("masked", [False, True])
def test_an_autocast_region_trains(masked: bool) -> None:
    config = dataclasses.replace(TINY, attention_pattern="WG", num_layers=2, head_layers=1, window=2)
    model, text = DiT(config, 4, 10), captions()
    randomize(model)
    mask = torch.tensor([[True, True, False], [True, False, False]]) if masked else None
    conditioning = Conditioning(text.text, mask)
    x, t = latents(2, 8, 4), torch.tensor([0.3, 0.9])
    exact = model(x, t, conditioning).detach()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x, t, conditioning)
    assert torch.allclose(out.float(), exact, atol=0.1 * float(exact.abs().max()))
    out.float().square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert sum(p.grad is not None for p in model.parameters()) > 20


@pytest.mark.parametrize("head", ["flow_matching", "distribution_matching"])
def test_checkpointed_blocks_have_the_same_gradients_from_fewer_tensors(head: HeadName) -> None:
    student = Student(TINY, 4, 10)
    randomize(student)
    t, text = torch.tensor([0.2, 0.7]), captions()

    def gradients() -> tuple[dict[str, Tensor], int]:
        student.zero_grad(set_to_none=True)
        kept: list[Tensor] = []

        def keep(x: Tensor) -> Tensor:
            kept.append(x)
            return x

        with saved_tensors_hooks(keep, lambda x: x):
            out = student.head(head)(latents(), t, text)
        out.square().mean().backward()
        return {n: p.grad for n, p in student.named_parameters() if p.grad is not None}, len(kept)

    plain, all_kept = gradients()
    checkpoint_blocks(student)
    again, few_kept = gradients()
    assert plain.keys() == again.keys()
    assert all(torch.equal(plain[name], again[name]) for name in plain)
    assert few_kept < all_kept / 3
