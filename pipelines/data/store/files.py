"""What a dataset says of its files, as plain values. A step of training imports this, and no pyarrow."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ShardFile:
    """A file of the dataset and what it must be."""

    file: str
    rows: int
    num_bytes: int
    sha256: str
    pixels: tuple[int, ...] = ()
    """Frames, height and width of its windows, where a dataset may hold several; else empty."""


def plain_values(record: Any) -> dict[str, Any]:
    """A dataclass for JSON; empty tuples in it, and in those that it holds, are left out."""
    return asdict(record, dict_factory=lambda fields: {name: value for name, value in fields if value != ()})


def tuples(value: Any) -> Any:
    """What JSON gives back, with tuples in place of its lists."""
    if isinstance(value, dict):
        return {name: tuples(part) for name, part in value.items()}
    return tuple(map(tuples, value)) if isinstance(value, (list, tuple)) else value
