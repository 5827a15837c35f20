"""Compiles every shipped kernel for GPUs that are not here, and judges the machine code.

Triton compiles without a GPU, and its package brings the disassembler: registers, spills, shared memory and
tensor-core instructions are known on any machine. Triton caches what it has compiled: a second run is quick.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.attention import triton as attention
from kernels.attention import triton_kernels
from kernels.score import triton as score

TARGETS = {
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_80": GPUTarget("cuda", 80, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
"""Hopper, Ampere and AMD's MI300."""
SHARED_BYTES = {"sm_90": 232_448, "sm_80": 166_912, "gfx942": 65_536}
"""Shared memory that one program may use."""
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
ATTENTION = [
    ("fp32", 4096, 64, ""),
    ("fp32", 4096, 128, ""),
    ("fp16", 4096, 128, ""),
    ("bf16", attention.FEW_TOKENS, 64, ""),
    ("bf16", attention.FEW_TOKENS, 128, ""),
    ("bf16", 4096, 24, ""),
    ("bf16", 4096, 24, "loose"),
    ("bf16", 4096, 64, ""),
    ("bf16", 4096, 96, ""),
    ("bf16", 4096, 128, ""),
    ("bf16", 4096, 128, "wrap"),
    ("bf16", 4096, 128, "part"),
]
"""Shipped configurations of windowed attention: dtype, tokens, head dimension, and the kind: frames on a
ring, the queries of some, or strides that are no multiples of 16, as those of heads of 24 in [B, N, H, D]."""
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Configuration:
    """A kernel with everything that decides its code, and what that code must show on sm_90."""

    name: str
    kernel: Any
    types: dict[str, str]
    """Of arguments; int32 where none is named. Pointers are multiples of 16."""
    constants: dict[str, Any]
    options: dict[str, int]
    """num_warps and num_stages."""
    tensor_cores: bool = False
    """Warp-group instructions (HGMMA) and none of the older ones (HMMA); if False, neither."""
    wide_loads: bool = False
    """Global loads of 128 bits."""
    everywhere: bool = False
    """Compiled for the other targets too."""
    aligned: bool = True
    """`stride_*` are multiples of 16, too."""


@dataclass(frozen=True)
class Compiled:
    """A configuration's code for one target."""

    name: str
    target: str
    registers: int
    spill_stores: int
    shared_bytes: int
    tensor_core_ops: int
    """HGMMA on sm_90, HMMA on sm_80, MFMA on gfx942."""
    older_tensor_core_ops: int
    """HMMA on sm_90."""
    wide_loads: int
    """Global loads of 128 bits."""
    ok: bool


def configurations() -> Iterator[Configuration]:
    """Every shipped configuration."""
    for dtype, tokens, head_dim, kind in ATTENTION:
        tiles = attention.tiles_for(tokens, head_dim, DTYPES[dtype], interpreted=False)
        length = "few" if tokens <= attention.FEW_TOKENS else "many"
        for kernel_name, tile in tiles._asdict().items():
            kernel = getattr(triton_kernels, f"{kernel_name}_kernel")
            yield Configuration(
                f"{kernel_name}_{dtype}_{head_dim}_{length}{f'_{kind}' if kind else ''}",
                kernel,
                _attention_types(dtype),
                {
                    **attention.constants_for(head_dim, tile),
                    "STEP": tile.step,
                    "WRAP": kind == "wrap",
                    "PART": kind == "part",
                },
                {"num_warps": tile.warps, "num_stages": tile.stages},
                tensor_cores=dtype != "fp32",
                everywhere=dtype == "bf16" and kind in ("", "loose") and head_dim in (24, 128),
                aligned=kind != "loose",
            )
    for dtype, torch_dtype in DTYPES.items():
        tile = attention.tiles_for(4096, 128, torch_dtype, interpreted=False).query_gradients
        yield Configuration(
            f"delta_{dtype}",
            triton_kernels.delta_kernel,
            _attention_types(dtype),
            attention.constants_for(128, tile),
            {"num_warps": tile.warps, "num_stages": tile.stages},
        )

    types = dict.fromkeys(("t", "tile_sums", "norm", "distance_real", "distance_fake", "loss"), "*fp32")
    types |= {"guidance_scale": "fp32", "floor": "fp32", "non_finite": "*i64"}
    options = {"num_warps": score.WARPS}
    for dtype, torch_dtype in DTYPES.items():
        tensors = dict.fromkeys(("x0", "x_t", "v_cond", "v_uncond", "v_fake", "score"), f"*{dtype}")
        for kernel in (score.sum_kernel, score.score_kernel):
            for guided in (True, False):
                yield Configuration(
                    f"reverse_kl_{kernel.__name__}_{dtype}{'_guided' if guided else ''}",
                    kernel,
                    types | tensors,
                    {"GUIDED": guided, "BLOCK": score.BLOCKS[torch_dtype]},
                    options,
                    wide_loads=True,
                    everywhere=dtype == "bf16",
                )
    for kernel in (score.norm_kernel, score.total_kernel):
        name, constants = f"reverse_kl_{kernel.__name__}", {"CHUNK": score.CHUNK}
        yield Configuration(name, kernel, types, constants, options, everywhere=True)


