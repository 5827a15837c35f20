"""The table of one or more seeds, for the terminal and as summary.json for machines."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from pipelines.evaluation.over_time import sentence
from pipelines.evaluation.run import Evaluation
from pipelines.evaluation.scores import Value
from pipelines.storage import Storage

SUMMARY = "summary.json"
WORLD_KEYS = tuple(
    "texture_error motion_error sharpness rule caption_accuracy diversity window_frechet video_frechet "
    "pixel_window_frechet unseen_window_frechet unseen_rule nfe seconds_per_video_second".split()
)
"""Metrics in summary.json, per system of the built-in world."""
MINUTE_KEYS = ("story_frechet", "rule_strict", "same_colour_withheld", "texture_error_by_eighth")
"""Further ones where words of the captions are withheld."""
WORLD_COLUMNS = {
    "NFE": "nfe",
    "window FD": "window_frechet",
    "video FD": "video_frechet",
    "pixel FD": "pixel_window_frechet",
    "texture err": "texture_error",
    "motion err": "motion_error",
    "sharpness": "sharpness",
    "rule": "rule",
    "captions": "caption_accuracy",
    "diversity": "diversity",
    "rise": "rise",
    "SSIM off, 2 s": "temporal_distance.2s",
    "unseen FD": "unseen_window_frechet",
    "unseen rule": "unseen_rule",
    "s / video s": "seconds_per_video_second",
}
"""Headings of the table and the metrics under them."""
MINUTE_COLUMNS = {"story FD": "story_frechet", "strict": "rule_strict", "same colour": "same_colour_withheld"}
CLIP_COLUMNS = {
    "NFE": "nfe",
    "FD rand3d-diff": "fvd.rand3d-diff",
    "KD rand3d-diff": "kvd.rand3d-diff",
    "FD to SHORT": "fvd.rand3d-diff.short",
    "FD st-stats": "fvd.st-stats",
    "SSIM off, 2 s": "temporal_distance.2s",
    "motion": "motion",
    "sharpness": "pixel_sharpness",
    "drift luma": "drift.luma",
    "diversity": "diversity",
    "s / video s": "seconds_per_video_second",
}
SUBJECT_COLUMNS = {
    "one animal": "subject.one",
    "none": "subject.none",
    "jump": "subject.jump",
    "edges": "subject.sharpness",
}
"""Further ones where an animal is looked for."""
LOGIT_COLUMNS = {"FVD": "fvd", "KVD": "kvd", "JEDi MMD": "mmd_jedi", "IS": "inception_score"}
"""Figures on I3D's logits, whose names may end in `.held8`."""


def is_world(evaluation: Evaluation) -> bool:
    """Whether the evaluation is of the built-in world, whose rows include `ideal`."""
    return "ideal" in evaluation.rows


def has_withheld(evaluation: Evaluation) -> bool:
    """Whether captions with words withheld were evaluated."""
    return any(row.metrics.get("same_colour_withheld") is not None for row in evaluation.rows.values())


def summary_keys(evaluation: Evaluation) -> tuple[str, ...]:
    """Metrics in summary.json, per system."""
    if is_world(evaluation):
        return WORLD_KEYS + (MINUTE_KEYS if has_withheld(evaluation) else ())
    return tuple(dict.fromkeys(name for row in evaluation.rows.values() for name in row.metrics))


def columns(evaluation: Evaluation) -> dict[str, str]:
    """Headings of the table, with their metrics."""
    known = {
        name for row in evaluation.rows.values() for name, value in row.metrics.items() if value is not None
    }
    logits = {
        f"{heading}{name.removeprefix(figure)}": name
        for heading, figure in LOGIT_COLUMNS.items()
        for name in sorted(known)
        if re.fullmatch(rf"{figure}(\.held\d+)?", name)
    }
    if not is_world(evaluation):
        has_subject = any("subject.one" in row.metrics for row in evaluation.rows.values())
        shown = CLIP_COLUMNS | (SUBJECT_COLUMNS if has_subject else {})
        return {heading: name for heading, name in shown.items() if name in known} | logits
    return WORLD_COLUMNS | (MINUTE_COLUMNS if has_withheld(evaluation) else {}) | logits


def values(evaluations: Sequence[Evaluation], system: str, metric: str) -> list[Value]:
    """A metric of a system, one value per seed; None where a seed has none."""
    return [
        evaluation.rows[system].metrics.get(metric) if system in evaluation.rows else None
        for evaluation in evaluations
    ]


