"""What a machine does while it works, under the names that MLflow's page of system metrics shows."""

import time

import psutil
import torch

EVERY_S = 10.0
"""Between two measurements."""


class Machine:
    """Measures this machine from time to time."""

    def __init__(self) -> None:
        self._step, self._next = 0, time.monotonic()

    def due(self) -> tuple[int, dict[str, float]]:
        """The count and the figures of a measurement, if it is time for one; else no figures."""
        if time.monotonic() < self._next:
            return self._step, {}
        self._step, self._next = self._step + 1, time.monotonic() + EVERY_S
        return self._step, {f"system/{name}": value for name, value in measured().items()}


def measured() -> dict[str, float]:
    """Use of the processor since the last call, of memory, and of the memory of each GPU."""
    memory = psutil.virtual_memory()
    values = {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": memory.used / 1e6,
        "system_memory_usage_percentage": memory.percent,
    }
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        values[f"gpu_{index}_memory_usage_megabytes"] = (total - free) / 1e6
        values[f"gpu_{index}_memory_usage_percentage"] = 100 * (1 - free / total)
    return values
