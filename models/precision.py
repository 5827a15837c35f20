"""In which numbers networks compute."""

import torch


def half_precision(device: torch.device, enabled: bool = True) -> torch.autocast:
    """A region in which networks compute in bfloat16 from float32 weights.

    Weights are cast at each use: a step updates the critic within the region, and a copy that was kept would
    be one update old.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled, cache_enabled=False)
