"""`sostenuto doctor`: what works here, what does not, and what to do about it."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jobs.config.paths import absolute_root, is_remote
from jobs.config.schema import RunConfig
from jobs.console import print_line
from models.errors import ClusterError, SostenutoError

DISK_BYTES, MEMORY_BYTES, SHARED_BYTES = 5 << 30, 4 << 30, 512 << 20
"""Disk and memory that the smallest preset needs, and shared memory for Ray's object store."""


@dataclass(frozen=True)
class Finding:
    verdict: Literal["ok", "warn", "fail"]
    found: str
    remedy: str = ""
    """What to do; empty where nothing is wrong."""


def doctor(config: RunConfig) -> None:
    """Print one line per check.

    Raises:
        ClusterError: a check failed; the table says what to do.
    """
    findings = examine(config)
    width = max(map(len, findings))
    for name, finding in findings.items():
        print_line(f"{finding.verdict:<5} {name:<{width}}  {finding.found}")
        if finding.remedy:
            print_line(f"      {'':<{width}}  -> {finding.remedy}")
    failed = [name for name, finding in findings.items() if finding.verdict == "fail"]
    if failed:
        problem = f"{len(failed)} check(s) failed: {', '.join(failed)}"
        raise ClusterError(problem, "Follow the remedies in the table, then run doctor again")


def examine(config: RunConfig) -> dict[str, Finding]:
    """Findings by the checks' names, in the table's order."""
    return {name: check(config) for name, check in CHECKS.items()}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_python(_config: RunConfig) -> Finding:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if not (3, 11) <= sys.version_info[:2] < (3, 13):
        return Finding("fail", found, "Use Python 3.11 or 3.12: make PYTHON=/path/to/python3.12")
    return Finding("ok", found)


def check_libraries(_config: RunConfig) -> Finding:
    names = ("torch", "ray", "mlflow", "pyarrow", "decord", "av", "triton")
    versions = {name: _version(name) for name in names}
    found = ", ".join(f"{name} {version or '-'}" for name, version in versions.items())
    missing = ", ".join(name for name, version in versions.items() if version is None and name != "triton")
    if missing:
        return Finding("fail", found, f"Install {missing}: pip install -c constraints.txt -e .")
    if importlib.util.find_spec("aiohttp_cors") is None:
        remedy = "pip install -c constraints.txt 'ray[default]'"
        return Finding("fail", f"{found}; ray without its dashboard", remedy)
    return Finding("ok", found)


def check_kernels_name(_config: RunConfig) -> Finding:
    """Our package `kernels` and the distribution of that name cannot be installed together."""
    version = _version("kernels")
    if version is not None:
        remedy = "It breaks transformers and diffusers, which would import ours: pip uninstall kernels"
        return Finding("fail", f"the distribution kernels {version} is installed", remedy)
    spec = importlib.util.find_spec("kernels")
    ours = Path(__file__).parents[2] / "kernels" / "__init__.py"
    if spec is None or spec.origin is None or Path(spec.origin).resolve() != ours.resolve():
        remedy = "Run from the repository's root, or pip install -e ."
        return Finding("fail", f"kernels is {spec and spec.origin}", remedy)
    return Finding("ok", "kernels is this repository's")


def check_token(_config: RunConfig) -> Finding:
    from jobs.commands.submit import token

    mode = os.environ.get("RAY_AUTH_MODE")
    if mode == "disabled":
        remedy = "Anyone who reaches the head can run code: set RAY_AUTH_MODE=token"
        return Finding("warn", "RAY_AUTH_MODE=disabled", remedy)
    if token() is None:
        if os.environ.get("RAY_ADDRESS"):
            remedy = "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
            return Finding("fail", "RAY_ADDRESS is set, but there is no token", remedy)
        return Finding("ok", "none; a local Ray makes its own")
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if "RAY_AUTH_TOKEN" not in os.environ and path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        return Finding("warn", f"{path} can be read by others", f"chmod 600 {path}")
    if mode is None:
        found = "a token, but RAY_AUTH_MODE is unset, so ray job gets 401"
        return Finding("warn", found, "export RAY_AUTH_MODE=token")
    return Finding("ok", f"RAY_AUTH_MODE={mode}, token present")


