"""Seconds of a distillation step on 8 to 512 GPUs, computed from operations, bytes and assumed rates.

    python benchmarks/simulate_cluster.py [--config wan-1.3b] [--gpu h100] [--gpus 8 64] [--json FILE]
    python benchmarks/simulate_cluster.py --check [--json FILE]

The model is the dry run's (jobs/estimate/pace.py): a step lasts as long as its busiest worker computes and
waits. Of the meshes that fit on so many GPUs the fastest is taken. Batches grow with the GPUs from those of
the config on its own `cluster.num_workers`, or stay (`--same-batch`). Efficiency is operations per second
and GPU against the first mesh; `harsh` is that of GPUs twice as fast over links a quarter as fast as
assumed. No GPU ran: every figure is labelled computed, and what it is computed from is listed.

`--check` compares the model with real steps of 1, 2 and 4 gloo processes on this CPU. Rates are those of
the phases of one process; latency and bandwidth those of two that fetch little and much of each other.
Seconds are CPU time, the least of each phase over all steps: on a busy machine clocks tell of its other
work. A step of P processes on C cores takes as long as the one that computes most, and no less than all of
them divided by C; in the model a worker computes and exchanges at C / P of its rate where P > C. What a
process waits for without computing is not seen: on an idle machine clocks show more.
"""

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from timing import write
from torch import distributed, multiprocessing

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench_train_step import CAPTIONS, recipe_of, starts  # noqa: E402

from jobs.config.load import load  # noqa: E402
from jobs.config.schema import STAGES, RunConfig  # noqa: E402
from jobs.estimate.flops import networks, phases  # noqa: E402
from jobs.estimate.gpus import Gpu, gpu, worker_bytes  # noqa: E402
from jobs.estimate.meshes import candidates  # noqa: E402
from jobs.estimate.pace import Link, Machine, Spent, machine, pace, step_seconds  # noqa: E402
from models.rng import Key, normal  # noqa: E402
from pipelines.context import FrameGroup  # noqa: E402
from pipelines.training.collectives import Workers  # noqa: E402
from pipelines.training.distill import DistillStage  # noqa: E402
from pipelines.training.loop import placed  # noqa: E402
from pipelines.training.monitors.phases import Phases  # noqa: E402
from pipelines.training.stage import Batch, Batches  # noqa: E402

BATCHES = ("short_batch", "long_batch", "rollout_batch", "critic_batch")

CHECKED = (
    "data.short_frames=8 data.short_stride=8 data.long_frames=30 data.long_stride=30 "
    "autoencoder.patch_size=16 autoencoder.components=8 "
    "distill.long_batch=4 distill.rollout_batch=4 distill.critic_batch=8 "
    "distill.windows_per_video=4 distill.micro_batch=1 distill.watch_every=0 loss.anchor_weight=0 "
    "sampling.steps=[1.0,0.5] distill.exit_shares=[0,1]"
).split()
"""Of the preset tiny: 64 tokens a frame, 30 frames, which four processes share unevenly, and one exit."""

MESHES = ((2, 1), (2, 2), (4, 1), (4, 2), (4, 4))
"""Processes, and how many of them share clips."""

PHASES = {
    "fm": ("forward", "backward"),
    "rollout": ("rollout",),
    "score": ("score_teacher", "score_critic"),
    "backward": ("student_backward",),
    "critic": ("critic_forward", "critic_backward"),
}
"""Phases of the model by those of a real step; what else a step does takes the time that it takes alone."""

SMALL, LARGE = 1 << 8, 1 << 20
"""Float32 numbers of the two messages."""


def grown(config: RunConfig, gpus: int) -> RunConfig:
    """Batches of every stage in proportion to the GPUs."""
    times = gpus / config.cluster.most_workers
    changed = {}
    for name in STAGES:
        stage = getattr(config, name)
        sizes = {batch: getattr(stage, batch, 0) for batch in BATCHES if hasattr(stage, batch)}
        changed[name] = dataclasses.replace(stage, **{b: round(size * times) for b, size in sizes.items()})
    return dataclasses.replace(config, **changed)


def harsh(on: Machine) -> Machine:
    """One that computes twice as fast, over links a quarter as fast."""
    links = {
        name: Link(4 * link.latency, link.bandwidth / 4)
        for name, link in (("inside", on.inside), ("between", on.between))
    }
    return dataclasses.replace(on, rate=2 * on.rate, **links)


