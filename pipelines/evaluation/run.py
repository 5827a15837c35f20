"""One seed's evaluation: make videos of every system, measure them, and compare them with real ones."""

import dataclasses
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

from models.text.conditioning import withhold
from pipelines.checkpoints import manifest_sha256, read_spec
from pipelines.data.store.dataset import ShardDataset
from pipelines.data.store.info import read_info
from pipelines.evaluation.folders import (
    Folder,
    FolderSettings,
    Plan,
    folder_notes,
    measure_folder,
    open_folder,
    plan_for,
    windows_to_see,
)
from pipelines.evaluation.fvd import LogitReference
from pipelines.evaluation.generate import clip_path, generate
from pipelines.evaluation.kept import once
from pipelines.evaluation.measure import Measurements, SystemMeasurements
from pipelines.evaluation.reference import measure_real, reference_specs, what_is_measured
from pipelines.evaluation.scores import (
    ClipScorer,
    FolderScorer,
    Scorer,
    Scores,
    WorldScorer,
    notes,
    with_resamples,
)
from pipelines.evaluation.settings import (
    EvaluationSettings,
    Group,
    LogitPlan,
    System,
    VideoShape,
    video_shape,
)
from pipelines.generation import check
from pipelines.ray_map import Tasks, ray_map_all
from pipelines.storage import hash_of
from pipelines.tracking import Progress, no_progress

RESULT = "evaluation.json"
"""The file, below the folder of an evaluation, that says it is finished."""


@dataclass(frozen=True)
class Evaluation:
    """One seed's table."""

    seed: int
    """Seed of training and of the noise."""
    rows: Mapping[str, Scores]
    """By system; `corpus_long` and `ideal` are real videos."""
    clips: Mapping[str, tuple[str, ...]]
    """Paths of the showcase videos by system; those at one place share their caption, but for the corpus."""
    captions: tuple[str, ...]
    """Captions of the showcase."""
    notes: tuple[str, ...]
    """What must be read with the table."""
    seconds: float
    """Wall-clock seconds."""

    def of(self, names: Sequence[str]) -> "Evaluation":
        """Some of its rows."""
        rows, clips = {name: self.rows[name] for name in names}, {name: self.clips[name] for name in names}
        return dataclasses.replace(self, rows=rows, clips=clips, notes=tuple(notes(rows)))

    def joined(self, newer: "Evaluation", first: Sequence[str]) -> "Evaluation":
        """Its rows and those of a newer one, which stand for its own of the same name; those of `first` come
        first, in that order."""
        rows, clips = {**self.rows, **newer.rows}, {**self.clips, **newer.clips}
        order = [*(name for name in first if name in rows), *(name for name in rows if name not in first)]
        whole = dataclasses.replace(newer, rows=rows, clips=clips, seconds=self.seconds + newer.seconds)
        return whole.of(order)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "Evaluation":
        """The inverse of `to_json`."""
        rows = {name: Scores.from_json(row) for name, row in values["rows"].items()}
        clips = {name: tuple(paths) for name, paths in values["clips"].items()}
        return Evaluation(
            values["seed"], rows, clips, tuple(values["captions"]), tuple(values["notes"]), values["seconds"]
        )


