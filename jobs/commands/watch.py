"""`sostenuto watch`: is this run well? What is wrong, and what to change."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from jobs.config.paths import RunPaths, absolute_root
from jobs.config.schema import RunConfig
from jobs.console import TABLE_WIDTH, print_line, titled_table
from models.errors import ConfigError
from pipelines.storage import Storage
from pipelines.training.monitors.phases import in_words
from pipelines.training.monitors.run import WatchedStage, page, watched_stages

EVERY_S = 5.0


def watch(
    config: RunConfig, *, run: str | None, stage: str | None, html: str | None, once: bool, as_json: bool
) -> None:
    """Show the stages of a run and the verdicts on them, again and again on a terminal until all have ended.

    Args:
        config: says where the run is.
        run: its folder or URI, or that of a seed, a trial or a stage; None is the config's run.
        stage: the only stage to show.
        html: file to write as a page, too.
        once: do not follow.
        as_json: print one JSON object.

    Raises:
        ConfigError: nothing has been recorded there.
    """
    root = absolute_root(run) if run is not None else RunPaths.of(config).root
    if as_json:
        print_line(
            json.dumps({"run": root, "stages": [s.to_json() for s in _look(root, stage, html)]}, indent=1)
        )
        return
    console = Console()
    if once or not console.is_terminal:
        (console if console.is_terminal else Console(width=TABLE_WIDTH)).print(
            _tables(_look(root, stage, html))
        )
        return
    with Live(console=console, auto_refresh=False) as live:
        while True:
            stages = _look(root, stage, html)
            live.update(_tables(stages), refresh=True)
            if all(one.ended for one in stages):
                return
            time.sleep(EVERY_S)


def _look(root: str, stage: str | None, html: str | None) -> list[WatchedStage]:
    """The stages now, written as a page if one is asked for."""
    found = [one for one in watched_stages(Storage(root)) if stage in (None, one.facts.stage)]
    if not found:
        raise ConfigError(
            f"no stage under {root} has recorded anything",
            "Begin one with `sostenuto train`, or give the run's folder or its --config and --set",
        )
    if html is not None:
        Path(html).write_text(page(root, found), encoding="utf-8")
    return found


def _tables(stages: Sequence[WatchedStage]) -> Group:
    return Group(*map(_table, stages))


def _table(stage: WatchedStage) -> Table:
    times = {name: value for name in stage.series.curves if (value := stage.newest(name)) is not None}
    pace = f", {in_words(times)}" if "time/step" in times else ""
    state = "ended" if stage.ended else f"last heard of {time.time() - stage.series.heard:,.0f} s ago"
    table = titled_table(f"{stage.folder}: step {stage.step} of {stage.facts.steps}, {state}{pace}")
    for heading in ("what", "well", "seen, and what to change"):
        table.add_column(heading, overflow="fold")
    for verdict in stage.verdicts:
        table.add_row(verdict.name, "yes" if verdict.well else "NO", Text(verdict.text))
    return table