def simulated(
    config: RunConfig, on: Gpu, counts: Sequence[int], *, same_batch: bool
) -> Iterator[dict[str, Any]]:
    """A row for each number of GPUs: the fastest mesh that fits, its step, and its efficiency."""
    firsts: tuple[float, ...] = ()
    for gpus in counts:
        wanted = config if same_batch else grown(config, gpus)
        fitting = [
            one for one in candidates(wanted, "distill", gpus) if worker_bytes(one, "distill") <= on.usable
        ]
        if not fitting:
            yield {"case": f"{gpus} {on.name}", "error": "no mesh fits, or workers are left without a row"}
            continue
        paces = [(stepped(one, machine(on)), one) for one in fitting]
        spent, mesh = min(paces, key=lambda pair: step_seconds(pair[0]))
        seconds, cluster = step_seconds(spent), mesh.cluster
        flops = sum(phases(mesh, "distill", networks(mesh, "distill")).values())
        reached = [flops / gpus / each for each in (seconds, step_seconds(stepped(mesh, harsh(machine(on)))))]
        firsts = firsts or tuple(reached)
        efficiency, worse = (one / first for one, first in zip(reached, firsts, strict=True))
        yield {
            "case": f"{gpus} {on.name}",
            "mesh": f"{gpus // cluster.context_parallel} x {cluster.context_parallel} {cluster.shard}",
            "rollout_batch": mesh.distill.rollout_batch,
            "computed_step_s": round(seconds, 3),
            "computed_steps_per_s": round(1 / seconds, 6),
            "computed_efficiency": round(efficiency, 4),
            "computed_efficiency_harsh": round(worse, 4),
            "computed_exchange_share": round(sum(one.exchange for one in spent.values()) / seconds, 4),
            "computed_shares": {
                name: round(one.seconds / seconds, 4) for name, one in spent.items() if one.seconds
            },
        }


def stepped(config: RunConfig, on: Machine) -> dict[str, Spent]:
    """A step of distillation."""
    return pace(config, "distill", networks(config, "distill"), on)


def line(row: dict[str, Any]) -> str:
    """A row for people."""
    words = [f"{row['case']:>18}"]
    for name, value in row.items():
        if name == "computed_shares":
            words.append("\n" + 20 * " " + ", ".join(f"{one} {part:.1%}" for one, part in value.items()))
        elif name != "case":
            words.append(f"{name} {value}")
    return "  ".join(words)


def inputs(on: Machine) -> dict[str, Any]:
    """What the figures are computed from."""
    return {
        "flops_per_s": on.rate,
        "inside": dataclasses.asdict(on.inside),
        "between": dataclasses.asdict(on.between),
        "workers_a_machine": on.workers,
        "weights_overlap": on.overlaps,
        "source": "data sheets, of which a share is assumed to be reached (jobs/estimate/gpus.py, pace.py)",
    }


class CpuPhases(Phases):
    """Seconds of this process's CPU."""

    def _now(self) -> float:
        return time.process_time()


def steps(recipe: Any, config: RunConfig, workers: Workers, repeats: int) -> dict[str, float]:
    """Real steps of this worker: its CPU seconds by phase, the least of all steps."""
    stage = DistillStage(recipe, CAPTIONS, workers)
    state, count = stage.init("cpu"), config.distill.long_batch
    own = workers.share(count)
    latents = normal(recipe.long_shape, Key(0, purpose="corpus"), own)
    batches = Batches(long=Batch(latents, CAPTIONS["long"] * len(own), own, count))
    laps = []
    stage.step(state, batches, Key(1, purpose="warm"))
    for number in range(repeats):
        stage.phases = CpuPhases()
        stage.step(state, batches, Key(0, number, purpose="step"))
        laps.append(stage.phases.lap())
    return {name: min(lap[name] for lap in laps) for name in laps[0]}


def ping(rank: int, repeats: int) -> list[float]:
    """CPU seconds in which a process gets SMALL and LARGE of the other, as a layer fetches and gives back."""
    group, found = FrameGroup(rank, 2), []
    for size, calls in ((SMALL, 200), (LARGE, 20)):
        x, best = torch.zeros(1, size, requires_grad=True), float("inf")
        for _ in range(repeats):
            began = time.process_time()
            for _ in range(calls):
                both = group.fetch(x, 2, 1)
                both.backward(both.detach())
            best = min(best, (time.process_time() - began) / calls / 2)
        found.append(best)
    return found


