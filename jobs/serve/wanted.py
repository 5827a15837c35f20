"""What is asked of the page, checked against the limits, and the clips that it means."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from jobs.config.checks import check_times
from jobs.config.paths import RunPaths
from jobs.config.schema import RunConfig, ServeConfig
from models.errors import ConfigError
from pipelines.creation import Cue
from pipelines.generation import Head
from pipelines.training.recipes import finished_stage

SystemName = Literal["mmm", "sft", "mixed", "teacher"]
CLIPS, CUES, STEPS = 36, 32, 1000
"""Most clips of a request, captions of a clip, and steps of a sampler."""


@dataclass(frozen=True)
class System:
    """A network that clips can be made with."""

    name: SystemName
    title: str
    stage: str
    """Stage that trains it."""
    heads: tuple[Head, ...]
    """Of its network, the usual one first."""


SYSTEMS = (
    System("mmm", "MMM", "distill", ("dm", "fm")),
    System("sft", "long-SFT", "sft", ("fm",)),
    System("mixed", "mixed-length SFT", "mixed", ("fm",)),
    System("teacher", "teacher by windows", "teacher", ("teacher",)),
)


def checkpoints(config: RunConfig) -> dict[str, str]:
    """The last checkpoint of each system whose stage has finished, by name, in the order of SYSTEMS."""
    root = RunPaths.of(config).seed(config.seed)
    found = {system.name: finished_stage(root, system.stage) for system in SYSTEMS}
    return {name: outcome.checkpoint for name, outcome in found.items() if outcome is not None}


class Strict(BaseModel):
    """Unknown fields, infinities and changes are refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


class Line(Strict):
    """A caption that holds from a time on."""

    second: Annotated[float, Field(ge=0)]
    caption: Annotated[str, StringConstraints(strip_whitespace=True)]


class Start(Strict):
    """What a clip goes on from: a file that was sent before, or a clip that was made, up to a time."""

    upload: Annotated[str, Field(pattern=r"^[0-9a-f]{16}\.(mp4|png|jpg|jpeg|webp)$")] | None = None
    job: str | None = None
    clip: str | None = None
    second: Annotated[float, Field(gt=0)] | None = None
    """None is the whole clip."""


@dataclass(frozen=True)
class Clip:
    """One clip of a request."""

    system: SystemName
    seed: int
    head: Head
    steps: int | None
    times: tuple[float, ...] | None

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.system}-{self.seed}"


class Wanted(Strict):
    """A request: every system makes a clip of every seed."""

    timeline: Annotated[tuple[Line, ...], Field(min_length=1, max_length=CUES)]
    seconds: Annotated[float, Field(gt=0)]
    systems: Annotated[tuple[SystemName, ...], Field(min_length=1)]
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    seeds: Annotated[int, Field(ge=1, le=CLIPS)] = 1
    """How many, from `seed` on."""
    head: Literal["dm", "fm"] = "dm"
    """Of MMM."""
    steps: Annotated[int, Field(ge=1, le=STEPS)] | None = None
    """Euler steps of an fm head, and of a window of the teacher; None is the config's."""
    times: Annotated[tuple[float, ...], Field(min_length=1, max_length=STEPS)] | None = None
    """Of the dm head; None is the checkpoint's."""
    loop: bool = False
    start: Start | None = None

    @property
    def cues(self) -> tuple[Cue, ...]:
        """Captions after the first."""
        return tuple(Cue(line.second, line.caption) for line in self.timeline[1:])

    @property
    def clips(self) -> list[Clip]:
        """System by system, so that each network is read once."""
        heads: dict[SystemName, Head] = {one.name: one.heads[0] for one in SYSTEMS}
        heads["mmm"] = self.head
        return [
            Clip(
                name,
                self.seed + number,
                heads[name],
                None if heads[name] == "dm" else self.steps,
                self.times if heads[name] == "dm" else None,
            )
            for name in self.systems
            for number in range(self.seeds)
        ]

    def check(self, limits: ServeConfig, known: dict[str, str]) -> None:
        """Refuses what is over the limits or cannot be made.

        Args:
            limits: of the server.
            known: checkpoints by system.

        Raises:
            ConfigError: why, and what to ask for instead.
        """
        if self.seconds > limits.longest_seconds:
            raise ConfigError(
                f"the clip should be {self.seconds:g} s long, and serve.longest_seconds is "
                f"{limits.longest_seconds:g}",
                "Ask for less, and go on from its end",
            )
        longest = max(len(line.caption) for line in self.timeline)
        if longest > limits.prompt_length:
            raise ConfigError(
                f"a caption has {longest} characters, and serve.prompt_length is {limits.prompt_length}",
                "Shorten it",
            )
        seconds = [line.second for line in self.timeline]
        if seconds[0] != 0 or any(a >= b for a, b in pairwise(seconds)) or (seconds[-1] >= self.seconds):
            raise ConfigError(
                f"captions begin at {', '.join(f'{second:g}' for second in seconds)} s of a clip of "
                f"{self.seconds:g} s",
                "Times rise from 0, and end before the clip does",
            )
        if len(self.clips) > CLIPS:
            raise ConfigError(
                f"{len(self.systems)} systems and {self.seeds} seeds are {len(self.clips)} clips",
                f"Ask for {CLIPS} at most",
            )
        if len(set(self.systems)) < len(self.systems):
            raise ConfigError("a system is named twice", "Name each once")
        if missing := [name for name in self.systems if name not in known]:
            raise ConfigError(
                f"this run has no checkpoint of {', '.join(missing)}", f"It has {', '.join(known)}"
            )
        if self.times is not None:
            check_times(self.times, "times")
        if self.start is not None and (self.start.upload is None) == (
            self.start.job is None or self.start.clip is None
        ):
            raise ConfigError(
                "start names neither a file nor a clip, or both", "Give upload, or job and clip"
            )
