"""Wan transformers loaded from folders equal diffusers' class."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from models import weights
from models.ddt import Student
from models.dit import DiT
from models.text.conditioning import Conditioning
from models.wan import diffusers_name, read_transformer, spelling
from tests.models.wan import wan_folders
from tests.models.wan.wan_folders import CHANNELS, SHAPE, TEXT_DIM, inputs, relative, velocity

ROOT = Path(__file__).parents[3]
LAYOUTS = ("diffusers", "original")


def read(folder: Path) -> DiT:
    return read_transformer(folder, SHAPE, CHANNELS, TEXT_DIM)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shard", ["10GB", "20KB"])
def test_a_folder_becomes_a_teacher(tmp_path: Path, layout: str, shard: str) -> None:
    theirs = wan_folders.write(tmp_path, layout, shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "20KB")
    ours = read(tmp_path)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[diffusers_name(name)])
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in ours.parameters())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("per_frame", [False, True])
def test_outputs_and_gradients_are_those_of_diffusers(tmp_path: Path, layout: str, per_frame: bool) -> None:
    theirs, ours = wan_folders.write(tmp_path, layout), read(tmp_path)
    x, t, text = inputs()
    t = t if per_frame else t[:, 0]
    sides = []
    for model in (theirs, ours):
        given, words = x.clone().requires_grad_(), text.clone().requires_grad_()
        out = ours(given, t, Conditioning(words)) if model is ours else velocity(theirs, given, t, words)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        sides.append((out.detach(), given.grad, words.grad))
    (expected, x_grad, text_grad), (out, own_x, own_text) = sides
    assert relative(out, expected) < 1e-5
    assert relative(own_x, x_grad) < 1e-4
    assert relative(own_text, text_grad) < 1e-4
    wanted = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert relative(parameter.grad, wanted[diffusers_name(name)].grad) < 1e-4, name


def padded(text: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Text [B, L, D] with zeros after each row's length, and the mask of what is there."""
    mask = torch.arange(text.shape[1]) < torch.tensor(lengths)[:, None]
    return text * mask[..., None], mask


def test_captions_of_different_lengths(tmp_path: Path) -> None:
    """Diffusers has no text mask: its pipeline pads with attended zeros, as Wan was trained, like our
    conditioning without a mask. With a mask, a row equals diffusers' output for its own tokens alone."""
    theirs, ours = wan_folders.write(tmp_path), read(tmp_path)
    x, t, text = inputs()
    lengths = [2, 5]
    zeros, mask = padded(text, lengths)
    with torch.no_grad():
        assert relative(ours(x, t, Conditioning(zeros)), velocity(theirs, x, t, zeros)) < 1e-5
        masked = ours(x, t, Conditioning(zeros, mask))
        for row, length in enumerate(lengths):
            one = slice(row, row + 1)
            expected = velocity(theirs, x[one], t[one], text[one, :length])
            assert relative(masked[one], expected) < 1e-5
        assert relative(masked[:1], velocity(theirs, x[:1], t[:1], zeros[:1])) > 1e-3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_student_starts_as_diffusers_class(tmp_path: Path, layout: str) -> None:
    theirs = wan_folders.write(tmp_path, layout)
    student = Student(SHAPE, CHANNELS, TEXT_DIM)
    student.start_from(read(tmp_path))
    x, t, text = inputs()
    with torch.no_grad():
        expected = velocity(theirs, x, t, text)
        assert relative(student.distribution_matching(x, t, Conditioning(text)), expected) < 1e-5
        assert relative(student.flow_matching(x, t, Conditioning(text)), expected) < 1e-5


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_and_mixed_files_fill_float32_parameters(tmp_path: Path, half: torch.dtype) -> None:
    wan_folders.write(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = {
        name: tensor.to(half) if "attn" in name else tensor
        for name, tensor in wan_folders.tensors_of(path).items()
    }
    wan_folders.rewrite(path, tensors)
    for name, parameter in read(tmp_path).named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, tensors[diffusers_name(name)].float())


SIZES = {
    "1.3B": (30, 12, 8960, 1_418_996_800),
    "14B": (40, 40, 13824, 14_288_491_584),
}


@pytest.mark.parametrize("size", SIZES)
def test_full_size_has_every_name_and_shape_of_diffusers(size: str) -> None:
    layers, heads, ffn, about = SIZES[size]
    config = dataclasses.replace(
        SHAPE, num_layers=layers, head_layers=6, num_heads=heads, head_dim=128, ffn_dim=ffn,
        attention_pattern="G" * layers,
    )  # fmt: skip
    with torch.device("meta"):
        theirs = WanTransformer3DModel(
            num_attention_heads=heads, attention_head_dim=128, ffn_dim=ffn, num_layers=layers
        )
        ours, student = DiT(config, 16, 4096), Student(config, 16, 4096)
    expected = {name: p.shape for name, p in theirs.named_parameters()}
    assert {diffusers_name(name): p.shape for name, p in ours.named_parameters()} == expected
    assert set(spelling(ours.state_dict(), "original")) == {wan_folders.original(name) for name in expected}
    count = sum(p.numel() for p in ours.parameters())
    assert count == sum(p.numel() for p in theirs.parameters())
    assert abs(count - about) < 0.01 * about
    head = sum(p.numel() for p in student.heads["flow_matching"].parameters())
    assert sum(p.numel() for p in student.parameters()) == count + head


LOADER = """
import dataclasses, json, sys
from pathlib import Path
import torch
import models.wan
from tests.models.wan.wan_folders import SHAPE

def field(path, name):
    return int(next(line.split()[1] for line in open(path) if line.startswith(name + ":")))

folder, layers = Path(sys.argv[1]), int(sys.argv[2])
config = dataclasses.replace(SHAPE, num_layers=layers, head_layers=1, num_heads=8, head_dim=64, ffn_dim=2048,
                             attention_pattern="G" * layers)
torch.zeros(1).add_(1)
before, read = field("/proc/self/status", "VmRSS"), field("/proc/self/io", "rchar")
model = models.wan.read_transformer(folder, config, 16, 512)
print(json.dumps({
    "peak": 1024 * (field("/proc/self/status", "VmHWM") - before),
    "read": field("/proc/self/io", "rchar") - read,
    "numbers": sum(p.numel() for p in model.parameters()),
}))
"""


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="memory and reads are counted by Linux")
@pytest.mark.parametrize("shard", ["10GB", "25MB"])
def test_loading_keeps_one_copy_and_reads_each_byte_once(tmp_path: Path, shard: str) -> None:
    layers = 6
    with torch.device("meta"):
        theirs = WanTransformer3DModel(
            num_attention_heads=8, attention_head_dim=64, text_dim=512, ffn_dim=2048, num_layers=layers
        )
    theirs.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.fill_(0.5)
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    del theirs
    size = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert size > 100e6
    done = subprocess.run(
        [sys.executable, "-c", LOADER, str(tmp_path), str(layers)],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    measured = json.loads(done.stdout.splitlines()[-1])
    assert 4 * measured["numbers"] > 0.99 * size
    assert 0.9 * size < measured["peak"] <= 1.2 * size
    assert 4 * measured["numbers"] <= measured["read"] < 1.01 * size


def test_each_file_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wan_folders.write(tmp_path, shard="20KB")
    opened: list[str] = []
    real = weights.safe_open

    def counted(path: Path, **options: object) -> object:
        opened.append(path.name)
        return real(path, **options)

    monkeypatch.setattr(weights, "safe_open", counted)
    read(tmp_path)
    assert sorted(opened) == sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(opened) > 2
