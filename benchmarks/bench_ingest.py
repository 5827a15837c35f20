"""`ingest` against a plain loop and against Ray Data's own reader of videos, on the same files, in one run.

    python benchmarks/bench_ingest.py [--short DIR --long DIR] [--repeats 3] [--cores 2] [--json FILE]

Windows per second of wall time once every process is warm and the autoencoder is fitted: the best of the
repeats, which take turns (Ray Data's reader has one turn); start-up is reported separately. The plain loop
decodes with decord, resizes, encodes and writes parquet in as many processes as there are cores: no fence, no
Ray, no checks. Ray Data's reader gives one row per frame; the frames are encoded, and grouped by file again.
CPU seconds are those of all processes involved. Without folders, clips of a few seconds of 128x128 to 512x512
pixels and one long video are made.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from timing import hardware, write

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_num_workers_soft_limit", "8")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT)])

import ingest_peers  # noqa: E402

from jobs.ray_session import ray_session  # noqa: E402
from models.config import AutoencoderConfig  # noqa: E402
from pipelines.data.config import CurationConfig, DataConfig  # noqa: E402
from pipelines.data.ingest.pipeline import ingest  # noqa: E402
from pipelines.media.video import write_mp4  # noqa: E402
from pipelines.training.config import ClusterConfig  # noqa: E402

SIZES = (128, 192, 256, 384, 512)
CLIPS, CLIP_SECONDS, LONG_SECONDS, FPS = 240, 8, 480, 24
PLAIN = CurationConfig(cuts=False, scores=False)
"""The peers neither look for cuts nor measure."""
CODE = AutoencoderConfig(patch_size=16, components=8, fit_frames=64)
CUTS = {
    "height": 64,
    "width": 64,
    "short_frames": 16,
    "short_stride": 16,
    "long_frames": 48,
    "long_stride": 48,
}


class Case(NamedTuple):
    """Two folders of video, and where the results go."""

    name: str
    short: Path
    long: Path
    work: Path


class Run(NamedTuple):
    """One measurement."""

    windows: int
    seconds: float
    cpu_seconds: float


def pictures(count: int, size: int, seed: int) -> Iterator[np.ndarray]:
    """Frames of a texture that drifts, with a square that moves otherwise."""
    rng = np.random.default_rng(seed)
    field = rng.integers(0, 256, (16, 16, 3), np.uint8).repeat(size // 16, 0).repeat(size // 16, 1)
    for number in range(count):
        frame = np.roll(field, (number, 2 * number), (0, 1)).copy()
        corner = number * 3 % (size * 3 // 4)
        frame[corner : corner + size // 4, size // 3 : size // 2] = (number * 5 % 256, 40, 200)
        yield frame


def make_clips(folder: Path, clips: int, seconds: int, long_seconds: int) -> tuple[Path, Path]:
    """Synthetic corpora: (short folder, long folder)."""
    for corpus in ("short", "long"):
        (folder / corpus).mkdir(parents=True)
    for number in range(clips):
        size = SIZES[number % len(SIZES)]
        write_mp4(folder / f"short/{number:03d}.mp4", pictures(seconds * FPS, size, number), FPS, crf=28)
    write_mp4(folder / "long/long.mp4", pictures(long_seconds * FPS, SIZES[-1], clips), FPS, crf=28)
    return folder / "short", folder / "long"


def cpu_seconds(pids: Sequence[int] | None = None) -> float:
    """CPU time so far of these processes and this one, or of this one and all it started."""
    own = psutil.Process()
    processes = own.children(recursive=True) if pids is None else [psutil.Process(pid) for pid in pids]
    total = 0.0
    for process in [own, *processes]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def measured(run: Callable[[], int], pids: Sequence[int] | None = None) -> Run:
    """A call that returns a number of windows."""
    cpu, start = cpu_seconds(pids), time.perf_counter()
    windows = run()
    return Run(windows, time.perf_counter() - start, cpu_seconds(pids) - cpu)


def own(case: Case, out: Path) -> tuple[Run, float]:
    """Ingest from the end of its fit to its end, and the seconds of all of it."""
    fitted = [time.perf_counter(), cpu_seconds()]

    def progress(stage: str, _done: int, _total: int) -> None:
        if stage == "fit":
            fitted[:] = [time.perf_counter(), cpu_seconds()]

    begun = time.perf_counter()
    info = ingest(
        str(case.short), str(case.long), str(out), DataConfig(**CUTS, curation=PLAIN), CODE, 0, progress
    )
    ended = time.perf_counter()
    run = Run(info.short.windows + info.long.windows, ended - fitted[0], cpu_seconds() - fitted[1])
    return run, ended - begun


def cut_of(corpus: str, dataset: Path) -> ingest_peers.Cut:
    """What a peer makes of a corpus with a dataset's autoencoder."""
    frames, stride = CUTS[f"{corpus}_frames"], CUTS[f"{corpus}_stride"]
    return ingest_peers.Cut(str(dataset / "autoencoder"), CUTS["height"], CUTS["width"], frames, stride)


def files(folder: Path) -> list[str]:
    """Videos of a flat corpus."""
    return sorted(str(path) for path in folder.iterdir() if path.is_file())


def plain(case: Case, loop: ingest_peers.PlainLoop, dataset: Path, out: Path) -> Run:
    """The plain loop over both corpora."""
    jobs = [(p, cut_of(c, dataset)) for c in ("short", "long") for p in files(getattr(case, c))]
    return measured(lambda: loop.run(jobs, out), loop.pids())


