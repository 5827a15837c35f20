"""The watched numbers of a stage, beside its checkpoints: on any storage, with or without a tracking service.

Files of JSON lines are only added to. A session that goes on from a checkpoint says so in a line, and readers
forget what an earlier one recorded after that step.
"""

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from models.errors import ClusterError
from pipelines.storage import Storage

FOLDER, ABOUT = "watch", "about.json"
ROWS = 100
"""Lines of a file: a store that cannot append writes it anew with each line."""


@dataclass
class Curve:
    """One number at rising steps."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


@dataclass
class Series:
    """What a stage has recorded.

    Args:
        curves: by name.
        heard: when the last line was written, in seconds since 1970.
    """

    curves: dict[str, Curve] = field(default_factory=dict)
    heard: float = 0.0

    def add(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            curve = self.curves.setdefault(name, Curve())
            curve.steps.append(step)
            curve.values.append(value)

    def forget(self, after: int) -> None:
        """Drops what was recorded after a step."""
        for curve in self.curves.values():
            kept = sum(step <= after for step in curve.steps)
            del curve.steps[kept:], curve.values[kept:]


def read_series(storage: Storage) -> Series:
    """The series of a stage, from its folder.

    Raises:
        ClusterError: the storage fails, or a file is damaged.
    """
    series = Series()
    for name in storage.list(FOLDER):
        if not name.endswith(".jsonl"):
            continue
        for line in storage.read_bytes(f"{FOLDER}/{name}").decode().splitlines():
            row = json.loads(line)
            series.heard = row["time"]
            if "from" in row:
                series.forget(row["from"])
            else:
                series.add(row["step"], row["values"])
    return series


class Recorder:
    """Records a stage's series; a storage that fails is told once, and training goes on.

    Args:
        storage: the stage's folder.
        about: what readers have to know of the stage, a dataclass.
        step: where this session begins.
    """

    def __init__(self, storage: Storage, about: Any, step: int) -> None:
        self._storage, self._lines, self._failed = storage, list[str](), False
        self.series = read_series(storage)
        self.series.forget(step)
        self._file = sum(name.endswith(".jsonl") for name in storage.list(FOLDER))
        try:
            storage.write_json(f"{FOLDER}/{ABOUT}", asdict(about))
        except ClusterError as error:
            self._warn(error)
        if self._file:
            self._write({"from": step})

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Adds numbers at a step."""
        self.series.add(step, values)
        self._write({"step": step, "values": dict(values)})

    def _write(self, row: dict[str, Any]) -> None:
        if len(self._lines) == ROWS:
            self._file, self._lines = self._file + 1, []
        self._lines.append(json.dumps(row | {"time": round(time.time(), 3)}))
        try:
            self._storage.write_bytes(f"{FOLDER}/{self._file:06d}.jsonl", "\n".join(self._lines).encode())
        except ClusterError as error:
            self._warn(error)

    def _warn(self, error: ClusterError) -> None:
        if not self._failed:
            self._failed = True
            logging.getLogger("sostenuto.training").warning("`sostenuto watch` will not see all: %s", error)
