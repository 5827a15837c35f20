"""`sostenuto export`: encoder and one head of a student as a folder that diffusers opens, with its card."""

import json
import shutil
from pathlib import Path
from typing import Any, Literal

from jobs.commands.evaluate import INPUTS, systems_of
from jobs.commands.runs import checkpoint_of
from jobs.config import load as configs
from jobs.config.paths import RunPaths
from jobs.config.schema import RunConfig
from jobs.console import print_line
from models.ddt import HeadName, Student
from models.errors import CheckpointError, ClusterError, ConfigError, DataError
from models.flow import shift_for
from models.text.kinds import text_kind
from models.wan import require_exportable, write_transformer
from pipelines.checkpoints import NetworkSpec, checkpoint_file, load_network, read_spec
from pipelines.data.store.info import read_info
from pipelines.evaluation.run import RESULT, Evaluation
from pipelines.generation import require_head
from pipelines.storage import Storage, temporary_folder

HEAD_NAMES: dict[str, HeadName] = {"dm": "distribution_matching", "fm": "flow_matching"}
SETTINGS_FILE = "sostenuto.yaml"
"""The settings of training, in the export."""
TRAINING_SETTINGS = "config.json"
"""The same, in a checkpoint."""
LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md")
TEMPLATE = Path(__file__).with_name("card.md.j2")


def export(
    config: RunConfig, *, checkpoint: str | None, stage: str, head: Literal["dm", "fm"], out: str
) -> str:
    """Write a student as a diffusers transformer with its scheduler, its settings and a model card.

    Args:
        config: the run's settings: they only find the checkpoint, which keeps those of its training.
        checkpoint: folder of a student; None is the last of the run's `stage`.
        stage: a finished stage of the run.
        head: which head goes with the encoder.
        out: a folder that is new or empty.

    Returns:
        The folder.

    Raises:
        ConfigError: the folder is not empty, the student cannot be a diffusers transformer, or its head has
            not been trained.
        CheckpointError: there is no finished student, or the checkpoint is damaged.
    """
    target = Storage(out)
    if target.list():
        raise ConfigError(f"{target} is not empty", "Name a new folder by --out")
    folder = str(Storage(checkpoint or checkpoint_of(config, stage, "export")))
    if not Storage(folder).exists(TRAINING_SETTINGS):
        raise CheckpointError(
            f"{folder} holds no settings of a training", "Give the folder of a student's checkpoint"
        )
    with checkpoint_file(folder, TRAINING_SETTINGS) as path:
        settings = configs.from_json(path.read_text())
    spec = read_spec(folder)
    if spec.role != "student":
        raise CheckpointError(
            f"{folder} holds a {spec.role}", "Give the folder of a student: --stage distill, sft or mixed"
        )
    require_exportable(spec.model)
    require_head(spec, head)
    with temporary_folder() as made:
        student = load_network(folder).model
        assert isinstance(student, Student)
        write_transformer(student, HEAD_NAMES[head], spec.shape[0], made)
        scheduler = scheduler_fields(settings, spec.shape[0], head)
        (made / "scheduler").mkdir()
        (made / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler, indent=2) + "\n")
        (made / SETTINGS_FILE).write_text(_shared(settings))
        licence = find_licence(settings)
        if licence is not None:
            shutil.copyfile(licence, made / "LICENSE")
        (made / "README.md").write_text(_card(settings, spec, folder, head, scheduler["shift"], licence))
        target.put_folder(made, "")
    print_line(f"{head} head of {folder}: a diffusers WanTransformer3DModel in {target}")
    if spec.model.is_windowed(spec.shape[0]):
        print_line(
            "its windowed blocks need the lines of README.md: diffusers would attend over the whole clip"
        )
    return str(target)


def find_licence(config: RunConfig) -> Path | None:
    """The licence in the base model's folder or in the one around it."""
    if config.model.pretrained is None:
        return None
    base = Path(config.model.pretrained)
    paths = (folder / name for folder in (base, base.absolute().parent) for name in LICENCES)
    return next((path for path in paths if path.is_file()), None)