def systems(evaluations: Sequence[Evaluation]) -> list[str]:
    """Names of all rows, in order."""
    return list(dict.fromkeys(name for evaluation in evaluations for name in evaluation.rows))


def cell(found: Sequence[Value]) -> str:
    """A mean, and the deviation over seeds where there are several."""
    numbers = [float(value) for value in found if isinstance(value, int | float)]
    if not numbers:
        return "-"
    mean = f"{np.mean(numbers):.3g}"
    return mean if len(numbers) == 1 else f"{mean} +-{np.std(numbers, ddof=1):.2g}"


def table(evaluations: Sequence[Evaluation], title: str) -> Table:
    """The table for a terminal: a row per system, a column per metric."""
    shown = columns(evaluations[0])
    result = Table(title=title, title_justify="left", header_style="bold", pad_edge=False)
    result.add_column("system", no_wrap=True)
    for heading in shown:
        result.add_column(heading, justify="right")
    for system in systems(evaluations):
        result.add_row(system, *(cell(values(evaluations, system, metric)) for metric in shown.values()))
    return result


def remarks(evaluations: Sequence[Evaluation]) -> list[str]:
    """What must be read with the table: notes of the run, and how each distance was taken."""
    first = evaluations[0]
    found = list(dict.fromkeys(note for evaluation in evaluations for note in evaluation.notes))
    near, far = (values(evaluations, name, "corpus_window_frechet") for name in ("sft_50", "mmm_4"))
    if any(far) and any(near):
        found.insert(
            0,
            "LONG is low-grade by design: distances are taken to its clean version. Taken to the low-grade "
            f"LONG itself, the window distance of MMM is {cell(far)} and that of long-SFT {cell(near)}: MMM "
            "is meant to be further, since it leaves LONG's softness behind.",
        )
    if (shown := cell(values(evaluations, "corpus_long", "subject.one_in_short"))) != "-":
        found.append(
            f"one animal: share of frames that show exactly one, of SHORT itself {shown}; jump: the way from "
            "frame to frame that 95 % of all steps stay below; edges: their strength. Both are 1 for SHORT"
        )
    on_logits: dict[str, list[str]] = {}
    for metric in columns(first).values():
        distances = {
            name: row.distances[metric] for name, row in first.rows.items() if metric in row.distances
        }
        for system, distance in distances.items():
            sizes = f"n {distance.n} against {distance.reference}"
            if distance.low is None:
                found.append(f"{metric}: {distance.extractor}, {sizes}, floor {distance.floor:.3g}")
                break
            told = on_logits.setdefault(f"{system} on {distance.extractor}, {sizes}", [])
            told.append(
                f"{metric} {distance.value:.4g} (95 % {distance.low:.4g} to {distance.high:.4g}, "
                f"floor {distance.floor:.4g}, at infinite n {distance.infinite:.4g})"
            )
    return found + [f"{system}: {'; '.join(told)}" for system, told in on_logits.items()]


def over_time(evaluations: Sequence[Evaluation]) -> dict[str, str]:
    """What the videos of each system do over time that real ones do not; by system, a sentence a seed."""
    found: dict[str, list[str]] = {}
    for evaluation in evaluations:
        seed = f"seed {evaluation.seed}: " if len(evaluations) > 1 else ""
        for name, row in evaluation.rows.items():
            sizes = next((d for metric, d in row.distances.items() if metric.startswith("temporal_")), None)
            if sizes is not None:
                found.setdefault(name, []).append(seed + sentence(row.findings, sizes.n, sizes.reference))
    return {name: ". ".join(told) for name, told in found.items()}


def write_summary(
    evaluations: Sequence[Evaluation],
    folder: str,
    *,
    wall_seconds: float,
    peak_rss_bytes: int,
    config_hash: str,
    config: Mapping[str, Any],
) -> str:
    """Write summary.json below `folder`: per system and metric a list over seeds. Returns its path."""
    plain: dict[str, Any] = {
        system: {metric: values(evaluations, system, metric) for metric in summary_keys(evaluations[0])}
        for system in systems(evaluations)
    }
    plain |= {
        "wall_seconds": wall_seconds,
        "peak_rss_bytes": peak_rss_bytes,
        "seeds": [evaluation.seed for evaluation in evaluations],
        "config_hash": config_hash,
        "config": dict(config),
    }
    Storage(folder).write_json(SUMMARY, plain)
    return f"{Storage(folder)}/{SUMMARY}"
