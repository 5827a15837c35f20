"""The I3D network: against numpy layer by layer, and against the published one's own figures."""

import os
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import CheckpointError
from models.weights import copy_into
from pipelines.evaluation.features.i3d import (
    FRAMES,
    I3D,
    SIDE,
    I3DFeatures,
    Pool,
    Unit,
    WindowRule,
    identity,
    pictures,
)
from pipelines.evaluation.features.i3d_file import FETCH, converted, flat, load_weights
from tests.pipelines.evaluation.features.i3d_checkpoint import CLASSES, FEW, STEM, tree

ORACLE = os.environ.get("SOSTENUTO_TEST_ORACLE", "")
"""A file of logits of the published network, by the flax code that it was published with: of uniform noise,
and of every second of 64 frames of three clips."""


def places(size, kernel, stride):
    """For each output of TensorFlow's SAME: (cell of the kernel, cell of the input) where there is one."""
    outputs = -(-size // stride)
    before = max((outputs - 1) * stride + kernel - size, 0) // 2
    return [
        [(k, o * stride + k - before) for k in range(kernel) if 0 <= o * stride + k - before < size]
        for o in range(outputs)
    ]


def brute(x, kernel, stride, cell):
    """A [.., T, H, W] of one value per box, by `cell(pairs)`, where pairs are (kernel cell, input cell)."""
    axes = [places(n, k, s) for n, k, s in zip(x.shape[1:], kernel, stride, strict=True)]
    boxes = [[cell(list(product(a, b, c))) for c in axes[2]] for a, b in product(axes[0], axes[1])]
    shape = tuple(len(axis) for axis in axes)
    return np.moveaxis(np.array(boxes).reshape(*shape, -1), -1, 0)


@settings(max_examples=40)
@given(
    sizes=st.tuples(*[st.integers(1, 6)] * 3), width=st.integers(1, 4), stride=st.integers(1, 3),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_a_convolution_is_that_of_tensorflow(sizes, width, stride, seed):
    random = np.random.default_rng(seed)
    x = random.standard_normal((2, *sizes))
    unit = Unit(2, 3, width, stride).double()
    weight, bias = (value.detach().numpy() for value in (unit.weight, unit.bias))

    def cell(pairs):
        total = bias.copy()
        for box in pairs:
            (a, i), (b, j), (c, k) = box
            total += weight[:, :, a, b, c] @ x[:, i, j, k]
        return np.maximum(total, 0)

    expected = brute(x, (width,) * 3, (stride,) * 3, cell)
    with torch.no_grad():
        np.testing.assert_allclose(unit(torch.from_numpy(x)[None])[0], expected, atol=1e-12)


@settings(max_examples=40)
@given(
    sizes=st.tuples(*[st.integers(1, 6)] * 3), kernel=st.tuples(*[st.integers(1, 3)] * 3),
    stride=st.tuples(*[st.integers(1, 2)] * 3), seed=st.integers(0, 99),
)  # fmt: skip
def test_a_pool_is_that_of_tensorflow(sizes, kernel, stride, seed):
    x = np.random.default_rng(seed).standard_normal((2, *sizes)) - 3.0  # a pad of zeros would win

    def cell(pairs):
        return np.max([x[:, i, j, k] for (_, i), (_, j), (_, k) in pairs], axis=0)

    expected = brute(x, kernel, stride, cell)
    np.testing.assert_array_equal(Pool(kernel, stride)(torch.from_numpy(x)[None])[0], expected)


def shifted(x, kernel, stride, fill):
    """The input [C, T, H, W] under each cell of the kernel, at every output, `fill` where there is none."""
    sizes = x.shape[1:]
    outputs = [-(-n // s) for n, s in zip(sizes, stride, strict=True)]
    starts = [
        max((o - 1) * s + k - n, 0) // 2 for o, s, k, n in zip(outputs, stride, kernel, sizes, strict=True)
    ]
    big = np.full((len(x), *(n + 2 * k for n, k in zip(sizes, kernel, strict=True))), fill)
    big[:, *(slice(k, k + n) for n, k in zip(sizes, kernel, strict=True))] = x
    for cell in product(*map(range, kernel)):
        begin = [k - b + c for k, b, c in zip(kernel, starts, cell, strict=True)]
        slices = [slice(b, b + (o - 1) * s + 1, s) for b, o, s in zip(begin, outputs, stride, strict=True)]
        yield cell, big[:, *slices]


class Numpy:
    """The network in numpy, from the checkpoint as it is: batch norm beside the convolutions."""

    def __init__(self, arrays):
        self.arrays = arrays

    def unit(self, x, name, stride=1):
        kernel = self.arrays[f"params|{name}|Conv_0|kernel"].astype(np.float64)
        norm = f"batch_stats|{name}|BatchNorm_0"
        mean, var = (self.arrays[f"{norm}|{kind}"].reshape(-1, 1, 1, 1) for kind in ("mean", "var"))
        bias = self.arrays[f"params|{name}|BatchNorm_0|bias"].reshape(-1, 1, 1, 1)
        y = sum(
            np.einsum("cthw,co->othw", part, kernel[cell])
            for cell, part in shifted(x, kernel.shape[:3], (stride,) * 3, 0.0)
        )
        return np.maximum((y - mean) / np.sqrt(var + 1e-3) + bias, 0.0)

    def pool(self, x, kernel, stride):
        return np.max([part for _, part in shifted(x, kernel, stride, -np.inf)], axis=0)

    def mixed(self, x, name):
        def unit(y, branch):
            return self.unit(y, f"Mixed_{name}|Branch_{branch}")

        return np.concatenate(
            [
                unit(x, "0/Conv3d_0a_1x1"),
                unit(unit(x, "1/Conv3d_0a_1x1"), "1/Conv3d_0b_3x3"),
                unit(unit(x, "2/Conv3d_0a_1x1"), "2/Conv3d_0b_3x3"),
                unit(self.pool(x, (3, 3, 3), (1, 1, 1)), "3/Conv3d_0b_1x1"),
            ]
        )

    def logits(self, x):
        x = self.pool(self.unit(x, "Conv3d_1a_7x7", 2), (1, 3, 3), (1, 2, 2))
        x = self.unit(self.unit(x, "Conv3d_2b_1x1"), "Conv3d_2c_3x3")
        for kernel, stride, blocks in (
            ((1, 3, 3), (1, 2, 2), "bc"),
            ((3, 3, 3), (2, 2, 2), "bcdef"),
            ((2, 2, 2), (2, 2, 2), "bc"),
        ):
            x = self.pool(x, kernel, stride)
            number = {(1, 3, 3): 3, (3, 3, 3): 4, (2, 2, 2): 5}[kernel]
            for letter in blocks:
                x = self.mixed(x, f"{number}{letter}")
        assert x.shape[2:] == (7, 7)
        means = np.stack([x[:, t : t + 2].mean(axis=(1, 2, 3)) for t in range(x.shape[1] - 1)])
        place = "params|Logits/Conv3d_0c_1x1|Conv_0"
        return (means @ self.arrays[f"{place}|kernel"][0, 0, 0] + self.arrays[f"{place}|bias"]).mean(axis=0)


def test_the_whole_network_is_that_of_numpy():
    arrays = flat(tree())
    network = I3D(STEM, FEW, CLASSES).eval().requires_grad_(False)
    copy_into(network, {name: torch.from_numpy(value) for name, value in converted(arrays).items()}, "test")
    video = np.random.default_rng(1).uniform(-1, 1, (3, 18, SIDE, SIDE)).astype(np.float32)
    expected = Numpy(arrays).logits(video)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(network(torch.from_numpy(video)[None])[0], expected, rtol=1e-4, atol=1e-4)


def test_the_published_sizes_are_those_of_the_network():
    with torch.device("meta"):
        network = I3D()
    convolutions = [module for module in network.modules() if isinstance(module, torch.nn.Conv3d)]
    assert len(convolutions) == 58
    assert sum(value.numel() for value in network.parameters()) == 12_689_984


@pytest.fixture(scope="module")
def weights():
    if not ORACLE:
        pytest.skip("set SOSTENUTO_TEST_ORACLE to the published network's logits (oracle_logits.npz)")
    try:
        return load_weights(os.environ.get("SOSTENUTO_I3D"))
    except CheckpointError:
        pytest.skip(
            f"the weights of I3D are not here. {FETCH.split(',')[0]}, or set SOSTENUTO_I3D to the file"
        )


def logits_of(weights, video):
    network = I3D().eval().requires_grad_(False)
    copy_into(network, {name: torch.from_numpy(value) for name, value in weights.items()}, "test")
    return network(torch.from_numpy(video)[None])[0].numpy()


def assert_near(found, name):
    oracle = np.load(ORACLE)[name][0]
    assert np.abs(found - oracle).max() <= 1e-3 * np.abs(oracle).max()
    assert np.linalg.norm(found - oracle) <= 1e-3 * np.linalg.norm(oracle)


def test_logits_of_noise_are_the_published_networks(weights):
    noise = np.random.RandomState(0).uniform(-1, 1, (1, 16, SIDE, SIDE, 3)).astype(np.float32)
    assert_near(logits_of(weights, noise[0].transpose(3, 0, 1, 2)), "noise16")


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "clip", "action"),
    [("arm", "armwrestle", 6), ("basket", "basketball", None), ("dog", "dog", 363)],
)
def test_logits_of_clips_are_the_published_networks(weights, name, clip, action):
    from PIL import Image

    from pipelines.media.video import read_mp4

    if "SOSTENUTO_TEST_CLIPS" not in os.environ:
        pytest.skip("set SOSTENUTO_TEST_CLIPS to the folder of clips")
    frames = []
    for frame in read_mp4(Path(os.environ["SOSTENUTO_TEST_CLIPS"], f"short/{clip}.mp4"))[:64:2]:
        image = Image.fromarray(frame)
        scale = 256 / min(image.size)
        size = tuple(round(side * scale) for side in image.size)
        image = image.resize(size, Image.Resampling.BILINEAR)
        left, top = (size[0] - SIDE) // 2, (size[1] - SIDE) // 2
        frames.append(np.asarray(image.crop((left, top, left + SIDE, top + SIDE))))
    video = (np.stack(frames).astype(np.float32) / 127.5 - 1).transpose(3, 0, 1, 2)
    found = logits_of(weights, video)
    assert_near(found, name)
    assert action in (None, int(found.argmax()))


@pytest.mark.parametrize(
    ("frames", "wanted", "shown", "count", "suffix"),
    [
        (16, 5, 16, 1, ""),
        (32, 5, 16, 2, ""),
        (200, 5, 16, 5, ""),
        (8, 5, 8, 1, ".held8"),
        (1, 1, 1, 1, ".held1"),
    ],
)
def test_windows_of_a_video_never_overlap_and_short_ones_say_so(frames, wanted, shown, count, suffix):
    rule = WindowRule.of(frames, wanted)
    assert (rule.shown, rule.count, rule.suffix) == (shown, count, suffix)
    numbers = rule.windows(frames)
    assert numbers.shape == (count, FRAMES)
    assert numbers[0, 0] == 0
    assert numbers[-1, -1] == (frames - 1 if count > 1 or frames <= FRAMES else FRAMES - 1)
    starts = numbers[:, 0]
    assert (np.diff(starts) >= FRAMES).all()


def test_frames_of_a_short_window_are_held():
    assert WindowRule(8, 1).windows(8)[0].tolist() == [k // 2 for k in range(16)]
    assert WindowRule(5, 1).windows(5)[0].tolist() == [k * 5 // 16 for k in range(16)]


def test_pictures_are_the_centre_square_without_aliasing():
    stripes = np.zeros((2, 448, 600, 3), np.uint8)
    stripes[:, ::2] = 255  # finer than 224 rows can show: grey, and not black or white
    seen = pictures(torch.from_numpy(stripes))
    assert seen.shape == (3, 2, SIDE, SIDE)
    assert seen[:, :, 4:-4].abs().max() < 0.02
    marked = np.zeros((1, SIDE, 300, 3), np.uint8)
    marked[:, :, 38:262] = 255
    assert pictures(torch.from_numpy(marked)).min() == 1.0
    assert pictures(torch.zeros(1, SIDE, SIDE, 3, dtype=torch.uint8)).max() == -1.0


def test_features_of_a_video_are_the_logits_of_its_windows(monkeypatch):
    weights = converted(flat(tree(3)))
    monkeypatch.setattr("pipelines.evaluation.features.i3d.I3D", lambda: I3D(STEM, FEW, CLASSES))

    def features(frames, rule):
        return I3DFeatures(weights, rule, torch.device("cpu"))(frames)

    frames = torch.randint(
        0, 255, (40, 48, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    found = features(frames, WindowRule(16, 2))
    assert found.shape == (2, CLASSES)
    np.testing.assert_array_equal(found[1:], features(frames[24:], WindowRule(16, 1)))
    held = features(frames[:8], WindowRule(8, 1))
    np.testing.assert_array_equal(held, features(frames[:8].repeat_interleave(2, dim=0), WindowRule(16, 1)))


def test_the_precision_is_part_of_the_identity():
    assert len({identity("cpu"), identity("cuda")}) == 2
    assert "224 px bilinear antialiased" in identity("cpu")
