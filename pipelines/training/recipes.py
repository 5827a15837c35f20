"""What each stage of training is made from, which stages it starts from, and whether it has finished."""

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.config import FlowConfig, LoraConfig, LossConfig, ModelConfig, SamplingConfig, TextConfig
from models.errors import CheckpointError, ConfigError, DataError, SostenutoError
from models.wan import transformer_files
from pipelines.checkpoints import MANIFEST_FILE, NetworkSpec, Role, parts_of
from pipelines.data.store.info import read_info
from pipelines.storage import Storage, hash_of, one_line
from pipelines.training.config import ClusterConfig, DistillConfig, StageConfig, TrainingConfig

OUTCOME_FILE = "outcome.json"

LINEAGE_FILE = "lineage.json"
"""What a stage is made from: in its folder, and in each of its checkpoints."""

BASELINES = {"sft_longer": "sft", "mixed_longer": "mixed"}
"""Baselines that train on for as many CPU-seconds as distillation took, and the stage each one continues."""

LOADED = {
    "teacher": "teacher.average.safetensors",
    "student": "student.average.safetensors",
    "critic": "critic.safetensors",
}
"""The file of a checkpoint that each role starts from."""

PRETRAINED = "pretrained"
"""What the `teacher` starts from where `model.pretrained` replaces its training."""

CAPTIONS = "captions"
"""The captions that rollouts take from the file `distill.captions`."""

ENDS = 1 << 20
"""Bytes at either end of a file of pretrained weights that tell it from another of its size."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run, whole: built once, compared with what began, and sent to every worker as it is.

    Args:
        name: folder of the stage below `root`, and its name in progress.
        root: storage of the stages of one seed.
        dataset: folder of the dataset.
        cluster: what it asks of Ray.
        settings: the run's resolved settings, kept in every checkpoint.
        seed: the run's seed.
        model, text, flow, loss, sampling: settings of the networks and losses.
        stage: settings of this stage.
        lora: adapters of the student and the critic, where this stage trains by them.
        critic_only: distillation's warm-up, which leaves the student alone.
        start: checkpoint folders by role: `teacher`, `student`, `critic`.
        inputs: sha256 of the weights that it depends on, by `{stage}/{file}`, or `pretrained`;
            of a file's `captions`, too.
        code: the commit, or nothing where it is not known.
        lineage: of the stage, kept in every checkpoint; empty until it has begun (lineage.py).
        short_shape, long_shape: latents [T, C, h, w] of a window of each corpus, in its main bucket: samples
            and held-out windows have this shape, a training batch may have another.
        crop_safe: whether encoding a window gives the window of the encoded video (the autoencoder's).
    """

    name: str
    root: str
    dataset: str
    cluster: ClusterConfig
    settings: dict[str, Any]
    seed: int
    model: ModelConfig
    text: TextConfig
    flow: FlowConfig
    loss: LossConfig
    sampling: SamplingConfig
    stage: StageConfig
    lora: LoraConfig
    critic_only: bool
    start: dict[str, str]
    inputs: dict[str, str]
    code: str
    lineage: dict[str, Any]
    short_shape: tuple[int, int, int, int]
    long_shape: tuple[int, int, int, int]
    crop_safe: bool

    @property
    def adopts(self) -> bool:
        """Whether pretrained weights stand for this stage."""
        return self.name == "teacher" and self.model.pretrained is not None

    def network(self, role: Role, *, distilled: bool = False) -> NetworkSpec:
        """What the network that this stage trains is, and how it is sampled."""
        shape = self.long_shape if role == "student" else self.short_shape
        return NetworkSpec(
            role,
            self.model,
            self.text,
            shape[1],
            shape,
            self.lora,
            distilled=distilled,
            flow=self.flow,
            sampling=self.sampling,
        )


@dataclass(frozen=True)
class StageOutcome:
    """A finished stage, as outcome.json holds it.

    Args:
        checkpoint: folder of its last checkpoint.
        summary: `steps`, `cpu_seconds` and, with held-out windows, `held_out_loss_start` and `held_out_loss`.
        recipe: hash of its lineage (lineage.py).
    """

    checkpoint: str
    summary: dict[str, float]
    recipe: str


def stage_starts(config: TrainingConfig) -> dict[str, dict[str, str]]:
    """Every stage in the order of a run: role to the stage whose last checkpoint the role starts from."""
    before_distill = {"teacher": "teacher", "student": "sft"}
    warmup = {"warmup": before_distill} if config.warmup.steps else {}
    return {
        "teacher": {},
        "sft": {"teacher": "teacher"},
        "mixed": {"teacher": "teacher"},
        **warmup,
        "distill": before_distill | ({"critic": "warmup"} if warmup else {}),
        **{name: {"student": base} for name, base in BASELINES.items()},
    }


def stage_graph(config: TrainingConfig) -> dict[str, set[str]]:
    """Every stage and those it waits for: a baseline also waits for distillation, whose time it gets."""
    return {
        name: {*starts.values(), *(["distill"] if name in BASELINES else [])}
        for name, starts in stage_starts(config).items()
    }


def stages_behind(config: TrainingConfig, name: str) -> set[str]:
    """Every stage that one depends on, directly or not."""
    direct = stage_graph(config).get(name, set())
    return direct.union(*(stages_behind(config, stage) for stage in direct))


