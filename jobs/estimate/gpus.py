"""GPUs that a dry run can be asked about."""

import difflib
from dataclasses import dataclass

from models.errors import ConfigError

USABLE = 0.92
"""Share of a GPU's memory that training can fill; the rest is the driver's or lost in gaps (assumed)."""

# Taken as GiB; the makers' data sheets say GB: NVIDIA A100, H100 SXM, H200, B200, L40S, GeForce RTX 4090 and
# 5090; AMD Instinct MI250X (one of its two dies), MI300X.
GIB = {
    "rtx4090": 24,
    "rtx5090": 32,
    "a100-40gb": 40,
    "l40s": 48,
    "mi250x": 64,
    "a100": 80,
    "h100": 80,
    "h200": 141,
    "b200": 180,
    "mi300x": 192,
}


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Args:
        name: as on the command line.
        bytes: its memory as its data sheet tells it.
    """

    name: str
    bytes: int

    @property
    def usable(self) -> int:
        """Bytes that training can fill."""
        return int(self.bytes * USABLE)


def gpu(name: str) -> Gpu:
    """The GPU of a name, in upper or lower case.

    Raises:
        ConfigError: the name is not known.
    """
    key = name.lower()
    if key not in GIB:
        near = difflib.get_close_matches(key, GIB, n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise ConfigError(f"there is no GPU {name!r} in the table", f"{hint}GPUs: {', '.join(GIB)}")
    return Gpu(key, GIB[key] << 30)


def smallest(needed: int) -> Gpu | None:
    """The smallest GPU of the table that holds `needed` bytes."""
    return next((one for one in map(gpu, sorted(GIB, key=GIB.__getitem__)) if one.usable >= needed), None)
