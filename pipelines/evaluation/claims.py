"""What a comparison shows: each claim with its effect, an interval and a verdict.

Effects are gains of one system over another, positive where it is better, as shares of the other's figure.
Intervals come from a paired bootstrap over seeds and videos: seeds are drawn with replacement, and in each
the figures of both systems from the same resampled videos (`EvaluationConfig.resamples`). Two corrections:
drawing K seeds from K shows too little of their spread, by sqrt((K - 1) / K), and a distance of resampled
videos is larger than that of all, so the spread is laid around the measured effect.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from models.rng import Key
from pipelines.evaluation.run import Evaluation

Better: TypeAlias = Literal["less", "more", "right", "real"]
"""`less`: a distance, an error or a time; `more`: a score; `right`: a share that should be 1, whose misses
are compared; `real`: nearness to the figure of real videos, on both sides."""

Verdict: TypeAlias = Literal["supported", "not supported", "undecided"]

BOOTSTRAPS = 2000
LEVEL = 0.95
"""Of the intervals."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Claim:
    """That one system is better than another in one metric, by so much."""

    name: str
    """A sentence."""
    system: str
    against: str
    metric: str
    """By its name in summary.json; the metric need not have been measured."""
    better: Better
    at_least: float = 0.0
    """The gain that is claimed; below 0 it is how much may be lost."""
    in_every_seed: bool = False
    """The gain is that of the worst seed, not the mean."""


@dataclass(frozen=True)
class Interval:
    """A figure over seeds."""

    mean: float
    low: float
    high: float
    values: tuple[float, ...]
    """One per seed."""

    @property
    def percent(self) -> str:
        """Of a gain, for people."""
        return f"{100 * self.mean:.0f} % ({100 * self.low:.0f} to {100 * self.high:.0f})"


@dataclass(frozen=True)
class Judged:
    """A claim, and what became of it."""

    claim: Claim
    verdict: Verdict
    gain: Interval | None
    """None where it could not be taken."""
    note: str = ""
    """Why not."""

    @property
    def cells(self) -> list[str]:
        """A row under `CLAIM_COLUMNS`."""
        claim = self.claim
        gain, wanted = self.gain.percent if self.gain else self.note, f"{100 * claim.at_least:.0f} %"
        return [claim.name, self.verdict, gain, wanted, claim.system, claim.against, claim.metric]


CLAIM_COLUMNS = ("claim", "verdict", "gain", "wanted", "of", "against", "metric")

HEADLINES: Mapping[str, Better] = {
    "fvd": "less",
    "window_frechet": "less",
    "video_frechet": "less",
    "pixel_window_frechet": "less",
    "unseen_window_frechet": "less",
    "texture_error": "less",
    "motion_error": "less",
    "rule": "right",
    "caption_accuracy": "right",
}
"""Metrics in which every system is set beside MMM; those that were not measured are left out."""

CLAIMS = (
    Claim("FVD at least 30 % below long-SFT", "mmm_4", "sft_50", "fvd", "less", 0.30),
    Claim("FVD at least 30 % below long-SFT in as many steps", "mmm_4", "sft_4", "fvd", "less", 0.30),
    Claim("inception score not below long-SFT's", "mmm_4", "sft_50", "inception_score", "more"),
    Claim("windows 85 % nearer than long-SFT's", "mmm_4", "sft_50", "window_frechet", "less", 0.85),
    Claim("windows 85 % nearer than its 4 steps'", "mmm_4", "sft_4", "window_frechet", "less", 0.85),
    Claim("texture error 75 % below long-SFT's", "mmm_4", "sft_50", "texture_error", "less", 0.75),
    Claim("texture error 75 % below its 4 steps'", "mmm_4", "sft_4", "texture_error", "less", 0.75),
    Claim("story kept where the teacher loses it", "mmm_4", "teacher_rollout", "rule", "right", 0.25),
    Claim("story lost without mean seeking", "mmm_4", "dm_only", "rule", "right", 0.25),
    Claim(
        "frames 2 s apart 25 % nearer to real than the teacher's",
        "mmm_4",
        "teacher_rollout",
        "temporal_ssim.2s",
        "real",
        0.25,
    ),
    Claim(
        "frames 2 s apart 25 % nearer to real than without mean seeking",
        "mmm_4",
        "dm_only",
        "temporal_ssim.2s",
        "real",
        0.25,
    ),
    Claim(
        "unseen content half as far as mixed SFT's, every seed",
        "mmm_4",
        "mixed_50",
        "unseen_window_frechet",
        "less",
        0.5,
        in_every_seed=True,
    ),
    Claim("FM head within 10 % of long-SFT", "mmm_fm_50", "sft_50", "window_frechet", "less", -0.10),
    Claim("blur without mode seeking", "mmm_4", "sft_50_longer", "texture_error", "less", 0.75),
    Claim("two heads better than one", "mmm_4", "shared_head", "window_frechet", "less"),
    Claim("sliding windows better than one", "mmm_4", "no_sliding", "window_frechet", "less"),
    Claim(
        "10 times faster, decoding counted", "mmm_4", "sft_50", "total_seconds_per_video_second", "less", 0.9
    ),
    Claim("a forward KL helps", "forward_kl", "mmm_4", "window_frechet", "less"),
    Claim("an adversary helps", "adversarial", "mmm_4", "window_frechet", "less"),
    Claim("data forcing helps", "data_forcing", "mmm_4", "window_frechet", "less"),
    Claim("falling times help", "falling_times", "mmm_4", "window_frechet", "less"),
)
"""The paper's claims and ours, on any corpus."""


