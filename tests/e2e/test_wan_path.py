"""docs/wan.md as a story: its commands run in order on tiny folders, and diffusers opens the exports."""

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

pytest.importorskip("diffusers")

from diffusers import WanPipeline, WanTransformer3DModel

from jobs.config import load as configs
from jobs.config.paths import RunPaths
from jobs.config.schema import RunConfig
from models.ddt import Student
from models.text.conditioning import Conditioning
from models.weights import load_tensors
from pipelines.checkpoints import load_network
from pipelines.data.store.caption_embeddings import text_encoder
from pipelines.data.store.dataset import ShardDataset
from pipelines.data.store.info import read_info
from pipelines.media.video import read_mp4
from pipelines.training.recipes import finished_stage
from tests.command import REPOSITORY, succeed
from tests.e2e.wan_base import BASE, SMALL, write_base, write_corpora
from tests.models.wan.wan_folders import relative, velocity

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

PAGE = REPOSITORY / "docs" / "wan.md"
_BLOCK = re.compile(r"^```(sh|text|yaml|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
EXPORTS = {"student": 0, "student-lora": 1}
"""Exports of the page, and the seed of each."""


@dataclass(frozen=True)
class Walked:
    """Where the page's commands have run, and what each printed."""

    folder: Path
    printed: dict[str, str]

    @property
    def config(self) -> RunConfig:
        return configs.load(str(self.folder / "minute.yaml"), [f"storage.root={self.folder / 'runs'}"])

    def student(self, seed: int, stage: str = "distill") -> Student:
        outcome = finished_stage(RunPaths.of(self.config).seed(seed), stage)
        assert outcome is not None
        student = load_network(Path(outcome.checkpoint)).model
        assert isinstance(student, Student)
        return student


def blocks(text: str, language: str) -> list[str]:
    return [block for found, block in _BLOCK.findall(text) if found == language]


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory, wan_folder: Path, umt5_folder: Path) -> Walked:
    folder = tmp_path_factory.mktemp("walked")
    write_base(folder, wan_folder, umt5_folder)
    write_corpora(folder)
    (settings,) = blocks(PAGE.read_text(), "yaml")
    (folder / "minute.yaml").write_text(settings)
    return Walked(folder, dict(_run(folder)))


def _run(folder: Path) -> Iterator[tuple[str, str]]:
    """The page's commands; the first plans with the page's own sizes, the others work with SMALL ones."""
    for line in "".join(blocks(PAGE.read_text(), "sh")).splitlines():
        yield line, succeed(folder, *shlex.split(line)[1:])
        if "--dry-run" in line:
            base = yaml.safe_load((folder / "minute.yaml").read_text())
            base.pop("data")
            (folder / "minute.yaml").write_text(yaml.safe_dump(base) + SMALL)


def inputs(config: RunConfig) -> tuple[Tensor, Tensor, Conditioning]:
    """Noisy latents of two LONG clips, times a frame, and two captions as training sees them."""
    dataset = RunPaths.of(config).dataset
    frames, channels, rows, columns = read_info(dataset).long.latent_shape
    captions = ShardDataset(dataset, "long").captions[:2]
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, frames, channels, rows, columns, generator=generator)
    t = torch.rand(2, frames, generator=generator)
    return x, t, text_encoder(config.text, dataset).encode(captions)


def weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a transformer's folder."""
    return load_tensors(folder / "diffusion_pytorch_model.safetensors")


def opened(folder: Path) -> WanTransformer3DModel:
    """An export as its card says: with the lines for windowed blocks."""
    transformer = WanTransformer3DModel.from_pretrained(folder)
    exec(blocks((folder / "README.md").read_text(), "python")[1], {"transformer": transformer})
    return transformer


def test_the_clips_have_tokens_in_space_and_time_and_text_of_many(walked: Walked) -> None:
    x, _, text = inputs(walked.config)
    assert x.shape[1] == 6
    assert (x.shape[3] // 2, x.shape[4] // 2) == (2, 3)
    assert text.text.shape[1:] == (512, 16)
    assert text.mask is None


def test_samples_and_the_table_are_there(walked: Walked) -> None:
    clips = sorted((walked.folder / "runs/wan-minute/samples").glob("*.mp4"))
    assert [read_mp4(clip).shape for clip in clips] == [(21, 32, 48, 3)] * 2
    result = json.loads((walked.folder / "runs/wan-minute/seed-0/evaluation/evaluation.json").read_text())
    assert {"mmm_4", "sft_50", "teacher_rollout"} <= set(result["rows"])


@pytest.mark.parametrize(("out", "seed"), EXPORTS.items())
def test_diffusers_gives_our_velocity(walked: Walked, out: str, seed: int) -> None:
    x, t, text = inputs(walked.config)
    transformer, student = opened(walked.folder / out), walked.student(seed)
    with torch.no_grad():
        theirs = velocity(transformer, x, t, text.text)
        assert relative(theirs, student.distribution_matching(x, t, text)) < 1e-4
        assert relative(theirs, student.flow_matching(x, t, text)) > 1e-4


@pytest.mark.parametrize(("out", "seed"), EXPORTS.items())
def test_adapters_leave_alone_what_they_are_not_on(walked: Walked, out: str, seed: int) -> None:
    base = weights(walked.folder / BASE / "transformer")
    made = weights(walked.folder / out)
    assert not torch.equal(made["blocks.0.attn1.to_q.weight"], base["blocks.0.attn1.to_q.weight"])
    assert not torch.equal(made["proj_out.weight"], base["proj_out.weight"]), "heads train in full"
    for name in ("blocks.0.attn1.norm_q.weight", "patch_embedding.weight"):
        assert torch.equal(made[name], base[name]) == (out == "student-lora"), name


def test_a_pipeline_of_export_autoencoder_and_text_makes_a_video(
    walked: Walked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(walked.folder)
    scope: dict[str, object] = {}
    (lines,) = blocks(PAGE.read_text(), "python")
    exec(lines, scope)
    pipeline = scope["pipeline"]
    assert isinstance(pipeline, WanPipeline)
    exec(
        blocks((walked.folder / "student/README.md").read_text(), "python")[1],
        {"transformer": pipeline.transformer},
    )
    video = pipeline(
        prompt="a bay at dusk", num_frames=21, height=32, width=48, num_inference_steps=2, guidance_scale=1.0
    ).frames[0]
    assert video.shape == (21, 32, 48, 3)
    assert np.isfinite(video).all()
    assert video.std() > 0
