"""What MLflow did not take: files in {storage.root}/{name}/unsent, a JSON line per value, until it is sent.

An entry is a mapping with its `kind`: `metric` (name, value, time_ms, step), `param` and `tag` (name, text),
`file` (name, path, folder) or `end` (status, time_ms). `path` is that of a copy on this machine's disk.
"""

import json
import logging
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jobs.config.load import override
from jobs.config.paths import RunPaths
from jobs.config.schema import RunConfig
from models.errors import SostenutoError
from pipelines.storage import Storage

Entry = Mapping[str, Any]

_ENDING = ".jsonl"


@dataclass(frozen=True)
class Kept:
    """Entries of one run, as one file holds them."""

    name: str
    uri: str
    run_id: str
    entries: Sequence[Entry]


class Unsent:
    """The folder of a group of runs.

    Args:
        folder: a path or an fsspec URI; it need not exist.
    """

    def __init__(self, folder: str) -> None:
        self.storage = Storage(folder)

    def keep(self, uri: str, run_id: str, entries: Sequence[Entry]) -> None:
        """Write entries of a run, whole or not at all.

        Raises:
            ClusterError: the storage does not take them.
        """
        name = f"{run_id}-{time.time_ns()}"
        lines = [json.dumps({"uri": uri, "run_id": run_id})]
        for index, entry in enumerate(entries):
            if entry["kind"] == "file":
                self.storage.upload(entry["path"], f"{name}/{index}")
                entry = {"kind": "file", "name": entry["name"], "path": str(index), "folder": entry["folder"]}
            lines.append(json.dumps(entry))
        self.storage.write_bytes(f"{name}{_ENDING}", "\n".join(lines).encode())

    def files(self) -> Iterator[Kept]:
        """What is kept, the oldest of each run first."""
        for name in self.storage.list():
            if name.endswith(_ENDING):
                head, *entries = map(json.loads, self.storage.read_bytes(name).splitlines())
                yield Kept(name.removesuffix(_ENDING), head["uri"], head["run_id"], entries)

    @contextmanager
    def on_disk(self, kept: Kept) -> Iterator[list[Entry]]:
        """Its entries, with `path` on this machine's disk."""
        if not any(entry["kind"] == "file" for entry in kept.entries):
            yield list(kept.entries)
            return
        with self.storage.on_disk(kept.name) as folder:
            yield [
                {**entry, "path": str(folder / entry["path"])} if entry["kind"] == "file" else entry
                for entry in kept.entries
            ]

    def forget(self, kept: Kept) -> None:
        """Remove what has been sent: the list first, without which its files are nothing."""
        self.storage.delete(f"{kept.name}{_ENDING}")
        self.storage.delete(kept.name)


def unsent_of(config: RunConfig) -> Unsent:
    """What the runs of a config have left."""
    return Unsent(f"{RunPaths.of(config).root}/unsent")


def describe(kept: Sequence[Kept]) -> str:
    """`12 metric values and 3 other records of 2 runs`."""
    entries = [entry for one in kept for entry in one.entries]
    metrics = sum(entry["kind"] == "metric" for entry in entries)
    others, runs = len(entries) - metrics, len({one.run_id for one in kept})
    parts = [f"{metrics} metric values"] * (metrics > 0) + [f"{others} other records"] * (others > 0)
    return f"{' and '.join(parts)} of {runs} run{'s' * (runs != 1)}"


def resend_command(config: RunConfig) -> str:
    """The command that sends them, for a shell in any folder."""
    own = [override("storage.root", config.storage.root), override("name", config.name)]
    return shlex.join(["sostenuto", "track", "--resend", *(word for text in own for word in ("--set", text))])


def tell_unsent(config: RunConfig) -> None:
    """Say in one line what MLflow has not taken, and how to send it."""
    try:
        kept = list(unsent_of(config).files()) if config.tracking.enabled else []
    except SostenutoError:
        return  # the storage is away, which the command has said
    if kept:
        told = f"MLflow has not taken {describe(kept)}. To send them: {resend_command(config)}"
        logging.getLogger("sostenuto.tracking").warning(told)