def bare_recipe(config: TrainingConfig, name: str, seed: int) -> Recipe:
    """What the settings alone say of a stage's recipe: no folders, no dataset, nothing that it starts from.

    Raises:
        ConfigError: the run has no such stage.
    """
    if name not in stage_starts(config):
        raise ConfigError(f"this run has no stage {name}", "For a warm-up set warmup.steps above 0")
    warmup = dataclasses.replace(config.distill, steps=config.warmup.steps, skip_steps=())
    settings: StageConfig = warmup if name == "warmup" else getattr(config, BASELINES.get(name, name))
    return Recipe(
        name=name,
        root="",
        dataset="",
        cluster=config.cluster,
        settings=dataclasses.asdict(config),
        seed=seed,
        model=config.model,
        text=config.text,
        flow=config.flow,
        loss=config.loss,
        sampling=config.sampling,
        stage=settings,
        lora=config.lora if BASELINES.get(name, name) in config.lora.stages else LoraConfig(),
        critic_only=name == "warmup",
        start={},
        inputs={},
        code="",
        lineage={},
        short_shape=(0, 0, 0, 0),
        long_shape=(0, 0, 0, 0),
        crop_safe=True,
    )


def make_recipe(
    config: TrainingConfig, name: str, seed: int, root: str, dataset: str, code: str = ""
) -> Recipe:
    """The recipe of a stage, from the checkpoints of the stages before it.

    Args:
        code: the commit that trains it, where it is known.

    Raises:
        ConfigError: the run has no such stage.
        CheckpointError: a stage that it starts from has not finished.
        DataError: the dataset is missing or damaged, or `distill.captions` cannot be read.
    """
    bare, starts, info = bare_recipe(config, name, seed), stage_starts(config)[name], read_info(dataset)
    begun = {role: require_finished(root, stage, name).checkpoint for role, stage in starts.items()}
    loaded = {f"{starts[role]}/{LOADED[role]}": checkpoint for role, checkpoint in begun.items()}
    if name in BASELINES:
        loaded[f"distill/{LOADED['student']}"] = require_finished(root, "distill", name).checkpoint
    inputs = {key: checkpoint_sha256(checkpoint, key.split("/")[1]) for key, checkpoint in loaded.items()}
    pretrained = config.model.pretrained
    if name == "teacher" and pretrained is not None and Path(pretrained).is_dir():
        inputs[PRETRAINED] = pretrained_sha256(Path(pretrained))
    settings = _for_as_long(bare, root) if name in BASELINES else bare.stage
    if isinstance(settings, DistillConfig) and settings.captions is not None:
        inputs[CAPTIONS] = hash_of(read_captions(settings.captions))
    return dataclasses.replace(
        bare,
        root=root,
        dataset=dataset,
        stage=settings,
        start=begun,
        inputs=inputs,
        code=code,
        short_shape=info.short.latent_shape,
        long_shape=info.long.latent_shape,
        crop_safe=info.autoencoder["crop_safe"],
    )


def _for_as_long(baseline: Recipe, root: str) -> StageConfig:
    """As many steps as distillation's CPU-seconds allow at the pace of the stage that is continued."""
    name, settings = baseline.name, baseline.stage
    base, distill = (require_finished(root, stage, name).summary for stage in (BASELINES[name], "distill"))
    pace = base["cpu_seconds"] / base["steps"]
    steps = max(1, round(distill["cpu_seconds"] / pace))
    warmup = min(settings.warmup_steps, steps)
    return dataclasses.replace(settings, steps=steps, warmup_steps=warmup, skip_steps=())


def checkpoint_sha256(checkpoint: str, file: str) -> str:
    """sha256 of a file of a checkpoint, as its manifest has it: the same weights are the same input, wherever
    they lie and whatever else their checkpoint holds. Of one in parts: of their sums.

    Raises:
        CheckpointError: the checkpoint is not there, or has no such file.
    """
    storage = Storage(checkpoint)
    sums = storage.read_json(MANIFEST_FILE) if storage.exists(MANIFEST_FILE) else {}
    parts = [str(sums[name]) for name in parts_of(file, sums)]
    if not parts:
        raise CheckpointError(f"{checkpoint} has no {file}", "Train its stage again with --fresh")
    return parts[0] if len(parts) == 1 else hash_of(parts)


def pretrained_sha256(folder: Path) -> str:
    """sha256 over the size and both ends of each file of pretrained weights, which may be too large to read
    for every command."""
    digest = hashlib.sha256()
    for path in transformer_files(folder):
        with path.open("rb") as file:
            size = path.stat().st_size
            digest.update(f"{size}/".encode() + file.read(ENDS))
            file.seek(max(0, size - ENDS))
            digest.update(file.read())
    return digest.hexdigest()


def read_captions(path: str) -> list[str]:
    """The captions of a text file, one per line; empty lines do not count.

    Raises:
        DataError: the file cannot be read, or has no captions.
    """
    folder, _, name = path.rpartition("/")
    try:
        lines = Storage(folder or ".").read_bytes(name).decode().splitlines()
    except (OSError, SostenutoError, UnicodeDecodeError) as error:
        problem = f"distill.captions {path} cannot be read: {one_line(error)}"
        raise DataError(problem, "Give a text file in UTF-8 that every node reaches") from error
    captions = [line.strip() for line in lines if line.strip()]
    if not captions:
        raise DataError(f"distill.captions {path} is empty", "Write a caption on each line")
    return captions


def finished_stage(root: str, name: str) -> StageOutcome | None:
    """The outcome of a stage that has run to its end, if there is one."""
    storage, path = Storage(root), f"{name}/{OUTCOME_FILE}"
    return StageOutcome(**storage.read_json(path)) if storage.exists(path) else None


def require_finished(root: str, stage: str, wanted_by: str) -> StageOutcome:
    """The outcome of a finished stage.

    Raises:
        CheckpointError: it has not finished.
    """
    outcome = finished_stage(root, stage)
    if outcome is None:
        raise CheckpointError(
            f"{wanted_by} needs the finished stage {stage}, which is not in {root}",
            f"Run `sostenuto train {stage}` with the same --config and --set first",
        )
    return outcome
