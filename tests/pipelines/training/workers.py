"""Workers that are processes of one machine, as Ray Train's are."""

import multiprocessing
from collections.abc import Callable
from typing import Any

from torch.multiprocessing import start_processes

PRELOADED = ["torch._dynamo", "torch.distributed.fsdp", "tests.pipelines.training.makers"]
"""What takes seconds to import, once for all workers of a test run."""


def spawn(work: Callable[..., None], size: int, *given: Any) -> None:
    """`work(rank, size, *given)` in `size` processes, waited for; an error in one of them is raised here."""
    multiprocessing.set_forkserver_preload(PRELOADED)
    start_processes(work, (size, *given), nprocs=size, start_method="forkserver")
