"""Seconds of a step on a mesh, by phase: operations at a rate, and exchanges over links.

A step lasts as long as its busiest worker takes. Sharded weights that are gathered, and their gradients that
are added up, cost what exceeds the computation beside them, where a machine does both at once; all else that
is exchanged is waited for. Data, the optimiser, norms and launches are not counted.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from jobs.config.schema import RunConfig
from jobs.estimate.flops import Networks, phases
from jobs.estimate.gpus import MOST_ALIKE, Gpu
from jobs.estimate.passes import places
from jobs.estimate.traffic import Traffic, exchanges

REACHED = 0.3
"""Share of a data sheet's operations that a step reaches (assumed; nothing here was measured on a GPU)."""

CARRIED = 0.8
"""Share of a data sheet's bandwidth that collectives reach (assumed)."""

INSIDE_S, BETWEEN_S = 1e-5, 3e-5
"""Seconds of a message inside a machine and between two (assumed)."""

ASSUMED = (
    f"at {100 * REACHED:.0f} % of the data sheet's operations and {100 * CARRIED:.0f} % of its bandwidth"
)
"""In words."""


@dataclass(frozen=True)
class Link:
    """How long a worker waits for what it gets."""

    latency: float
    """Seconds of a message."""
    bandwidth: float
    """Bytes per second."""

    def seconds(self, traffic: Traffic) -> float:
        return traffic.messages * self.latency + traffic.bytes / self.bandwidth


@dataclass(frozen=True)
class Machine:
    """What workers run on."""

    rate: float
    """Operations per second of a worker."""
    inside: Link
    between: Link
    workers: int = MOST_ALIKE
    """Of a machine: what lies within so many neighbours goes by the link inside."""
    half: bool = True
    """Whether passes run in bfloat16."""
    overlaps: bool = True
    """Whether networks compute while weights are gathered."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """Operations per second in phases that have a rate of their own."""

    def link(self, span: int) -> Link:
        """Between workers that lie among so many neighbours."""
        return self.inside if span <= self.workers else self.between


def machine(gpu: Gpu) -> Machine:
    """Eight of a kind."""
    return Machine(
        rate=REACHED * gpu.flops,
        inside=Link(INSIDE_S, CARRIED * gpu.inside),
        between=Link(BETWEEN_S, CARRIED * gpu.between),
    )


@dataclass(frozen=True)
class Spent:
    """Seconds of a phase."""

    compute: float
    exchange: float
    """That workers wait for, beyond computing."""

    @property
    def seconds(self) -> float:
        return self.compute + self.exchange


def pace(config: RunConfig, stage: str, built: Networks, on: Machine) -> dict[str, Spent]:
    """Seconds of a step by phase, of the busiest worker.

    Args:
        config: the run's settings, of which `cluster` is the mesh.
        stage: the stage of training.
        built: its networks.
        on: the machines.
    """
    found: dict[str, Spent] = {}
    for place in places(config, stage):
        waited, beside = dict[str, float](), dict[str, float]()
        for one in exchanges(config, stage, built, place, half=on.half):
            kind = beside if one.beside and on.overlaps else waited
            kind[one.phase] = kind.get(one.phase, 0.0) + on.link(one.span).seconds(one.traffic)
        flops = phases(config, stage, built, place)
        for phase in {**flops, **waited, **beside}:
            compute = flops.get(phase, 0.0) / on.rates.get(phase, on.rate)
            exposed = waited.get(phase, 0.0) + max(0.0, beside.get(phase, 0.0) - compute)
            spent = Spent(compute, exposed)
            if phase not in found or spent.seconds > found[phase].seconds:
                found[phase] = spent
    return found


def step_seconds(spent: Mapping[str, Spent]) -> float:
    """Of a step, all phases one after another."""
    return sum(one.seconds for one in spent.values())
