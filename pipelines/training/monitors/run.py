"""A run as whoever watches it sees it: its stages, how far they are, and whether they are well."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from models.losses import THIRDS
from pipelines.media.html import ACCENT, MUTED, blank_figure, png, render
from pipelines.storage import Storage
from pipelines.training.monitors.series import ABOUT, FOLDER, Series, read_series
from pipelines.training.monitors.verdicts import LOOKS, Facts, Verdict, judge

EXITS = tuple(f"_exit_{number}" for number in range(8))
CHARTS = {
    "losses": ("loss", "flow_matching", "reverse_kl_even", "critic_loss", "layout_loss", "held_out_loss"),
    "reverse KL by exit": tuple(f"reverse_kl{exit_}" for exit_ in EXITS),
    "reverse KL by place in the video": tuple(f"reverse_kl_{third}" for third in THIRDS),
    "the critic's loss by place in the video": tuple(f"critic_loss_{third}" for third in THIRDS),
    "flow matching by place in LONG": tuple(
        f"{loss}_{third}" for loss in ("flow_matching", "flow_matching_long") for third in THIRDS
    ),
    "critic minus teacher by exit": tuple(f"critic_gap{exit_}" for exit_ in EXITS),
    "samples beside the corpus": tuple(LOOKS),
    "gradient norms": ("gradient_norm", "critic_gradient_norm", "gradient_ratio"),
    "cosine of the losses' gradients": ("gradient_cosine",),
    "seconds a step": ("time/step",),
}
"""Titles of a page's charts, and the curves in each."""
LOGARITHMIC = {"losses", "gradient norms", "seconds a step"}
COLUMNS, WIDTH, HEIGHT = 2, 10.5, 2.2
"""Charts abreast, their width together and the height of each in inches."""


@dataclass(frozen=True)
class WatchedStage:
    """A stage that has recorded something.

    Args:
        folder: below the run's.
        facts, series: what it has recorded.
        verdicts: on it, bad ones first.
    """

    folder: str
    facts: Facts
    series: Series
    verdicts: list[Verdict]

    @property
    def step(self) -> int:
        return max((curve.steps[-1] for curve in self.series.curves.values() if curve.steps), default=0)

    @property
    def ended(self) -> bool:
        return self.step >= self.facts.steps

    def newest(self, name: str) -> float | None:
        """The last value of a curve."""
        curve = self.series.curves.get(name)
        return curve.values[-1] if curve and curve.values else None

    def to_json(self) -> dict[str, Any]:
        """As plain values: place, progress, verdicts, and the newest value of each curve."""
        return {
            "folder": self.folder,
            "stage": self.facts.stage,
            "step": self.step,
            "steps": self.facts.steps,
            "heard": self.series.heard,
            "well": all(verdict.well for verdict in self.verdicts),
            "verdicts": [
                dataclasses.asdict(verdict) | ({"remedy": None} if verdict.well else {})
                for verdict in self.verdicts
            ],
            "newest": {name: self.newest(name) for name in sorted(self.series.curves)},
        }


def watched_stages(storage: Storage) -> list[WatchedStage]:
    """The stages of a run, of one of its seeds or of a trial, or the stage itself; in the order in which they
    were last heard of.

    Args:
        storage: the folder of any of these.

    Raises:
        ClusterError: the storage fails, or a file is damaged.
    """
    names = storage.list()
    places = ["", *names, *(f"{name}/{own}" for name in names if "-" in name for own in storage.list(name))]
    found = []
    for place in places:
        own = storage.child(place) if place else storage
        if own.exists(f"{FOLDER}/{ABOUT}"):
            facts, series = Facts(**own.read_json(f"{FOLDER}/{ABOUT}")), read_series(own)
            found.append(WatchedStage(place or ".", facts, series, judge(facts, series.curves)))
    return sorted(found, key=lambda stage: stage.series.heard)


def page(title: str, stages: Sequence[WatchedStage]) -> str:
    """One page that opens in a browser: per stage its verdicts and curves, the newest stage first."""
    return render(
        "training/monitors/page.html.j2",
        title=title,
        stages=[(stage, charts(stage)) for stage in reversed(stages)],
    )


def charts(stage: WatchedStage) -> bytes:
    """The curves of a stage as a PNG."""
    shown = {
        title: curves
        for title, names in CHARTS.items()
        if (curves := {n: c for n in names if (c := stage.series.curves.get(n)) and c.steps})
    }
    rows = max(1, -(-len(shown) // COLUMNS))
    figure = blank_figure(WIDTH, HEIGHT * rows)
    for place, (title, curves) in enumerate(shown.items(), start=1):
        axes = figure.add_subplot(rows, COLUMNS, place)
        for name, curve in curves.items():
            color = ACCENT if len(curves) == 1 else None
            axes.plot(curve.steps, curve.values, marker=".", markersize=3, label=name, color=color)
        if title == "samples beside the corpus":
            axes.axhline(1.0, color=MUTED, linestyle="--", linewidth=1)
        if title in LOGARITHMIC and all(value > 0 for curve in curves.values() for value in curve.values):
            axes.set_yscale("log")
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.legend(fontsize=6, frameon=False)
    return png(figure)
