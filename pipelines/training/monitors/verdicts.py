"""Is this run well? What is wrong, and what to change, from a stage's settings and its watched numbers."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, median

from models.flow import shift_for
from pipelines.generation import few_step_times
from pipelines.training.config import DistillConfig, VerdictName
from pipelines.training.monitors.series import Curve
from pipelines.training.recipes import BASELINES, Recipe

# Bounds; docs/operations.md says what good runs and broken ones reach.
NO_ANSWER = 2.0
"""Denoising loss of a network that always answers 0: noise and data have unit variance."""
UNRELATED = 2 / math.sqrt(math.pi)
"""Mean absolute difference of two unrelated videos of unit variance."""
CRITIC_RISE, LAYOUT_RISE, HELD_OUT_RISE = 1.5, 1.05, 1.03
"""How far the critic's loss may rise above its median, the layout and the held-out loss above their least."""
BY_HEART = 1.2
"""Largest held-out loss, in units of the training loss."""
GAP = "critic_gap_exit_"
"""Measurements of `critic_gap.py` by exit."""
GAPS = 3
"""Fewest of them that say anything: at first critic and teacher are one."""
CANNOT_TEACH = 0.03
"""Loss of the critic minus the teacher's on the student's windows, twice in a row: sound runs of `tiny` had
up to .023, those of a critic that was not told the exit .034 to .064."""
SAME = 1e-3
"""Reverse KL of a critic that answers as the teacher does."""
LOOKS: dict[VerdictName, tuple[float, float, str, str]] = {
    "sharpness": (0.5, 1.3, "edges ring", "pictures are blurred"),
    "contrast": (0.5, 1.3, "light and dark burn out", "pictures are grey"),
    "saturation": (0.5, 1.3, "colours burn", "colours fade"),
    "motion": (0.4, 2.5, "videos flicker", "videos stand still"),
    "diversity": (0.5, 2.5, "videos have little to do with the corpus", "videos are alike"),
    "light_drift": (0.0, 2.5, "light drifts away", ""),
}
"""Least and most beside the corpus, or beside SHORT if it has more; what more and less of it looks like."""
CLEAR_TIMES, LAST_TIME = 0.01, 0.7
"""Least share of training times below a half, and the latest time from which the last step may denoise."""
BURST = 10.0
"""Gradient norms, in units of their median before, that come before a divergence."""
FLAT = 0.98
"""A loss that is still above this share of its start has learned nothing."""
WAITING = 0.2
"""Largest share of time that may pass in waiting for data."""


@dataclass(frozen=True)
class Facts:
    """What verdicts have to know of a stage beside its curves.

    Args:
        stage: its name.
        steps: how many it takes.
        kind: what it trains.
        frames: latent frames of its clips.
        clear_times: share of its flow-matching times below a half.
        last_time: from which the few-step sampler's last step denoises.
        gate: largest ratio of the teacher gate, where there is one.
        section: of its settings.
        unguided: whether the score is the critic's answer minus the teacher's.
    """

    stage: str
    steps: int
    kind: str
    frames: int
    clear_times: float
    last_time: float
    gate: float
    section: str
    unguided: bool

    @classmethod
    def of(cls, recipe: Recipe) -> "Facts":
        config, shape = recipe.stage, recipe.long_shape if recipe.start else recipe.short_shape
        distills = isinstance(config, DistillConfig)
        # a time shifted by s is below a half where it was below 1 / (1 + s), and its logit below -log s
        amount = shift_for(recipe.flow, shape[0])
        return cls(
            stage=recipe.name,
            steps=config.steps,
            kind="warmup" if recipe.critic_only else "distill" if distills else "supervised",
            frames=shape[0],
            clear_times=1 / (1 + amount)
            if config.t_distribution == "uniform"
            else NormalDist(config.t_mean, config.t_std).cdf(-math.log(amount)),
            last_time=few_step_times(recipe.sampling, recipe.flow, recipe.long_shape[0])[-1],
            gate=config.teacher_gate_ratio if isinstance(config, DistillConfig) else 0.0,
            section="distill" if distills else BASELINES.get(recipe.name, recipe.name),
            unguided=recipe.loss.guidance_scale == 1,
        )