def check_codecs(_config: RunConfig) -> Finding:
    """Write a small H.264 clip and read it with both decoders."""
    import av
    import decord
    import numpy as np

    try:
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "clip.mp4")
            with av.open(path, "w") as container:
                stream = container.add_stream("libx264", rate=8)
                stream.width = stream.height = 64
                stream.pix_fmt = "yuv420p"
                for shade in (0, 120, 240):
                    frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), shade, np.uint8), format="rgb24")
                    container.mux(stream.encode(frame))
                container.mux(stream.encode(None))
            with av.open(path) as container:
                read = sum(1 for _ in container.decode(video=0))
            counted = len(decord.VideoReader(path))
    except (OSError, ValueError, RuntimeError, av.FFmpegError, decord.DECORDError) as error:
        remedy = "Reinstall: pip install --force-reinstall -c constraints.txt av decord"
        return Finding("fail", f"H.264: {str(error)[:120]}", remedy)
    if (read, counted) != (3, 3):
        found = f"3 frames written, PyAV read {read}, decord {counted}"
        return Finding("fail", found, "Install the versions in constraints.txt")
    return Finding("ok", "H.264 written, read by PyAV and decord")


def check_gpu(config: RunConfig) -> Finding:
    import torch

    if torch.cuda.is_available():
        names = (torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        return Finding("ok", ", ".join(names))
    if config.cluster.use_gpu and not os.environ.get("RAY_ADDRESS"):
        remedy = "Run on a cluster (sostenuto submit), or set cluster.use_gpu=false"
        return Finding("fail", "none, but cluster.use_gpu is true", remedy)
    return Finding("ok", f"none on this machine; {os.cpu_count()} CPU cores")


def check_tracking(config: RunConfig) -> Finding:
    from jobs.tracking import open_run, tracking_uri

    try:
        reference = open_run(config, "doctor")
        if reference is None:
            return Finding("ok", "tracking.enabled=false")
        reference().close()
    except SostenutoError as error:
        return Finding("fail", error.problem, error.remedy)
    return Finding("ok", f"{tracking_uri(config)} can be written")


def check_storage(config: RunConfig) -> Finding:
    """storage.root can be written and has room."""
    root = absolute_root(config.storage.root)
    try:
        if is_remote(root):
            import fsspec

            filesystem, path = fsspec.core.url_to_fs(root)
            filesystem.makedirs(path, exist_ok=True)
            filesystem.ls(path)
            return Finding("ok", f"{root} answers")
        Path(root).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root) as file:
            file.write(b"x")
        free = shutil.disk_usage(root).free
    except (OSError, ValueError, ImportError) as error:
        remedy = "Create the folder, correct its permissions, or set storage.root"
        return Finding("fail", f"{root}: {error}", remedy)
    if free < DISK_BYTES:
        remedy = "Free some disk, or set storage.root elsewhere"
        return Finding("warn", f"{root}: {free / 2**30:.1f} GiB free", remedy)
    return Finding("ok", f"{root}: {free / 2**30:.0f} GiB free")


def check_memory(_config: RunConfig) -> Finding:
    import psutil

    free = psutil.virtual_memory().available
    shared = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
    found = f"{free / 2**30:.1f} GiB free, {shared / 2**30:.1f} GiB shared"
    if free < MEMORY_BYTES:
        return Finding("warn", found, "The smallest preset needs 4 GiB: close other programs")
    if shared < SHARED_BYTES:
        remedy = "Give /dev/shm 512 MiB or more (docker run --shm-size=1g), or Ray falls back to slow files"
        return Finding("warn", found, remedy)
    return Finding("ok", found)


CHECKS: dict[str, Callable[[RunConfig], Finding]] = {
    "python": check_python,
    "libraries": check_libraries,
    "kernels name": check_kernels_name,
    "ray token": check_token,
    "codecs": check_codecs,
    "gpu": check_gpu,
    "mlflow": check_tracking,
    "storage": check_storage,
    "memory": check_memory,
}
