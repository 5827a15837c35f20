"""One seed's evaluation: make videos of every system, measure them, and compare them with real ones."""

import dataclasses
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from models.errors import ConfigError
from models.text.conditioning import withhold
from models.windows import even_spans
from pipelines.checkpoints import read_spec
from pipelines.data.store.dataset import ShardDataset
from pipelines.data.store.info import read_info
from pipelines.distances import Distance
from pipelines.evaluation.config import EvaluationConfig
from pipelines.evaluation.generate import (
    CLIPS,
    Clip,
    Item,
    clip_name,
    generate,
)
from pipelines.evaluation.measure import EVERY, Measured, cut
from pipelines.evaluation.reference import CleanName, CleanSpec, Corpus, corpus_spec, measure_real
from pipelines.evaluation.scores import ClipScores, Made, Row, WorldScores, notes
from pipelines.evaluation.settings import EvaluationSettings, Group, Progress, System
from pipelines.generation import check
from pipelines.storage import Storage
from pipelines.tracking import Tracker
from pipelines.world.config import WorldConfig
from pipelines.world.factors import Textures, all_labels

RESULT = "evaluation.json"
"""The file, below the folder of an evaluation, that says it is finished."""
_CAPTION_STEP = 7
"""Captions are taken in steps of 7 through the 30 of the world, so that neighbours differ in every word.
"""


@dataclass(frozen=True)
class Evaluation:
    """One seed's table."""

    seed: int
    """Seed of training and of the noise."""
    rows: Mapping[str, Row]
    """By system; `corpus_long` and `ideal` are real videos."""
    clips: Mapping[str, tuple[str, ...]]
    """Paths of the showcase videos by system; those at one place share their caption, but for the corpus."""
    captions: tuple[str, ...]
    """Captions of the showcase."""
    notes: tuple[str, ...]
    """What must be read with the table."""
    seconds: float
    """Wall-clock seconds."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "Evaluation":
        """The inverse of `to_json`."""
        rows = {
            name: Row(
                row["metrics"], {key: Distance(**distance) for key, distance in row["distances"].items()}
            )
            for name, row in values["rows"].items()
        }
        clips = {name: tuple(paths) for name, paths in values["clips"].items()}
        return Evaluation(
            values["seed"], rows, clips, tuple(values["captions"]), tuple(values["notes"]), values["seconds"]
        )


def evaluate(
    systems: Sequence[System],
    settings: EvaluationSettings,
    out: str,
    tracker: Tracker | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Compares systems with each other and with real videos; Ray must be running or startable.

    Writes `clips/<system>/<index>.mp4` and `evaluation.json` below `out`, and the measured references below
    `settings.references`.

    Args:
        systems: what to compare; names are rows of the table.
        settings: of the evaluation.
        out: folder of this seed's evaluation; a path or any fsspec URI.
        tracker: gets every number as `eval/<system>/<metric>` and the clips as artifacts.
        progress: told what is done.

    Raises:
        ConfigError: a system's head or sampler does not fit its network, or videos hold no window.
        CheckpointError: a network cannot be read.
        DataError: a feature is not finite.
    """
    start, told = time.perf_counter(), progress or (lambda *_: None)
    clip = clip_of(settings)
    _check(systems)
    scores, real, captions = _real(settings, clip, told)
    made = generate(_items(systems, settings, captions), clip, settings, out, told)
    rows = {system.name: scores.row(_made(system, made, settings, clip)) for system in systems}
    rows |= {name: scores.row(videos) for name, videos in real.items()}
    shown = min(settings.evaluation.showcase, settings.evaluation.videos)
    result = Evaluation(
        settings.seed,
        rows,
        _showcase([system.name for system in systems], list(real), settings, out, shown),
        tuple(captions["seen"][:shown]),
        tuple(notes(rows)),
        time.perf_counter() - start,
    )
    Storage(out).write_json(RESULT, result.to_json())
    if tracker is not None:
        _track(tracker, result)
    return result


def prepare(settings: EvaluationSettings, progress: Progress | None = None) -> None:
    """Measures the real videos that systems will be compared with, so that `evaluate` finds them ready."""
    _real(settings, clip_of(settings), progress or (lambda *_: None))


def _check(systems: Sequence[System]) -> None:
    """Refuse what cannot be sampled before any work is done."""
    for system in systems:
        check(read_spec(system.checkpoint), system.method)


def clip_of(settings: EvaluationSettings) -> Clip:
    """The shape of the LONG videos of a dataset, which the systems make.

    Raises:
        ConfigError: a LONG video holds no window.
    """
    info = read_info(settings.dataset)
    short, long = info.short, info.long
    try:
        even_spans(long.window_frames, short.window_frames, settings.evaluation.windows_per_video)
    except ValueError as error:
        raise ConfigError(
            f"LONG videos of {long.window_frames} frames hold no SHORT window of {short.window_frames}",
            "Make data.short_frames smaller than data.long_frames, and ingest again",
        ) from error
    return Clip(long.latent_shape, long.window_frames, long.fps, short.latent_shape[0], short.window_frames)