@dataclass(frozen=True)
class Verdict:
    """One answer.

    Args:
        name: what was asked.
        well: whether it is.
        sentence: what was seen.
        remedy: what to change where it is not well.
    """

    name: VerdictName
    well: bool
    sentence: str
    remedy: str

    @property
    def text(self) -> str:
        """The sentence, and what to change where it is not well."""
        return self.sentence if self.well else f"{self.sentence}. {self.remedy}"


Curves = Mapping[str, Curve]


def judge(facts: Facts, curves: Curves) -> list[Verdict]:
    """All verdicts that the numbers allow so far, worst first.

    Args:
        facts: of the stage.
        curves: what it has recorded.
    """
    found = [verdict for check in CHECKS for verdict in check(facts, curves)]
    return sorted(found, key=lambda verdict: verdict.well)


def values(curves: Curves, name: str, least: int = 1) -> list[float]:
    """Values of a curve in order; none where there are fewer than `least`."""
    found = curves[name].values if name in curves else []
    return found if len(found) >= least else []


def finite(facts: Facts, curves: Curves) -> Iterator[Verdict]:
    """Is a divergence near?"""
    rates: dict[VerdictName, str] = {
        "gradient_norm": "learning_rate",
        "critic_gradient_norm": "critic_learning_rate",
    }
    for name, rate in rates.items():
        norms = values(curves, name, 4)
        if norms:
            times = norms[-1] / max(median(norms[:-1]), 1e-12)
            yield Verdict(
                name,
                times <= BURST,
                f"{name} is {times:.1f} times its median so far",
                f"Lower {facts.section}.{rate} or {facts.section}.clip_norm before it diverges",
            )


def learning(facts: Facts, curves: Curves) -> Iterator[Verdict]:
    """Does a network that begins untrained learn?"""
    losses = values(curves, "loss", 5)
    if facts.stage == "teacher" and losses and curves["loss"].steps[-1] >= facts.steps / 10:
        share = losses[-1] / losses[0]
        yield Verdict(
            "learning",
            share <= FLAT,
            f"loss is {share:.2f} of what it began with",
            "Raise teacher.learning_rate, or look at the data with `sostenuto inspect`",
        )


def data(facts: Facts, curves: Curves) -> Iterator[Verdict]:
    """Do steps wait for data?"""
    del facts
    shares = values(curves, "time/data_share", 2)
    if shares:
        yield Verdict(
            "data",
            shares[-1] <= WAITING,
            f"{100 * shares[-1]:.0f} % of the time steps wait for data",
            "Put the dataset on a faster disk or nearer to the workers; smaller batches wait less",
        )


def times(facts: Facts, curves: Curves) -> Iterator[Verdict]:
    """Does the shift leave times at which pictures become sharp?"""
    del curves
    shifted = (
        f"The shift is too strong at {facts.frames} latent frames: set flow.timestep_shift_frames=null, so "
        "that it does not grow with the length"
    )
    if facts.kind != "warmup":
        yield Verdict(
            "shift",
            facts.clear_times >= CLEAR_TIMES,
            f"{100 * facts.clear_times:.2g} % of the training times are below a half",
            f"{shifted}, or lower flow.timestep_shift or {facts.section}.t_mean",
        )
    if facts.kind == "distill":
        yield Verdict(
            "last_step",
            facts.last_time <= LAST_TIME,
            f"the sampler's last step denoises from t = {facts.last_time:.2f}",
            f"{shifted}, or lower the last of sampling.steps",
        )


def teacher(facts: Facts, curves: Curves) -> Iterator[Verdict]:
    """Is the teacher worth learning from?"""
    for ratio in values(curves, "teacher_gate_ratio")[-1:]:
        yield Verdict(
            "teacher",
            ratio <= facts.gate,
            f"the teacher's windows are {ratio:.1f} times as far from SHORT as SHORT is from itself",
            "Train the teacher longer (teacher.steps): a student gets no better than that",
        )


def critic(facts: Facts, curves: Curves) -> Iterator[Verdict]:
    """Does the critic learn what it has to judge?"""
    losses = values(curves, "critic_loss")
    if losses:
        rise = losses[-1] / median(losses)
        yield Verdict(
            "critic_loss",
            (rise <= CRITIC_RISE or len(losses) < 4) and losses[-1] <= NO_ANSWER,
            f"the critic's loss is {losses[-1]:.2f}, {rise:.1f} times its median so far"
            + (", more than a network that answers 0 has" if losses[-1] > NO_ANSWER else ""),
            "This critic is unstable: lower distill.critic_learning_rate",
        )
    scores = values(curves, "reverse_kl", 2) if facts.unguided else []
    for score in scores[-1:]:
        yield Verdict(
            "critic_moves",
            score > SAME,
            f"critic and teacher differ by a reverse KL of {score:.2g}",
            "This critic cannot teach, for it is the teacher still: raise distill.critic_learning_rate or "
            "distill.critic_updates",
        )


