"""Where networks compute, and in which precision."""

import torch

from models.errors import ConfigError


def compute_device(use_gpu: bool) -> torch.device:
    """This process's GPU, or the CPU.

    Raises:
        ConfigError: `use_gpu`, but torch sees none.
    """
    if use_gpu and not torch.cuda.is_available():
        raise ConfigError(
            "cluster.use_gpu is true, but torch sees no GPU on this machine",
            "Run where there is one, or set cluster.use_gpu=false, which is far slower",
        )
    return torch.device("cuda" if use_gpu else "cpu")


def half_precision(device: torch.device, enabled: bool = True) -> torch.autocast:
    """A region in which networks compute in bfloat16 from float32 weights.

    Weights are cast anew at each use: a training step updates the critic inside the region, so a cached cast
    would lag one update behind.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled, cache_enabled=False)
