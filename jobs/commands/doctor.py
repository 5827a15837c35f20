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
"""Space and memory that the smallest preset needs, and shared memory for Ray's object store."""

Verdict = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    name: str
    verdict: Verdict
    found: str
    remedy: str = ""
    """What to do; empty where nothing is wrong."""


def doctor(config: RunConfig) -> None:
    """Print a line a check.

    Raises:
        ClusterError: a check failed; the table says what to do.
    """
    findings = examine(config)
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        print_line(f"{finding.verdict:<5} {finding.name:<{width}}  {finding.found}")
        if finding.remedy:
            print_line(f"      {'':<{width}}  -> {finding.remedy}")
    failed = [finding.name for finding in findings if finding.verdict == "fail"]
    if failed:
        raise ClusterError(
            f"{len(failed)} check(s) failed: {', '.join(failed)}",
            "Do what the table says, then run doctor again",
        )


def examine(config: RunConfig) -> list[Finding]:
    """Every check's finding, in the table's order."""
    return [check(config) for check in CHECKS]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_python(_config: RunConfig) -> Finding:
    """Python 3.11 or 3.12 on Linux x86-64."""
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if not (3, 11) <= sys.version_info[:2] < (3, 13):
        return Finding("python", "fail", found, "Use Python 3.11 or 3.12: make PYTHON=/path/to/python3.12")
    return Finding("python", "ok", found)


def check_libraries(_config: RunConfig) -> Finding:
    """The libraries that every command needs, with Ray's dashboard."""
    versions = {
        name: _version(name) for name in ("torch", "ray", "mlflow", "pyarrow", "decord", "av", "triton")
    }
    missing = [name for name, version in versions.items() if version is None and name != "triton"]
    found = ", ".join(f"{name} {version or '-'}" for name, version in versions.items())
    if missing:
        return Finding(
            "libraries", "fail", found, f"Install {', '.join(missing)}: pip install -c constraints.txt -e ."
        )
    if importlib.util.find_spec("aiohttp_cors") is None:
        return Finding(
            "libraries",
            "fail",
            f"{found}; ray without its dashboard",
            "pip install -c constraints.txt 'ray[default]'",
        )
    return Finding("libraries", "ok", found)


def check_kernels_name(_config: RunConfig) -> Finding:
    """Our package `kernels` and a distribution of the same name cannot live together."""
    version = _version("kernels")
    if version is not None:
        remedy = "It breaks imports of transformers and diffusers beside ours: pip uninstall kernels"
        return Finding("kernels name", "fail", f"the distribution kernels {version} is installed", remedy)
    spec = importlib.util.find_spec("kernels")
    ours = Path(__file__).parents[2] / "kernels" / "__init__.py"
    if spec is None or spec.origin is None or Path(spec.origin).resolve() != ours.resolve():
        return Finding(
            "kernels name",
            "fail",
            f"kernels is {spec and spec.origin}",
            "Run from the repository's root, or pip install -e .",
        )
    return Finding("kernels name", "ok", "kernels is this repository's")


def check_token(_config: RunConfig) -> Finding:
    """Ray's token and the mode that makes Ray use it."""
    from jobs.commands.submit import token

    mode = os.environ.get("RAY_AUTH_MODE")
    if mode == "disabled":
        return Finding(
            "ray token",
            "warn",
            "RAY_AUTH_MODE=disabled",
            "Anyone who reaches the head can run code: set RAY_AUTH_MODE=token",
        )
    if token() is None:
        if os.environ.get("RAY_ADDRESS"):
            return Finding(
                "ray token",
                "fail",
                "RAY_ADDRESS is set, but there is no token",
                "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH",
            )
        return Finding("ray token", "ok", "none; a local Ray makes its own")
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    if (
        "RAY_AUTH_TOKEN" not in os.environ
        and path.is_file()
        and path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH)
    ):
        return Finding("ray token", "warn", f"{path} can be read by others", f"chmod 600 {path}")
    if mode is None:
        return Finding(
            "ray token",
            "warn",
            "a token, but RAY_AUTH_MODE is unset: ray job answers 401",
            "export RAY_AUTH_MODE=token",
        )
    return Finding("ray token", "ok", f"RAY_AUTH_MODE={mode}, token present")


def check_codecs(_config: RunConfig) -> Finding:
    """Write a small H.264 clip, and read it with both decoders."""
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
        return Finding(
            "codecs",
            "fail",
            f"H.264: {str(error)[:120]}",
            "Reinstall: pip install --force-reinstall -c constraints.txt av decord",
        )
    if (read, counted) != (3, 3):
        return Finding(
            "codecs",
            "fail",
            f"3 frames written, PyAV read {read}, decord {counted}",
            "Install the versions of constraints.txt",
        )
    return Finding("codecs", "ok", "H.264 written, read by PyAV and decord")


def check_gpu(config: RunConfig) -> Finding:
    """A GPU where the config asks for one."""
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        return Finding("gpu", "ok", names)
    if config.cluster.use_gpu and not os.environ.get("RAY_ADDRESS"):
        return Finding(
            "gpu",
            "fail",
            "none, but cluster.use_gpu is true",
            "Run on a cluster (sostenuto submit), or set cluster.use_gpu=false",
        )
    return Finding("gpu", "ok", f"none on this machine; {os.cpu_count()} CPU cores")


def check_tracking(config: RunConfig) -> Finding:
    """A run can be opened in the MLflow store."""
    from jobs.tracking import open_run, tracking_uri

    if not config.tracking.enabled:
        return Finding("mlflow", "ok", "tracking.enabled=false")
    try:
        reference = open_run(config, "doctor")
        assert reference is not None
        reference().close()
    except SostenutoError as error:
        return Finding("mlflow", "fail", error.problem, error.remedy)
    return Finding("mlflow", "ok", f"{tracking_uri(config)} can be written")


def check_storage(config: RunConfig) -> Finding:
    """storage.root can be written and has room."""
    root = absolute_root(config.storage.root)
    try:
        if not is_remote(root):
            Path(root).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=root) as file:
                file.write(b"x")
            free = shutil.disk_usage(root).free
            if free < DISK_BYTES:
                return Finding(
                    "storage",
                    "warn",
                    f"{root}: {free / 2**30:.1f} GiB free",
                    "Free some disk, or set storage.root elsewhere",
                )
            return Finding("storage", "ok", f"{root}: {free / 2**30:.0f} GiB free")
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(root)
        filesystem.makedirs(path, exist_ok=True)
        filesystem.ls(path)
    except (OSError, ValueError, ImportError) as error:
        return Finding(
            "storage",
            "fail",
            f"{root}: {error}",
            "Create the folder, mend its permissions, or set storage.root",
        )
    return Finding("storage", "ok", f"{root} answers")


def check_memory(_config: RunConfig) -> Finding:
    """Memory, and shared memory for Ray's object store."""
    import psutil

    free = psutil.virtual_memory().available
    shared = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
    found = f"{free / 2**30:.1f} GiB free, {shared / 2**30:.1f} GiB shared"
    if free < MEMORY_BYTES:
        return Finding("memory", "warn", found, "The smallest preset needs 4 GiB: end other programs")
    if shared < SHARED_BYTES:
        return Finding(
            "memory",
            "warn",
            found,
            "Give /dev/shm 512 MiB or more (docker run --shm-size=1g): Ray uses slow files instead",
        )
    return Finding("memory", "ok", found)


CHECKS: tuple[Callable[[RunConfig], Finding], ...] = (
    check_python, check_libraries, check_kernels_name, check_token, check_codecs, check_gpu, check_tracking,
    check_storage, check_memory,
)  # fmt: skip