def evaluate(
    systems: Sequence[System],
    settings: EvaluationSettings,
    out: str,
    progress: Progress = no_progress,
) -> Evaluation:
    """Compares systems with each other and with real videos; Ray must be running or startable.

    Writes `clips/<system>/<index>.mp4` below `out`, and the measured references below `settings.references`.
    What is measured of systems is kept below `out`, so that a call after one that was stopped goes on from
    there, until `forget` is called, when the result is stored.

    Args:
        systems: what to compare; names are rows of the table.
        settings: of the evaluation.
        out: folder of this seed's evaluation; a path or any fsspec URI.
        progress: shows what is done.

    Raises:
        ConfigError: a system's head or sampler does not fit its network, or videos hold no window.
        CheckpointError: a network cannot be read.
        DataError: a feature is not finite.
    """
    start, wanted = time.perf_counter(), settings.evaluation
    for system in systems:
        check(read_spec(system.checkpoint), system.method)
    shape = video_shape(settings)
    common = [asdict(settings), what_is_measured(), read_info(settings.dataset).data_hash]
    decides = {one: hash_of([common, asdict(one), manifest_sha256(one.checkpoint)]) for one in systems}

    real = measure_real(reference_specs(settings, shape), settings, progress)
    captions = _captions(settings, real)
    measured = generate(decides, captions, shape, settings, out, progress)
    measured["corpus_long"] = SystemMeasurements([real["long"]], clip_seconds=shape.seconds)
    scorer: Scorer
    if settings.world is None:
        logits = _logits(settings, shape, real["long"], None)
        scorer = ClipScorer(real, logits)
    else:
        logits = _logits(settings, shape, real["clean"], real["ideal"])
        scorer = WorldScorer(real, shape.window_frames, wanted.windows_per_video, logits)
        measured["ideal"] = SystemMeasurements(
            [real["ideal"]], [real["unseen_ideal"]], clip_seconds=shape.seconds
        )
    made = {system.name: mark for system, mark in decides.items()}
    marks = {name: made.get(name, hash_of(common)) for name in measured}
    rows = _scored(scorer, measured, marks, settings, out, progress)

    shown = min(wanted.showcase, wanted.videos)
    clips = {
        name: tuple(clip_path(out if name in made else settings.references, name, i) for i in range(shown))
        for name in rows
    }
    return Evaluation(
        settings.seed,
        rows,
        clips,
        tuple(captions["seen"][:shown]),
        tuple(notes(rows)),
        time.perf_counter() - start,
    )


class _Row(NamedTuple):
    """What a task scores."""

    kept: str
    """Name of the file that keeps the scores."""
    videos: SystemMeasurements


def _scored(
    scorer: Scorer,
    measured: Mapping[str, SystemMeasurements],
    marks: Mapping[str, str],
    settings: EvaluationSettings,
    out: str,
    progress: Progress,
) -> dict[str, Scores]:
    """The rows; many resamples, which take long, are shared out over Ray's tasks, and kept."""
    times, seed = settings.evaluation.resamples, settings.seed
    if not times:
        return {name: with_resamples(scorer, 0, seed, videos) for name, videos in measured.items()}
    found = ray_map_all(
        partial(_resampled, scorer, times, seed, out),
        [_Row(f"{name}-{marks[name][:32]}.json", videos) for name, videos in measured.items()],
        Tasks(settings.evaluation.max_actors),
        lambda done: progress("intervals", done, len(measured)),
    )
    return dict(zip(measured, found, strict=True))


def _resampled(scorer: Scorer, times: int, seed: int, out: str, row: _Row) -> Scores:
    def make() -> bytes:
        return json.dumps(asdict(with_resamples(scorer, times, seed, row.videos))).encode()

    return Scores.from_json(json.loads(once(out, row.kept, make)))


@dataclass(frozen=True)
class OpenFolders:
    """Folders of videos that are going to be compared."""

    systems: tuple[Folder, ...]
    reference: Folder
    control: Folder | None
    plan: Plan

    @property
    def every(self) -> tuple[Folder, ...]:
        """All of them."""
        return (*self.systems, self.reference, *([self.control] if self.control else []))

    @property
    def unseen_windows(self) -> int:
        """Windows that I3D has to see."""
        return sum(windows_to_see(folder, self._plan_of(folder)) for folder in self.every)

    def _plan_of(self, folder: Folder) -> Plan:
        """Twice as many videos of a reference that gives its control, too."""
        logits = self.plan.logits
        if logits is None or self.control is not None or folder is not self.reference:
            return self.plan
        return dataclasses.replace(self.plan, logits=dataclasses.replace(logits, videos=2 * logits.videos))

    def measure(self, folder: Folder, progress: Progress) -> tuple[Folder, Measurements]:
        """What is left of a folder, and its measurements."""
        return measure_folder(folder, self._plan_of(folder), progress)