def scheduler_fields(config: RunConfig, frames: int, head: str) -> dict[str, Any]:
    """FlowMatchEulerDiscreteScheduler for clips of `frames` latent frames.

    The few-step sampler of the DM head predicts x0 and takes fresh noise at every step, which diffusers
    calls stochastic sampling.
    """
    return {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "shift": shift_for(config.flow, frames),
        "use_dynamic_shifting": False,
        "stochastic_sampling": head == "dm",
    }


def _shared(config: RunConfig) -> str:
    """The settings as YAML without paths on this machine, so that they can be shared."""
    tree = configs.to_dict(config)
    for group in ("storage", "tracking", "cluster", "sweep"):
        del tree[group]
    paths = (("data", "short"), ("data", "long"), ("model", "pretrained"), ("autoencoder", "pretrained"))
    for group, name in paths:
        if tree[group][name] is not None:
            tree[group][name] = Path(tree[group][name]).name
    return configs.yaml_of(tree)


def _card(
    config: RunConfig, spec: NetworkSpec, folder: str, head: str, shift: float, licence: Path | None
) -> str:
    """The model card: what the network is, how to sample it, and what is known of it."""
    from huggingface_hub import ModelCard, ModelCardData

    base = None
    if config.model.pretrained is not None:
        path = Path(config.model.pretrained)
        base = path.parent.name if path.name == "transformer" and path.parent.name else path.name
    identifier = "unknown"
    if licence is not None:
        text = licence.read_text(encoding="utf-8", errors="replace")
        identifier = "apache-2.0" if "Apache License" in text and "Version 2.0" in text else "other"
    try:
        dataset = read_info(RunPaths.of(config).dataset)
    except (DataError, ClusterError):
        dataset = None

    sampling = config.sampling
    times, steps, guidance = str(list(sampling.steps)), len(sampling.steps), 1.0
    if head == "fm":
        steps, guidance = sampling.ode_steps, sampling.guidance_scale
        times = f"[1 - step / {steps} for step in range({steps})]"
    windowed = [block for block, kind in enumerate(spec.model.attention_pattern) if kind == "W"]
    frames, _, rows, columns = spec.shape
    _, patch_rows, patch_columns = spec.model.patch_size

    systems = _metrics(config, folder, head)
    numbers = []
    for name in dict.fromkeys(name for values in systems.values() for name in values):
        cells = [values.get(name) for values in systems.values()]
        if any(isinstance(value, int | float) for value in cells):
            numbers.append((name, [f"{x:.4g}" if isinstance(x, int | float) else "-" for x in cells]))
    card = ModelCard.from_template(
        ModelCardData(
            library_name="diffusers", pipeline_tag="text-to-video", license=identifier, base_model=base
        ),
        template_path=TEMPLATE,
        name=config.name,
        head=head,
        model=spec.model,
        data=config.data,
        shape=spec.shape,
        steps=steps,
        times=times,
        shift=f"{shift:g}",
        guidance=guidance,
        flow=config.flow,
        windowed_blocks=windowed if spec.model.is_windowed(frames) else [],
        tokens_per_frame=(rows // patch_rows) * (columns // patch_columns),
        dataset=dataset,
        checkpoint="/".join(folder.rstrip("/").split("/")[-2:]),
        seed=config.seed,
        base=base,
        systems=list(systems),
        metrics=numbers,
        licence_file=licence,
        text_kind=None if text_kind(spec.text).in_pipelines else spec.text.kind,
    )
    return f"{card}\n"


def _metrics(config: RunConfig, folder: str, head: str) -> dict[str, dict[str, Any]]:
    """What `sostenuto evaluate` measured of this checkpoint and head: metrics by system."""
    storage = Storage(RunPaths.of(config).evaluation(config.seed))
    if not (storage.exists(RESULT) and storage.exists(INPUTS)):
        return {}
    measured, inputs = Evaluation.from_json(storage.read_json(RESULT)), storage.read_json(INPUTS)
    return {
        system.name: dict(measured.rows[system.name].metrics)
        for system in systems_of(config, config.seed)
        if system.head == head and inputs.get(system.name) == folder
    }