def _real(
    settings: EvaluationSettings, clip: Clip, progress: Progress
) -> tuple[WorldScores | ClipScores, dict[str, Made], dict[Group, list[str]]]:
    """What rows are made with, the rows of real videos, and the captions of each group."""
    if settings.world is None:
        return _real_clips(settings, clip, progress)
    world, wanted, code = settings.world, settings.evaluation, read_info(settings.dataset).data_hash
    specs = [_clean(name, world, wanted, clip, code) for name in get_args(CleanName)]
    captions = {spec.name: spec.captions for spec in specs}
    long = corpus_spec("long", settings, clip, captions["ideal"][: settings.evaluation.showcase])
    found = measure_real([*specs, long], settings, progress)
    made = {
        "corpus_long": Made((found["long"],), clip_seconds=clip.seconds),
        "ideal": Made((found["ideal"],), (found["unseen_ideal"],), clip_seconds=clip.seconds),
    }
    groups: dict[Group, list[str]] = {"seen": captions["ideal"], "unseen": captions["unseen_ideal"]}
    if settings.text.withheld_words:
        few = captions["ideal"][: settings.evaluation.withheld_videos]
        groups["withheld"] = [withhold(text, settings.text.withheld_words) for text in few]
    return WorldScores(found, clip.window_frames, settings.evaluation.windows_per_video), made, groups


def _real_clips(
    settings: EvaluationSettings, clip: Clip, progress: Progress
) -> tuple[ClipScores, dict[str, Made], dict[Group, list[str]]]:
    """The same for a user's clips: the corpora are all there is."""
    specs = [corpus_spec(name, settings, clip) for name in get_args(Corpus)]
    found = measure_real(specs, settings, progress)
    made = {"corpus_long": Made((found["long"],), clip_seconds=clip.seconds)}
    captions = itertools.cycle(ShardDataset(settings.dataset, "long").captions)
    seen = list(itertools.islice(captions, settings.evaluation.videos))
    return ClipScores(found["long"], found["short"]), made, {"seen": seen}


def _clean(
    name: CleanName, world: WorldConfig, wanted: EvaluationConfig, clip: Clip, data_hash: str
) -> CleanSpec:
    """`clean` and `unseen` are references; the second draws have the captions of the systems' videos."""
    unseen = min(wanted.videos, wanted.unseen_videos)
    counts: dict[CleanName, int] = {
        "clean": wanted.reference_videos,
        "ideal": wanted.videos,
        "unseen": min(wanted.reference_videos, 2 * unseen),
        "unseen_ideal": unseen,
    }
    return CleanSpec(
        name=name,
        world=world,
        labels=tuple(_labels("unseen" if name.startswith("unseen") else "seen", counts[name])),
        window_frames=clip.window_frames,
        windows=wanted.windows_per_video,
        temporal=wanted.temporal_videos,
        showcase=wanted.showcase if name == "ideal" else 0,
        dataset=data_hash,
    )


def _labels(textures: Textures, count: int) -> list[tuple[int, int, int]]:
    """Labels of `count` videos that go through all captions evenly."""
    every = all_labels(textures).tolist()
    return [tuple(every[i * _CAPTION_STEP % len(every)]) for i in range(count)]


def _items(
    systems: Sequence[System], settings: EvaluationSettings, captions: Mapping[Group, Sequence[str]]
) -> list[Item]:
    """All the work: each system, draw and group of captions in batches."""
    return [
        Item(system, group, draw, part.start, tuple(texts[part.start : part.stop]), _extractors(group, draw))
        for system in systems
        for group, texts in captions.items()
        for draw in range(1 if group == "withheld" else system.draws)
        for part in cut(len(texts), settings.evaluation.batch_size)
    ]


def _extractors(group: Group, draw: int) -> tuple[str, ...]:
    """Pixels are judged on captions of LONG: by all extractors in the first draw, then by the headline's."""
    if group != "seen":
        return ()
    return EVERY if draw == 0 else EVERY[:1]


def _made(
    system: System,
    made: Mapping[tuple[str, Group, int], Measured],
    settings: EvaluationSettings,
    clip: Clip,
) -> Made:
    def draws(group: Group) -> list[Measured]:
        return [made[system.name, group, i] for i in range(system.draws) if (system.name, group, i) in made]

    return Made(
        draws("seen"),
        draws("unseen"),
        made.get((system.name, "withheld", 0)),
        clip.evaluations(system, settings.sampling.guidance_scale),
        clip.seconds,
    )


def _showcase(
    systems: Sequence[str], real: Sequence[str], settings: EvaluationSettings, out: str, count: int
) -> dict[str, tuple[str, ...]]:
    """Paths of the clips of each system; those of real videos lie with the references."""
    folders = dict.fromkeys(systems, out) | dict.fromkeys(real, settings.references)
    return {
        name: tuple(f"{Storage(folder).child(CLIPS)}/{clip_name(name, i)}" for i in range(count))
        for name, folder in folders.items()
    }


def _track(tracker: Tracker, result: Evaluation) -> None:
    values = {
        f"eval/{name}/{metric}": float(value)
        for name, row in result.rows.items()
        for metric, value in row.metrics.items()
        if isinstance(value, int | float)
    }
    tracker.metrics(0, values)