def open_folders(
    systems: Mapping[str, str],
    reference: str,
    control: str | None,
    fps: float | None,
    settings: FolderSettings,
    progress: Progress = no_progress,
) -> OpenFolders:
    """List and open the videos of folders.

    Args:
        systems: location of each by the name of its row.
        reference: location of real videos.
        control: of other real videos; None takes every second one of the reference.
        fps: frame rate that all are resampled to; None is the reference's.

    Raises:
        DataError: a folder holds no video that opens.
    """
    opened = [open_folder(name, place, settings, progress) for name, place in systems.items()]
    real = open_folder("reference", reference, settings, progress)
    other = open_folder("control", control, settings, progress) if control else None
    plan = plan_for([*opened, real, *([other] if other else [])], fps or real.fps)
    return OpenFolders(tuple(opened), real, other, plan)


def evaluate_folders(folders: OpenFolders, progress: Progress = no_progress) -> Evaluation:
    """Compares folders of videos with real ones; Ray must be running or startable.

    The row `real` is the control's.

    Raises:
        DataError: too few videos are left of a folder.
    """
    start = time.perf_counter()
    systems = [folders.measure(folder, progress) for folder in folders.systems]
    reference, real = folders.measure(folders.reference, progress)
    told = [*(folder for folder, _ in systems), reference]
    if folders.control is None:
        count = len(real.captions)
        real, control = real.take(range(0, count, 2)), real.take(range(1, count, 2))
    else:
        left, control = folders.measure(folders.control, progress)
        told.append(left)
    plan, logits = folders.plan, None
    if plan.logits is not None:
        logits = LogitReference(
            real.columns["i3d"],
            control.columns["i3d"],
            identity=plan.logits.identity,
            suffix=plan.logits.rule.suffix,
            few=folders.reference.settings.evaluation.few,
        )
    scorer = FolderScorer(real, control, logits)
    rows = {folder.name: scorer.score(videos) for folder, videos in systems}
    rows["real"] = scorer.score(control)
    said = (*notes(rows), *folder_notes(told, plan, len(control.captions)))
    return Evaluation(0, rows, {}, (), said, time.perf_counter() - start)


def prepare(settings: EvaluationSettings, progress: Progress = no_progress) -> None:
    """Measures the real videos that systems will be compared with, so that `evaluate` finds them ready."""
    measure_real(reference_specs(settings, video_shape(settings)), settings, progress)


def _logits(
    settings: EvaluationSettings, shape: VideoShape, real: Measurements, control: Measurements | None
) -> LogitReference | None:
    """Real videos as I3D sees them, where it is wanted."""
    plan = LogitPlan.of(settings.evaluation, shape.frames, use_gpu=settings.use_gpu)
    if plan is None:
        return None
    return LogitReference(
        real.columns["i3d"],
        control.columns["i3d"] if control else None,
        identity=plan.identity,
        suffix=plan.rule.suffix,
        few=settings.evaluation.few,
    )


def _captions(settings: EvaluationSettings, real: Mapping[str, Measurements]) -> dict[Group, Sequence[str]]:
    """Captions of the videos to make: in the built-in world those of the clean second draws."""
    if settings.world is None:
        captions = itertools.cycle(ShardDataset(settings.dataset, "long").captions)
        return {"seen": list(itertools.islice(captions, settings.evaluation.videos))}
    groups: dict[Group, Sequence[str]] = {
        "seen": real["ideal"].captions,
        "unseen": real["unseen_ideal"].captions,
    }
    if settings.text.withheld_words:
        few = real["ideal"].captions[: settings.evaluation.withheld_videos]
        groups["withheld"] = [withhold(text, settings.text.withheld_words) for text in few]
    return groups
