"""`sostenuto ingest --dry-run`: what it would keep and why; nothing is encoded or written."""

from jobs.config.paths import RunPaths
from jobs.config.schema import RunConfig
from jobs.console import ConsoleProgress, print_line, print_table, tally_table, titled_table
from jobs.estimate.report import render
from jobs.ray_session import ray_session
from pipelines.data.ingest.preview import CorpusPreview
from pipelines.data.ingest.preview import preview as run_preview
from pipelines.data.report.page import count_rows
from pipelines.storage import Storage


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
    print_line(render(config))
    paths = RunPaths.of(config)
    if config.uses_world and not Storage(paths.world).exists():
        print_line("the built-in world is not rendered yet, so that no video was looked at")
        return {}
    short, long = paths.corpora(config)
    with ConsoleProgress() as progress, ray_session(config.cluster):
        found = run_preview(short, long, paths.dataset, config.data, progress)
    _print(found)
    print_line("\nnothing was encoded or written")
    return found


def _print(found: dict[str, CorpusPreview]) -> None:
    table = titled_table("Kept")
    for name in ("corpus", "videos", "windows", "hours of video"):
        table.add_column(name, justify="left" if name == "corpus" else "right")
    for corpus, seen in found.items():
        table.add_row(corpus.upper(), f"{seen.videos}", f"{seen.windows}", f"{seen.hours:.3g}")
    print_table(table)
    rejects = count_rows({corpus: seen.rejects for corpus, seen in found.items()}, examples=1)
    drops = count_rows({corpus: seen.drops for corpus, seen in found.items()}, examples=1)
    if rejects:
        print_table(tally_table("Rejected videos", ("stage", "videos", "such as"), rejects))
    if drops:
        print_table(tally_table("Dropped windows", ("reason", "windows", "such as"), drops))
