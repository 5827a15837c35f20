"""What the first worker tells of a stage: to the tracker, to the series beside its checkpoints, to people."""

import logging
from collections.abc import Mapping

from pipelines.storage import Storage
from pipelines.tracking import Progress, Tracker
from pipelines.training.monitors.phases import Pace, Phases, Plan, in_words
from pipelines.training.monitors.series import Recorder
from pipelines.training.monitors.verdicts import Facts, Verdict, judge
from pipelines.training.recipes import Recipe

SHOWN = """
loss flow_matching reverse_kl_even critic_loss gradient_norm held_out_loss layout_loss sharpness saturation
motion diversity
""".split()
"""Numbers of a progress line."""


class Log:
    """Records steps. Curves are means between two lines, and verdicts are told when they change.

    Args:
        recipe: what is trained.
        workers: by how many.
        phases: the stage's stopwatch.
        plan: of the dry run.
        tracker: takes every step.
        progress: shows a line every `log_every` steps; None shows none.
        step: where this session begins.
    """

    def __init__(
        self,
        recipe: Recipe,
        workers: int,
        phases: Phases,
        plan: Plan | None,
        tracker: Tracker,
        progress: Progress | None,
        step: int,
    ) -> None:
        self.recipe, self.config, self.phases = recipe, recipe.stage, phases
        self.tracker, self.progress = tracker, progress
        self.facts = Facts.of(recipe)
        self.recorder = Recorder(Storage(recipe.root).child(recipe.name), self.facts, step)
        hours = self.recorder.series.curves.get("time/hours")
        self.pace = Pace(
            workers,
            self.config.steps,
            recipe.cluster.price_per_hour,
            plan,
            hours.values[-1] if hours and hours.values else 0.0,
        )
        self._sums: dict[str, tuple[float, int]] = {}
        self._began = step
        self._verdicts = {verdict.name: verdict for verdict in self._judge()}
        self.unwell: Verdict | None = None
        """The verdict of `stop_on` that is not well, if one is."""

    def add(
        self, step: int, metrics: Mapping[str, float], measured: Mapping[str, float], note: str = ""
    ) -> None:
        """Records a step.

        Args:
            step: finished steps.
            metrics: of this step.
            measured: of its videos, where it was watched.
            note: more words for the line.
        """
        self._track(step, {**metrics, **measured})
        for name, value in metrics.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = total + value, count + 1
        row, words = dict(measured), ""
        if step and (step % self.config.log_every == 0 or step == self.config.steps):
            row |= {name: total / count for name, (total, count) in self._sums.items()}
            row |= self._even(row)
            self._track(step, {name: value for name, value in row.items() if name.endswith("_even")})
            self._sums = {}
            times = self.pace.of(self.phases.lap(), step - self._began, step)
            self._began = step
            self.tracker.metrics(step, times)
            numbers = [f"{name} {row[name]:.4g}" for name in SHOWN if name in row]
            words = ", ".join([*numbers, in_words(times), *([note] if note else [])])
            row |= times
        if row:
            self.recorder.add(step, row)
            self._tell(step)
        if words and self.progress is not None:
            self.progress(self.recipe.name, step, self.config.steps, words)

    def _track(self, step: int, values: Mapping[str, float]) -> None:
        self.tracker.metrics(step, {f"train/{name}": value for name, value in values.items()})

    def _even(self, row: Mapping[str, float]) -> dict[str, float]:
        """Means of losses over the exits, each by its last value: they do not show which exits were drawn.

        The first exit may be the anchor's alone; of the others, all have to be known.
        """
        curves, found = self.recorder.series.curves, {}
        for loss in ("reverse_kl", "critic_loss"):
            names = [f"{loss}_exit_{number}" for number in range(len(self.recipe.sampling.steps))]
            known = {
                name: curves[name].values[-1] for name in names if name in curves and curves[name].values
            }
            known |= {name: row[name] for name in names if name in row}
            if known.keys() >= set(names[1:]):
                found[f"{loss}_even"] = sum(known.values()) / len(known)
        return found

    def _judge(self) -> list[Verdict]:
        return judge(self.facts, self.recorder.series.curves)

    def _tell(self, step: int) -> None:
        """Tells verdicts that have changed: bad ones as warnings, all of them to the tracker."""
        found = self._judge()
        for verdict in found:
            before = self._verdicts.get(verdict.name)
            if before is None or before.well != verdict.well:
                self.tracker.tags({f"verdict.{verdict.name}": verdict.text})
                if not verdict.well:
                    logging.getLogger("sostenuto.training").warning(
                        "%s, step %d: %s", self.recipe.name, step, verdict.text
                    )
                elif before is not None and self.progress is not None:
                    self.progress(self.recipe.name, step, self.config.steps, verdict.text)
        self._verdicts = {verdict.name: verdict for verdict in found}
        stops = [verdict for verdict in found if not verdict.well and verdict.name in self.config.stop_on]
        self.unwell = stops[0] if stops else None
        self.tracker.metrics(step, {f"verdict/{verdict.name}": float(verdict.well) for verdict in found})
