"""Unusable folders are refused in one line that names the file and the remedy."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from models.errors import CheckpointError, ConfigError, SostenutoError
from models.wan import (
    layout_of,
    original_name,
    read_transformer,
    transformer_fields,
    transformer_files,
)
from tests.models.wan import wan_folders
from tests.models.wan.wan_folders import CHANNELS, SHAPE, TEXT_DIM

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"


def read(folder: Path) -> None:
    read_transformer(folder, SHAPE, CHANNELS, TEXT_DIM)


def change(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Other tensors under these names (dots as two underscores); None removes one."""
    path = folder / WEIGHTS
    named = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    held = wan_folders.tensors_of(path) | named
    wan_folders.rewrite(path, {name: tensor for name, tensor in held.items() if tensor is not None})


def shards(folder: Path) -> list[Path]:
    for path in [*folder.glob("*.safetensors"), folder / "config.json"]:
        path.unlink()
    wan_folders.write(folder, shard="20KB")
    return sorted(folder.glob("*.safetensors"))


def missing_shard(folder: Path) -> None:
    shards(folder)[1].unlink()


def missing_index(folder: Path) -> None:
    shards(folder)
    (folder / INDEX).unlink()


def damaged_index(folder: Path) -> None:
    (folder / INDEX).write_text('{"weight_map": 3}')


def escaping_index(folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"x": "../secret.safetensors"}}))


def doubled_shard(folder: Path) -> None:
    first = shards(folder)[0]
    (folder / "twice.safetensors").write_bytes(first.read_bytes())
    plain = json.loads((folder / INDEX).read_text())
    plain["weight_map"]["again"] = "twice.safetensors"
    (folder / INDEX).write_text(json.dumps(plain))


def truncated(folder: Path) -> None:
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def left_over(folder: Path) -> None:
    names = {f"blocks__{i}__extra": torch.zeros(2) for i in range(5)}
    change(folder, **names, blocks__1__attn1__to_q__bias=None)


def other_names(folder: Path) -> None:
    path = folder / WEIGHTS
    wan_folders.rewrite(path, {f"model.{n}": t for n, t in wan_folders.tensors_of(path).items()})


def integers(folder: Path) -> None:
    change(folder, proj_out__bias=torch.zeros(16, dtype=torch.int8))


def eight_bits(folder: Path) -> None:
    change(folder, proj_out__bias=torch.zeros(16).to(torch.float8_e4m3fn))


def other_shape(folder: Path) -> None:
    change(folder, proj_out__bias=torch.zeros(15))


