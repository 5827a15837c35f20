"""Folders that diffusers writes become our teacher, number for number."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel

from models.config import ModelConfig
from models.errors import CheckpointError, ConfigError
from models.wan import read_transformer
from tests.models.builders import captions, latents, randomize

SHAPE = ModelConfig(
    num_layers=2,
    head_layers=1,
    num_heads=2,
    head_dim=12,
    ffn_dim=32,
    patch_size=(1, 2, 2),
    attention_pattern="GG",
    rope_theta_global=10000.0,
    precondition=False,
    clip_position=False,
    init="wan",
)


def _folder(path: Path, shard: str = "10GB") -> WanTransformer3DModel:
    theirs = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=10,
        freq_dim=256,
        ffn_dim=32,
        num_layers=2,
    )
    randomize(theirs)
    theirs.save_pretrained(path, max_shard_size=shard)
    return theirs


@pytest.mark.parametrize("shard", ["10GB", "20KB"])
def test_a_folder_becomes_a_teacher(tmp_path: Path, shard: str) -> None:
    theirs = _folder(tmp_path, shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "20KB")
    ours = read_transformer(tmp_path, SHAPE, 4, 10)
    x, t = latents(2, 3, 4, side=4), torch.tensor([0.3, 0.9])
    with torch.no_grad():
        expected = theirs(x.transpose(1, 2), 1000 * t, captions().text).sample.transpose(1, 2)
        assert torch.allclose(ours(x, t, captions()), expected, atol=2e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 4}, "num_attention_heads 2"),
        ({"ffn_dim": 64}, "ffn_dim 32"),
        ({"precondition": True}, "velocity itself"),
    ],
)
def test_another_shape_is_refused_with_the_setting_to_change(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    _folder(tmp_path)
    with pytest.raises(ConfigError, match=message):
        read_transformer(tmp_path, dataclasses.replace(SHAPE, **change), 4, 10)


def test_missing_and_escaping_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no transformer"):
        read_transformer(tmp_path / "none", SHAPE, 4, 10)
    _folder(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"x": "../secret.safetensors"}})
    )
    with pytest.raises(CheckpointError, match="outside its folder"):
        read_transformer(tmp_path, SHAPE, 4, 10)
