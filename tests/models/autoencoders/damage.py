"""Ways to damage what an autoencoder has saved."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from models.autoencoders.kinds import load_autoencoder
from models.errors import CheckpointError


def assert_damage_is_refused(folder: Path, changes: Iterable[Mapping[str, object]]) -> None:
    """Each change of the config that is saved in `folder`, and weights that are cut short."""
    config = json.loads((folder / "config.json").read_text())
    for change in changes:
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(CheckpointError):
            load_autoencoder(folder)
    (folder / "config.json").write_text(json.dumps(config))
    load_autoencoder(folder)
    weights = folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(CheckpointError):
        load_autoencoder(folder)
