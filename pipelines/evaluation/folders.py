"""Folders of videos, of any system or real, measured for a table: no dataset and no network of ours.

Files are found, hashed and confined to their folder as a corpus is, and decoded behind the same fence. All
are resampled by their timestamps to one frame rate. What is measured of a video is kept, named by its sha256
and by all that decides the numbers, so a folder costs its time once.
"""

import atexit
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial

import numpy as np
import torch
from safetensors.numpy import load, save

from models.device import compute_device
from models.errors import DataError
from pipelines.data.config import LimitsConfig
from pipelines.data.decode.decoder import Decoder
from pipelines.data.source.manifest import Source, list_corpus, local_copy
from pipelines.data.types import Reject, Rejected
from pipelines.evaluation.config import EvaluationConfig
from pipelines.evaluation.features.extractors import EXTRACTORS, SIDE, shrink, window_pixels
from pipelines.evaluation.features.i3d import FRAMES
from pipelines.evaluation.measure import Columns, Measurements
from pipelines.evaluation.reference import what_is_measured
from pipelines.evaluation.settings import LogitPlan, i3d_features
from pipelines.evaluation.temporal import temporal_metrics
from pipelines.ray_map import Pool, ray_map
from pipelines.storage import Storage, hash_of
from pipelines.tracking import Progress

VERSION = 1
"""Raised when the measurements change, so that kept ones are not read."""
LARGEST = 256
"""Pixels of the shorter side that larger frames are reduced to as they are decoded (bicubic, antialiased)."""

LEAST = 3
"""Frames of a window that a second difference needs."""


@dataclass(frozen=True, kw_only=True)
class FolderSettings:
    """How folders are read and what is measured."""

    evaluation: EvaluationConfig
    limits: LimitsConfig = LimitsConfig()
    """What a video may ask of the machine."""
    links: str | None = None
    """The folder where links may end, besides the videos' own."""
    cache: str
    """Folder or URI that keeps what was measured."""
    use_gpu: bool = False
    """One GPU per worker."""


@dataclass(frozen=True)
class Clip:
    """A video that opened."""

    root: str
    """Of its folder."""
    source: Source
    size: tuple[int, int]
    """Height and width, square pixels."""
    fps: float
    """Of the file."""
    seconds: float

    def __str__(self) -> str:
        return f"{self.root}/{self.source.path}"


@dataclass(frozen=True)
class Folder:
    """Videos of one place, in an order that their content decides, and what was refused."""

    name: str
    settings: FolderSettings
    """How it is read."""
    clips: tuple[Clip, ...]
    refused: tuple[tuple[str, str], ...] = field(repr=False)
    """(path, why)."""

    @property
    def fps(self) -> float:
        """Frame rate of most videos."""
        return Counter(round(clip.fps, 3) for clip in self.clips).most_common(1)[0][0]

    def frames(self, fps: float) -> int:
        """Frames of the middle one by length, at a rate."""
        return round(float(np.median([clip.seconds for clip in self.clips])) * fps)


@dataclass(frozen=True)
class Plan:
    """What is measured of every video of a table."""

    fps: float
    window_frames: int
    windows: int
    """Per video, spread evenly."""
    logits: LogitPlan | None

    @property
    def key(self) -> str:
        """Of all that decides the numbers, but I3D."""
        decides = [VERSION, LARGEST, self.fps, self.window_frames, self.windows, what_is_measured()]
        return hash_of(decides)[:16]

    @property
    def i3d_key(self) -> str:
        """Of all that decides I3D's logits."""
        assert self.logits is not None
        rule = self.logits.rule
        return hash_of([VERSION, LARGEST, self.fps, rule.shown, rule.count, self.logits.identity])[:16]


