"""docs/diffusers.md: its blocks make, with diffusers' classes, the clips that our own sampling makes."""

import re
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")

from jobs.commands.export import TRAINING_SETTINGS, export
from jobs.config import load as configs
from jobs.config.schema import RunConfig
from models.autoencoders.wan import WanAutoencoder
from models.flow import VelocityModel
from models.sampling import Draw, few_step, ring_turns
from models.text.conditioning import Conditioning, batched
from models.text.umt5 import Umt5Encoder
from pipelines.checkpoints import Network, NetworkSpec, save_network
from pipelines.creation import Maker, Request
from pipelines.generation import Method, generate_latents, velocity
from pipelines.media.video import read_mp4
from tests.command import REPOSITORY
from tests.e2e.wan_base import BASE, SMALL, write_base
from tests.models.builders import randomize
from tests.models.wan.wan_folders import relative
from tests.pipelines.data.videos import low_rank, write_video

PAGE = (REPOSITORY / "docs" / "diffusers.md").read_text()
OPEN, GO_ON, LOOP, *_ = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
FRAMES, GIVEN, KNOWN = 6, 9, 3
"""Latent frames of a clip; frames and latents of the one that it goes on from."""
METHOD = Method("dm", "few_step", 4)


@dataclass(frozen=True)
class Ran:
    """What the page's blocks have left behind, and the student that was exported."""

    folder: Path
    config: RunConfig
    network: Network
    made: SimpleNamespace

    def ours(self, **course: Any) -> Tensor:
        """Latents by our sampling, for the page's caption and noise."""
        spec = self.network.spec
        text, key = Conditioning(self.made.text), self.made.key
        kept = {"sampling": spec.sampling, "flow": spec.flow}
        return generate_latents(self.network, METHOD, spec.shape, text, key, [0], **kept, **course)


@pytest.fixture(scope="module", params=["GGG", "WGW"])
def ran(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    wan_folder: Path,
    umt5_folder: Path,
) -> Ran:
    """The page, run where its folders and its clip are; windowed blocks have the lines of their card."""
    folder = tmp_path_factory.mktemp("diffusers")
    write_base(folder, wan_folder, umt5_folder)
    write_video(folder / "clip.mp4", low_rank(GIVEN, 6, 64, 7)[:, :32, :48], 16.0)
    (folder / "small.yaml").write_text(f"extends: wan-1.3b\n{SMALL}")
    config = configs.load(str(folder / "small.yaml"), [f"model.attention_pattern={request.param}"])
    network = trained(config)
    with chdir(folder):
        exported(config, network)
        card = (folder / "student" / "README.md").read_text()
        made: dict[str, Any] = {}
        exec(OPEN, made)
        if "W" in request.param:
            exec(re.findall(r"```python\n(.*?)```", card, re.DOTALL)[1], made)
        exec(shortened(GO_ON), made)
        exec(shortened(LOOP), made)
    return Ran(folder, config, network, SimpleNamespace(**made))


def shortened(block: str) -> str:
    """A block of the page for clips of FRAMES latents."""
    assert "21" in block
    return block.replace("21", str(FRAMES))


def trained(config: RunConfig) -> Network:
    """A student of random weights."""
    spec = NetworkSpec(
        "student", config.model, config.text, 4, (FRAMES, 4, 4, 6),
        distilled=True, flow=config.flow, sampling=config.sampling,
    )  # fmt: skip
    model = spec.build().eval().requires_grad_(False)
    randomize(model, seed=3)
    return Network(model, spec)


def exported(config: RunConfig, network: Network) -> None:
    """student/ by `sostenuto export`."""
    checkpoint = Path("step-000001")
    checkpoint.mkdir()
    (checkpoint / TRAINING_SETTINGS).write_text(configs.to_json(config))
    save_network(network.model, network.spec, checkpoint)
    export(config, checkpoint=str(checkpoint), stage="distill", head="dm", out="student")


def test_known_frames_come_back_bit_for_bit(ran: Ran) -> None:
    assert torch.equal(ran.made.latents[:, :KNOWN], ran.made.known)
    assert ran.made.latents.shape == (1, FRAMES, 4, 4, 6)


def test_new_frames_are_those_of_our_sampler(ran: Ran) -> None:
    ours = ran.ours(known=ran.made.known)
    assert relative(ran.made.latents, ours) < 1e-4
    assert relative(ran.ours(), ours) > 1e-2, "what is known matters"


def test_the_clip_is_that_of_sample(ran: Ran) -> None:
    encoder = SimpleNamespace(encode=lambda captions: Conditioning(ran.made.text))
    code = WanAutoencoder.load(ran.folder / BASE / "vae")
    maker = Maker(ran.network, METHOD, code, encoder, ran.network.spec.sampling, 16.0)
    wanted = Request(frames=21, begins=ran.made.clip)
    ours = np.concatenate(list(maker.create(wanted, ["a bay at dusk"], ran.made.key, [0])), axis=1)[0]
    theirs = np.concatenate((ran.made.clip, ran.made.decode(ran.made.latents)[GIVEN:]))
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    assert read_mp4(ran.folder / "longer.mp4").shape == (21, 32, 48, 3)


def test_the_caption_is_embedded_as_ours_is(ran: Ran) -> None:
    with chdir(ran.folder):
        rows = Umt5Encoder.load(ran.config.text).embed(["a bay at dusk"])
    assert relative(ran.made.text, batched(rows, ran.config.text).text) < 1e-3


class Rolled(Draw):
    """The same noise, two frames later around the ring."""

    def noise(self, name: str, frames: int | None = None) -> Tensor:
        return super().noise(name, frames).roll(2, dims=1)


def test_a_ring_is_ours_and_rolls(ran: Ran) -> None:
    made = ran.made
    assert relative(made.ring, ran.ours(ring=True)) < 1e-4
    turns = [(turn - 2) % FRAMES for turn in ring_turns(FRAMES, METHOD.steps)]
    rolled = Rolled(made.shape, Conditioning(made.text), made.key, [0], turns=turns)
    assert torch.equal(few_step(made.velocity, made.times, rolled), made.ring.roll(2, dims=1))
    assert read_mp4(ran.folder / "loop.mp4").shape == (4 * FRAMES, 32, 48, 3)


def test_a_decoded_ring_rolls(ran: Ran) -> None:
    def frames(ring: Tensor) -> Any:
        return ran.made.decode(ring.repeat(1, 3, 1, 1, 1))[-4 * 21 :]

    ring = torch.randn(1, 21, 4, 1, 1, generator=torch.Generator().manual_seed(0))
    differs = np.roll(frames(ring).astype(int), 20, axis=0) - frames(ring.roll(5, dims=1))
    assert np.abs(differs).max() <= 1


def test_stock_attention_is_ours_where_no_window_ends(ran: Ran) -> None:
    stock: dict[str, Any] = {}
    with chdir(ran.folder):
        exec(OPEN, stock)
    ours, text = velocity(ran.network, "dm"), Conditioning(ran.made.text)
    generator = torch.Generator().manual_seed(1)
    x, t = torch.randn(1, FRAMES, 4, 4, 6, generator=generator), torch.rand(1, FRAMES, generator=generator)

    def differs(model: VelocityModel, frames: int) -> float:
        given = (x[:, :frames], t[:, :frames], text)
        with torch.no_grad():
            return relative(model(*given), ours(*given))

    assert differs(ran.made.velocity, FRAMES) < 1e-5
    assert differs(stock["velocity"], ran.config.model.window + 1) < 1e-5
    windowed = ran.config.model.is_windowed(FRAMES)
    assert (differs(stock["velocity"], FRAMES) > 0.1) == windowed