def text_config(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def pipeline_folder(folder: Path) -> None:
    (folder / "transformer").mkdir()
    (folder / "config.json").rename(folder / "transformer" / "config.json")


SPOILED: list[tuple[Callable[[Path], None], list[str]]] = [
    (missing_shard, ["-00002-of-", "is missing", "Copy the shard"]),
    (missing_index, ["neither", "-00001-of-"]),
    (damaged_index, [INDEX, "damaged"]),
    (escaping_index, [INDEX, "outside its folder", "secret"]),
    (doubled_shard, ["twice.safetensors", "both hold"]),
    (truncated, [WEIGHTS, "cannot be read", "copy it again"]),
    (no_weights, ["neither", "Give the weights as safetensors"]),
    (left_over, ["diffusers layout", "missing 1 (blocks.1.attn1.to_q.bias)", "left over 5 (blocks.0.extra, ",
                 "and 2 more"]),
    (other_names, ["neither layout", "model."]),
    (integers, [WEIGHTS, "proj_out.bias is I8", "not floating point"]),
    (eight_bits, [WEIGHTS, "proj_out.bias is F8_E4M3", "Use weights in BF16, F16, F32, F64"]),
    (other_shape, ["proj_out.bias is (15,), the network has (16,)"]),
    (text_config, ["holds no transformer", "config.json"]),
    (pipeline_folder, ["holds no transformer", "Set model.pretrained to", "/transformer"]),
    *[
        (lambda folder, name=name: (folder / name).write_bytes(b"x"), [name, "is a pickle", "safetensors"])
        for name in ("diffusion_pytorch_model.bin", "model.pt", "weights.PTH", "a.ckpt", "b.pkl", "c.pickle")
    ],
    *[
        (lambda folder, fields=fields: wan_folders.set_fields(folder, **fields), words)
        for fields, words in [
            ({"_class_name": "CogVideoXTransformer3DModel"}, ["CogVideoXTransformer3DModel", "WanModel"]),
            ({"image_dim": 1280, "added_kv_proj_dim": 24}, ["image-to-video", "image_dim 1280"]),
            ({"in_channels": 36}, ["image-to-video", "in_channels 36"]),
            ({"eps": 1e-5}, ["eps 1e-05"]),
            ({"qk_norm": "layer"}, ["qk_norm layer"]),
            ({"num_layers": 3, "ffn_dim": 64}, ["num_layers 3 (here 2), ffn_dim 64 (here 32)",
                                                "Set model.num_layers=3 model.ffn_dim=64"]),
            ({"patch_size": [1, 1, 1]}, ["Set model.patch_size=[1,1,1]"]),
            ({"text_dim": 12}, ["text_dim 12, this run has 10"]),
            ({"in_channels": 8, "out_channels": 8}, ["in_channels 8, this run has 4", "autoencoder"]),
            ({"sostenuto_attention": {"pattern": "WG", "window": 2}},
             ["model.attention_pattern=WG model.window=2"]),
        ]
    ],
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "words"), SPOILED, ids=lambda value: getattr(value, "__name__", "")[:20])
def test_a_folder_that_cannot_be_used(
    tmp_path: Path, spoil: Callable[[Path], object], words: list[str]
) -> None:
    wan_folders.write(tmp_path)
    read(tmp_path)
    spoil(tmp_path)
    with pytest.raises(SostenutoError) as caught:
        read(tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(tmp_path) in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"precondition": True}, "model.precondition=false"),
        ({"rope_theta_global": 100.0}, "model.rope_theta_global=10000"),
        ({"rope_theta_windowed": 100.0, "attention_pattern": "WG"}, "model.rope_theta_windowed=10000"),
        ({"num_heads": 4}, "model.num_heads=2"),
    ],
)
def test_a_run_of_another_network_is_told_its_settings(
    tmp_path: Path, setting: dict[str, object], words: str
) -> None:
    wan_folders.write(tmp_path)
    with pytest.raises(ConfigError, match=words):
        read_transformer(tmp_path, dataclasses.replace(SHAPE, **setting), CHANNELS, TEXT_DIM)


def test_the_missing_folder() -> None:
    with pytest.raises(CheckpointError, match="holds no transformer"):
        read(Path("/nowhere"))


def test_the_original_release_lies_beside_its_other_models(tmp_path: Path) -> None:
    """The release's own text encoder and autoencoder are pickles, which are never opened."""
    wan_folders.write(tmp_path, "original")
    for name in ("models_t5_umt5-xxl-enc-bf16.pth", "Wan2.1_VAE.pth"):
        (tmp_path / name).write_bytes(b"never opened")
    read(tmp_path)
    assert transformer_files(tmp_path) == [tmp_path / WEIGHTS]


def test_an_image_to_video_release_is_refused_by_its_type(tmp_path: Path) -> None:
    wan_folders.write(tmp_path, "original")
    wan_folders.set_fields(tmp_path, model_type="i2v")
    with pytest.raises(CheckpointError, match="image-to-video transformer \\(model_type i2v\\)"):
        transformer_fields(tmp_path)


def test_what_the_original_config_leaves_out_has_its_class_values(tmp_path: Path) -> None:
    wan_folders.write(tmp_path, "original")
    wan_folders.set_fields(tmp_path, text_dim=None)
    fields = transformer_fields(tmp_path)
    assert (fields["text_dim"], fields["patch_size"]) == (4096, [1, 2, 2])


def test_every_name_of_diffusers_class_has_its_original() -> None:
    names = list(wan_folders.twin().state_dict())
    assert [original_name(name) for name in names] == [wan_folders.original(name) for name in names]
    assert layout_of(names) == "diffusers"
    assert layout_of(map(original_name, names)) == "original"
    assert layout_of(["encoder.conv1.weight"]) is None
