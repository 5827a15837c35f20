"""What `sostenuto sample` asks of its machine and of a checkpoint; networks and datasets are stand-ins."""

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from jobs.commands import sample as command
from jobs.config import load as configs
from models.config import FlowConfig, ModelConfig, SamplingConfig, TextConfig
from models.errors import ConfigError
from pipelines import creation
from pipelines.checkpoints import Network, NetworkSpec, save_network
from pipelines.media.video import read_mp4, write_mp4
from pipelines.storage import Storage
from tests.models.builders import randomize

MODEL = ModelConfig(
    num_layers=2, head_layers=1, num_heads=2, head_dim=12, ffn_dim=32, attention_pattern="WG", init="wan"
)
SPEC = NetworkSpec("student", MODEL, TextConfig(dim=16), 3, (9, 3, 1, 1), distilled=True)


class Frames:
    """Stands for an autoencoder; says where latents are when they come."""

    temporal_factor, crop_safe = 1, True

    def __init__(self):
        self.given = []

    def decode(self, latents):
        self.given.append((latents.device.type, latents.dtype, len(latents)))
        frames = torch.arange(latents.shape[1] * 3, dtype=torch.uint8).reshape(1, -1, 1, 1, 3)
        return frames.expand(1, -1, 32, 32, 3)

    def encode(self, frames):
        return frames[:, :, :1, :1].permute(0, 1, 4, 2, 3).float()


def student(spec=SPEC):
    model = spec.build()
    randomize(model)
    return Network(model.eval().requires_grad_(False), spec)


@pytest.fixture
def told(monkeypatch):
    """What was done, in order, and where."""
    steps = []
    frames = Frames()

    def autoencoder(folder, device):
        steps.append(("autoencoder", str(device)))
        return frames

    def embed(text, dataset, captions, *, device):
        steps.append(("text", device))

    def load(folder, device):
        steps.append(("network", str(device)))
        return student()

    monkeypatch.setattr(
        command,
        "read_info",
        lambda folder: SimpleNamespace(long=SimpleNamespace(fps=8.0), height=32, width=32),
    )
    monkeypatch.setattr(command, "dataset_autoencoder", autoencoder)
    monkeypatch.setattr(command, "embed_captions", embed)
    monkeypatch.setattr(command, "load_network", load)
    steps.append(frames)
    return steps


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "student"
    made.mkdir()
    save_network(student().model, SPEC, made)
    return str(made)


def run(tmp_path, folder, use_gpu, **changes):
    config = configs.load("ci", [f"storage.root={tmp_path}", f"cluster.use_gpu={str(use_gpu).lower()}"])
    wanted = {"count": 3, "captions": ["a sun", "a moon"], "head": "dm", "steps": None} | changes
    wanted = {"out": str(tmp_path / "out")} | wanted
    return command.sample(config, checkpoint=folder, **wanted)