def _attention_types(dtype: str) -> dict[str, str]:
    types = dict.fromkeys(("q", "k", "v", "out", "grad", "grad_q", "grad_k", "grad_v"), f"*{dtype}")
    types |= {"lse": "*fp32", "delta": "*fp32", "valid_frames": "*i32", "scale": "fp32"}
    return types | {f"stride_{x}{axis}": "i64" for x in "qkvg" for axis in "bhn"}


def compile_for(target: str, configuration: Configuration) -> Compiled:
    """Compiles one configuration and reads its code.

    Raises:
        triton.CompilationError: it does not compile.
    """
    signature = {
        p.name: "constexpr" if p.name in configuration.constants else configuration.types.get(p.name, "i32")
        for p in configuration.kernel.params
    }
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or (configuration.aligned and name.startswith("stride_"))
    }
    source = ASTSource(configuration.kernel, signature, configuration.constants, aligned)
    options = {"enable_fp_fusion": True, **configuration.options}
    if target == "gfx942" and "num_stages" in options:
        options["num_stages"] = min(options["num_stages"], attention.AMD_STAGES)
    compiled = triton.compile(source, target=TARGETS[target], options=options)
    found = _amd(compiled.asm["amdgcn"]) if target == "gfx942" else _nvidia(compiled.asm["cubin"], target)
    shared = int(compiled.metadata.shared)
    ok = shared <= SHARED_BYTES[target]
    if target == "sm_90":
        ok = ok and (found["tensor_core_ops"] > 0) == configuration.tensor_cores
        ok = ok and not found["older_tensor_core_ops"]
        ok = ok and (found["wide_loads"] > 0 or not configuration.wide_loads)
        ok = ok and not found["spill_stores"]
    return Compiled(configuration.name, target, shared_bytes=shared, ok=ok, **found)


def _nvidia(cubin: bytes, target: str) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        code = _run("nvdisasm", str(path))
        usage = _run("cuobjdump", "-res-usage", str(path))

    def count(pattern: str) -> int:
        return len(re.findall(pattern, code))

    older = count(r"\bHMMA\.")
    return {
        "registers": int(re.findall(r"REG:(\d+)", usage)[-1]),
        "spill_stores": count(r"\bSTL\b"),
        "tensor_core_ops": count(r"\bHGMMA\.") if target == "sm_90" else older,
        "older_tensor_core_ops": older if target == "sm_90" else 0,
        "wide_loads": count(r"\bLDG\.E\.(?:[A-Z]+\.)*128\b"),
    }


def _amd(code: str) -> dict[str, int]:
    def last(name: str) -> int:
        return int(re.findall(rf"\.{name}:\s*(\d+)", code)[-1])

    return {
        "registers": last("vgpr_count"),
        "spill_stores": last("vgpr_spill_count"),
        "tensor_core_ops": len(re.findall(r"\bv_mfma_", code)),
        "older_tensor_core_ops": 0,
        "wide_loads": len(re.findall(r"\b(?:global|buffer)_load_dwordx4\b", code)),
    }


def _run(tool: str, *words: str) -> str:
    return subprocess.run([str(_TOOLS / tool), *words], capture_output=True, text=True, check=True).stdout


def compilations() -> list[tuple[str, Configuration]]:
    """What to compile for which target: everything for Hopper, then `everywhere` for the others."""
    shipped = list(configurations())
    others = [(target, case) for target in ("sm_80", "gfx942") for case in shipped if case.everywhere]
    return [("sm_90", case) for case in shipped] + others


def report(processes: int) -> Iterator[Compiled]:
    """Compiles all there is in so many processes; yields in the order of `compilations`."""
    everything = [(target, case.name) for target, case in compilations()]
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        yield from pool.map(_compile_named, *zip(*everything, strict=True))


def _compile_named(target: str, name: str) -> Compiled:
    """Configurations travel to another process by name: Triton's kernels cannot be pickled."""
    return compile_for(target, next(case for case in configurations() if case.name == name))
