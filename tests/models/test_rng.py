"""Draws depend on their names alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.rng import Key, normal, uniform


def test_a_row_does_not_depend_on_the_rest_of_the_batch() -> None:
    key = Key(3, 7, purpose="noise")
    whole = normal((4, 2), key, range(6))
    parts = torch.cat([normal((4, 2), key, [0, 1]), normal((4, 2), key, [2, 3, 4, 5])])
    assert torch.equal(whole, parts)


@given(st.integers(0, 2**62), st.integers(0, 10**9), st.integers(0, 10**6))
def test_every_part_of_a_key_changes_its_seed(seed: int, step: int, sample: int) -> None:
    key = Key(seed, step, sample, "a")
    others = [
        Key(seed + 1, step, sample, "a"),
        Key(seed, step + 1, sample, "a"),
        Key(seed, step, sample + 1, "a"),
        Key(seed, step, None, "a"),
        Key(seed, step, sample, "b"),
    ]
    assert len({k.seed64() for k in [key, *others]}) == 6
    assert 0 <= key.seed64() < 2**63


def test_keys_that_agree_in_32_bits_draw_different_noise() -> None:
    known: dict[int, Key] = {}
    for step in range(300_000):
        key = Key(0, step)
        other = known.setdefault(key.at(sample=0).seed64() & 0xFFFFFFFF, key)
        if other is not key:
            break
    assert other is not key
    assert not torch.equal(normal((8,), key, [0]), normal((8,), other, [0]))
    assert not torch.equal(uniform(key, [0]), uniform(other, [0]))


def test_draws_are_standard_normal_and_uniform() -> None:
    n = normal((64,), Key(0, purpose="n"), range(400))
    assert float(n.mean()) == pytest.approx(0, abs=0.02)
    assert float(n.std()) == pytest.approx(1, abs=0.02)
    u = uniform(Key(0, purpose="u"), range(2000))
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    assert float(u.mean()) == pytest.approx(0.5, abs=0.03)


def test_the_global_generator_is_untouched() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    normal((8,), Key(0), range(3))
    assert torch.equal(torch.rand(3), expected)
