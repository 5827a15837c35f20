"""What a room of kernels says of each configuration it ships, for kernels/aot.py to compile and judge."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class AotCase:
    """A kernel with everything that decides its code, and what that code has to show on sm_90.

    Args:
        name: of the configuration.
        kernel: Triton function.
        types: of its arguments; int32 where none is named. Pointers and `stride_*` are multiples of 16.
        constants: compile-time arguments.
        options: num_warps and num_stages.
        tensor_cores: warp-group instructions (HGMMA) and none of the older ones (HMMA), or neither.
        wide_loads: global loads of 128 bits.
        everywhere: it is compiled for the other targets too.
    """

    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    options: dict[str, int]
    tensor_cores: bool = False
    wide_loads: bool = False
    everywhere: bool = False
