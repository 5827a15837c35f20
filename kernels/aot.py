"""Compiles every shipped kernel for GPUs that are not here, and judges what comes out.

Triton compiles without a GPU, and its package brings the disassembler: registers, spills, shared memory and
tensor-core instructions are known on any machine. Triton keeps what it has compiled: a second run is quick.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.aot_case import AotCase
from kernels.attention import triton as window_attention
from kernels.score import triton as reverse_kl

TARGETS = {
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_80": GPUTarget("cuda", 80, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
"""Hopper, Ampere and AMD's MI300."""
SHARED_BYTES = {"sm_90": 232_448, "sm_80": 166_912, "gfx942": 65_536}
"""Shared memory a program may have."""
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


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


def cases() -> list[AotCase]:
    """Every configuration that is shipped."""
    return [*window_attention.aot_cases(), *reverse_kl.aot_cases()]


def compile_case(case: AotCase, target: str) -> Compiled:
    """Compiles one configuration and reads its code.

    Raises:
        triton.CompilationError: it does not compile.
    """
    signature = {
        p.name: "constexpr" if p.name in case.constants else case.types.get(p.name, "i32")
        for p in case.kernel.params
    }
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or name.startswith("stride_")
    }
    source = ASTSource(case.kernel, signature, case.constants, aligned)
    options = {"enable_fp_fusion": True, **case.options}
    if target == "gfx942" and "num_stages" in options:
        options["num_stages"] = min(options["num_stages"], window_attention.AMD_STAGES)
    compiled = triton.compile(source, target=TARGETS[target], options=options)
    return judge(case, target, compiled)


def judge(case: AotCase, target: str, compiled: Any) -> Compiled:
    """What a compiled kernel's code holds, and whether that is what the configuration has to show."""
    found = _amd(compiled.asm["amdgcn"]) if target == "gfx942" else _nvidia(compiled.asm["cubin"], target)
    shared = int(compiled.metadata.shared)
    good = shared <= SHARED_BYTES[target]
    if target == "sm_90":
        good = good and (found["tensor_core_ops"] > 0) == case.tensor_cores
        good = good and not found["older_tensor_core_ops"]
        good = good and (found["wide_loads"] > 0 or not case.wide_loads)
        good = good and not found["spill_stores"]
    return Compiled(case.name, target, shared_bytes=shared, ok=good, **found)


def _nvidia(cubin: bytes, target: str) -> dict[str, int]:
    """Counts in the machine code of an NVIDIA target."""
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
    """Counts in the assembly of an AMD target."""

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
    """What a tool of Triton's package prints."""
    return subprocess.run([str(_TOOLS / tool), *words], capture_output=True, text=True, check=True).stdout


def work() -> list[tuple[AotCase, str]]:
    """Every configuration on Hopper, and those that say so on the other targets too."""
    everything = cases()
    elsewhere = [case for case in everything if case.everywhere]
    return [(case, "sm_90") for case in everything] + [
        (case, target) for target in ("sm_80", "gfx942") for case in elsewhere
    ]


def report(processes: int, chosen: Iterable[tuple[AotCase, str]] | None = None) -> Iterator[Compiled]:
    """Compiles all the work in so many processes; yields in order.

    Args:
        processes: how many compile side by side.
        chosen: another selection than `work`.
    """
    given = list(work() if chosen is None else chosen)
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        yield from pool.map(_compile_named, [case.name for case, _ in given], [target for _, target in given])


def _compile_named(name: str, target: str) -> Compiled:
    """`compile_case` in another process, where kernels are other objects of the same name."""
    return compile_case(next(case for case in cases() if case.name == name), target)
