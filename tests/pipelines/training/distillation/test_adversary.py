"""The adversary on a teacher's features, and both sides of its game."""

import math

import pytest
import torch

from models.dit import DiT, Features
from models.rng import Key
from pipelines.training.distillation.adversary import Adversary, adversarial_loss, adversary_loss
from tests.models.builders import TINY, captions, latents, randomize

WIDTH = TINY.num_heads * TINY.head_dim


def features(seed: int = 1) -> Features:
    teacher = DiT(TINY, 4, 10)
    randomize(teacher)
    teacher.requires_grad_(False)
    made: Features = teacher.encoder(latents(2, 5, seed=seed).requires_grad_(), torch.ones(2) / 2, captions())
    return made


def test_it_begins_undecided_and_the_same_for_a_key() -> None:
    first, again, other = (Adversary(WIDTH, Key(seed)) for seed in (0, 0, 1))
    logits = first(features()).detach()
    assert logits.shape == (2, 5, 1)
    assert not logits.any()
    assert float(adversary_loss(logits, logits)) == pytest.approx(2 * math.log(2))
    assert float(adversarial_loss(logits)) == pytest.approx(math.log(2))
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.feature.weight, other.feature.weight)


def test_the_losses_are_those_of_a_classifier() -> None:
    """Cross entropy of a logistic classifier, and of the one that the student would like."""
    real, fake = latents(2, 3, seed=3), latents(2, 3, seed=4)
    expected = -real.sigmoid().log().mean() - (1 - fake.sigmoid()).log().mean()
    torch.testing.assert_close(adversary_loss(real, fake), expected)
    torch.testing.assert_close(adversarial_loss(fake), -fake.sigmoid().log().mean())


def test_the_students_side_trains_the_windows_and_nothing_of_the_adversary() -> None:
    adversary = Adversary(WIDTH, Key(0))
    randomize(adversary)
    seen = features()
    adversarial_loss(adversary.frozen(seen)).backward()
    assert all(parameter.grad is None for parameter in adversary.parameters())
    torch.testing.assert_close(adversary.frozen(seen), adversary(seen))


def test_it_learns_to_tell_two_kinds_apart() -> None:
    adversary = Adversary(WIDTH, Key(0))
    one, other = features(1), features(2)
    optimizer = torch.optim.AdamW(adversary.parameters(), lr=1e-2)
    with torch.no_grad():
        before = adversary_loss(adversary(one), adversary(other))
    for _ in range(60):
        optimizer.zero_grad()
        adversary_loss(adversary(one), adversary(other)).backward(retain_graph=True)
        optimizer.step()
    with torch.no_grad():
        assert float(adversary_loss(adversary(one), adversary(other))) < 0.5 * float(before)
        assert float(adversary(one).mean()) > float(adversary(other).mean())
