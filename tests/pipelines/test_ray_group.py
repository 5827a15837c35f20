"""Workers of a group exchange what they like, and end together, whatever befalls one of them."""

import os
import signal
import time

import pytest
import torch
from torch import distributed

from models.errors import ClusterError, ConfigError
from pipelines import ray_group as module
from pipelines.ray_group import ray_group


def total(rank: int, size: int) -> list[int]:
    """What all add up, and who says so."""
    ranks = torch.tensor([rank + 10 * (place == rank) for place in range(size)])
    distributed.all_reduce(ranks)
    return [rank, *ranks.tolist()]


def refused(rank: int, size: int) -> None:
    if rank == 1:
        raise ConfigError("the second will not", "Ask another")
    distributed.barrier()


def killed(rank: int, size: int) -> None:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    distributed.barrier()


def test_each_tells_in_its_turn_what_all_have_exchanged(ray_local: None) -> None:
    assert ray_group(total, 3) == [[rank, 13, 13, 13] for rank in range(3)]


def dead(rank: int, size: int) -> None:
    """The others wait for nobody, and are not done for long."""
    if rank == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(1000)


def test_a_death_ends_those_that_do_not_notice_it(ray_local: None) -> None:
    with pytest.raises(ClusterError, match="worker 3 of 3 died"):
        ray_group(dead, 3)


def test_what_one_refuses_is_raised_though_others_wait(ray_local: None) -> None:
    with pytest.raises(ConfigError, match="the second will not") as caught:
        ray_group(refused, 2)
    assert caught.value.remedy == "Ask another"


def test_a_death_is_told_though_others_wait(ray_local: None) -> None:
    with pytest.raises(ClusterError, match="worker 2 of 2 died"):
        ray_group(killed, 2)


def test_a_cluster_without_room_is_told(ray_local: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROOM_S", 1.0)
    with pytest.raises(ClusterError, match="40 workers at once want a CPU each"):
        ray_group(total, 40)
