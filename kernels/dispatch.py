"""Which code runs an operation: Triton on a GPU, the CPU paths on a CPU.

SOSTENUTO_KERNELS = triton | cpu | reference demands one; a demand that cannot be met is an error, never
another path. Which path runs, and why, is logged once by the logger `sostenuto.kernels`.
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
_PATHS = ("triton", "cpu", "reference")
_log = logging.getLogger("sostenuto.kernels")


def path_for(device: torch.device) -> str:
    """`triton`, `cpu` or `reference`: the path for tensors on a device.

    Raises:
        RuntimeError: the path is demanded, or is the only one for this device, and cannot run here.
    """
    demanded = os.environ.get(VARIABLE, "")
    if demanded:
        _check_demand(demanded, device)
        return demanded
    if device.type == "cuda":
        _check_demand("triton", device)
        return "triton"
    return "cpu" if device.type == "cpu" else "reference"


def _check_demand(path: str, device: torch.device) -> None:
    """Refuse a path that cannot run on a device."""
    if path not in _PATHS:
        raise RuntimeError(
            f"{VARIABLE}={path} names no path. Set it to one of {', '.join(_PATHS)}, or unset it"
        )
    if path == "cpu" and device.type != "cpu":
        raise RuntimeError(
            f"{VARIABLE}=cpu cannot run on tensors on {device}. "
            f"Move the model to the CPU, or unset {VARIABLE}"
        )
    if path != "triton":
        return
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != "cuda" and not interpreted:
        raise RuntimeError(
            f"the Triton kernels cannot run on tensors on {device}. Move the model to a GPU, interpret them "
            f"with TRITON_INTERPRET=1 (slow), or unset {VARIABLE}"
        )
    if not _has_triton():
        raise RuntimeError(
            "the Triton kernels need the package triton (3.6 to 3.9), which is not installed. "
            f"Install it, or set {VARIABLE}=reference"
        )


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@cache
def _announce(operation: str, path: str, reason: str) -> None:
    """Log a choice, once."""
    _log.info("%s runs the %s path: %s", operation, path, reason)


def module_for(operation: str, device: torch.device, modules: dict[str, str]) -> ModuleType:
    """The module that serves an operation on a device; modules maps the paths to names in this package."""
    path = path_for(device)
    demanded = bool(os.environ.get(VARIABLE))
    _announce(operation, path, f"{VARIABLE} demands it" if demanded else f"tensors are on {device.type}")
    return importlib.import_module(f"kernels.{modules[path]}")
