"""An exported student is opened by diffusers and computes what ours computes; its card says how to use it."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from typer.testing import CliRunner

from jobs.cli import app
from jobs.commands.export import export
from jobs.config import load as configs
from jobs.config.paths import RunPaths
from jobs.config.schema import RunConfig
from models.ddt import Student
from models.dit import DiT
from models.errors import ConfigError, SostenutoError
from models.rng import Key, normal
from models.sampling import Draw, few_step
from models.text.conditioning import Conditioning
from models.wan import read_transformer, write_transformer
from models.weights import Ema
from pipelines.checkpoints import NetworkSpec
from pipelines.data.store.info import CorpusInfo, DatasetInfo, write_sealed
from pipelines.evaluation.run import Evaluation
from pipelines.evaluation.scores import Scores
from pipelines.generation import few_step_times
from pipelines.storage import Storage
from pipelines.training.state import TrainState, save_state
from tests.models.builders import randomize
from tests.models.wan.wan_folders import inputs, relative, velocity

FRAMES, CHANNELS, TEXT_DIM = 7, 4, 10
SETTINGS = """
extends: ci
name: small
text: {dim: 10}
model: {num_layers: 3, head_layers: 1, num_heads: 2, head_dim: 12, ffn_dim: 32, patch_size: [1, 2, 2],
        attention_pattern: GGG, window: 2, rope_theta_windowed: 10000.0, rope_theta_global: 10000.0,
        precondition: false, clip_position: false, init: wan}
