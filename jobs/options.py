"""The application: how a command is declared, and the options that several commands have in common."""

import importlib
import os
from collections.abc import Callable
from inspect import Parameter, Signature, getdoc, signature
from typing import Annotated, Any, Literal

import typer

from jobs.console import exit_on_error

app = typer.Typer(
    name="sostenuto",
    help="Train few-step generators of long, coherent video.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

Config = Annotated[
    str,
    typer.Option(
        "--config", help="A preset (tiny, minute, clips, mouse, wan-1.3b, wan-14b, ci) or a YAML file."
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="dotted.name=value; may be repeated.", metavar="NAME=VALUE")
]
Seed = Annotated[
    int | None, typer.Option("--seed", help="Seed of training and sampling; the config's if left out.")
]
Short = Annotated[str | None, typer.Option("--short", help="Folder of the SHORT corpus.", metavar="DIR")]
Long = Annotated[str | None, typer.Option("--long", help="Folder of the LONG corpus.", metavar="DIR")]
Fvd = Annotated[bool | None, typer.Option("--fvd", help="Also compare on I3D: FVD and its kin.")]
Few = Annotated[bool | None, typer.Option("--few", help="Give FVD of fewer than 1600 windows, too.")]
I3d = Annotated[str | None, typer.Option("--i3d", help="Weights of I3D, if elsewhere.", metavar="FILE")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
ResumeChanged = Annotated[
    bool,
    typer.Option(
        "--resume-changed",
        help="Go on with rates, weights, batches, steps and the like that have changed; it is recorded.",
    ),
]
AllowStale = Annotated[
    bool,
    typer.Option("--allow-stale", help="Use stages although what they were made from has changed since."),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start over instead of resuming.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print settings, sizes and cost; do nothing.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and what the libraries log.")]

Stage = Literal["teacher", "sft", "mixed", "warmup", "distill", "sft_longer", "mixed_longer"]
Head = Annotated[Literal["dm", "fm"], typer.Option(help="dm: few steps; fm: many.")]

SETTINGS = {
    "seed": ("seed", Seed),
    "short": ("data.short", Short),
    "long": ("data.long", Long),
    "fvd": ("evaluation.fvd", Fvd),
    "few": ("evaluation.few", Few),
    "i3d": ("evaluation.i3d", I3d),
}
"""Options that set a setting: its dotted name, and the option."""


def command(*settings: str, describes: bool = True) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Declare the command that the function of the same name in jobs/commands/NAME.py runs.

    It takes the options of the decorated function, whose docstring is its help and whose body checks their
    combination, and `--config` and `--set`, which become the first argument, and `--debug`.

    Args:
        settings: names in SETTINGS to offer as options.
        describes: whether `--dry-run` prints the config and what it costs, and runs nothing.
    """

    def declare(check: Callable[..., None]) -> Callable[..., None]:
        def run(config: str, overrides: list[str] | None, debug: bool, **options: Any) -> None:
            given = {SETTINGS[name][0]: options.pop(name) for name in settings}
            only_describe = describes and options.pop("dry_run")
            check(**options)
            with exit_on_error(debug=debug):
                from jobs.config.load import load
                from jobs.config.paths import resolved

                chosen = {name: value for name, value in given.items() if value is not None}
                loaded = resolved(load(config, overrides or [], chosen), runs=not only_describe)
                if only_describe:
                    from jobs.estimate.report import dry_run

                    dry_run(loaded)
                    return
                os.environ["SOSTENUTO_DEBUG"] = "1" if debug else "0"
                module = importlib.import_module(f"jobs.commands.{check.__name__}")
                try:
                    getattr(module, check.__name__)(loaded, **options)
                finally:
                    from jobs.unsent import tell_unsent

                    tell_unsent(loaded)

        shared: dict[str, tuple[Any, Any]] = {"config": (Config, "tiny"), "overrides": (Overrides, None)}
        shared |= {name: (SETTINGS[name][1], None) for name in settings}
        shared |= {name: (own.annotation, own.default) for name, own in signature(check).parameters.items()}
        shared |= {"dry_run": (DryRun, False)} if describes else {}
        shared |= {"debug": (Debug, False)}
        run.__signature__ = Signature(  # type: ignore[attr-defined]
            [
                Parameter(name, Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
                for name, (annotation, default) in shared.items()
            ]
        )
        run.__annotations__ = {}
        app.command(check.__name__, help=getdoc(check))(run)
        return check

    return declare