def judge(claims: Sequence[Claim], seeds: Sequence[Evaluation]) -> list[Judged]:
    """Every claim whose systems were both compared."""
    rows = set.intersection(*(set(one.rows) for one in seeds))
    return [judge_one(claim, seeds) for claim in claims if {claim.system, claim.against} <= rows]


def judge_one(claim: Claim, seeds: Sequence[Evaluation]) -> Judged:
    """One claim: supported, or not, if its whole interval says so."""
    real = real_row(seeds[0])
    names = [claim.system, claim.against, *([real] if claim.better == "real" else [])]
    if any(measured(one, name, claim.metric) is None for one in seeds for name in names):
        return Judged(claim, "undecided", None, f"{claim.metric} was not measured")

    def gain(figures: Sequence[Array]) -> Array:
        return gain_of(claim.better, *figures)

    found = interval(seeds, [(name, claim.metric) for name in names], gain, worst=claim.in_every_seed)
    verdict: Verdict = "undecided"
    if found.low >= claim.at_least:
        verdict = "supported"
    elif found.high < claim.at_least:
        verdict = "not supported"
    return Judged(claim, verdict, found)


def not_won(hero: str, seeds: Sequence[Evaluation]) -> Iterator[Judged]:
    """Every headline metric of another system in which `hero` is not clearly better, real videos left out."""
    rows = set.intersection(*(set(one.rows) for one in seeds)) - {hero, "ideal", "corpus_long"}
    for name in (name for name in seeds[0].rows if name in rows):
        for metric, better in HEADLINES.items():
            judged = judge_one(Claim(f"{metric} better than {name}'s", hero, name, metric, better), seeds)
            if judged.gain is not None and judged.gain.low <= 0:
                yield judged


def gain_of(better: Better, ours: Array, theirs: Array, real: Array | None = None) -> Array:
    """Gains as shares of the other's figure; 0 where both are perfect, -1 at worst where only theirs is."""
    if better == "more":
        return (ours - theirs) / np.maximum(np.abs(theirs), np.finfo(np.float64).tiny)
    if better == "right":
        ours, theirs = 1.0 - ours, 1.0 - theirs
    elif better == "real":
        assert real is not None
        ours, theirs = np.abs(ours - real), np.abs(theirs - real)
    perfect = theirs <= 0
    safe = np.where(perfect, 1.0, theirs)
    return np.where(perfect, np.where(ours <= 0, 0.0, -1.0), 1.0 - ours / safe)


def metric_interval(seeds: Sequence[Evaluation], system: str, metric: str) -> Interval | None:
    """A figure of a system with its interval; None where a seed lacks it."""
    if any(measured(one, system, metric) is None for one in seeds):
        return None
    return interval(seeds, [(system, metric)], lambda figures: figures[0])


def interval(
    seeds: Sequence[Evaluation],
    figures: Sequence[tuple[str, str]],
    statistic: Callable[[Sequence[Array]], Array],
    *,
    worst: bool = False,
) -> Interval:
    """A statistic of figures, (system, metric) each, over seeds, by the paired bootstrap of this module.

    Args:
        seeds: an evaluation per seed.
        figures: each is measured in all of them.
        statistic: from arrays of equal shape, element by element.
        worst: the least over seeds in place of the mean.
    """
    over: Callable[..., Array] = np.min if worst else np.mean
    count = len(seeds)
    points = [np.array([measured(one, *figure) for one in seeds], dtype=np.float64) for figure in figures]
    again, draws = statistic([_resampled(seeds, *figure) for figure in figures]), Key(0, purpose="bootstrap")
    picked = draws.at(purpose="seeds").numpy().integers(count, size=(BOOTSTRAPS, count))
    videos = draws.at(purpose="videos").numpy().integers(again.shape[1], size=picked.shape)
    spread = over(again[picked, videos], axis=1)
    spread = (spread - spread.mean()) * np.sqrt(count / max(1, count - 1))
    values = statistic(points)
    middle = float(over(values))
    low, high = middle + np.quantile(spread, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(middle, float(low), float(high), tuple(map(float, values)))


def _resampled(seeds: Sequence[Evaluation], system: str, metric: str) -> Array:
    """A figure of each seed [seeds, R] in every resample of its videos; one that has none, such as a time, is
    the same in each."""
    found = [one.rows[system].resampled.get(metric) or (measured(one, system, metric),) for one in seeds]
    rows = [row for one in seeds for row in one.rows.values()]
    times = max((len(numbers) for row in rows for numbers in row.resampled.values()), default=1)
    return np.stack([np.resize(np.array(numbers, dtype=np.float64), times) for numbers in found])


def measured(seed: Evaluation, system: str, metric: str) -> float | None:
    """A number of a row, if it has it."""
    value = seed.rows[system].metrics.get(metric) if system in seed.rows else None
    return float(value) if isinstance(value, int | float) else None


def real_row(seed: Evaluation) -> str:
    """The row of real videos that others should be like."""
    return "ideal" if "ideal" in seed.rows else "corpus_long"
