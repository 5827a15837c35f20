"""Clips that go on from others, are longer than those of training, loop, or change their captions.

The networks are stand-ins whose answer is known: what each frame must be follows from what was asked for.
"""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from models.config import SamplingConfig, TextConfig
from models.errors import ConfigError, DataError
from models.rng import Key
from models.text.conditioning import Conditioning
from pipelines import generation
from pipelines.checkpoints import Network, NetworkSpec, Role
from pipelines.creation import Cue, Maker, Request, read_start
from pipelines.data.config import LimitsConfig
from pipelines.generation import Method, generate_latents
from pipelines.media.video import write_mp4
from tests.models.builders import TINY, randomize
from tests.pipelines.evaluation.clips import PixelCode

FPS = 4.0
TRAINED = 6
KEY = Key(0, purpose="test")
SAMPLING = SamplingConfig(steps=(1.0, 0.5), ode_steps=3)


class CausalCode(PixelCode):
    """Its first latent stands for one frame, the others for four: their mean."""

    temporal_factor, crop_safe = 4, False

    def encode(self, frames: Tensor) -> Tensor:
        pixels = super().encode(frames)
        groups = [pixels[:, :1], *(pixels[:, first : first + 4] for first in range(1, pixels.shape[1], 4))]
        return torch.stack([group.mean(dim=1) for group in groups], dim=1)

    def decode(self, latents: Tensor) -> Tensor:
        return super().decode(torch.cat([latents[:, :1], latents[:, 1:].repeat_interleave(4, dim=1)], dim=1))


class Says:
    """Captions are numbers."""

    def encode(self, captions: list[str]) -> Conditioning:
        return Conditioning(torch.tensor([[[float(caption)]] for caption in captions]))


def maker(head: str = "dm", code: Any = None) -> Maker:
    sampler = {"dm": "few_step", "fm": "ode", "teacher": "windows"}[head]
    role: Role = "teacher" if head == "teacher" else "student"
    text = TextConfig(dim=1)
    spec = NetworkSpec(role, TINY, text, 3, (TRAINED, 3, 2, 2), distilled=role == "student")
    model = spec.build()
    randomize(model)
    return Maker(
        Network(model.eval().requires_grad_(False), spec),
        Method(head, sampler, 2),  # type: ignore[arg-type]
        code or PixelCode(),
        Says(),
        SAMPLING,
        FPS,
    )