def gap(facts: Facts, curves: Curves) -> Iterator[Verdict]:
    """Does the critic know the student's windows better than the teacher does?"""
    del facts
    found = worst_gap({name: curve.values for name, curve in curves.items()})
    if found:
        name, worst = found
        yield Verdict(
            "critic_gap",
            worst <= CANNOT_TEACH,
            f"on the student's windows the critic's loss is the teacher's {worst:+.3f} at exit "
            + name.removeprefix(GAP),
            "This critic cannot teach: raise distill.critic_updates, or mend distill.critic_learning_rate",
        )


def worst_gap(measured: Mapping[str, Sequence[float]]) -> tuple[str, float] | None:
    """The `critic_gap_exit_K` of the exit at which the critic is worst, and the lesser of its last two
    measurements, each of which is off by .02 or so; None before there are enough."""
    lesser = {
        name: min(values[-2:])
        for name, values in measured.items()
        if name.startswith(GAP) and len(values) >= GAPS
    }
    return max(lesser.items(), key=lambda entry: entry[1]) if lesser else None


def pull(facts: Facts, curves: Curves) -> Iterator[Verdict]:
    """Does the teacher pull towards videos?"""
    del facts
    for distance in values(curves, "distance_to_teacher")[-1:]:
        yield Verdict(
            "guidance",
            distance <= UNRELATED,
            f"the teacher's answers lie {distance:.2f} from the windows, unrelated videos {UNRELATED:.2f}",
            "This overshoots, and colours burn: lower loss.guidance_scale",
        )


def looks(facts: Facts, curves: Curves) -> Iterator[Verdict]:
    """Do samples look like their corpora? Supervised ones, in the second half of their steps."""
    rate = f"{facts.section}.learning_rate"
    for name, (low, high, over, under) in LOOKS.items():
        curve = curves.get(name)
        if not curve or not curve.steps:
            continue
        if facts.kind == "supervised" and (len(curve.steps) < 5 or curve.steps[-1] < facts.steps / 2):
            continue
        value = curve.values[-1]
        high *= max([1.0, *values(curves, f"short_{name}")[-1:]])
        fault = over if value > high else under
        yield Verdict(
            name,
            low <= value <= high,
            f"{name} is {value:.2f} of the corpus's" + (f": {fault}" if not low <= value <= high else ""),
            "Stop at an earlier checkpoint, or lower "
            + ("loss.reverse_kl_weight or loss.guidance_scale" if facts.kind == "distill" else rate),
        )


def layout(facts: Facts, curves: Curves) -> Iterator[Verdict]:
    """Does the encoder keep what long clips look like, beyond those that it is shown?"""
    lower = f"lower {facts.section}.learning_rate"
    by_heart = f"The stage learns its clips by heart, whose loss falls: stop here, add clips, or {lower}"
    layouts, seen = values(curves, "layout_loss", 2), values(curves, "flow_matching", 2)
    if layouts:
        rise = min(layouts[-2:]) / min(layouts)  # it swings up where mode seeking sets in
        lost = f"The layout of long clips is being lost: raise loss.flow_matching_weight, or {lower}"
        yield Verdict(
            "layout_loss",
            rise <= LAYOUT_RISE,
            f"the loss on fixed LONG windows is {100 * (rise - 1):.0f} % above its least",
            by_heart if seen and seen[-1] < seen[0] else lost,
        )
    held_out, seen = values(curves, "held_out_loss", 2), values(curves, "loss", 2)
    if held_out and seen:
        rise, gap = held_out[-1] / min(held_out), held_out[-1] / seen[-1]
        yield Verdict(
            "held_out_loss",
            rise <= HELD_OUT_RISE and gap <= BY_HEART,
            f"the held-out loss is {100 * (rise - 1):.0f} % above its least, {gap:.2f} of the training loss",
            by_heart,
        )


CHECKS: tuple[Callable[[Facts, Curves], Iterator[Verdict]], ...] = (
    finite,
    learning,
    data,
    times,
    teacher,
    critic,
    gap,
    pull,
    looks,
    layout,
)