def _work(rank: int, size: int, alike: int, start: dict[str, str], repeats: int, out: str) -> None:
    torch.set_num_threads(1)
    if size > 1:
        distributed.init_process_group(
            "gloo", init_method=f"file://{out}/meeting", rank=rank, world_size=size
        )
    config = checked(size, alike)
    recipe = recipe_of(config, config.data.long_frames, start, "distill")
    workers = placed(recipe, rank, size)
    told = {
        "ping": ping(rank, repeats) if size == 2 else [],
        "phases": steps(recipe, config, workers, repeats),
    }
    Path(out, f"{rank}.json").write_text(json.dumps(told))
    if size > 1:
        distributed.barrier()
        distributed.destroy_process_group()


def checked(size: int, alike: int) -> RunConfig:
    """The configuration of the check on a mesh."""
    return load("tiny", [*CHECKED, f"cluster.num_workers={size}", f"cluster.context_parallel={alike}"])


def measured(size: int, alike: int, start: dict[str, str], repeats: int) -> list[dict[str, Any]]:
    """What each process of a mesh has to tell."""
    with tempfile.TemporaryDirectory() as out:
        multiprocessing.spawn(_work, (size, alike, start, repeats, out), nprocs=size)
        return [json.loads(Path(out, f"{rank}.json").read_text()) for rank in range(size)]


def calibrated(least: dict[str, float], pings: Sequence[Sequence[float]]) -> tuple[Machine, float]:
    """This machine, from the phases of one process and fetches of two; and the seconds of a step without
    operations."""
    flops = phases(checked(1, 1), "distill", networks(checked(1, 1), "distill"))
    rates = {
        phase: sum(flops[name] for name in own) / least[real] for real, own in PHASES.items() for phase in own
    }
    small, large = map(min, zip(*pings, strict=True))
    bandwidth = 4 * (LARGE - SMALL) / (large - small)
    link = Link(latency=small - 4 * SMALL / bandwidth, bandwidth=bandwidth)
    rest = sum(spent for name, spent in least.items() if name not in PHASES)
    made = Machine(
        sum(flops.values()) / sum(least.values()),
        link,
        link,
        workers=4,
        half=False,
        overlaps=False,
        rates=rates,
    )
    return made, rest


def check(repeats: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Inputs, and a row for each mesh: seconds computed and measured."""
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        config = checked(1, 1)
        start = starts(config, config.data.long_frames, Path(folder))
        (alone,) = measured(1, 1, start, repeats)
        told = {mesh: measured(*mesh, start, repeats) for mesh in MESHES}
    on, rest = calibrated(alone["phases"], [one["ping"] for one in told[2, 2]])
    rows = []
    for (size, alike), processes in {(1, 1): [alone], **told}.items():
        config = checked(size, alike)
        spent = stepped(config, on)
        computed = (step_seconds(spent) + rest) * max(1.0, size / cores)
        each = [sum(one["phases"].values()) for one in processes]
        seconds = max(max(each), sum(each) / cores)
        rows.append(
            {
                "case": f"{size // alike} x {alike} processes",
                "computed_s": round(computed, 4),
                "measured_s": round(seconds, 4),
                "computed_of_measured": round(computed / seconds, 3),
                "computed_exchange_share": round(
                    sum(one.exchange for one in spent.values()) * max(1.0, size / cores) / computed, 4
                ),
            }
        )
    about = {"cores": cores, "settings": CHECKED, "rest_s": rest, "rates": dict(on.rates), "repeats": repeats}
    return about | {"link": dataclasses.asdict(on.inside)}, rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="wan-1.3b")
    parser.add_argument("--gpu", default="h100")
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 16, 32, 64, 128, 256, 512])
    parser.add_argument("--set", action="append", default=[], help="a setting, as the command line takes it")
    parser.add_argument("--same-batch", action="store_true", help="batches stay as they are")
    parser.add_argument("--check", action="store_true", help="compare with processes on this CPU")
    parser.add_argument("--repeats", type=int, default=4, help="steps of each mesh with --check")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.check:
        about, rows = check(given.repeats)
    else:
        config, on = load(given.config, given.set), gpu(given.gpu)
        about = {"config": given.config, "settings": given.set, "inputs": inputs(machine(on))}
        rows = list(simulated(config, on, sorted(given.gpus), same_batch=given.same_batch))
    print(json.dumps(about, indent=1))
    for row in rows:
        print(line(row))
    if given.json:
        write(given.json, "cpu", rows, **about)


if __name__ == "__main__":
    main()
