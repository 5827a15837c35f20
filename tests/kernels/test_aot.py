"""The kernels compile for GPUs that are not here, to tensor-core instructions, without spilled registers."""

import re
import subprocess
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from kernels import reverse_kl, window_attention  # noqa: E402

HOPPER = GPUTarget("cuda", 90, 32)
SHARED_BYTES = 232_448


def compile_for(target, function, types, constants, **options):
    """The compiled kernel; arguments that are in neither table are int32."""
    signature = {
        p.name: "constexpr" if p.name in constants else types.get(p.name, "i32") for p in function.params
    }
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or name.startswith("stride")
    }
    source = ASTSource(function, signature, constants, aligned)
    return triton.compile(source, target=target, options={"enable_fp_fusion": True, **options})


def assembly(compiled, folder):
    """SASS of a compiled kernel, by the disassembler that comes with Triton."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
    if not tool.exists():
        pytest.skip("this Triton brings no disassembler")
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    return subprocess.run([str(tool), str(cubin)], capture_output=True, text=True, check=True).stdout


def attention(target, dim, dtype, any_frame=False):
    name = {torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]
    tile = window_attention.tile_for(4096, dim, dtype, interpreted=False)
    types = dict.fromkeys(("q", "k", "v", "out"), f"*{name}")
    types |= {"lse": "*fp32", "valid_frames": "*i32", "scale_log2": "fp32"}
    types |= {f"stride_{x}{axis}": "i64" for x in "qkv" for axis in "bhn"}
    constants = {
        "HEAD_DIM": dim,
        "BLOCK_D": max(16, triton.next_power_of_2(dim)),
        "BLOCK_M": tile.rows,
        "BLOCK_N": tile.columns,
        "ANY_FRAME": any_frame,
        "WRAP": any_frame,
        "UPCAST": False,
    }
    return compile_for(
        target,
        window_attention.forward_kernel,
        types,
        constants,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


@pytest.mark.parametrize(("dim", "any_frame"), [(128, False), (24, True)])
def test_attention_for_hopper_uses_its_tensor_cores_and_spills_nothing(tmp_path, dim, any_frame):
    compiled = attention(HOPPER, dim, torch.bfloat16, any_frame)
    text = assembly(compiled, tmp_path)
    assert "HGMMA" in text
    assert not re.search(r"\bSTL\b", text)
    assert compiled.metadata.shared <= SHARED_BYTES


def test_float32_attention_keeps_float32_products(tmp_path):
    text = assembly(attention(HOPPER, 64, torch.float32), tmp_path)
    assert "FFMA" in text
    assert "MMA.TF32" not in text
    assert not re.search(r"\bSTL\b", text)


def test_attention_compiles_for_ampere_and_for_amd():
    assert attention(GPUTarget("cuda", 80, 32), 128, torch.bfloat16).metadata.shared <= 166_912
    assert attention(GPUTarget("hip", "gfx942", 64), 64, torch.bfloat16).asm["hsaco"]


@pytest.mark.parametrize("case", reverse_kl.aot_cases(), ids=lambda case: case[0])
def test_the_score_compiles_for_hopper_to_wide_loads_without_spilling(tmp_path, case):
    _, kernel, types, constants, options = case
    text = assembly(compile_for(HOPPER, kernel, types, constants, **options), tmp_path)
    assert not re.search(r"\bSTL\b", text)
    if "BLOCK" in constants:
        assert len(re.findall(r"LDG\.E\.128", text)) >= 8
        assert not re.search(r"LDG\.E\.(64|U16|U8)", text)
