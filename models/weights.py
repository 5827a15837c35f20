"""Weights as safetensors: loading runs no code, and values are copied into parameters that exist.

Folders of pretrained networks are as diffusers and transformers write them: config.json and safetensors.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from models.errors import CheckpointError

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
"""Number formats that weights may have on disk, by safetensors' names."""
CONFIG_FILE, WEIGHTS_FILE = "config.json", "weights.safetensors"
PICKLES = frozenset({".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"})
ROWS = "rows"
"""Where a file's metadata says which rows of whole tensors it holds."""
NAMED = 3
"""Names that an error lists before it counts the rest."""


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, rows: Mapping[str, Sequence[int]] | None = None
) -> None:
    """Write tensors to one safetensors file. Only those that are part of a larger storage are copied.

    Args:
        tensors: by name.
        path: the file.
        rows: of those that are some rows of a tensor whose others lie in other files: the first of them, and
            how many the whole tensor has.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    for name, tensor in plain.items():
        if tensor.untyped_storage().nbytes() != tensor.nbytes:
            plain[name] = tensor.clone()
    save_file(plain, path, {ROWS: json.dumps(rows)} if rows else None)


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


class _Part(NamedTuple):
    """A tensor in a file, or some of its rows."""

    path: Path
    file: Any
    first: int = 0
    """Its first row in the whole tensor."""
    rows: int | None = None
    """Of the whole tensor; None if the file has it all."""

    def slice(self, name: str) -> Any:
        """What the file has, unread."""
        return self.file.get_slice(name)


class TensorFiles:
    """Safetensors files, each opened once; a context.

    A tensor is read when it is copied, by `pread`: a mapped file would count as this process's memory beside
    the parameters that it fills.

    Args:
        paths: the files; a name may occur in several only if they have rows of its tensor, each row once.

    Raises:
        CheckpointError: a file is missing or damaged, two hold the same name, or none has some rows of it.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = list(paths)
        self._of: dict[str, list[_Part]] = {}
        with ExitStack() as stack:
            for path in self._paths:
                try:
                    file = stack.enter_context(safe_open(path, framework="pt", backend="pread"))
                except (OSError, SafetensorError) as error:
                    raise CheckpointError(
                        f"{path} cannot be read: {error}", "Restore the file: copy it again, or make it again"
                    ) from error
                rows = json.loads((file.metadata() or {}).get(ROWS, "{}"))
                for name in file.offset_keys():
                    self._of.setdefault(name, []).append(_Part(path, file, *rows.get(name, ())))
            for name, parts in self._of.items():
                _require_once(name, parts)
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def names(self) -> list[str]:
        """Names of all tensors, in the order in which they lie in the files."""
        return list(self._of)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a whole tensor."""
        part = self._of[name][0]
        shape = tuple(part.slice(name).get_shape())
        return shape if part.rows is None else (part.rows, *shape[1:])

    def tensor(self, name: str) -> Tensor:
        """Read one tensor into memory of its own."""
        read: list[Tensor] = [part.file.get_tensor(name) for part in self._of[name]]
        return read[0] if len(read) == 1 else torch.cat(read)

    @torch.no_grad()
    def read(self, name: str, target: Tensor) -> None:
        """Fill a tensor, or the rows that this process has of one, converted to its number format."""
        own, start = held(target)
        for part in self._of[name]:
            if part.rows is None and own is target:
                own.copy_(part.file.get_tensor(name))
                continue
            there = part.slice(name)
            first = max(start, part.first)
            stop = min(start + len(own), part.first + there.get_shape()[0])
            if first < stop:
                own[first - start : stop - start].copy_(there[first - part.first : stop - part.first])

    def fill(self, wanted: Mapping[str, Tensor], origin: str) -> None:
        """Fill tensors, one at a time, by `read`.

        Args:
            wanted: by their names in the files.
            origin: names the files in errors.

        Raises:
            CheckpointError: names or shapes differ.
        """
        _require_fit(wanted, {name: self.shape(name) for name in self._of}, origin)
        for name in self.names():
            self.read(name, wanted[name])

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
        for name, (part, *_) in self._of.items():
            if (found := part.slice(name).get_dtype()) not in FLOATS:
                raise CheckpointError(
                    f"{part.path}: {name} is {found}, not floating point",
                    f"Use weights in {', '.join(sorted(FLOATS))}: quantised ones cannot be trained",
                )
        wanted = {name: own[ours] for name, ours in names.items()}
        self.fill(wanted, origin or str(self._paths[0]))


def _require_once(name: str, parts: list[_Part]) -> None:
    """One file has a tensor, or several have its rows."""
    if len(parts) > 1 and any(part.rows is None for part in parts):
        raise CheckpointError(f"{parts[1].path} and {parts[0].path} both hold {name}", "Remove one of them")
    if parts[0].rows is None:
        return
    parts.sort(key=lambda part: part.first)
    starts = [0, *accumulate(part.slice(name).get_shape()[0] for part in parts)]
    if [*(part.first for part in parts), parts[0].rows] != starts:
        raise CheckpointError(
            f"{parts[0].path} and the files beside it do not have every row of {name} once",
            "Copy them again, all those of one checkpoint",
        )


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


def held(tensor: Tensor) -> tuple[Tensor, int]:
    """What this process has of a tensor, and the first row of that: all of it, or some rows of one that is
    shared out over processes (a DTensor)."""
    if not hasattr(tensor, "to_local"):
        return tensor, 0
    ranks = [
        (tensor.device_mesh.get_local_rank(axis), tensor.device_mesh.size(axis))  # type: ignore[attr-defined]
        for axis, placement in enumerate(tensor.placements)  # type: ignore[attr-defined]
        if placement.is_shard(0)
    ]
    rank, size = ranks[0] if ranks else (0, 1)
    rows = tensor.shape[0]
    return tensor.to_local(), min(rank * -(-rows // size), rows)


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
        averages, weights = self._pairs(module)
        torch._foreach_lerp_(averages, weights, 1 - decay)

    @contextmanager
    def standing_in(self, module: nn.Module) -> Iterator[None]:
        """Lets `module` compute with the average for the length of a `with` block: they change places, a
        tensor at a time."""
        pairs = [*zip(*self._pairs(module), strict=True)]
        _swap(pairs)
        try:
            yield
        finally:
            _swap(pairs)

    def _pairs(self, module: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        """What this process has of the averages, and of the weights."""
        moved = {name: p.detach() for name, p in module.named_parameters() if name in self.trained}
        return [held(self.tensors[name])[0] for name in moved], [held(p)[0] for p in moved.values()]


def _swap(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    for one, other in pairs:
        kept = one.clone()
        one.copy_(other)
        other.copy_(kept)