def by_caption(x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
    """x0 is the caption's number / 255."""
    x0 = conditioning.text.view(-1, 1, 1, 1, 1).expand_as(x_t) / 255
    time = (t if t.ndim == 2 else t[:, None])[:, :, None, None, None]
    return torch.where(time > 0, (x_t - x0) / time.clamp_min(1e-6), torch.zeros_like(x_t))


def goes_on(x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
    """x0 is the last known frame plus 1 / 255 for every frame since."""
    assert t.ndim == 2, "no frame is known"
    known = int((t[0] == 0).sum())
    since = torch.arange(x_t.shape[1]).sub(known - 1).view(1, -1, 1, 1, 1) / 255
    x0 = x_t[:, known - 1 : known] + since
    time = t[:, :, None, None, None]
    return torch.where(time > 0, (x_t - x0) / time.clamp_min(1e-6), torch.zeros_like(x_t))


def create(
    model: Any, request: Request, captions: list[str], monkeypatch: pytest.MonkeyPatch, **of: Any
) -> Any:
    monkeypatch.setattr(generation, "velocity", lambda *_: model)
    pieces = list(maker(**of).create(request, captions, KEY, range(len(captions))))
    return np.concatenate(pieces, axis=1)[..., 0, 0, 0]


def frames_of(*values: int) -> Any:
    return np.broadcast_to(np.array(values, np.uint8)[:, None, None, None], (len(values), 2, 2, 3))


@pytest.mark.parametrize("head", ["dm", "fm"])
@pytest.mark.parametrize("frames", [1, 4, TRAINED])
def test_a_clip_of_one_piece_is_the_samplers(head: str, frames: int) -> None:
    one = maker(head)
    (made,) = one.create(Request(frames=frames), ["3", "5"], KEY, [4, 9])
    latents = generate_latents(
        one.network,
        one.method,
        one.network.spec.shape,
        Says().encode(["3", "5"]),
        KEY,
        [4, 9],
        sampling=SAMPLING,
        flow=one.network.spec.flow,
    )
    np.testing.assert_array_equal(made, PixelCode().decode(latents)[:, :frames])


@pytest.mark.parametrize("head", ["dm", "fm"])
@pytest.mark.parametrize("given", [1, 2, 5, 40])
def test_pieces_go_on_from_what_was_given_and_from_each_other(
    head: str, given: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request(frames=given + 23, begins=frames_of(*range(7, 7 + given)))
    made = create(goes_on, request, ["0", "0"], monkeypatch, head=head)
    assert made.tolist() == [list(range(7, 7 + given + 23))] * 2


@pytest.mark.parametrize("given", [1, 6, 9, 30])
def test_with_a_causal_code_pieces_know_frames_encoded_anew(
    given: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first latent is one frame; every later one adds four frames of one value."""
    request = Request(frames=given + 30, begins=frames_of(*[9] * given))
    made = create(goes_on, request, ["0"], monkeypatch, code=CausalCode())[0]
    assert made[:given].tolist() == [9] * given
    assert made[given:].tolist() == [10 + number // 4 for number in range(30)]


def test_captions_change_at_their_times_across_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    cues = (Cue(0.5, "20"), Cue(3.0, "30"), Cue(3.3, "40"))
    made = create(by_caption, Request(frames=20, cues=cues), ["10", "11"], monkeypatch)
    tail = [20] * 10 + [30] * 2 + [40] * 6
    assert made.tolist() == [[10, 10, *tail], [11, 11, *tail]]


def test_a_caption_that_began_within_what_is_known_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    request = Request(frames=12, begins=frames_of(1, 2, 3, 4), cues=(Cue(1.0, "50"), Cue(2.5, "60")))
    assert create(by_caption, request, ["10"], monkeypatch).tolist() == [[1, 2, 3, 4, *[50] * 6, 60, 60]]


def test_a_loop_is_as_long_as_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def ring(x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        seen.append(x_t[0, :, 0, 0, 0])
        return torch.zeros_like(x_t)

    assert create(ring, Request(frames=4, loops=True), ["1"], monkeypatch).shape == (1, 4)
    assert [len(frames) for frames in seen] == [4, 4], "the whole ring, and nothing else"


def test_a_teacher_goes_window_by_window_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert create(by_caption, Request(frames=17), ["8"], monkeypatch, head="teacher").tolist() == [[8] * 17]


def test_pieces_are_made_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        calls.append(x_t.shape[1])
        return by_caption(x_t, t, conditioning)

    monkeypatch.setattr(generation, "velocity", lambda *_: counted)
    pieces = maker().create(Request(frames=10_000), ["1"], KEY, [0])
    assert [next(pieces).shape[1] for _ in range(3)] == [6, 4, 4]
    assert calls == [TRAINED] * 6, "two steps for each of three pieces, all of one length"


@pytest.mark.parametrize(
    ("changes", "head", "said"),
    [
        (
            {"frames": 3, "begins": frames_of(1, 2, 3)},
            "dm",
            "seconds: they count from the clip's own beginning",
        ),
        (
            {"frames": 6, "begins": frames_of(1), "loops": True},
            "dm",
            "both go on from yours and close a loop",
        ),
        ({"frames": 7, "loops": True}, "dm", "a loop is made in one piece, of 1.5 s at most"),
        ({"frames": 6, "cues": (Cue(1.5, "1"),)}, "dm", "the caption at 1.5 s of a clip of 1.5 s"),
        ({"frames": 6, "cues": (Cue(1.0, "1"), Cue(0.5, "2"))}, "dm", "Times rise from 0"),
        (
            {"frames": 9, "begins": frames_of(1, 2, 3, 4), "cues": (Cue(0.5, "1"),)},
            "dm",
            "1 s that are given",
        ),
        ({"frames": 9, "begins": frames_of(1)}, "teacher", "window by window cannot go on from frames"),
        ({"frames": 9, "loops": True}, "teacher", "window by window cannot go on from frames"),
    ],
)
def test_what_makes_no_sense_is_refused_with_why(changes: Any, head: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        list(maker(head).create(Request(**changes), ["1"], KEY, [0]))


def test_a_causal_code_has_no_loops() -> None:
    with pytest.raises(ConfigError, match="no latent frame can follow the last"):
        maker(code=CausalCode()).check(Request(frames=5, loops=True))


def test_a_clip_of_ones_own_is_made_as_a_dataset_would_have_it(tmp_path: Any) -> None:
    grey = np.repeat(np.arange(40, 200, 10, dtype=np.uint8), 2)
    write_mp4(tmp_path / "clip.mp4", [np.full((32, 64, 3), value, np.uint8) for value in grey], 16.0)
    found = read_start(tmp_path / "clip.mp4", LimitsConfig(), (16, 16), 8.0)
    assert found.shape == (16, 16, 16, 3)
    np.testing.assert_allclose(found[:, 8, 8, 0], np.arange(40, 200, 10), atol=3)


def test_a_picture_is_a_clip_of_one_frame(tmp_path: Any) -> None:
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, 20:60] = (10, 200, 90)
    Image.fromarray(pixels).save(tmp_path / "first.png")
    found = read_start(tmp_path / "first.png", LimitsConfig(), (20, 20), 8.0)
    assert found.shape == (1, 20, 20, 3)
    assert found[0, 10, 10].tolist() == [10, 200, 90], "the middle, cropped to the dataset's shape"


def test_a_turned_photograph_stands_upright(tmp_path: Any) -> None:
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :20] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif)
    found = read_start(tmp_path / "turned.jpg", LimitsConfig(), (40, 20), 8.0)[0, :, :, 0]
    assert found[:18].min() > 240
    assert found[22:].max() < 15


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("first.png", b"no picture", "not a picture"),
        ("first.png", "cut", "the picture is damaged"),
        ("first.png", "large", "data.limits.max_pixels = 500"),
        ("clip.mp4", b"#EXTM3U\nfile:///etc/passwd", "no known video container"),
        ("clip.mp4", "picture", "not a video: a still picture"),
        ("none.png", None, "No such file"),
    ],
)
def test_what_cannot_be_gone_on_from_is_said(tmp_path: Any, name: str, content: Any, said: str) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        random = np.random.default_rng(0).integers(0, 255, (30, 30, 3), dtype=np.uint8)
        Image.fromarray(random).save(tmp_path / "whole.png")
        whole = (tmp_path / "whole.png").read_bytes()
        path.write_bytes(whole[: len(whole) // 2] if content == "cut" else whole)
    limits = LimitsConfig(max_pixels=500) if content == "large" else LimitsConfig()
    with pytest.raises(DataError, match=said):
        read_start(path, limits, (16, 16), 8.0)
