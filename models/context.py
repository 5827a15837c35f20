"""Context parallelism: processes share the frames of a clip, and fetch the keys and values that theirs see.

The clip, its noise and its velocity are small and whole in every process: samplers, losses and windows do not
know of it. Tokens are large, and only those of the own frames are computed.
"""

from typing import Protocol

from torch import Tensor, nn


class Context(Protocol):
    """A process's place among those that share clips; all of them call its functions in the same order."""

    def own(self, frames: int) -> range:
        """The frames of a clip of so many that this process computes: one at least, consecutive, in order."""
        ...

    def fetch(self, x: Tensor, frames: int, reach: int) -> Tensor:
        """The own frames' x [F, ...] -> that of all frames at most `reach` from them, in order.

        The gradient of a frame is the sum of what all processes have for it, in their order.
        """
        ...

    def join(self, x: Tensor, frames: int) -> Tensor:
        """The own frames' x [F, ...] -> that of all frames [frames, ...].

        For what every process then goes on with alike: its gradient is the own frames' part.
        """
        ...


def share_frames(model: nn.Module, context: Context) -> None:
    """From now on a network computes the context's frames alone, in every block."""
    for module in model.modules():
        if hasattr(module, "context"):
            module.context = context  # type: ignore[assignment]
