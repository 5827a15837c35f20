"""`sostenuto kernels`: which code the kernels run here, and what they compile to for GPUs."""

import dataclasses
import importlib.util
import json
import os
from typing import TYPE_CHECKING

import torch
from rich.table import Table

from jobs.console import ConsoleProgress, print_line, print_table
from kernels.dispatch import path_for
from models.errors import ConfigError

if TYPE_CHECKING:
    from kernels.aot import Compiled


def kernels(*, report: bool, as_json: bool) -> bool:
    """Say which path runs on this machine's devices; with `report`, compile and judge every kernel.

    Args:
        report: compile for sm_90, sm_80 and gfx942; no GPU is needed.
        as_json: print one JSON list and nothing else.

    Returns:
        Whether every configuration is as required.

    Raises:
        ConfigError: triton is not installed.
    """
    if not report:
        kinds = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        paths = {kind: path_for(torch.device(kind)) for kind in kinds}
        print_line(json.dumps(paths) if as_json else "\n".join(f"{d}: {path}" for d, path in paths.items()))
        return True
    if importlib.util.find_spec("triton") is None:
        raise ConfigError(
            "triton is not installed", "Install it: pip install 'triton>=3.6,<3.10' (Linux only)"
        )
    from kernels import aot

    total, found = len(aot.compilations()), []
    with ConsoleProgress() as progress:
        for compiled in aot.report(len(os.sched_getaffinity(0))):
            found.append(compiled)
            if not as_json:
                progress("compile", len(found), total)
    if as_json:
        print_line(json.dumps([dataclasses.asdict(compiled) for compiled in found], indent=1))
    else:
        _show(found)
    return all(compiled.ok for compiled in found)


def _show(found: list["Compiled"]) -> None:
    table = Table(title="Shipped kernels, compiled ahead of time", title_justify="left")
    names = [field.name for field in dataclasses.fields(found[0])]
    for name in names:
        table.add_column(name.replace("_", " "), justify="left" if name in ("name", "target") else "right")
    for compiled in found:
        values = (getattr(compiled, name) for name in names)
        table.add_row(*({True: "ok", False: "NOT OK"}[v] if isinstance(v, bool) else str(v) for v in values))
    print_table(table)
    bad = sum(not compiled.ok for compiled in found)
    print_line(f"{len(found)} configurations, {bad} not as required")