def test_videos_sheet_and_captions_are_written(tmp_path, folder, told):
    written = run(tmp_path, folder, use_gpu=False)
    assert [read_mp4(path).shape for path in written] == [(9, 32, 32, 3)] * 3
    lines = (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()
    assert [json.loads(line)["caption"] for line in lines] == ["a sun", "a moon", "a sun"]
    assert (tmp_path / "out" / "sheet.png").exists()


def test_a_longer_video_goes_on_from_its_own_frames(tmp_path, folder, told, monkeypatch):
    notes, strip = [], command.video_strip

    def noted(*given):
        notes.append(strip(*given).notes)
        return strip(*given)

    monkeypatch.setattr(command, "video_strip", noted)
    (path,) = run(tmp_path, folder, use_gpu=False, count=1, seconds=3.0)
    assert len(read_mp4(path)) == 24
    assert notes == [("frames 0, 3, 6, 9, 12, 14, 17, 20, 23",)]
    assert path.replace(".mp4", ".gif") not in {str(one) for one in (tmp_path / "out").iterdir()}


def test_a_timeline_is_told_in_the_metadata(tmp_path, folder, told, capsys):
    options = {"count": 2, "captions": None, "timeline": "0s: a sun; 0.5s: a moon", "as_json": True}
    run(tmp_path, folder, use_gpu=False, **options)
    told_of = json.loads(capsys.readouterr().out)
    lines = [json.loads(line) for line in (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()]
    assert told_of == {"folder": str(tmp_path / "out"), "videos": lines}
    assert [line["sample"] for line in lines] == [0, 1]
    assert lines[0]["timeline"] == [{"second": 0.5, "caption": "a moon"}]


def test_a_video_of_ones_own_comes_first(tmp_path, folder, told):
    given = np.full((5, 32, 32, 3), 90, np.uint8)
    write_mp4(tmp_path / "own.mp4", given, 8.0)
    (path,) = run(tmp_path, folder, use_gpu=False, count=1, extend=str(tmp_path / "own.mp4"))
    frames = read_mp4(path)
    assert len(frames) == 5 + 9 - 4, "what one piece makes after the four frames that it knows"
    np.testing.assert_allclose(frames[:5], read_mp4(tmp_path / "own.mp4"), atol=4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"negative": "blur"}, "this sampler is not guided"),
        ({"negative": "blur", "head": "fm"}, "this sampler is not guided"),
        ({"timeline": "0s: a sun"}, "--timeline and --caption both say what is shown"),
        ({"extend": "a.mp4", "image": "b.png"}, "both say what the videos begin with"),
        ({"image": "b.mp4"}, "is no PNG, JPEG or WebP picture"),
        ({"loop": True, "seconds": 9.0}, "a loop is made in one piece"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, folder, told, changes, said):
    with pytest.raises(ConfigError, match=said):
        run(tmp_path, folder, use_gpu=False, **changes)
    assert not (tmp_path / "out").exists()


def test_text_network_and_autoencoder_work_on_the_gpu(tmp_path, folder, told, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    frames = told.pop(0)
    run(tmp_path, folder, use_gpu=True)
    assert told[:2] == [("text", "cuda"), ("network", "cuda")], (
        "the text encoder is gone before the network comes"
    )
    assert frames.given == [("cpu", torch.float32, 1)] * 3


def test_without_a_gpu_nothing_is_begun(tmp_path, folder, told, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="sees no GPU"):
        run(tmp_path, folder, use_gpu=True)
    assert len(told) == 1
    assert not (tmp_path / "out").exists()


def test_a_head_that_was_not_trained_is_refused_before_work_begins(tmp_path, told):
    made = tmp_path / "sft"
    made.mkdir()
    spec = dataclasses.replace(SPEC, distilled=False)
    save_network(student(spec).model, spec, made)
    with pytest.raises(ConfigError, match="only distillation trains it"):
        run(tmp_path, str(made), use_gpu=False)
    assert len(told) == 1
    run(tmp_path, str(made), use_gpu=False, head="fm", steps=2)


def test_the_checkpoints_own_times_and_shift_are_obeyed(tmp_path, folder, told, monkeypatch, capsys):
    given = []

    def generate(*_, sampling, flow, **__):
        given.append((sampling.steps, flow))
        return torch.zeros(1, 9, 3, 1, 1)

    own = dataclasses.replace(
        SPEC, flow=FlowConfig(timestep_shift=7.0), sampling=SamplingConfig(steps=(1.0, 0.9, 0.1))
    )
    shutil.rmtree(folder)
    Path(folder).mkdir()
    save_network(student(own).model, own, Path(folder))
    monkeypatch.setattr(creation, "generate_latents", generate)
    monkeypatch.setattr(command, "load_network", lambda *_: student(own))
    run(tmp_path, folder, use_gpu=False, count=1)
    assert given.pop() == ((1.0, 0.9, 0.1), FlowConfig(timestep_shift=7.0))
    assert "not at sampling.steps" in capsys.readouterr().out
    run(tmp_path, folder, use_gpu=False, count=1, times="1,0.5")
    assert given.pop() == ((1.0, 0.5), FlowConfig(timestep_shift=7.0))
    assert "not at those of its distillation, [1.0, 0.9, 0.1]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "told_of"),
    [
        ({"times": "1,x"}, "cannot be read"),
        ({"times": "0.5,0.9"}, "do not fall"),
        ({"steps": 3}, "asked for 3 steps"),
        ({"head": "fm", "times": "1,0.5"}, "the fm head"),
    ],
)
def test_times_that_do_not_suit_are_refused_with_a_remedy(tmp_path, folder, told, changes, told_of):
    with pytest.raises(ConfigError, match=told_of) as caught:
        run(tmp_path, folder, use_gpu=False, **changes)
    assert caught.value.remedy


def test_a_checkpoint_may_lie_in_an_object_store(tmp_path, folder, told):
    root = Storage(f"memory://{tmp_path.name}")
    root.put_folder(folder, "student")
    assert len(run(tmp_path, str(root.child("student")), use_gpu=False)) == 3


CORPUS = SimpleNamespace(captions=["b sun", "a sun", "b sun"])


@pytest.mark.parametrize(
    ("source", "found"),
    [("long", ("a sun", "b sun")), ("short", ("a sun", "b sun")), ("FILE", ("teal, sun", "amber sun"))],
)
def test_captions_of_a_dataset_are_different_ones(tmp_path, monkeypatch, source, found):
    monkeypatch.setattr(command, "ShardDataset", lambda *_: CORPUS)
    path = tmp_path / "captions.txt"
    path.write_text("teal, sun\n\n amber sun \nteal, sun\n")
    given = str(path) if source == "FILE" else source
    assert command.dataset_captions(configs.load("ci"), given, "nowhere") == found


def test_the_worlds_captions_are_all_of_them():
    assert len(set(command.dataset_captions(configs.load("ci"), "world", "nowhere"))) == 6 * 5 * 2


def test_a_dataset_without_captions_is_refused_with_the_choice(tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    own = configs.load("clips", ["data.short=a", "data.long=b"])
    for config, source, said in (
        (configs.load("ci"), str(tmp_path / "none.txt"), "cannot be read"),
        (configs.load("ci"), str(tmp_path / "empty.txt"), "holds no caption"),
        (own, "world", "trained on other videos"),
    ):
        with pytest.raises(ConfigError, match=said):
            command.dataset_captions(config, source, "nowhere")


def test_a_dataset_is_of_captions_alone(tmp_path, folder, told):
    with pytest.raises(ConfigError, match="was given --loop"):
        run(tmp_path, folder, use_gpu=False, dataset=str(tmp_path / "clips"), loop=True, out=None)
