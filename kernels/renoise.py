# ruff: noqa: N803
"""x_t = (1 - t) x0 + t eps in Triton, the noise made in registers; `renoise_cpu` says which noise.

Its integers are those of the CPU, bit for bit; its floats differ by the last bits of log, sine and cosine.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.aot_case import AotCase

BLOCK = 2048
"""Elements a program: loads and stores are of 128 bits."""
WARPS = 8
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""Types of x0; arithmetic is float32."""


@triton.jit  # type: ignore[untyped-decorator]
def _cos_sin(word: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Cosine and sine of word / 2^32 turns, by the polynomials of Cephes' sinf on an eighth of a turn.

    The library's functions reduce arguments of any size, which costs a stack.
    """
    quarter = (word + 0x20000000) >> 30
    x = (word - (quarter << 30)).to(tl.int32, bitcast=True).to(tl.float32) * 1.462918079e-9
    z = x * x
    cos = ((2.443315711809948e-5 * z - 1.388731625493765e-3) * z + 4.166664568298827e-2) * z * z
    cos += 1.0 - 0.5 * z
    sin = ((-1.9515295891e-4 * z + 8.3321608736e-3) * z - 1.6666654611e-1) * z * x + x
    odd = (quarter & 1) == 1
    first, second = tl.where(odd, -sin, cos), tl.where(odd, cos, sin)
    half = (quarter & 2) == 2
    return tl.where(half, -first, first), tl.where(half, -second, second)


@triton.jit  # type: ignore[untyped-decorator]
def _box_muller(length: tl.tensor, angle: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Two normals from two words."""
    u = length.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10
    radius = tl.sqrt(-2.0 * tl.log(u))
    cos, sin = _cos_sin(angle)
    return radius * cos, radius * sin


@triton.jit  # type: ignore[untyped-decorator]
def words(
    seed: tl.tensor, number: tl.tensor, sample: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Four blocks of 32-bit words: Philox of the counters (number, sample), int64 blocks, under key seed."""
    w0, w1, w2, w3 = tl.philox(
        seed,
        number.to(tl.uint32),
        (number >> 32).to(tl.uint32),
        sample.to(tl.uint32),
        (sample >> 32).to(tl.uint32),
    )
    return w0, w1, w2, w3


@triton.jit(do_not_specialize=["seed", "tiles"])  # type: ignore[untyped-decorator]
def renoise_kernel(
    x0: tl.tensor,
    t: tl.tensor,
    samples: tl.tensor,
    x_t: tl.tensor,
    eps: tl.tensor,
    seed: tl.tensor,
    stride_row: tl.tensor,
    tiles: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """One tile of one row of x0 [N, stride_row]."""
    program = tl.program_id(0)
    row, tile = program // tiles, (program % tiles).to(tl.int64)
    first = row.to(tl.int64) * stride_row + tile * BLOCK
    lane = tl.arange(0, BLOCK)
    inside = lane < tl.minimum(stride_row - tile * BLOCK, BLOCK).to(tl.int32)
    time = tl.load(t + row).to(tl.float32)
    number = tile * (BLOCK // 4) + tl.arange(0, BLOCK // 4)
    w0, w1, w2, w3 = words(seed, number, tl.load(samples + row) + number - number)
    z0, z1 = _box_muller(w0, w1)
    z2, z3 = _box_muller(w2, w3)
    noise = tl.reshape(tl.join(tl.join(z0, z2), tl.join(z1, z3)), (BLOCK,)).to(eps.dtype.element_ty)
    clean = tl.load(x0 + first + lane, mask=inside, other=0.0).to(tl.float32)
    noisy = (1.0 - time) * clean + time * noise.to(tl.float32)
    tl.store(eps + first + lane, noise, mask=inside)
    tl.store(x_t + first + lane, noisy.to(x_t.dtype.element_ty), mask=inside)


def renoise(x0: Tensor, t: Tensor, seed: int, samples: Tensor) -> tuple[Tensor, Tensor]:
    """`renoise_cpu.renoise` on a GPU, or on the CPU under Triton's interpreter.

    Raises:
        ValueError: x0 is float64.
    """
    if x0.dtype not in DTYPES:
        raise ValueError(
            f"Triton's renoise has no kernel for {x0.dtype}. Use float32, float16 or bfloat16, or set "
            "SOSTENUTO_KERNELS=reference"
        )
    clean = x0.contiguous()
    x_t, eps = torch.empty_like(clean), torch.empty_like(clean)
    size = clean[0].numel()
    tiles = triton.cdiv(size, BLOCK)
    tensors = (clean, t.contiguous(), samples.contiguous(), x_t, eps)
    with torch.cuda.device_of(x0):
        renoise_kernel[(len(clean) * tiles,)](
            *tensors, seed, size, tiles, BLOCK=BLOCK, num_warps=WARPS, enable_fp_fusion=True
        )
    return x_t, eps


def aot_cases() -> list[AotCase]:
    """Every configuration that is shipped."""
    types = {"t": "*fp32", "samples": "*i64", "seed": "i64"}
    return [
        AotCase(
            f"renoise_kernel_{dtype}",
            renoise_kernel,
            types | dict.fromkeys(("x0", "x_t", "eps"), f"*{dtype}"),
            {"BLOCK": BLOCK},
            {"num_warps": WARPS},
            wide_loads=True,
            everywhere=dtype == "bf16",
        )
        for dtype in ("fp32", "fp16", "bf16")
    ]
