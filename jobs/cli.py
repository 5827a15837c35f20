"""`sostenuto`: a command for each step of a run. A command imports what is heavy only when it runs."""

import importlib
import json
import os
from enum import StrEnum
from typing import Annotated, Any

import typer

from jobs.console import exit_on_error

app = typer.Typer(
    name="sostenuto",
    help="Train few-step generators of long, coherent video.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

Config = Annotated[
    str,
    typer.Option("--config", help="A preset (tiny, minute, clips, wan-1.3b, wan-14b, ci) or a YAML file."),
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="dotted.name=value, again and again.", metavar="NAME=VALUE")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print settings, sizes and cost; do nothing.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and what the libraries log.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start over instead of going on.")]
Seed = Annotated[
    int | None, typer.Option("--seed", help="Seed of training and sampling; the config's if left out.")
]
Seeds = Annotated[int, typer.Option("--seeds", help="Seeds, one after another.", min=1)]
Variables = Annotated[
    list[str] | None,
    typer.Option("--env", help="Variable for the job, again and again.", metavar="NAME=VALUE"),
]
Short = Annotated[str | None, typer.Option("--short", help="Folder of the SHORT corpus.", metavar="DIR")]
Long = Annotated[str | None, typer.Option("--long", help="Folder of the LONG corpus.", metavar="DIR")]


GpuName = Annotated[str | None, typer.Option("--gpu", help="With --dry-run: does it fit on a100, h100, ...?")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


class Stage(StrEnum):
    """Stages of training, in order."""

    teacher = "teacher"
    sft = "sft"
    mixed = "mixed"
    warmup = "warmup"
    distill = "distill"


class HeadName(StrEnum):
    """Heads of the student."""

    dm = "dm"
    fm = "fm"


def main() -> None:
    """Entry point of `sostenuto` and of `python -m jobs`."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    app(prog_name="sostenuto")


def _launch(
    command: str, source: str, overrides: list[str] | None, *, dry_run: bool, debug: bool, **options: Any
) -> None:
    """Load the config and hand it to `jobs.<command>.<command>`, or only describe it."""
    with exit_on_error(debug=debug):
        from jobs.config.load import load
        from jobs.config.paths import require_lasting_root
        from jobs.console import print_line

        config = load(source, overrides or [])
        if dry_run:
            from jobs.estimate.describe import render

            print_line(render(config))
            return
        require_lasting_root(config.storage.root)
        os.environ["SOSTENUTO_DEBUG"] = "1" if debug else "0"
        room = "estimate" if command == "plan" else "commands"
        module = importlib.import_module(f"jobs.{room}.{command}")
        getattr(module, command)(config, **options)


def _with(overrides: list[str] | None, **values: object) -> list[str]:
    """The overrides of `--set` and those that have an option of their own."""
    named = {name.replace("__", "."): value for name, value in values.items() if value is not None}
    return [*(overrides or []), *(f"{name}={json.dumps(value)}" for name, value in named.items())]


@app.command()
def quickstart(
    config: Config = "tiny", overrides: Overrides = None, seeds: Seeds = 1, short: Short = None,
    long: Long = None,
    fresh: Fresh = False, dry_run: DryRun = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Everything in one go: world or your folders, ingest, every stage, samples, evaluation, table.

    \b
    Examples:
      sostenuto quickstart
      sostenuto quickstart --seeds 3
      sostenuto quickstart --config minute
      sostenuto quickstart --config clips --short DIR --long DIR
    """
    settings = _with(overrides, data__short=short, data__long=long)
    _launch("quickstart", config, settings, dry_run=dry_run, debug=debug, seeds=seeds, fresh=fresh)


@app.command()
def world(
    config: Config = "tiny",
    overrides: Overrides = None,
    fresh: Fresh = False,
    dry_run: DryRun = False,
    debug: Debug = False,
) -> None:
    """Render the built-in world: two folders of MP4 files with captions.

    \b
    Examples:
      sostenuto world
      sostenuto world --config ci --set world.long_clips=4
    """
    _launch("world", config, overrides, dry_run=dry_run, debug=debug, fresh=fresh)


@app.command()
def ingest(
    config: Config = "tiny", overrides: Overrides = None, short: Short = None, long: Long = None,
    as_json: AsJson = False, fresh: Fresh = False, dry_run: DryRun = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Decode both corpora, cut windows, encode them into shards. Only what is missing is done.

    --dry-run decodes and judges every video, and tells what would be kept and why.

    \b
    Examples:
      sostenuto ingest
      sostenuto ingest --config clips --short DIR --long DIR
      sostenuto ingest --config clips --short DIR --long DIR --dry-run
      sostenuto ingest --json
    """
    settings = _with(overrides, data__short=short, data__long=long)
    if dry_run:
        _launch("preview", config, settings, dry_run=False, debug=debug)
        return
    _launch("ingest", config, settings, dry_run=False, debug=debug, fresh=fresh, as_json=as_json)


@app.command()
def inspect(
    dataset: Annotated[str | None, typer.Argument(help="Folder or URI; the run's if left out.")] = None,
    config: Config = "tiny", overrides: Overrides = None,
    out: Annotated[
        str | None, typer.Option(help="Folder or URI; inspection/ beside the dataset if left out.")
    ] = None,
    as_json: AsJson = False, dry_run: DryRun = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Look at an ingested dataset: counts, refusals, histograms, contact sheets, a report.

    What is seen of the run's own dataset is recorded by MLflow in its run `dataset`.

    \b
    Examples:
      sostenuto inspect
      sostenuto inspect --config clips --json
      sostenuto inspect s3://bucket/runs/clips/dataset --out looks
    """
    _launch(
        "inspect", config, overrides, dry_run=dry_run, debug=debug,
        dataset=dataset, out=out, as_json=as_json,
    )  # fmt: skip


@app.command()
def train(
    stage: Annotated[
        Stage | None,
        typer.Argument(help="Stage to train; it goes on where it stopped. May be left out with --dry-run."),
    ] = None,
    config: Config = "tiny", overrides: Overrides = None, seed: Seed = None,
    fresh: Fresh = False, dry_run: DryRun = False, gpu: GpuName = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: one JSON object.")] = False,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Train one stage on Ray: teacher, sft, mixed, warmup or distill.

    --dry-run tells sizes, operations by phase and memory by part; with --gpu, exit code 1 if a stage does
    not fit there.

    \b
    Examples:
      sostenuto train teacher
      sostenuto train distill --seed 1 --set loss.reverse_kl_weight=0.3
      sostenuto train sft --config wan-1.3b --dry-run
      sostenuto train --config wan-1.3b --dry-run --gpu h100 --json
    """
    settings, name = _with(overrides, seed=seed), None if stage is None else stage.value
    if dry_run:
        _launch("plan", config, settings, dry_run=False, debug=debug, stage=name, gpu=gpu, as_json=as_json)
        return
    if name is None:
        raise typer.BadParameter("it may be left out with --dry-run only", param_hint="stage")
    if gpu is not None or as_json:
        raise typer.BadParameter("they belong to --dry-run", param_hint="--gpu, --json")
    _launch("train", config, settings, dry_run=False, debug=debug, stage=name, fresh=fresh)


@app.command()
def sample(
    config: Config = "tiny", overrides: Overrides = None, seed: Seed = None,
    checkpoint: Annotated[str | None, typer.Option(help="Folder; the student's if left out.")] = None,
    count: Annotated[int, typer.Option(help="Videos.", min=1)] = 4,
    caption: Annotated[list[str] | None, typer.Option(help="Again and again; LONG's if left out.")] = None,
    head: Annotated[HeadName, typer.Option(help="dm: few steps; fm: many.")] = HeadName.dm,
    steps: Annotated[int | None, typer.Option(help="Steps; the config's if left out.", min=1)] = None,
    out: Annotated[str | None, typer.Option(help="Folder; the run's samples/ if left out.")] = None,
    dry_run: DryRun = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Sample videos from a trained student: MP4, GIF and a contact sheet.

    \b
    Examples:
      sostenuto sample --count 8
      sostenuto sample --head fm --steps 50
      sostenuto sample --caption "a bay at dusk, streaked sky, amber sun, slow waves rolling in" --out clips
    """
    _launch(
        "sample", config, _with(overrides, seed=seed), dry_run=dry_run, debug=debug,
        checkpoint=checkpoint, count=count, captions=caption or [], head=head.value, steps=steps, out=out,
    )  # fmt: skip


@app.command()
def export(
    out: Annotated[str, typer.Option(help="Folder to write, new or empty.")],
    checkpoint: Annotated[
        str | None, typer.Argument(help="Folder of a student; the last of the run's --stage if left out.")
    ] = None,
    head: Annotated[HeadName, typer.Option(help="dm: few steps; fm: many.")] = HeadName.dm,
    stage: Annotated[Stage, typer.Option(help="Finished stage of the run.")] = Stage.distill,
    config: Config = "tiny", overrides: Overrides = None, seed: Seed = None, debug: Debug = False,
) -> None:  # fmt: skip
    """Write a student as a folder that diffusers opens: transformer, scheduler, settings and a model card.

    \b
    Examples:
      sostenuto export --config wan-1.3b --out student
      sostenuto export --config wan-1.3b --stage sft --head fm --out long-sft
      sostenuto export runs/wan-1.3b/seed-0/distill/step-001000 --out student
    """
    _launch(
        "export", config, _with(overrides, seed=seed), dry_run=False, debug=debug,
        checkpoint=checkpoint, stage=stage.value, head=head.value, out=out,
    )  # fmt: skip


@app.command()
def evaluate(
    config: Config = "tiny", overrides: Overrides = None, seed: Seed = None,
    fresh: Fresh = False, dry_run: DryRun = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Generate with every trained system and compare them; a table, JSON, plots, MLflow.

    \b
    Examples:
      sostenuto evaluate
      sostenuto evaluate --seed 1 --set evaluation.videos=100
    """
    _launch("evaluate", config, _with(overrides, seed=seed), dry_run=dry_run, debug=debug, fresh=fresh)


@app.command()
def sweep(
    config: Config = "tiny", overrides: Overrides = None, seed: Seed = None,
    fresh: Fresh = False, dry_run: DryRun = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Search over settings by Ray Tune; each trial is a real training run. It goes on where it stopped.

    \b
    Examples:
      sostenuto sweep
      sostenuto sweep --set sweep.space.loss.reverse_kl_weight=[0.3,1,3] --set sweep.trials=3
      sostenuto sweep --set "sweep.space.distill.learning_rate={low: 1e-5, high: 1e-4, log: true}"
    """
    _launch("sweep", config, _with(overrides, seed=seed), dry_run=dry_run, debug=debug, fresh=fresh)


@app.command(context_settings={"allow_interspersed_args": False, "ignore_unknown_options": False})
def submit(
    command: Annotated[list[str], typer.Argument(help="A sostenuto command and its options, or any other.")],
    address: Annotated[str | None, typer.Option(help="Jobs server [default: http://127.0.0.1:8265]")] = None,
    submission_id: Annotated[str | None, typer.Option(help="Name of the job; made up if left out.")] = None,
    follow: Annotated[bool, typer.Option("--follow/--no-wait", help="Print the job's log.")] = True,
    env: Variables = None,
    working_dir: Annotated[str, typer.Option(help="Folder that travels with the job.")] = ".",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the job; do nothing.")] = False,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Run a command as a job on a Ray cluster. Options of this command come before the submitted one.

    \b
    Examples:
      sostenuto submit train teacher --config wan-1.3b
      sostenuto submit --no-wait --submission-id night-1 quickstart --config minute
      sostenuto submit --address http://head:8265 evaluate --set storage.root=s3://bucket/runs
    """
    with exit_on_error(debug=debug):
        from jobs.commands.submit import Submission
        from jobs.commands.submit import submit as send

        request = Submission.of(
            command, address=address, submission_id=submission_id, env=env or [], working_dir=working_dir
        )
        raise SystemExit(send(request, follow=follow, dry_run=dry_run))


@app.command()
def doctor(config: Config = "tiny", overrides: Overrides = None, debug: Debug = False) -> None:
    """Check the environment, and say what to do about what is wrong. Exit code 1 if anything is.

    \b
    Examples:
      sostenuto doctor
      sostenuto doctor --set storage.root=/mnt/runs
    """
    _launch("doctor", config, overrides, dry_run=False, debug=debug)


@app.command()
def kernels(
    report: Annotated[bool, typer.Option("--report", help="Compile every shipped GPU kernel.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Which code attention and the score run here; with --report, what their GPU kernels compile to.

    A GPU is not needed. Exit code 1 if a configuration is not as required.

    \b
    Examples:
      sostenuto kernels
      sostenuto kernels --report
      sostenuto kernels --report --json
    """
    with exit_on_error(debug=debug):
        from jobs.commands.kernels import kernels as show

        raise SystemExit(0 if show(report=report, as_json=as_json) else 1)
