"""Weights as safetensors: loading runs no code, and values are copied into parameters that exist.

Folders of pretrained networks are as diffusers and transformers write them: config.json and safetensors.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from models.errors import CheckpointError

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
"""Number formats that weights may have on disk, by safetensors' names."""
CONFIG_FILE, WEIGHTS_FILE = "config.json", "weights.safetensors"
PICKLES = frozenset({".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"})
NAMED = 3
"""Names that an error lists before it counts the rest."""


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors to one safetensors file. Only those that are part of a larger storage are copied."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    for name, tensor in plain.items():
        if tensor.untyped_storage().nbytes() != tensor.nbytes:
            plain[name] = tensor.clone()
    save_file(plain, path)


def save_folder(config: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: str | Path) -> None:
    """Write config.json and weights.safetensors into a local folder, creating it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(tensors, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1) + "\n")


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file into memory.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    with TensorFiles([path]) as files:
        return {name: files.tensor(name) for name in files.names()}


@torch.no_grad()
def copy_into(module: nn.Module, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Copy tensors into the module's own parameters and buffers, name by name.

    Mapped or assigned tensors would lie at other addresses, where CPU kernels differ in the last bits.

    Raises:
        CheckpointError: names or shapes differ.
    """
    own = module.state_dict()
    _require_fit(own, {name: tensor.shape for name, tensor in tensors.items()}, origin)
    for name, parameter in own.items():
        parameter.copy_(tensors[name])


class TensorFiles:
    """Safetensors files, each opened once; a context.

    A tensor is read when it is copied, by `pread`: a mapped file would count as this process's memory beside
    the parameters that it fills.

    Args:
        paths: the files; each name may occur in one of them only.

    Raises:
        CheckpointError: a file is missing or damaged, or two hold the same name.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = list(paths)
        self._of: dict[str, tuple[Path, Any]] = {}
        with ExitStack() as stack:
            for path in self._paths:
                try:
                    file = stack.enter_context(safe_open(path, framework="pt", backend="pread"))
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
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def names(self) -> list[str]:
        """Names of all tensors, in the order in which they lie in the files."""
        return list(self._of)

    def tensor(self, name: str) -> Tensor:
        """Read one tensor into memory of its own."""
        tensor: Tensor = self._of[name][1].get_tensor(name)
        return tensor

    @torch.no_grad()
    def copy_into(
        self, module: nn.Module, names: Mapping[str, str] | None = None, origin: str | None = None
    ) -> None:
        """Fill the module's parameters and buffers, one tensor at a time, converted to their number format.

        Args:
            module: has the names and shapes of the files.
            names: from names in the files to the module's; None where they are the same.
            origin: names the files in errors; None is their path.

        Raises:
            CheckpointError: names or shapes differ, or a tensor holds no floating-point numbers.
        """
        own = module.state_dict()
        names = names or {name: name for name in own}
        shapes = {}
        for name, (path, file) in self._of.items():
            part = file.get_slice(name)
            if part.get_dtype() not in FLOATS:
                raise CheckpointError(
                    f"{path}: {name} is {part.get_dtype()}, not floating point",
                    f"Use weights in {', '.join(sorted(FLOATS))}: quantised ones cannot be trained",
                )
            shapes[name] = part.get_shape()
        wanted = {name: own[ours] for name, ours in names.items()}
        _require_fit(wanted, shapes, origin or str(self._paths[0]))
        for name in self.names():
            wanted[name].copy_(self.tensor(name))


def _require_fit(wanted: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], origin: str) -> None:
    missing, extra = sorted(wanted.keys() - shapes.keys()), sorted(shapes.keys() - wanted.keys())
    if missing or extra:
        faults = [f"{w} {some(n)}" for w, n in (("missing", missing), ("left over", extra)) if n]
        raise CheckpointError(
            f"{origin} does not fit the network: {', '.join(faults)}",
            "Use the config that the weights were saved with, and every file of them",
        )
    for name, parameter in wanted.items():
        if tuple(shapes[name]) != parameter.shape:
            raise CheckpointError(
                f"{origin}: {name} is {tuple(shapes[name])}, the network has {tuple(parameter.shape)}",
                "Use the config that the weights were saved with",
            )


def some(names: list[str]) -> str:
    """The number of names, with the first few of them."""
    shown = ", ".join(names[:NAMED])
    rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{len(names)} ({shown}{rest})"


def read_config(folder: Path, what: str, remedy: str) -> dict[str, Any]:
    """Read a folder's config.json.

    Args:
        folder: where it lies.
        what: what the folder should hold, for the error, as is `remedy`.

    Raises:
        CheckpointError: it is missing or no JSON object.
    """
    try:
        fields = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        return dict(fields.items())
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder} holds no {what}: no readable {CONFIG_FILE}", remedy) from error


def weight_files(folder: Path, name: str) -> list[Path]:
    """The safetensors files of a network: the shards that an index names, or the file `name`.

    Raises:
        CheckpointError: a file is missing or lies outside the folder; pickles are named, never opened.
    """
    index = folder / f"{name}.index.json"
    if index.is_file():
        try:
            shards = sorted({str(shard) for shard in json.loads(index.read_text())["weight_map"].values()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index} is damaged: {error!r}", "Copy it again") from error
        for shard in shards:
            if Path(shard).name != shard:
                raise CheckpointError(f"{index} names a file outside its folder: {shard}", "Copy it again")
            if not (folder / shard).is_file():
                raise CheckpointError(
                    f"{folder / shard} is missing, but {index.name} names it", "Copy the shard again"
                )
        return [folder / shard for shard in shards]
    if (folder / name).is_file():
        return [folder / name]
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLES)
    found = f", only {pickles[0]}, a pickle, which could run code" if pickles else ""
    found = f", but {', '.join(others)}" if others else found
    raise CheckpointError(
        f"{folder} holds neither {name} nor its index{found}", "Give the weights as safetensors, all files"
    )


class Ema:
    """Averaged weights; the decay rises as (1 + k)/(10 + k) up to `decay`, so that early steps fade quickly.

    Frozen weights are their own average: they are shared with the module, not copied.

    Args:
        module: its present parameters start the average.
        decay: the largest decay.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.trained = {name for name, p in module.named_parameters() if p.requires_grad}
        self.tensors = {
            name: p.detach().clone() if name in self.trained else p.detach()
            for name, p in module.named_parameters()
        }

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """average <- d average + (1 - d) weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        moved = {name: p.detach() for name, p in module.named_parameters() if name in self.trained}
        torch._foreach_lerp_([self.tensors[name] for name in moved], list(moved.values()), 1 - decay)

    @contextmanager
    def standing_in(self, module: nn.Module) -> Iterator[None]:
        """Lets `module` compute with the average for the length of a `with` block; nothing is copied."""
        own = {name: parameter.data for name, parameter in module.named_parameters()}
        try:
            for name, parameter in module.named_parameters():
                parameter.data = self.tensors[name]
            yield
        finally:
            for name, parameter in module.named_parameters():
                parameter.data = own[name]
