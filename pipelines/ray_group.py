"""A function in several Ray workers at once, which torch.distributed joins: they begin, exchange and end
together, and where one fails nothing is tried again."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import ray
from ray.exceptions import RayActorError, RayError
from ray.util import get_node_ip_address, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch import distributed
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from models.errors import ClusterError, SostenutoError

ROOM_S = 120.0
"""How long a cluster may take to have room for all workers."""

SILENCE = timedelta(hours=2)
"""Longest that workers wait for one of them."""

KNOWN_S = 5.0
"""How long a death may take to be known, after others have missed the one that died."""

T = TypeVar("T")


@ray.remote
class _Worker:
    def meet(self, size: int) -> tuple[str, int]:
        """Opens the store by which the workers find each other; its host and port."""
        host = get_node_ip_address()
        self._store = TCPStore(host, 0, size, is_master=True, wait_for_workers=False)
        return host, self._store.port

    def run(
        self, work: Callable[[int, int], T], rank: int, size: int, use_gpu: bool, meeting: tuple[str, int]
    ) -> T:
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if use_gpu else "gloo",
            store=TCPStore(*meeting, size) if rank else self._store,
            rank=rank,
            world_size=size,
            timeout=SILENCE,
        )
        return work(rank, size)


def ray_group(work: Callable[[int, int], T], size: int, *, use_gpu: bool = False) -> list[T]:
    """What each of `size` workers makes of `work(rank, size)`, in their order.

    Args:
        work: sent to workers that are new, and end with it.
        use_gpu: one GPU per worker, which exchange by NCCL what lies there.

    Raises:
        ClusterError: the cluster has no room for the workers, or one of them died.
        SostenutoError: what `work` raised in one of them.
    """
    bundle = {"CPU": 1.0} | ({"GPU": 1.0} if use_gpu else {})
    room = placement_group([bundle] * size, strategy="PACK")
    try:
        if not room.wait(ROOM_S):
            kind = "GPU" if use_gpu else "CPU"
            raise ClusterError(
                f"{size} workers at once want a {kind} each, and there was no room for them in {ROOM_S:g} s: "
                f"the cluster has {ray.cluster_resources().get(kind, 0):g}",
                "Wait until what uses them has ended, or lower cluster.context_parallel",
            )
        workers = [_started(room, rank, use_gpu) for rank in range(size)]
        sent, meeting = ray.put(work), workers[0].meet.remote(size)
        runs = [one.run.remote(sent, rank, size, use_gpu, meeting) for rank, one in enumerate(workers)]
        try:
            results: list[T] = ray.get(runs)
        except RayError as error:
            raise _cause(runs, error) from error
        return results
    finally:
        remove_placement_group(room)


def _started(room: Any, rank: int, use_gpu: bool) -> Any:
    """A worker in its place."""
    place = PlacementGroupSchedulingStrategy(room, placement_group_bundle_index=rank)
    return _Worker.options(num_cpus=1, num_gpus=int(use_gpu), scheduling_strategy=place).remote()  # type: ignore[attr-defined]


def _cause(runs: Sequence[Any], error: Exception) -> Exception:
    """Why a group has failed: what a worker raised for the user, or a death that others only noticed."""
    cause: object = getattr(error, "cause", None)
    if isinstance(cause, SostenutoError):
        return cause
    ended, _ = ray.wait(list(runs), num_returns=len(runs), timeout=KNOWN_S)
    for run in ended:
        try:
            ray.get(run)
        except RayActorError as death:
            reason = str(death).strip().splitlines()[-1].strip()
            return ClusterError(
                f"worker {1 + runs.index(run)} of {len(runs)} died: {reason}",
                "Look at its node (ray status): where memory ran out, give more. Then give the command again",
            )
        except RayError:
            continue
    return error
