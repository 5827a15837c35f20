"""Work in numbered parts on Ray Data, and the joining of what comes back."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import ray.data
from ray.exceptions import RayTaskError

from models.errors import SostenutoError
from pipelines.evaluation.measure import Columns, Measured

PART = "part"
"""Column that names the part a row belongs to."""
_SECONDS = ("sampling", "decoding")


def run_parts(
    work: Callable[..., Any], count: int, progress: Callable[[int], None], **options: Any
) -> list[Columns]:
    """Runs `work` on parts 0 ... count - 1, one part a batch, and returns their columns by number.

    Args:
        work: a function, or a class for actors, of a batch whose `id` column holds the part's number; the
            columns it returns have the number in `part`.
        count: number of parts.
        progress: called with the number of finished parts.
        options: of `Dataset.map_batches`.

    Raises:
        SostenutoError: what a worker raised.
    """
    if not count:
        return []
    _prepare()
    dataset = ray.data.range(count, override_num_blocks=count).map_batches(work, batch_size=1, **options)
    pieces: dict[int, list[Columns]] = {}
    try:
        for block in dataset.iter_batches(batch_size=None, batch_format="numpy"):
            for number in np.unique(block[PART]).tolist():
                rows = block[PART] == number
                pieces.setdefault(number, []).append({k: v[rows] for k, v in block.items() if k != PART})
            progress(len(pieces))
    except RayTaskError as error:
        if isinstance(error.cause, SostenutoError):
            raise error.cause from error
        raise
    return [_concatenate(pieces[number]) for number in range(count)]


def join(captions: Iterable[Sequence[str]], parts: Sequence[Columns]) -> Measured:
    """One set of videos from its parts; seconds are the median over parts, without a slow first call."""
    columns = _concatenate(parts)
    seconds = {
        name: float(np.median([part[name][0] for part in parts])) for name in _SECONDS if name in columns
    }
    kept = {name: column for name, column in columns.items() if name not in _SECONDS}
    return Measured(tuple(caption for part in captions for caption in part), kept, seconds)


def cut(count: int, size: int) -> list[range]:
    """0 ... count - 1 in runs of `size`."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def within(count: int, part: range) -> int:
    """How many of a part's videos are among the first `count`."""
    return min(max(0, count - part.start), len(part))


def _concatenate(parts: Sequence[Columns]) -> Columns:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _prepare() -> None:
    """No bars and plans of Ray Data: the caller has a progress of its own. Errors as they were raised."""
    with warnings.catch_warnings():
        # making the context trips over a deprecation of its own
        warnings.simplefilter("ignore", DeprecationWarning)
        context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
