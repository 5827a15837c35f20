"""Folders of pretrained networks, as diffusers and transformers write them: config.json and safetensors."""

import json
from pathlib import Path
from typing import Any

from models.errors import CheckpointError

CONFIG_FILE = "config.json"
PICKLES = frozenset({".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"})


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
