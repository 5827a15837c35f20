"""Wan's autoencoder in pieces equals the model in one pass, in the memory of one piece."""

import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.autoencoders.kinds import WanKind, load_autoencoder
from models.autoencoders.wan import WEIGHTS_FILE, WanAutoencoder
from models.config import AutoencoderConfig
from models.errors import CheckpointError, ConfigError
from models.weights import CONFIG_FILE


def video(frames: int, size: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (1, frames, size, size, 3), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def code(wan_folder: Path) -> WanAutoencoder:
    return WanAutoencoder.load(wan_folder)


@pytest.fixture
def copied(wan_folder: Path, tmp_path: Path) -> Path:
    """A copy of the folder to damage."""
    return Path(shutil.copytree(wan_folder, tmp_path / "vae"))


@pytest.mark.parametrize(("frames", "latent_frames"), [(1, 1), (5, 2), (9, 3)])
def test_one_latent_of_the_first_frame_then_one_of_four(
    code: WanAutoencoder, frames: int, latent_frames: int
) -> None:
    latents = code.encode(video(frames))
    assert latents.shape == (1, latent_frames, 4, 2, 2)
    assert code.decode(latents).shape == (1, frames, 16, 16, 3)
    assert code.decode(latents).dtype == torch.uint8
    kind = WanKind(AutoencoderConfig(kind="wan"))
    assert kind.latent_frames(frames) == latent_frames
    assert (code.temporal_factor, code.spatial_factor) == (kind.temporal_factor, kind.patch)
    assert not code.crop_safe


def test_latents_are_those_of_diffusers_normalised(wan_folder: Path, code: WanAutoencoder) -> None:
    from diffusers import AutoencoderKLWan

    model = AutoencoderKLWan.from_pretrained(wan_folder).eval()
    frames = video(5)
    with torch.no_grad():
        raw = model.encode(frames.movedim(-1, 1).float() / 127.5 - 1).latent_dist.mode()
        decoded = model.decode(raw).sample
    latents = code.encode(frames)
    shown = latents[0, :, 1] * 2.0 - 0.2
    torch.testing.assert_close(shown, raw[0, 1], atol=1e-5, rtol=1e-5)
    expected = ((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(1, -1)
    difference = (code.decode(latents).int() - expected.int()).abs()
    assert difference.max() <= 1


def test_101_frames_in_pieces_are_101_frames_in_one_pass(wan_folder: Path, code: WanAutoencoder) -> None:
    """The first frame, which the model treats apart, then all others at once."""
    from diffusers import AutoencoderKLWan

    model = AutoencoderKLWan.from_pretrained(wan_folder).eval()
    frames, memory = video(101), [None] * 64
    signal = frames.movedim(-1, 1).float() / 127.5 - 1
    with torch.no_grad():
        parts = [
            model.encoder(part, feat_cache=memory, feat_idx=[0])
            for part in (signal[:, :, :1], signal[:, :, 1:])
        ]
        raw = model.quant_conv(torch.cat(parts, dim=2))[:, :4]
        mean, std = (
            torch.tensor(model.config[name]).view(1, 4, 1, 1, 1) for name in ("latents_mean", "latents_std")
        )
        latents = code.encode(frames)
        assert (latents - ((raw - mean) / std).movedim(2, 1)).abs().max() <= 1e-4
        assert latents.shape[1] == 26

        codes, memory = model.post_quant_conv(raw), [None] * 64
        first = model.decoder(codes[:, :, :1], feat_cache=memory, feat_idx=[0], first_chunk=True)
        rest = model.decoder(codes[:, :, 1:], feat_cache=memory, feat_idx=[0])
    expected = ((torch.cat([first, rest], dim=2).clamp(-1, 1) + 1) * 127.5).movedim(1, -1)
    assert (code.decode(latents).float() - expected).abs().max() <= 0.5 + 127.5e-4


def test_a_batch_is_its_clips_each_alone(code: WanAutoencoder) -> None:
    pair = torch.cat([video(9), video(9).flip(1)])
    together = code.encode(pair)
    alone = torch.cat([code.encode(pair[:1]), code.encode(pair[1:])])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


class Alive(TorchDispatchMode):
    """Counts the bytes of all tensors made inside it that are alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: WeakKeyDictionary[torch.UntypedStorage, int] = WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                self.seen.setdefault(tensor.untyped_storage(), 0)
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self.seen:
                self.seen[storage] = size = storage.nbytes()
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, size)
        return made

    def _gone(self, size: int) -> None:
        self.now -= size


def most_alive(work: Callable[[Tensor], Tensor], given: Tensor) -> int:
    """Peak bytes beside the input and the output."""
    with Alive() as alive:
        out = work(given)
    assert alive.now == out.nbytes
    return alive.peak - out.nbytes


def test_memory_does_not_grow_with_the_length(wan_folder: Path, code: WanAutoencoder) -> None:
    """Beside the clip and its latents. Diffusers' own loop grows, so the measure would show it."""
    from diffusers import AutoencoderKLWan

    model = AutoencoderKLWan.from_pretrained(wan_folder).eval().requires_grad_(False)
    own, others = {}, {}
    for frames in (21, 101):
        clip = video(frames)
        latents = code.encode(clip)
        own[frames] = most_alive(code.encode, clip), most_alive(code.decode, latents)
        others[frames] = most_alive(lambda z: model.decode(z).sample, latents.movedim(1, 2))
    assert own[101] == own[21]
    assert others[101] - others[21] > video(80).nbytes


@pytest.mark.parametrize(
    ("frames", "refused", "padded"),
    [(1, False, 1), (2, True, 5), (4, True, 5), (5, False, 5), (8, True, 9), (9, False, 9), (10, True, 13)],
)
def test_clips_that_are_not_4k_and_1_are_refused_or_padded(
    wan_folder: Path, code: WanAutoencoder, frames: int, refused: bool, padded: int
) -> None:
    if refused:
        with pytest.raises(ConfigError, match=rf"{frames} frames.*Use {padded - 4} or {padded} frames.*pad"):
            code.encode(video(frames))
    patient = WanAutoencoder.load(wan_folder, uneven_frames="pad")
    clip = video(frames)
    filled = torch.cat([clip, clip[:, -1:].expand(-1, padded - frames, -1, -1, -1)], dim=1)
    assert torch.equal(patient.encode(clip), code.encode(filled))
    assert patient.check(frames, 16, 16) == padded - frames


def test_a_reference_carries_the_folder_and_what_is_padded(wan_folder: Path, tmp_path: Path) -> None:
    reference = {"kind": "wan", "pretrained": str(wan_folder), "uneven_frames": "pad"}
    (tmp_path / CONFIG_FILE).write_text(json.dumps(reference))
    assert torch.equal(
        load_autoencoder(tmp_path).encode(video(1)), WanAutoencoder.load(wan_folder).encode(video(1))
    )
    assert load_autoencoder(tmp_path).encode(video(3)).shape[1] == 2


def test_sizes_that_do_not_divide_are_refused(code: WanAutoencoder) -> None:
    with pytest.raises(ConfigError, match="multiples of 8"):
        code.encode(video(1, size=12))


def test_a_gpu_that_is_not_there_is_refused(wan_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="sees no GPU"):
        WanAutoencoder.load(wan_folder, "cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_in_half_precision(wan_folder: Path, code: WanAutoencoder) -> None:
    there = WanAutoencoder.load(wan_folder, "cuda").encode(video(9))
    assert there.device.type == "cpu"
    torch.testing.assert_close(there, code.encode(video(9)), atol=0.1, rtol=0.05)


def _set(folder: Path, **values: object) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(config | values))


def _pickled(folder: Path) -> None:
    (folder / WEIGHTS_FILE).rename(folder / "diffusion_pytorch_model.bin")


def _cut(folder: Path) -> None:
    whole = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(whole[: len(whole) // 2])


SPOILED = {
    "no folder": (lambda f: shutil.rmtree(f), "no readable config.json"),
    "no config": (lambda f: (f / CONFIG_FILE).unlink(), "no readable config.json"),
    "another class": (
        lambda f: _set(f, _class_name="AutoencoderKL"),
        "holds a AutoencoderKL, no AutoencoderKLWan",
    ),
    "Wan 2.2": (lambda f: _set(f, patch_size=2), "Wan 2.2"),
    "another shape": (lambda f: _set(f, base_dim=12), "the network has"),
    "more blocks": (lambda f: _set(f, num_res_blocks=2), "does not fit the network: missing"),
    "no weights": (
        lambda f: (f / WEIGHTS_FILE).unlink(),
        f"neither {WEIGHTS_FILE} nor its index. Give the weights",
    ),
    "a pickle": (_pickled, "only diffusion_pytorch_model.bin, a pickle"),
    "a cut file": (_cut, "cannot be read"),
    "nonsense": (lambda f: _set(f, dim_mult="x"), "describes no AutoencoderKLWan"),
}


@pytest.mark.parametrize("fault", SPOILED)
def test_a_folder_that_cannot_be_used_is_named_in_one_line(copied: Path, fault: str) -> None:
    spoil, problem = SPOILED[fault]
    spoil(copied)
    with pytest.raises(CheckpointError) as caught:
        WanAutoencoder.load(copied)
    message = str(caught.value)
    assert problem in message
    assert str(copied) in message
    assert "\n" not in message
