"""Options that several commands have in common."""

from typing import Annotated, Literal

import typer

Config = Annotated[
    str,
    typer.Option("--config", help="A preset (tiny, minute, clips, wan-1.3b, wan-14b, ci) or a YAML file."),
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
