"""Averages and weights on disk."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.errors import CheckpointError
from models.weights import Ema, TensorFiles, copy_into, load_tensors, save_tensors


def test_the_average_follows_the_ramped_decay() -> None:
    layer = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(0.0)
    ema = Ema(layer, decay=0.9)
    expected = 0.0
    for step in range(1, 200):
        with torch.no_grad():
            layer.weight.fill_(float(step))
        ema.update(layer)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert float(ema.tensors["weight"]) == pytest.approx(expected, rel=1e-5)
    place = layer.weight.data_ptr()
    with ema.standing_in(layer):
        assert layer(torch.ones(1, 1)).item() == pytest.approx(expected, rel=1e-5)
    assert layer.weight.item() == 199.0
    assert layer.weight.data_ptr() == place


def test_frozen_weights_are_their_own_average() -> None:
    layer = nn.Linear(2, 2)
    layer.weight.requires_grad_(False)
    ema = Ema(layer, decay=0.9)
    assert ema.tensors["weight"].data_ptr() == layer.weight.data_ptr()
    assert ema.tensors["bias"].data_ptr() != layer.bias.data_ptr()
    before = layer.weight.clone()
    with torch.no_grad():
        layer.bias.add_(1.0)
    ema.update(layer)
    assert torch.equal(layer.weight, before)
    assert torch.equal(ema.tensors["weight"], before)
    assert not torch.equal(ema.tensors["bias"], layer.bias)


def test_weights_come_back_bit_for_bit_and_keep_their_place(tmp_path: Path) -> None:
    first, second = nn.Linear(3, 4), nn.Linear(3, 4)
    save_tensors(first.state_dict(), tmp_path / "w.safetensors")
    address = second.weight.data_ptr()
    copy_into(second, load_tensors(tmp_path / "w.safetensors"), "w")
    assert torch.equal(first.weight, second.weight)
    assert second.weight.data_ptr() == address


def test_weights_of_another_network_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"missing 1 \(bias\)"):
        copy_into(nn.Linear(3, 4), {"weight": torch.zeros(4, 3)}, "x")
    with pytest.raises(CheckpointError, match=r"weight is \(2, 3\)"):
        copy_into(nn.Linear(3, 4), {"weight": torch.zeros(2, 3), "bias": torch.zeros(4)}, "x")


@pytest.mark.parametrize("content", [b"", b"not weights", b'\x08\0\0\0\0\0\0\0{"a":1}}'])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_tensors(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_tensors(tmp_path / "missing.safetensors")


def parts(folder: Path, *files: dict[str, tuple[Tensor, tuple[int, int] | None]]) -> list[Path]:
    """Files of tensors, of which some are rows: the first one, and how many there are in all."""
    for number, tensors in enumerate(files):
        plain = {name: tensor for name, (tensor, _) in tensors.items()}
        rows = {name: rows for name, (_, rows) in tensors.items() if rows is not None}
        save_tensors(plain, folder / f"{number}.safetensors", rows)
    return [folder / f"{number}.safetensors" for number in range(len(files))]


def test_rows_in_several_files_are_one_tensor(tmp_path: Path) -> None:
    weight, bias, step = torch.randn(5, 3), torch.randn(5), torch.tensor(7.0)
    paths = parts(
        tmp_path,
        {"weight": (weight[:2], (0, 5)), "bias": (bias, None), "step": (step, None)},
        {"weight": (weight[2:4], (2, 5))},
        {"weight": (weight[4:], (4, 5))},
    )
    layer = nn.Linear(3, 5)
    with TensorFiles(reversed(paths)) as files:
        assert files.shape("weight") == (5, 3)
        assert torch.equal(files.tensor("weight"), weight)
        assert torch.equal(files.tensor("step"), step)
        files.fill({**layer.state_dict(), "step": (own := torch.zeros(()))}, "here")
    assert torch.equal(layer.weight, weight)
    assert torch.equal(layer.bias, bias)
    assert own == step


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ((torch.zeros(2, 3), (3, 5)), "every row"),
        ((torch.zeros(2, 3), (1, 5)), "every row"),
        ((torch.zeros(4, 3), (2, 5)), "every row"),
        ((torch.zeros(5, 3), None), "both hold"),
    ],
    ids=["missing", "twice", "too many", "whole"],
)
def test_rows_that_do_not_make_a_tensor_are_refused(
    second: tuple[Tensor, tuple[int, int] | None], message: str, tmp_path: Path
) -> None:
    paths = parts(tmp_path, {"weight": (torch.zeros(2, 3), (0, 5))}, {"weight": second})
    with pytest.raises(CheckpointError, match=message):
        TensorFiles(paths)
