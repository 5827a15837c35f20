import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import reference
from kernels.ops import window_gather, window_scatter

STARTS = st.lists(st.integers(0, 7), min_size=1, max_size=6)
RING = st.lists(st.integers(0, 9), min_size=1, max_size=6)
TILINGS = {
    "single": ([0], 10),
    "no overlap": ([0, 5], 5),
    "partial overlap": ([0, 3, 6], 4),
    "full overlap": ([2, 2, 2], 4),
    "gaps": ([1, 6], 2),
    "out of order": ([6, 0, 3], 4),
    "over the end": ([0, 4, 8], 4),
    "the whole ring from anywhere": ([7], 10),
}
"""First frames and length of windows over 10 frames, some on a ring."""


def video(batch=2, frames=10):
    return torch.randn(batch, frames, 3, 2, generator=torch.Generator().manual_seed(batch))


@settings(deadline=None, max_examples=40)
@given(STARTS, st.integers(1, 3))
def test_windows_are_slices_and_those_of_a_video_stand_together(starts, length):
    clips = video()
    windows = window_gather(clips, starts, length)
    assert torch.equal(windows, reference.window_gather(clips, starts, length))
    for row, window in enumerate(windows):
        start = starts[row % len(starts)]
        assert torch.equal(window, clips[row // len(starts), start : start + length])


@settings(deadline=None, max_examples=60)
@given(STARTS, st.integers(1, 3))
def test_a_frame_is_the_mean_of_the_windows_over_it(starts, length):
    windows = torch.randn(2 * len(starts), length, 3, generator=torch.Generator().manual_seed(1))
    frames = window_scatter(windows, starts, 10)
    assert torch.allclose(frames, reference.window_scatter(windows, starts, 10), atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(STARTS, st.integers(1, 3))
def test_scatter_undoes_gather_where_a_window_covers(starts, length):
    clips = video()
    covered = torch.zeros(10, dtype=torch.bool)
    for start in starts:
        covered[start : start + length] = True
    back = window_scatter(window_gather(clips, starts, length), starts, 10)
    assert torch.allclose(back[:, covered], clips[:, covered])
    assert not back[:, ~covered].any()


def test_scattered_ones_are_ones():
    starts = [0, 3, 5, 5, 6]
    assert torch.equal(window_scatter(torch.ones(10, 4, 1), starts, 10), torch.ones(2, 10, 1))


def test_a_given_coverage_divides():
    coverage = torch.tensor([2, 4, 1, 0])
    frames = window_scatter(torch.ones(1, 3, 1), [0], 4, coverage)
    assert frames.flatten().tolist() == [0.5, 0.25, 1.0, 0.0]


def test_a_frame_no_window_covers_is_zero_even_where_windows_hold_nan():
    frames = window_scatter(torch.full((1, 2, 1), float("nan")), [1], 4)
    assert frames.flatten().isnan().tolist() == [False, True, True, False]


def test_half_precision_is_summed_in_float32():
    windows = torch.full((300, 1, 1), 1.01, dtype=torch.bfloat16)
    frames = window_scatter(windows, [0] * 300, 1)
    assert frames.dtype == torch.bfloat16
    assert torch.equal(frames.flatten(), windows[0].flatten())


def test_gather_is_the_adjoint_of_the_undivided_scatter():
    clips, starts = video().double(), [0, 2, 2, 6]
    windows = torch.randn(8, 3, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    ones = torch.ones(10)
    left = (window_gather(clips, starts, 3) * windows).sum()
    right = (clips * window_scatter(windows, starts, 10, ones)).sum()
    assert torch.allclose(left, right)


def test_both_carry_gradients():
    clips = video(1).double().requires_grad_()
    starts = [0, 1, 7]
    assert torch.autograd.gradcheck(lambda x: window_gather(x, starts, 3), clips)
    windows = torch.randn(3, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: window_scatter(x, starts, 10), windows)


@pytest.mark.parametrize("name", TILINGS)
def test_every_tiling_is_the_definition_and_weighs_each_frame_once(name):
    starts, length = TILINGS[name]
    wrap = "ring" in name or "end" in name
    clips = video()
    windows = window_gather(clips, starts, length, wrap=wrap)
    assert torch.equal(windows, reference.window_gather(clips, starts, length))
    back = window_scatter(windows, starts, 10, wrap=wrap)
    assert torch.allclose(back, reference.window_scatter(windows, starts, 10))
    covered = torch.zeros(10, dtype=torch.bool)
    for start in starts:
        covered[[(start + i) % 10 for i in range(length)]] = True
    assert torch.allclose(back, clips * covered[:, None, None])


@settings(deadline=None, max_examples=60)
@given(RING, st.integers(1, 10))
def test_on_a_ring_no_frame_is_special(starts, length):
    windows = torch.randn(2 * len(starts), length, 3, generator=torch.Generator().manual_seed(1))
    frames = window_scatter(windows, starts, 10, wrap=True)
    assert torch.allclose(frames, reference.window_scatter(windows, starts, 10), atol=1e-6)
    turned = window_scatter(windows, [(start + 4) % 10 for start in starts], 10, wrap=True)
    assert torch.allclose(turned, frames.roll(4, 1), atol=1e-6)
    assert torch.equal(window_gather(frames.roll(4, 1), [4], 10, wrap=True), frames)


@pytest.mark.parametrize(("starts", "length"), [([10], 2), ([-1], 2), ([0], 11), ([0], 0)])
def test_windows_that_do_not_fit_on_the_ring_are_refused(starts, length):
    with pytest.raises(ValueError, match="Give one to 10 frames and starts from 0 to"):
        window_gather(video(), starts, length, wrap=True)
    with pytest.raises(ValueError, match="do not lie in 10 frames"):
        window_scatter(torch.ones(2, length, 1), starts, 10, wrap=True)


@pytest.mark.parametrize("wrap", [False, True])
def test_both_compile_to_one_graph_for_every_batch(wrap):
    starts = [0, 3, 8 if wrap else 6]

    def there_and_back(clips):
        return window_scatter(window_gather(clips, starts, 4, wrap=wrap), starts, 10, wrap=wrap)

    compiled = []

    def count(graph, _inputs):
        compiled.append(graph)
        return graph

    torch.compiler.reset()
    fast = torch.compile(there_and_back, fullgraph=True, dynamic=True, backend=count)
    for batch in (2, 3, 5):
        clips = torch.randn(batch, 10, 7, 9)
        assert torch.equal(fast(clips), there_and_back(clips))
    assert len(compiled) == 1


def test_meta_windows_have_shapes():
    windows = window_gather(video().to("meta"), [0, 5], 5)
    assert windows.shape == (4, 5, 3, 2)
    assert window_scatter(windows, [0, 5], 10).shape == (2, 10, 3, 2)
