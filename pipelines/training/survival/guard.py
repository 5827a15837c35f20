"""An actor that judges the beats of a stage's workers: who hangs is named and ended, and all learn to stop.

A worker that has begun fewer exchanges than another keeps it waiting. On a GPU, too, where waiting workers
stand wherever they ask for a number.

The standard library is all it imports: the actor's process would hold the rest in memory.
"""

import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Beat:
    """What a worker does.

    Args:
        rank: the worker.
        exchanges: how many it has begun.
        still_s: seconds since it began one, or a step; 0 between steps, where one worker may take its time.
        step: finished steps.
        name: the worker, its machine and process, for people.
        place: the line of code that it is at.
    """

    rank: int
    exchanges: int
    still_s: float
    step: int
    name: str
    place: str


@dataclass(frozen=True)
class Order:
    """What a worker is told.

    Args:
        stop: save at the end of this step, and end.
        say: what it has to warn of.
        end: end this process: Ray Train starts the group again.
    """

    stop: bool = False
    say: str = ""
    end: bool = False


class Guard:
    """Judges the beats of one group of workers.

    Args:
        patience_s: how long workers wait for one of them.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._beats: dict[int, tuple[float, Beat]] = {}
        self._stop = self._said = False
        self._began = time.monotonic()

    def begin(self) -> None:
        """A new group starts."""
        self._beats, self._said, self._began = {}, False, time.monotonic()

    def stop(self) -> None:
        """From now on every worker is told to stop."""
        self._stop = True

    def silent_s(self) -> float:
        """Seconds since a worker has beaten, or since its group began."""
        return time.monotonic() - max([self._began, *(at for at, _ in self._beats.values())])

    def beat(self, beat: Beat, size: int) -> Order:
        """Takes a worker's beat; what it has to do.

        Args:
            beat: the worker's.
            size: workers of its group.
        """
        now = time.monotonic()
        self._beats[beat.rank] = (now, beat)
        if len(self._beats) < size:
            return Order(self._stop)
        silent = [other for at, other in self._beats.values() if now - at > self._patience_s]
        heard = [other for at, other in self._beats.values() if now - at <= self._patience_s]
        if min(other.still_s for other in heard) <= self._patience_s:
            return Order(self._stop)
        fewest = min(other.exchanges for other in heard)
        late = silent or [other for other in heard if other.exchanges == fewest]
        waited = f"for {self._patience_s / 60:.3g} minutes"
        if len(late) == size:
            if self._said or size == 1:
                return Order(self._stop)
            self._said = True
            return Order(self._stop, f"no worker has come on {waited}: {_told(late)}")
        # who hangs ends itself; for one that cannot even beat, one that waits for it does
        if beat not in late and not silent:
            return Order(self._stop)
        self._beats = {}
        does = "shows no sign of life" if silent else "has not come on"
        text = f"the others wait for a worker that {does} {waited}: {_told(late)}. All start again from the "
        return Order(
            self._stop, f"{text}last checkpoint; if its steps are that long, raise hang_minutes", True
        )


def _told(beats: list[Beat]) -> str:
    return "; ".join(f"{beat.name}, in step {beat.step + 1} at {beat.place}" for beat in beats)
