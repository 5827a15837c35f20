import logging
import subprocess
import sys

import pytest
import torch

from kernels import dispatch, ops, reference
from kernels.attention import cpu as window_attention_cpu
from tests.kernels.helpers import qkv, score_by, windows


@pytest.fixture(autouse=True)
def _no_demand(monkeypatch):
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def score(rows=4, **changes):
    names = ("x0", "x_t", "t", "v_cond", "v_uncond", "v_fake")
    given = dict(zip(names, windows(rows, 3), strict=True))
    return ops.reverse_kl_score(**{**given, "guidance_scale": 2.0, "normalizer": "window", **changes})


def attend(shape=(1, 2, 12, 16), **changes):
    q, k, v = qkv(shape)
    return ops.window_attention(**{"q": q, "k": k, "v": v, "tokens_per_frame": 2, "window": 1, **changes})


def test_cpu_tensors_run_the_cpu_path():
    assert dispatch.path_for(torch.device("cpu")) == "cpu"
    q, k, v = qkv((1, 2, 12, 16))
    expected, _ = window_attention_cpu.forward(q, k, v, reference.WindowOptions(2, 1, 0.25))
    assert torch.equal(attend(), expected)


@pytest.mark.parametrize("demanded", ["cpu", "reference"])
def test_a_demand_is_obeyed(monkeypatch, demanded):
    monkeypatch.setenv(dispatch.VARIABLE, demanded)
    module = {"cpu": window_attention_cpu, "reference": reference}[demanded]
    called = []
    real = module.forward
    monkeypatch.setattr(module, "forward", lambda *given: called.append(1) or real(*given))
    attend()
    assert called


def test_other_devices_without_a_path_run_the_reference():
    assert dispatch.path_for(torch.device("meta")) == "reference"


@pytest.mark.parametrize(
    ("demanded", "device", "remedy"),
    [
        ("triton", "cpu", "TRITON_INTERPRET=1"),
        ("cpu", "cuda", "Move the model to the CPU"),
        ("fast", "cpu", "triton, cpu, reference"),
    ],
)
def test_an_impossible_demand_is_an_error_with_the_remedy(monkeypatch, demanded, device, remedy):
    monkeypatch.setenv(dispatch.VARIABLE, demanded)
    with pytest.raises(RuntimeError, match=remedy):
        dispatch.path_for(torch.device(device))


def test_a_gpu_without_triton_is_an_error_not_another_path(monkeypatch):
    monkeypatch.setattr(dispatch, "_has_triton", lambda: False)
    with pytest.raises(RuntimeError, match="SOSTENUTO_KERNELS=reference"):
        dispatch.path_for(torch.device("cuda"))


def test_the_choice_is_logged_once(caplog):
    dispatch._log_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="sostenuto.kernels"):
        attend()
        attend()
        score()
    assert [r.getMessage() for r in caplog.records] == [
        "window_attention runs the cpu path: tensors are on cpu",
        "reverse_kl_score runs the cpu path: tensors are on cpu",
    ]


def test_the_package_imports_and_runs_without_triton():
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch; from kernels import ops\n"
        "x = torch.ones(1, 1, 4, 16)\n"
        "assert torch.equal(ops.window_attention(x, x, x, tokens_per_frame=1, window=1), x)\n"
        "assert torch.equal(ops.dense_attention(x, x, x), x)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("window", [5, 6, 1000])
def test_a_window_over_the_whole_clip_is_dense_attention(window):
    q, k, v = qkv((1, 2, 12, 16))
    assert torch.equal(attend(window=window), ops.dense_attention(q, k, v))


def test_every_path_means_the_same():
    truth = score_by(reference, *windows(4, 3), guidance_scale=2.0, normalizer="sample", windows_per_sample=2)
    result = score(normalizer="sample", windows_per_sample=2)
    assert all(torch.allclose(a, b) for a, b in zip(result, truth, strict=True))
    out, lse = attend(return_lse=True)
    assert out.shape == (1, 2, 12, 16)
    assert lse.shape == (1, 2, 12)


BAD_ATTENTION = {
    "not whole frames": {"tokens_per_frame": 5},
    "negative": {"window": -1},
    "one per sample": {"valid_frames": torch.tensor([1, 2])},
    "integers": {"valid_frames": torch.tensor([1.0])},
    "torch.bool": {"valid_frames": torch.tensor([True])},
    "on meta": {"valid_frames": torch.ones(1, dtype=torch.int64, device="meta")},
    "use dense_attention": {"k": torch.ones(1, 2, 6, 16).double(), "v": torch.ones(1, 2, 6, 16).double()},
    "from query_frame=-1": {"query_frame": -1},
    "not among 6": {"query_frame": 1},
    "Give those of all frames": {"q": torch.ones(1, 2, 6, 16).double(), "wrap": True},
    "do not fit": {"v": torch.ones(1, 2, 6, 16)},
    "one floating-point dtype": {"k": torch.ones(1, 2, 12, 16).half()},
    "is empty": {name: torch.ones(0, 2, 12, 16) for name in "qkv"},
}


@pytest.mark.parametrize("message", BAD_ATTENTION)
def test_attention_refuses(message):
    with pytest.raises(ValueError, match=message):
        attend(**BAD_ATTENTION[message])


BAD_SCORES = {
    "without v_uncond": {"v_uncond": None},
    "unknown normalizer 'batch'. Use one of window, sample, block": {"normalizer": "batch"},
    "not whole videos": {"windows_per_sample": 3},
    "must be positive": {"block_frames": 0},
    "floor=0": {"floor": 0},
    "v_fake is": {"v_fake": torch.ones(4, 3)},
    "t is \\[1\\]": {"t": torch.ones(1)},
    "Give floating-point windows": {"x0": torch.ones(4)},
}


@pytest.mark.parametrize("message", BAD_SCORES)
def test_the_score_refuses(message):
    with pytest.raises(ValueError, match=message):
        score(**BAD_SCORES[message])


@pytest.mark.parametrize(("starts", "length"), [([], 2), ([-1], 2), ([9], 2), ([0], 0)])
def test_windows_outside_the_video_are_refused(starts, length):
    with pytest.raises(ValueError, match="do not lie in 10 frames"):
        ops.window_gather(torch.ones(1, 10, 1), starts, length)
    with pytest.raises(ValueError, match="do not lie in 10 frames"):
        ops.window_scatter(torch.ones(1, length, 1), starts, 10)


def test_scatter_refuses_half_videos_and_a_coverage_of_another_length():
    with pytest.raises(ValueError, match="not whole videos of 2"):
        ops.window_scatter(torch.ones(3, 2, 1), [0, 1], 10)
    with pytest.raises(ValueError, match="one number per frame"):
        ops.window_scatter(torch.ones(2, 2, 1), [0, 1], 10, torch.ones(9))
    assert ops.window_gather(torch.ones(2, 10, 1), [0, 8], 2).shape == (4, 2, 1)
    assert ops.window_scatter(torch.ones(4, 2, 1), [0, 8], 10).sum() == 8


def test_a_key_mask_of_another_shape_is_refused():
    q, k, v = qkv((1, 2, 12, 16))
    with pytest.raises(ValueError, match="key_mask"):
        ops.dense_attention(q, k, v, key_mask=torch.ones(1, 11, dtype=torch.bool))
