"""The memory of this process and of all it has started."""

import threading
from types import TracebackType
from typing import Self

import psutil

EVERY_S = 2.0


class PeakMemory:
    """Largest proportional memory of the process tree while a `with` block runs, in `peak_bytes`."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(EVERY_S):
            own = psutil.Process()
            total = sum(_proportional_bytes(p) for p in [own, *own.children(recursive=True)])
            self.peak_bytes = max(self.peak_bytes, total)


def _proportional_bytes(process: psutil.Process) -> int:
    """Memory of a process, shared pages divided among their users; 0 once it has ended."""
    try:
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return 0
