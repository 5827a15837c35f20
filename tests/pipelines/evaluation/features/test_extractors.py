"""The fixed features: frozen numbers, independence of batches, and what they notice."""

import numpy as np
import pytest
import torch

from pipelines.distances import FactorFeatures, Moments
from pipelines.evaluation.features.extractors import (
    EXTRACTORS,
    factor_story,
    factor_windows,
    shrink,
    window_pixels,
)
from tests.pipelines.evaluation.clips import moving_clip

CHECKSUMS = {
    "rand3d-diff": (2.915463510, 1.499037839, 1.720469475, 3.258982182),
    "st-stats": (-3.530066314, 2.378051846, 0.495987147, 0.004195575),
}


def fixed_windows():
    """Four windows of noise [4, 3, 8, 64, 64]."""
    noise = np.random.RandomState(7).randint(0, 256, (4, 3, 8, 64, 64))
    return torch.from_numpy(noise.astype(np.float32) / 255.0)


def checksum(features):
    """Mean, deviation, first and last number of a table."""
    table = np.asarray(features, dtype=np.float64)
    return [float(table.mean()), float(table.std()), float(table.flat[0]), float(table.flat[-1])]


@pytest.mark.parametrize("extractor", EXTRACTORS.values(), ids=lambda e: e.name)
def test_checksum(extractor):
    features = extractor(fixed_windows())
    assert features.shape == (4, extractor.dim)
    assert checksum(features) == pytest.approx(CHECKSUMS[extractor.name], rel=1e-4, abs=1e-4)
    assert extractor.name in extractor.identity


@pytest.mark.parametrize(("inputs", "first"), [(104, None), (416, None)])
def test_factor_features_are_the_net_they_say(inputs, first):
    net = FactorFeatures(inputs)
    random = np.random.RandomState(32)
    a = random.standard_normal((inputs, 256)) * 1.2 / np.sqrt(inputs)
    c, b = random.standard_normal(256) * 0.5, random.standard_normal((256, 32)) * 0.1
    x = np.random.default_rng(0).standard_normal((5, inputs))
    np.testing.assert_allclose(net(x), np.tanh(x @ a + c) @ b, rtol=1e-12)


def test_factor_features_checksum():
    x = np.random.RandomState(1).standard_normal((3, 104))
    known = (-0.138958768133, 1.017284563891, -3.045339162206, 0.508868437958)
    assert checksum(FactorFeatures(104)(x)) == pytest.approx(known, rel=1e-9)


def test_factor_windows_are_at_0_6_12_18_24_of_32_frames():
    factors = np.arange(2 * 32 * 13, dtype=np.float32).reshape(2, 32, 13)
    windows = factor_windows(factors, 8, 5).reshape(2, 5, 8, 13)
    for place, start in enumerate((0, 6, 12, 18, 24)):
        np.testing.assert_array_equal(windows[:, place], factors[:, start : start + 8])


def test_the_story_is_32_frames_without_the_waves():
    factors = np.zeros((2, 240, 13))
    factors[..., 9:] = 5.0
    factors[:, -1, 6] = 1.0
    story = factor_story(factors).reshape(2, 32, 9)
    assert story.sum() == 2.0
    assert story[0, -1, 6] == 1.0


@pytest.mark.parametrize("size", [(128, 128), (64, 64), (48, 64), (96, 128), (100, 140), (1024, 1024)])
def test_shrink_keeps_means(size):
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, *size, 3), dtype=np.uint8))
    small = shrink(frames)
    assert small.shape[:2] == (3, 3)
    assert min(small.shape[2:]) == min(64, *size)
    torch.testing.assert_close(small.mean((2, 3)).T, frames.float().mean((1, 2)) / 255, atol=8e-3, rtol=0)


def test_shrink_of_a_square_equals_area_interpolation():
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 192, 192, 3), dtype=np.uint8))
    pixels = frames.permute(0, 3, 1, 2).float() / 255
    area = torch.nn.functional.interpolate(pixels, size=(64, 64), mode="area").transpose(0, 1)
    torch.testing.assert_close(shrink(frames), area, atol=1e-6, rtol=0)