autoencoder: {components: 4, patch_size: 8}
flow: {timestep_shift: 3.0, timestep_shift_frames: 4}
sampling: {steps: [1.0, 0.75, 0.5, 0.25], guidance_scale: 2.0}
"""
runner = CliRunner()


def settings(root: Path, *overrides: str) -> RunConfig:
    path = root / "small.yaml"
    path.write_text(SETTINGS)
    return configs.load(str(path), [f"storage.root={root}", *overrides])


def checkpoint(root: Path, config: RunConfig, stage: str = "distill", role: str = "student") -> Path:
    """A checkpoint as a training worker writes it, with random weights that differ from their average."""
    spec = NetworkSpec(
        role, config.model, config.text, CHANNELS, (FRAMES, CHANNELS, 8, 6), distilled=stage == "distill"
    )
    network, critic = spec.build(), DiT(config.model, CHANNELS, TEXT_DIM)
    randomize(network, seed=3)
    average = Ema(network, 0.9)
    randomize(network, seed=4)
    modules = {role: network} | ({"critic": critic} if stage in ("warmup", "distill") else {})
    optimizers = {name: torch.optim.AdamW(module.parameters()) for name, module in modules.items()}
    folder = root / "small" / "seed-0" / stage / "step-000003"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(configs.to_json(config))
    save_state(TrainState(modules, optimizers, {role: average}), spec, folder)
    return folder


def averaged(config: RunConfig) -> Student:
    student = Student(config.model, CHANNELS, TEXT_DIM)
    randomize(student, seed=3)
    return student


def made(tmp_path: Path, config: RunConfig, head: str = "dm", stage: str = "distill") -> Path:
    folder = checkpoint(tmp_path, config, stage)
    out = tmp_path / "out"
    export(config, checkpoint=str(folder), stage=stage, head=head, out=str(out))
    return out


def blocks_of(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)


@pytest.mark.parametrize("head", ["dm", "fm"])
@pytest.mark.parametrize("heads", ["decoupled", "shared"])
def test_diffusers_gives_our_velocity(tmp_path: Path, head: str, heads: str) -> None:
    config = settings(tmp_path, f"model.heads={heads}")
    out = made(tmp_path, config, head)
    theirs = WanTransformer3DModel.from_pretrained(out)
    ours = averaged(config)
    own = ours.distribution_matching if head == "dm" else ours.flow_matching
    x, t, text = inputs(FRAMES)
    with torch.no_grad():
        assert relative(velocity(theirs, x, t, text), own(x, t, Conditioning(text))) < 1e-5
        if heads == "decoupled":
            other = ours.flow_matching if head == "dm" else ours.distribution_matching
            assert relative(velocity(theirs, x, t, text), other(x, t, Conditioning(text))) > 1e-3


@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_what_is_written_comes_back_bit_for_bit(tmp_path: Path, shard: str) -> None:
    config = settings(tmp_path)
    student = averaged(config)
    write_transformer(student, "distribution_matching", FRAMES, tmp_path / "made", shard)
    files = list((tmp_path / "made").glob("*.safetensors"))
    assert (len(files) > 1) == (shard == "20KB")
    assert (tmp_path / "made" / "diffusion_pytorch_model.safetensors.index.json").exists() == (len(files) > 1)
    back = read_transformer(tmp_path / "made", config.model, CHANNELS, TEXT_DIM)
    again = Student(config.model, CHANNELS, TEXT_DIM)
    again.start_from(back)
    wanted, found = student.state_dict(), again.state_dict()
    for name in wanted:
        source = name.replace("flow_matching", "distribution_matching")
        assert torch.equal(found[name], wanted[source]), name


def test_a_windowed_student_needs_the_lines_of_its_card(tmp_path: Path) -> None:
    config = settings(tmp_path, "model.attention_pattern=WGW")
    out = made(tmp_path, config)
    fields = json.loads((out / "config.json").read_text())
    assert fields["sostenuto_attention"] == {"pattern": "WGW", "window": 2}
    transformer = WanTransformer3DModel.from_pretrained(out)
    x, t, text = inputs(FRAMES)
    with torch.no_grad():
        ours = averaged(config).distribution_matching(x, t, Conditioning(text))
        assert relative(velocity(transformer, x, t, text), ours) > 1e-3
        lines = blocks_of((out / "README.md").read_text())[1]
        assert "tokens_per_frame=12" in lines
        exec(lines, {"transformer": transformer})
        assert relative(velocity(transformer, x, t, text), ours) < 1e-5


def test_windows_as_long_as_the_clip_need_nothing(tmp_path: Path) -> None:
    config = settings(tmp_path, "model.attention_pattern=WGW", f"model.window={FRAMES - 1}")
    out = made(tmp_path, config)
    assert "sostenuto_attention" not in json.loads((out / "config.json").read_text())
    assert "Windowed" not in (out / "README.md").read_text()


class Frames:
    """Stands for the noise source of diffusers' scheduler: our keyed noise, one draw a step."""

    def __init__(self, shape: tuple[int, ...], key: Key) -> None:
        self.shape, self.key, self.step = shape, key, 0

    def __call__(self, *_words: object, **_options: object) -> torch.Tensor:
        self.step += 1
        return normal(self.shape, self.key.at(purpose=f"noise-{self.step}"), range(2), "cpu").transpose(1, 2)


def test_the_scheduler_with_the_cards_times_is_our_sampler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(tmp_path)
    out = made(tmp_path, config)
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(out, subfolder="scheduler")
    transformer = WanTransformer3DModel.from_pretrained(out)
    sample = blocks_of((out / "README.md").read_text())[0]
    times = yaml.safe_load(re.search(r"TIMES = (.*)", sample)[1])
    scheduler.set_timesteps(sigmas=times)
    wanted = few_step_times(config.sampling, config.flow, FRAMES)
    assert scheduler.sigmas.tolist() == pytest.approx([*wanted, 0.0], abs=1e-6)
    key, shape = Key(0, purpose="sample"), (FRAMES, CHANNELS, 8, 6)
    text = inputs(FRAMES)[2]
    draw = Draw(shape, Conditioning(text), key, range(2))
    ours = few_step(averaged(config).distribution_matching, wanted, draw)
    module = "diffusers.schedulers.scheduling_flow_match_euler_discrete"
    monkeypatch.setattr(f"{module}.randn_tensor", Frames(shape, key))
    x = normal(shape, key.at(purpose="noise-0"), range(2), "cpu").transpose(1, 2)
    with torch.no_grad():
        for t in scheduler.timesteps:
            out_x = transformer(x, t.expand(2), text).sample
            x = scheduler.step(out_x, t, x, return_dict=False)[0]
    assert relative(x.transpose(1, 2), ours) < 1e-4


