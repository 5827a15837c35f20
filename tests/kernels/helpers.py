"""Brute force and measures shared by the tests of the kernels."""

import torch

from kernels import reference

OPTIONS = [
    {},
    {"valid_frames": [3, 0]},
    {"wrap": True},
    {"wrap": True, "valid_frames": [4, 5]},
]


def options_for(options, batch):
    """Options with `valid_frames` as a tensor of the batch's length."""
    if "valid_frames" not in options:
        return dict(options)
    return {**options, "valid_frames": torch.tensor(options["valid_frames"])[:batch]}


def normal(shape, generator):
    """Normal numbers of a CPU generator, on torch's default device: the same on every one."""
    return torch.randn(shape, generator=generator, device="cpu").to(torch.get_default_device())


def qkv(shape, seed=0, dtype=torch.float64, transposed=False):
    """Random q, k, v of [B, heads, tokens, D]; `transposed` lays them out as [B, tokens, heads, D]."""
    generator = torch.Generator().manual_seed(seed)
    batch, heads, tokens, dim = shape
    if not transposed:
        return [normal(shape, generator).to(dtype) for _ in range(3)]
    return [normal((batch, tokens, heads, dim), generator).to(dtype).transpose(1, 2) for _ in range(3)]


def relative(value, truth):
    """|value - truth| / |truth| in float64; a truth of less than 0.1 counts as 0.1."""
    truth = truth.double()
    return ((value.double() - truth).norm() / truth.norm().clamp_min(0.1)).item()


def gradients(function, inputs, weight):
    """Output and the gradients of sum(output * weight)."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    return out.detach(), torch.autograd.grad(out, leaves, weight.to(out.dtype))


def compare(function, shape, dtype=torch.float32, transposed=False, seed=0, **options):
    """Largest relative error of output and gradients against the float64 reference."""
    inputs = qkv(shape, seed, dtype, transposed)
    weight = qkv(shape, seed + 1)[0]
    out, grads = gradients(lambda q, k, v: function(q, k, v, **options), inputs, weight)
    exact = [x.double() for x in inputs]
    truth, true_grads = gradients(
        lambda q, k, v: reference.window_attention(q, k, v, **options), exact, weight
    )
    return relative(out, truth), max(relative(g, t) for g, t in zip(grads, true_grads, strict=True))


def score_by(module, *tensors, **options):
    """A path's reverse-KL score, called as `ops.reverse_kl_score` is."""
    return module.reverse_kl_score(reference.ScoreInputs(*tensors), reference.ScoreOptions(**options))


def windows(rows, frames, seed=0, dtype=torch.float64, inner=(3, 2, 2)):
    """x0, x_t, t, v_cond, v_uncond, v_fake of random windows."""
    generator = torch.Generator().manual_seed(seed)
    x0, x_t, cond, uncond, fake = (
        torch.randn(rows, frames, *inner, generator=generator).to(dtype) for _ in range(5)
    )
    t = torch.rand(rows, generator=generator).to(dtype)
    return x0, x_t, t, cond, uncond, fake
