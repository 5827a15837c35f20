"""Weights as safetensors: loading runs no code, and values are copied into parameters that exist."""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from models.errors import CheckpointError

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
"""Number formats that weights may have on disk, by safetensors' names."""
NAMED = 3
"""Names that an error lists before it counts the rest."""


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes tensors to one safetensors file. Only those that are part of a larger storage are copied."""
    save_file({name: _whole(t.detach().cpu().contiguous()) for name, t in tensors.items()}, path, metadata)


def _whole(tensor: Tensor) -> Tensor:
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


class TensorFiles:
    """Safetensors files, each opened once. Use it as a context.

    A tensor is read when it is copied, by `pread`: a mapped file would count as this process's memory beside
    the parameters that it fills.

    Args:
        paths: the files; a name stands in one of them.

    Raises:
        CheckpointError: a file is missing or damaged, or two hold the same name.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._stack, self._paths = ExitStack(), list(paths)
        self._of: dict[str, tuple[Path, Any]] = {}
        try:
            for path in self._paths:
                self._add(path)
        except BaseException:
            self._stack.close()
            raise

    def _add(self, path: Path) -> None:
        try:
            file = self._stack.enter_context(safe_open(path, framework="pt", backend="pread"))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{path} cannot be read: {error}", "Restore the file: copy it again, or make it again"
            ) from error
        for name in file.offset_keys():
            if name in self._of:
                raise CheckpointError(
                    f"{path} and {self._of[name][0]} both hold {name}", "Remove one of them"
                )
            self._of[name] = (path, file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def names(self) -> list[str]:
        """Names of all tensors, in the order in which they lie in the files."""
        return list(self._of)

    def tensor(self, name: str) -> Tensor:
        """One tensor, read now into memory of its own."""
        tensor: Tensor = self._of[name][1].get_tensor(name)
        return tensor

    @torch.no_grad()
    def copy_into(
        self, module: nn.Module, names: Mapping[str, str] | None = None, origin: str | None = None
    ) -> None:
        """Fills the module's parameters and buffers, a tensor at a time, converted to their number format.

        Args:
            module: its names and shapes must be those of the files.
            names: name in the files to the module's own; None where they are the same.
            origin: what the files are, for the error; None is their path.

        Raises:
            CheckpointError: names or shapes differ, or a tensor holds no floating-point numbers.
        """
        own = module.state_dict()
        names = names or {name: name for name in own}
        self._require_fit({name: own[ours] for name, ours in names.items()}, origin or str(self._paths[0]))
        for name in self.names():
            own[names[name]].copy_(self.tensor(name))

    def _require_fit(self, wanted: Mapping[str, Tensor], origin: str) -> None:
        missing, extra = sorted(wanted.keys() - self._of.keys()), sorted(self._of.keys() - wanted.keys())
        if missing or extra:
            faults = [f"{w} {some(n)}" for w, n in (("missing", missing), ("left over", extra)) if n]
            raise CheckpointError(
                f"{origin} does not fit the network: {', '.join(faults)}",
                "Use the config that the weights were saved with, and every file of them",
            )
        for name, parameter in wanted.items():
            path, file = self._of[name]
            part = file.get_slice(name)
            if part.get_dtype() not in FLOATS:
                raise CheckpointError(
                    f"{path}: {name} is {part.get_dtype()}, not floating point",
                    f"Use weights in {', '.join(sorted(FLOATS))}: quantised ones cannot be trained",
                )
            if tuple(part.get_shape()) != parameter.shape:
                raise CheckpointError(
                    f"{path}: {name} is {tuple(part.get_shape())}, the network has {tuple(parameter.shape)}",
                    "Use the config that the weights were saved with",
                )


def some(names: list[str]) -> str:
    """How many names there are, with the first few of them."""
    shown = ", ".join(names[:NAMED])
    rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{len(names)} ({shown}{rest})"


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Reads a safetensors file into memory.

    Raises:
        CheckpointError: there is no such file, or it is damaged.
    """
    with TensorFiles([path]) as files:
        return {name: files.tensor(name) for name in files.names()}


@torch.no_grad()
def copy_into(module: nn.Module, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Copies tensors into the module's own parameters and buffers, name by name.

    Mapped or assigned tensors would lie at other addresses, and CPU kernels then differ in the last bits.

    Raises:
        CheckpointError: a name is missing or unknown, or a shape differs.
    """
    own = module.state_dict()
    if own.keys() != tensors.keys():
        names = sorted(own.keys() ^ tensors.keys())
        raise CheckpointError(
            f"{origin} does not fit the network: {len(names)} names differ, the first is {names[0]}",
            "use the config that the weights were saved with",
        )
    for name, parameter in own.items():
        if parameter.shape != tensors[name].shape:
            raise CheckpointError(
                f"{origin}: {name} is {tuple(tensors[name].shape)}, the network has {tuple(parameter.shape)}",
                "use the config that the weights were saved with",
            )
        parameter.copy_(tensors[name])