def test_the_card_runs_in_diffusers_own_pipeline(tmp_path: Path, wan_folder: Path) -> None:
    from diffusers import AutoencoderKLWan

    out = made(tmp_path, settings(tmp_path))
    base = WanPipeline(
        tokenizer=None, text_encoder=None, vae=AutoencoderKLWan.from_pretrained(wan_folder),
        scheduler=FlowMatchEulerDiscreteScheduler(), transformer=WanTransformer3DModel.from_pretrained(out),
    )  # fmt: skip
    base.save_pretrained(tmp_path / "base")
    lines = blocks_of((out / "README.md").read_text())[0]
    lines = lines.replace('FOLDER, BASE = ".", "base"', f'FOLDER, BASE = "{out}", "{tmp_path / "base"}"')
    lines = lines.replace('prompt="..."', "prompt_embeds=TEXT, output_type='np'")
    lines = lines.replace("from_pretrained(BASE,", "from_pretrained(BASE, tokenizer=None, text_encoder=None,")
    lines = re.sub(r"num_frames=\d+, height=\d+, width=\d+", "num_frames=9, height=32, width=32", lines)
    scope = {"TEXT": inputs()[2][:1]}
    exec(lines, scope)
    assert scope["video"].shape == (9, 32, 32, 3)
    assert len(scope["scheduler"].timesteps) == 4