def open_folder(name: str, location: str, settings: FolderSettings, progress: Progress) -> Folder:
    """List the videos of a folder and open each one.

    Args:
        name: row of the table.
        location: a folder, tar or manifest, or an fsspec URI.

    Raises:
        DataError: it is missing or holds no video that opens.
    """
    listing = list_corpus(location, links=settings.links)
    refused = [(path, reject.reason) for path, reject in listing.rejects]
    clips = []
    for done, source in enumerate(sorted(listing.sources, key=lambda source: source.id), 1):
        try:
            with local_copy(listing.root, source, settings.links) as path:
                opened = _decoder(settings.limits).open(path, [(2, 2)], picks=1)
                deque(opened.frames, maxlen=0)
            probe = opened.probe
            clips.append(Clip(listing.root, source, (probe.height, probe.width), probe.fps, probe.seconds))
        except Rejected as rejected:
            refused.append((source.path, rejected.reject.reason))
        progress(f"open {name}", done, len(listing.sources))
    if not clips:
        why = f"{refused[0][0]}: {refused[0][1]}" if refused else "it is empty"
        raise DataError(f"no video of {location} can be read: {why}", "Give a folder of MP4 files")
    return Folder(name, settings, tuple(clips), tuple(refused))


def plan_for(folders: Sequence[Folder], fps: float) -> Plan:
    """Windows of 16 frames that do not overlap, as many as the videos hold and are wanted.

    Where the usual video of a folder is shorter than 16 frames, windows are as long as that.

    Raises:
        DataError: the usual video of a folder has fewer than 3 frames.
    """
    briefest = min(folders, key=lambda folder: folder.frames(fps))
    frames = briefest.frames(fps)
    if frames < LEAST:
        raise DataError(
            f"videos of {briefest.name} have {frames} frames at {fps:g} a second",
            f"Give longer ones, or a higher rate by data.fps: a window takes {LEAST} frames or more",
        )
    settings = folders[0].settings
    wanted = settings.evaluation
    windows = max(1, min(wanted.windows_per_video, frames // FRAMES))
    return Plan(fps, min(frames, FRAMES), windows, LogitPlan.of(wanted, frames, use_gpu=settings.use_gpu))


def measure_folder(folder: Folder, plan: Plan, progress: Progress) -> tuple[Folder, Measurements]:
    """Measure videos on Ray, or read what is kept of them; the folder without those that failed.

    I3D sees the first `plan.logits.videos`.

    Raises:
        DataError: no video is left.
    """
    settings = folder.settings
    storage = Storage(settings.cache)
    rows: dict[int, Columns] = {}
    jobs = []
    for index, clip in enumerate(folder.clips):
        seen = plan.logits is not None and index < plan.logits.videos
        row, missing = _kept(storage, clip, plan, seen)
        if missing:
            jobs.append((index, clip, missing))
        rows[index] = row
    refused = list(folder.refused)
    work = partial(_measure, settings, plan)
    workers = Pool(1, settings.evaluation.max_actors, settings.use_gpu)
    results = ray_map(work, [_Job(clip, missing) for _, clip, missing in jobs], workers)
    lost = {place: (index, clip) for place, (index, clip, _) in enumerate(jobs)}
    for done, (place, result) in enumerate(results, 1):
        index, clip = lost.pop(place)
        if isinstance(result, Reject):
            refused.append((clip.source.path, result.reason))
            del rows[index]
        else:
            for name, columns in result.items():
                storage.write_bytes(_file(clip, name), bytes(save(columns)))
                rows[index] |= columns
        progress(f"videos of {folder.name}", done, len(jobs))
    for index, clip in lost.values():
        refused.append((clip.source.path, "its worker died each time; more memory may help"))
        del rows[index]
    if not rows:
        raise DataError(
            f"no video of {folder.name} is left: {refused[-1][0]}: {refused[-1][1]}",
            "Give videos of at least as many frames as the others",
        )
    kept = [rows[index] for index in sorted(rows)]
    clips = tuple(folder.clips[index] for index in sorted(rows))
    empty = {} if plan.logits is None else {"i3d": np.full((plan.logits.rule.count, 400), np.nan, np.float32)}
    columns = {name: np.stack([(empty | row)[name] for row in kept]) for name in empty | kept[0]}
    captions = tuple(clip.source.caption for clip in clips)
    return replace(folder, clips=clips, refused=tuple(refused)), Measurements(captions, columns)


def folder_notes(folders: Sequence[Folder], plan: Plan, control: int | None = None) -> list[str]:
    """What must be read with the table: the rate, videos that were refused or left out, and small pictures.

    Args:
        folders: as they were measured.
        plan: of the measurements.
        control: videos of the control, where no row has more.
    """
    if not folders:
        return []
    told = [
        f"{plan.windows} windows of {plan.window_frames} frames per video, at {plan.fps:g} frames per second"
    ]
    for folder in folders:
        if folder.refused:
            path, why = folder.refused[0]
            total = len(folder.refused) + len(folder.clips)
            told.append(f"{folder.name}: {len(folder.refused)} of {total} files left out, as {path}: {why}")
        if abs(folder.fps - plan.fps) > 0.01 * plan.fps:
            told.append(f"{folder.name} has {folder.fps:g} frames per second, resampled to {plan.fps:g}")
        if small := sum(min(clip.size) < SIDE for clip in folder.clips):
            told.append(f"{folder.name}: {small} videos have less than the {SIDE} pixels others shrink to")
        if folder.name not in ("reference", "control") and control and len(folder.clips) > control:
            counted = f"{control} of its {len(folder.clips)} videos count, as many as the control has"
            told.append(f"{folder.name}: {counted}; other real videos by --control let more count")
    return told


def windows_to_see(folder: Folder, plan: Plan) -> int:
    """Windows of a folder that I3D has not seen yet."""
    if plan.logits is None:
        return 0
    storage, key = Storage(folder.settings.cache), plan.i3d_key
    unseen = [not storage.exists(_file(clip, key)) for clip in folder.clips[: plan.logits.videos]]
    return sum(unseen) * plan.logits.rule.count


@dataclass(frozen=True)
class _Job:
    """One video and what is missing of it."""

    clip: Clip
    missing: tuple[str, ...]

    def __str__(self) -> str:
        return str(self.clip)


def _kept(storage: Storage, clip: Clip, plan: Plan, seen: bool) -> tuple[Columns, tuple[str, ...]]:
    """What is kept of a video, and the keys of what is not."""
    row: Columns = {}
    missing = []
    for key in (plan.key, plan.i3d_key) if seen else (plan.key,):
        if storage.exists(_file(clip, key)):
            row |= load(storage.read_bytes(_file(clip, key)))
        else:
            missing.append(key)
    return row, tuple(missing)


def _file(clip: Clip, key: str) -> str:
    return f"features/{clip.source.id[:2]}/{clip.source.id}-{key}.safetensors"


@lru_cache(maxsize=1)
def _decoder(limits: LimitsConfig) -> Decoder:
    """This process's."""
    decoder = Decoder(limits)
    atexit.register(decoder.close)
    return decoder


def _measure(settings: FolderSettings, plan: Plan, job: _Job) -> Mapping[str, Columns] | Reject:
    """The work of an actor: columns of one video by their key, or why there are none."""
    if not settings.use_gpu:
        torch.set_num_threads(1)
    clip = job.clip
    height, width = clip.size
    scale = min(1.0, LARGEST / min(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    try:
        with local_copy(clip.root, clip.source, settings.links) as path:
            chunks = list(_decoder(settings.limits).open(path, [size], fps=plan.fps).frames)
    except Rejected as rejected:
        return rejected.reject
    frames = torch.from_numpy(np.concatenate(chunks))
    needed = max(plan.window_frames, plan.logits.rule.shown if plan.logits else 0)
    if len(frames) < needed:
        return Reject("window", f"{len(frames)} frames at {plan.fps:g} a second, and windows take {needed}")
    found: dict[str, Columns] = {}
    if plan.key in job.missing:
        small = shrink(frames)
        cut = window_pixels(small, plan.window_frames, plan.windows)
        found[plan.key] = {name: extractor(cut).numpy() for name, extractor in EXTRACTORS.items()}
        found[plan.key]["temporal"] = temporal_metrics(small, plan.fps)
    if plan.logits is not None and plan.i3d_key in job.missing:
        features = i3d_features(plan.logits, compute_device(settings.use_gpu))
        found[plan.i3d_key] = {"i3d": features(frames)}
    return found
