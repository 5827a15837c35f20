"""`sostenuto train --dry-run`: what training would take, and whether it fits."""

from jobs.config.schema import RunConfig
from jobs.console import print_line
from jobs.estimate.describe import describe, render, to_json
from jobs.estimate.fitting import require_fit
from jobs.estimate.gpus import gpu as gpu_named


def dry_run(
    config: RunConfig, *, stage: str | None = None, gpu: str | None = None, as_json: bool = False
) -> None:
    """Print settings, sizes and cost, then refuse what does not fit.

    Args:
        config: the run's settings.
        stage: a stage of training; None is all.
        gpu: train on this one; None is what the config says, and nothing is refused.
        as_json: print one JSON object and nothing else.

    Raises:
        ConfigError: there is no such GPU or stage, or a stage does not fit on the GPU.
    """
    asked = None if gpu is None else gpu_named(gpu)
    described = describe(config, stage, asked)
    print_line(to_json(config, described, asked) if as_json else render(config, described, asked))
    if asked is not None:
        require_fit(config, described, asked)
