"""Which code runs an operation: Triton on a GPU, the CPU paths on a CPU, the reference anywhere else.

SOSTENUTO_KERNELS = triton | cpu | reference demands a path; a demand that cannot be met is an error, never
another path. The logger `sostenuto.kernels` says once which path runs, and why.
"""

import importlib
import importlib.util
import logging
import os
from functools import cache
from types import ModuleType

import torch

VARIABLE = "SOSTENUTO_KERNELS"
"""The environment variable that demands a path."""
PACKAGES = {"window_attention": "kernels.attention", "reverse_kl_score": "kernels.score"}
_PATHS = ("triton", "cpu", "reference")
_log = logging.getLogger("sostenuto.kernels")


def module_for(operation: str, device: torch.device) -> ModuleType:
    """The module that computes an operation on a device's tensors.

    Raises:
        RuntimeError: the path is demanded, or is the only one for this device, and cannot run here.
    """
    path = path_for(device)
    demanded = bool(os.environ.get(VARIABLE))
    _log_once(operation, path, f"{VARIABLE} demands it" if demanded else f"tensors are on {device.type}")
    name = "kernels.reference" if path == "reference" else f"{PACKAGES[operation]}.{path}"
    return importlib.import_module(name)


def path_for(device: torch.device) -> str:
    """`triton`, `cpu` or `reference`: the path for tensors on a device.

    Raises:
        RuntimeError: as `module_for`.
    """
    demanded = os.environ.get(VARIABLE, "")
    path = demanded or {"cuda": "triton", "cpu": "cpu"}.get(device.type, "reference")
    if path not in _PATHS:
        raise RuntimeError(
            f"{VARIABLE}={path} names no path. Set it to one of {', '.join(_PATHS)}, or unset it"
        )
    if path == "cpu" and device.type != "cpu":
        raise RuntimeError(
            f"{VARIABLE}=cpu cannot run on tensors on {device}. "
            f"Move the model to the CPU, or unset {VARIABLE}"
        )
    if path == "triton" and device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError(
            f"the Triton kernels cannot run on tensors on {device}. Move the model to a GPU, interpret them "
            f"with TRITON_INTERPRET=1 (slow), or unset {VARIABLE}"
        )
    if path == "triton" and not _has_triton():
        raise RuntimeError(
            "the Triton kernels need the package triton (3.6 to 3.9), which is not installed. "
            f"Install it, or set {VARIABLE}=reference"
        )
    return path


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@cache
def _log_once(operation: str, path: str, reason: str) -> None:
    _log.info("%s runs the %s path: %s", operation, path, reason)
