"""Where networks compute."""

import torch

from models.errors import ConfigError


def compute_device(use_gpu: bool) -> torch.device:
    """This process's GPU, or the CPU.

    Raises:
        ConfigError: a GPU is wanted and torch sees none.
    """
    if use_gpu and not torch.cuda.is_available():
        raise ConfigError(
            "cluster.use_gpu is true, and torch sees no GPU here",
            "Run it where there is one, or set cluster.use_gpu=false, which takes very much longer",
        )
    return torch.device("cuda" if use_gpu else "cpu")