def test_the_card_tells_what_is_known(tmp_path: Path) -> None:
    base = tmp_path / "wan" / "transformer"
    base.mkdir(parents=True)
    (tmp_path / "wan" / "LICENSE").write_text("Apache License\nVersion 2.0, January 2004\n")
    config = settings(tmp_path, f"model.pretrained={base}", "model.window=8")
    out = made(tmp_path, config)
    card = (out / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["license"] == "apache-2.0"
    assert header["base_model"] == "wan"
    assert (out / "LICENSE").read_text().startswith("Apache")
    assert "distill/step-000003" in card
    assert "not at hand" in card
    assert str(tmp_path) not in card
    shared = (out / "sostenuto.yaml").read_text()
    assert str(tmp_path) not in shared
    assert configs.build(yaml.safe_load(shared)).model.num_layers == 3


def corpus(videos: int) -> CorpusInfo:
    return CorpusInfo(
        videos=videos, rejects=1, windows=5 * videos, holdout_windows=1, frames=100, hours=1.5, fps=8.0,
        captions=3, window_frames=8, window_stride=8, latent_shape=(FRAMES, CHANNELS, 8, 6), files=(),
        dropped_windows=0, latent_mean=(0.0,) * CHANNELS, latent_std=(1.0,) * CHANNELS, padded_frames=0,
    )  # fmt: skip


def test_the_card_counts_the_data_and_gives_this_checkpoints_figures(tmp_path: Path) -> None:
    config = settings(tmp_path)
    folder = checkpoint(tmp_path, config)
    (folder.parent / "outcome.json").write_text(
        json.dumps({"checkpoint": str(folder), "summary": {}, "recipe": ""})
    )
    info = DatasetInfo(
        version="asked-for", data_hash="came-out", made_from="", index_sha256="", height=64, width=48,
        holdout=0.0, seed=0, autoencoder={},
        short=corpus(17), long=corpus(4),
    )  # fmt: skip
    paths = RunPaths.of(config)
    write_sealed(Storage(paths.dataset), info.to_json())
    rows = {
        name: Scores({"fvd": value, "nfe": 4}) for name, value in (("mmm_4", 12.34), ("mmm_fm_50", 56.78))
    }
    measured = Storage(paths.evaluation(0))
    measured.write_json("evaluation.json", Evaluation(0, rows, {}, (), (), 1.0).to_json())
    measured.write_json("inputs.json", {"mmm_4": str(folder), "mmm_fm_50": str(folder)})

    def card(name: str, head: str) -> str:
        export(config, checkpoint=None, stage="distill", head=head, out=str(tmp_path / name))
        return (tmp_path / name / "README.md").read_text()

    told = card("dm", "dm")
    assert "| SHORT | 17 | 85 | 1.50 | 3 | 8 | 1 |" in told
    assert "| LONG | 4 | 20 |" in told
    assert "asked-for" in told
    assert "came-out" in told
    assert "12.34" in told
    assert "56.78" not in told
    assert "sostenuto evaluate --config sostenuto.yaml --seed 0" in told
    assert "56.78" in card("fm", "fm")
    measured.write_json("inputs.json", {"mmm_4": "another"})
    assert "12.34" not in card("other", "dm")


def test_an_unknown_licence_is_said_to_be_unknown(tmp_path: Path) -> None:
    config = dataclasses.replace(settings(tmp_path), model=dataclasses.replace(
        settings(tmp_path).model, pretrained=str(tmp_path / "none" / "transformer")))  # fmt: skip
    card = (made(tmp_path, config) / "README.md").read_text()
    assert "license: unknown" in card
    assert "Unknown: no LICENSE lay beside" in card


REFUSED = [
    (("model.precondition=true",), "dm", "distill", "preconditioned student", "model.precondition=false"),
    (("model.clip_position=true",), "dm", "distill", "clip positions", "model.clip_position=false"),
    (("model.rope_theta_global=100.0",), "dm", "distill", "rope_theta_global", "=10000"),
    ((), "dm", "sft", "only distillation trains it", "fm head"),
    ((), "dm", "warmup", "only distillation trains it", "fm head"),
]


@pytest.mark.parametrize(("overrides", "head", "stage", "problem", "remedy"), REFUSED)
def test_what_cannot_be_exported_says_so(
    tmp_path: Path, overrides: tuple[str, ...], head: str, stage: str, problem: str, remedy: str
) -> None:
    with pytest.raises(SostenutoError) as caught:
        made(tmp_path, settings(tmp_path, *overrides), head, stage)
    assert problem in caught.value.problem
    assert remedy in caught.value.remedy
    assert not (tmp_path / "out").exists()


def test_a_teacher_and_a_used_folder_are_refused(tmp_path: Path) -> None:
    config = settings(tmp_path)
    folder = checkpoint(tmp_path, config, "teacher", "teacher")
    with pytest.raises(SostenutoError, match="holds a teacher"):
        export(config, checkpoint=str(folder), stage="teacher", head="dm", out=str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="is not empty"):
        export(config, checkpoint=str(folder), stage="teacher", head="dm", out=str(tmp_path))


def test_the_command_finds_the_runs_student(tmp_path: Path) -> None:
    config = settings(tmp_path)
    words = ["export", "--config", str(tmp_path / "small.yaml"), "--set", f"storage.root={tmp_path}",
             "--stage", "sft", "--head", "fm", "--out", str(tmp_path / "out")]  # fmt: skip
    missing = runner.invoke(app, words)
    assert missing.exit_code == 1
    assert "sostenuto train sft" in missing.stderr
    folder = checkpoint(tmp_path, config, "sft")
    outcome = {"checkpoint": str(folder), "summary": {}, "recipe": ""}
    (folder.parent / "outcome.json").write_text(json.dumps(outcome))
    done = runner.invoke(app, words)
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md", "config.json", "diffusion_pytorch_model.safetensors", "scheduler", "sostenuto.yaml",
    ]  # fmt: skip
