"""A synthesis whose worker is killed; on its own, as workers import what it is defined in."""

import os
import signal
from contextlib import suppress
from pathlib import Path

from pipelines.synthesis import Synthesis

DIED = "died"
"""File that it leaves in the folder of its checkpoint."""


class Dying(Synthesis):
    """The first worker to come to sample 5 is killed."""

    def caption(self, sample: int) -> str:
        with suppress(FileExistsError):
            if sample == 5:
                Path(self.checkpoint, DIED).touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)
        return super().caption(sample)