@pytest.mark.parametrize("extractor", EXTRACTORS.values(), ids=lambda e: e.name)
def test_a_window_does_not_know_its_batch(extractor):
    windows = torch.rand(6, 3, 8, 64, 64, generator=torch.Generator().manual_seed(0))
    together = extractor(windows)
    apart = torch.cat([extractor(window[None]) for window in windows])
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)


def noise(video, amount, random):
    return np.clip(video + random.normal(0, amount * 255, video.shape), 0, 255)


def flicker(video, amount, random):
    return np.clip(video + random.normal(0, amount * 255, (len(video), 1, 1, 1)), 0, 255)


def jitter(video, amount, random):
    moves = np.rint(random.normal(0, amount, (len(video), 2))).astype(int)
    return np.stack([shift(frame[None], *move)[0] for frame, move in zip(video, moves, strict=True)])


def shift(video, down, right):
    rows, columns = (
        np.clip(np.arange(n) + k, 0, n - 1) for n, k in zip(video.shape[1:3], (down, right), strict=True)
    )
    return video[:, rows][:, :, columns]


def shuffle(video, block, random):
    order = np.arange(len(video)).reshape(-1, block)
    return video[np.concatenate([random.permutation(row) for row in order])]


def blur(video, amount, random):
    pixels = torch.from_numpy(np.ascontiguousarray(video)).permute(0, 3, 1, 2).float()
    for _ in range(amount):
        pixels = torch.nn.functional.avg_pool2d(pixels, 3, 1, 1, count_include_pad=False)
    return pixels.permute(0, 2, 3, 1).numpy()


def freeze(video, share, random):
    kept = round(len(video) * (1 - share))
    return np.concatenate([video[:kept], np.repeat(video[kept - 1 : kept], len(video) - kept, axis=0)])


def features(videos, extractor):
    small = (shrink(torch.from_numpy(np.ascontiguousarray(v).astype(np.uint8))) for v in videos)
    return torch.cat([extractor(window_pixels(v, 16, 1)) for v in small]).double().numpy()


@pytest.fixture(scope="module")
def clips():
    return [moving_clip(seed) for seed in range(48)]


CORRUPTIONS = [
    (noise, (0.02, 0.05, 0.1)),
    (flicker, (0.02, 0.05, 0.1)),
    (jitter, (0.7, 1.5, 3.0)),
    (shuffle, (4, 8, 16)),
    (blur, (1, 4, 12)),
    (freeze, (0.25, 0.5, 0.75)),
]


@pytest.mark.parametrize("extractor", EXTRACTORS.values(), ids=lambda e: e.name)
@pytest.mark.parametrize(("corrupt", "strengths"), CORRUPTIONS, ids=lambda c: getattr(c, "__name__", ""))
def test_distance_grows_with_every_corruption(clips, extractor, corrupt, strengths):
    real = Moments.of(features(clips, extractor))
    distances = []
    for strength in strengths:
        random = np.random.default_rng(0)
        broken = features([corrupt(clip, strength, random) for clip in clips], extractor)
        distances.append(real.distance(Moments.of(broken)))
    assert distances == sorted(distances)
    assert distances[0] > 0


@pytest.mark.parametrize("extractor", EXTRACTORS.values(), ids=lambda e: e.name)
def test_disorder_in_time_stands_out_from_the_floor_and_from_a_mere_shift(extractor):
    """Without the frame difference the convolutions would not notice the order of frames."""
    first, second = ([moving_clip(seed) for seed in range(start, start + 128)] for start in (1000, 2000))
    real = Moments.of(features(first, extractor))
    random = np.random.default_rng(0)

    def distance(videos):
        return Moments.of(features(videos, extractor)).standardised(real).distance(real.standardised(real))

    floor, moved = distance(second), distance([shift(v, 2, 2) for v in second])
    assert distance([shuffle(v, 16, random) for v in second]) > 2.5 * floor
    assert distance([jitter(v, 2.0, random) for v in second]) > 5.0 * max(floor, moved)
