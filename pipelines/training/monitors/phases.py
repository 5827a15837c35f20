"""How a stage's time divides among its phases, beside what the dry run planned."""

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

SHOWN = 0.05
"""Smallest share of a phase in a progress line."""


class Phases:
    """A stopwatch: each moment belongs to one phase.

    On a GPU it records events, which are read when the GPU has passed them, so that nothing waits for it.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._on_gpu = torch.device(device).type == "cuda"
        self._marks: deque[tuple[str, Any]] = deque([("other", self._now())])
        self._seconds: dict[str, float] = {}

    def begin(self, name: str) -> None:
        """The phase `name` begins, and the one before it ends."""
        self._marks.append((name, self._now()))

    def lap(self) -> dict[str, float]:
        """Seconds of each phase since the last lap; on a GPU, of what it has passed."""
        self.begin(self._marks[-1][0])
        while len(self._marks) > 1 and (not self._on_gpu or self._marks[1][1].query()):
            name, start = self._marks.popleft()
            end = self._marks[0][1]
            passed = start.elapsed_time(end) / 1000 if self._on_gpu else end - start
            self._seconds[name] = self._seconds.get(name, 0.0) + passed
        found, self._seconds = self._seconds, {}
        return found

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


@dataclass(frozen=True)
class Plan:
    """What a dry run expects of a stage.

    Args:
        flops: floating-point operations of a step over all workers.
        speed: assumed operations per second of a worker.
    """

    flops: float
    speed: float


@dataclass
class Pace:
    """How fast a stage goes, and what it costs.

    Args:
        workers: how many there are.
        steps: of the stage.
        price: of a worker's hour; 0 is unknown.
        plan: None where nobody made one.
        hours: of all workers before this session.
    """

    workers: int
    steps: int
    price: float = 0.0
    plan: Plan | None = None
    hours: float = 0.0

    def of(self, seconds: Mapping[str, float], taken: int, step: int) -> dict[str, float]:
        """Figures of a lap of `taken` steps that ends after `step`, by their names in the log.

        `time/step` and `time/<phase>`: seconds a step. `time/<phase>_share`: of the lap. `time/flops`:
        operations per second of all workers, beside what the dry run assumes (`time/flops_of_plan`).
        `time/hours`, `time/hours_left`: of workers; `time/cost`, `time/cost_left`: at their price.
        """
        lap, taken = sum(seconds.values()), max(1, taken)
        self.hours += lap * self.workers / 3600
        found = {"time/step": lap / taken, "time/hours": self.hours}
        for phase, own in seconds.items():
            found |= {f"time/{phase}": own / taken, f"time/{phase}_share": own / lap}
        found["time/hours_left"] = (self.steps - step) * lap / taken * self.workers / 3600
        if self.plan is not None:
            reached = self.plan.flops * taken / lap
            found |= {
                "time/flops": reached,
                "time/flops_of_plan": reached / (self.plan.speed * self.workers),
            }
        if self.price:
            found |= {"time/cost": self.price * self.hours}
            found |= {"time/cost_left": self.price * found["time/hours_left"]}
        return found


def in_words(figures: Mapping[str, float]) -> str:
    """Figures of `Pace.of` for a progress line: `0.412 s/step (score 40 %, fm 31 %), 1.2 GFLOP/s ...`."""
    shares = {
        name.removeprefix("time/").removesuffix("_share"): value
        for name, value in figures.items()
        if name.endswith("_share") and value >= SHOWN
    }
    largest = sorted(shares.items(), key=lambda entry: -entry[1])
    words = f"{figures['time/step']:.3f} s/step ({', '.join(f'{n} {100 * v:.0f} %' for n, v in largest)})"
    if "time/flops" in figures:
        words += f", {figures['time/flops']:.2g} FLOP/s, {100 * figures['time/flops_of_plan']:.0f} % of plan"
    left = figures["time/hours_left"]
    words += f", {left:,.1f} worker-hours left" if left >= 1 else f", {3600 * left:,.0f} worker-seconds left"
    if "time/cost_left" in figures:
        words += f" for {figures['time/cost_left']:,.2f}"
    return words