def by_reader(case: Case, dataset: Path, out: Path) -> Run:
    """Ray Data's reader over both corpora."""

    def run() -> int:
        corpora = [(c, files(getattr(case, c))) for c in ("short", "long")]
        return sum(ingest_peers.read_videos(paths, cut_of(c, dataset), out / c) for c, paths in corpora)

    return measured(run)


def take_turns(case: Case, cores: int, repeats: int, *, reader: bool) -> dict[str, Any]:
    """Best runs of each on this process's cores: name -> Run as a list, and seconds of start-up."""
    began = time.perf_counter()
    loop = ingest_peers.PlainLoop(cores)
    started = {"plain loop": time.perf_counter() - began}
    runs: dict[str, list[Run]] = {"ingest": [], "plain loop": [], "read_videos": []}
    began = time.perf_counter()
    with ray_session(ClusterConfig()):
        started["ray"] = time.perf_counter() - began
        _, started["first ingest"] = own(case, case.work / "first")
        for repeat in range(repeats):
            out = case.work / f"{repeat}"
            run, started["later ingest"] = own(case, out)
            runs["ingest"].append(run)
            runs["plain loop"].append(plain(case, loop, out, case.work / f"{repeat}-plain"))
            if reader and repeat == 0:
                runs["read_videos"].append(by_reader(case, out, case.work / f"{repeat}-reader"))
    loop.close()
    return {"started": started, "runs": {name: _best(found) for name, found in runs.items() if found}}


def _best(runs: Sequence[Run]) -> Run:
    """Least wall time and least CPU time."""
    return Run(runs[0].windows, min(r.seconds for r in runs), min(r.cpu_seconds for r in runs))


def apart(case: Case, cores: int, repeats: int, *, reader: bool) -> dict[str, Any]:
    """`take_turns` in a process of its own that has only so many cores."""
    command = [sys.executable, __file__, "--part", str(cores), "--repeats", str(repeats)]
    command += ["--short", str(case.short), "--long", str(case.long)] + (["--reader"] if reader else [])
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer | {"runs": {name: Run(*run) for name, run in answer["runs"].items()}}


def part(given: argparse.Namespace) -> None:
    """What `apart` runs: prints its answer as JSON."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.part])
    with tempfile.TemporaryDirectory() as work:
        case = Case("", given.short, given.long, Path(work))
        print(json.dumps(take_turns(case, given.part, given.repeats, reader=given.reader)))


def rows_of(case: Case, cores: int, repeats: int) -> Iterator[dict[str, Any]]:
    """The ratios of a case."""
    many = apart(case, cores, repeats, reader=True)
    for baseline in ("plain loop", "read_videos"):
        yield _row(case.name, baseline, many["runs"]["ingest"], many["runs"][baseline])
    if cores > 1:
        one = apart(case, 1, repeats, reader=False)
        for name in ("ingest", "plain loop"):
            yield _row(
                f"{case.name}, {name}: 1 to {cores} cores", "1 core", many["runs"][name], one["runs"][name]
            )
    yield {"case": f"{case.name}, start-up", "seconds": many["started"]}


def _row(case: str, baseline: str, ours: Run, theirs: Run) -> dict[str, Any]:
    return {
        "case": case,
        "baseline": baseline,
        "ratio": (ours.windows / ours.seconds) / (theirs.windows / theirs.seconds),
        "cpu_ratio": (theirs.cpu_seconds / theirs.windows) / (ours.cpu_seconds / ours.windows),
        "windows": ours.windows,
        "baseline_windows": theirs.windows,
        "seconds": ours.seconds,
        "baseline_seconds": theirs.seconds,
        "cpu_seconds": ours.cpu_seconds,
        "baseline_cpu_seconds": theirs.cpu_seconds,
    }


def line(row: dict[str, Any]) -> str:
    """A row as it is printed."""
    if "baseline" not in row:
        return f"{row['case']}: " + ", ".join(f"{name} {s:.1f} s" for name, s in row["seconds"].items())
    times = f"{row['seconds']:8.2f} {row['baseline_seconds']:8.2f} {row['ratio']:8.2f}"
    cpu = f"{row['cpu_seconds']:8.2f} {row['baseline_cpu_seconds']:8.2f} {row['cpu_ratio']:8.2f}"
    return f"{row['case']:>44} {row['baseline']:>12} {row['windows']:>8} {times} {cpu}"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", type=Path, help="folder of real clips, flat, with --long")
    parser.add_argument("--long", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cores", type=int, default=min(2, len(os.sched_getaffinity(0))))
    parser.add_argument("--json", type=Path, help="write the rows here too")
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--reader", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        part(given)
        return
    print(f"{hardware('cpu')}, load {os.getloadavg()[0]:.1f}")
    heads = f"{'seconds':>8} {'theirs':>8} {'faster':>8} {'CPU s':>8} {'theirs':>8} {'less':>8}"
    print(f"{'case':>44} {'baseline':>12} {'windows':>8} {heads}")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        cases = [Case("real clips", given.short, given.long, Path(folder))] if given.short else []
        if not cases:
            corpora = make_clips(Path(folder), CLIPS, CLIP_SECONDS, LONG_SECONDS)
            cases = [Case("clips and one long", *corpora, Path(folder))]
        for case in cases:
            for row in rows_of(case, given.cores, given.repeats):
                rows.append(row)
                print(line(row), flush=True)
    if given.json:
        write(given.json, "cpu", rows, load=os.getloadavg()[0])


if __name__ == "__main__":
    main()
