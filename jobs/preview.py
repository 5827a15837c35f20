"""`longtake ingest --dry-run`: what it would keep and why; nothing is encoded or written."""

from rich.table import Table

from jobs.console import Progress, say, show
from jobs.describe import render
from jobs.paths import RunPaths
from jobs.ray_session import ray_session
from jobs.settings import RunConfig
from pipelines.data.preview import CorpusPreview
from pipelines.data.preview import preview as run_preview
from pipelines.storage import Storage

MOST_REASONS = 8
"""Reasons told of a corpus; the rest are counted."""


def preview(config: RunConfig) -> dict[str, CorpusPreview]:
    """Print the run's sizes and cost, then decode and judge every video of both corpora.

    Args:
        config: the run's settings.

    Returns:
        What was found, by corpus; empty when the built-in world is not rendered yet.

    Raises:
        DataError: a corpus is missing or empty.
        ClusterError: Ray or the storage cannot be used.
    """
    say(render(config))
    paths = RunPaths.of(config)
    if config.uses_world and not Storage(paths.world).exists():
        say("the built-in world is not rendered yet, so that no video was looked at")
        return {}
    short, long = paths.corpora(config)
    with Progress() as progress, ray_session(config.cluster):
        found = run_preview(short, long, paths.dataset, config.data, progress)
    table = Table("corpus", "", "videos", "windows", "why", box=None)
    for corpus, seen in found.items():
        for row in _rows(seen):
            table.add_row(corpus.upper(), *row)
    show(table)
    say("nothing was encoded or written")
    return found


def _rows(seen: CorpusPreview) -> list[tuple[str, str, str, str]]:
    rows = [("kept", f"{seen.videos}", f"{seen.windows}", f"{seen.hours:.3g} hours of video")]
    rows += [("dropped", "", f"{count}", reason) for reason, count in _commonest(seen.dropped)]
    rows += [("rejected", f"{count}", "", reason) for reason, count in _commonest(seen.rejected)]
    return rows


def _commonest(reasons: dict[str, int]) -> list[tuple[str, int]]:
    """The commonest first, and the sum of those that are left."""
    pairs = list(reasons.items())
    rest = pairs[MOST_REASONS:]
    told = [(f"{len(rest)} more reasons", sum(count for _, count in rest))] if rest else []
    return pairs[:MOST_REASONS] + told
