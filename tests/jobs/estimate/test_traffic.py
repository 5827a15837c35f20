"""The dry run's bytes are those that real workers exchange, and its meshes are those that fit."""

import dataclasses
from collections import Counter

import pytest
import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from jobs.config import load as configs
from jobs.config.schema import RunConfig
from jobs.config.shapes import shapes
from jobs.estimate.flops import networks, phases
from jobs.estimate.gpus import gpu
from jobs.estimate.meshes import candidates, costed, meshes
from jobs.estimate.pace import Link, Machine, machine, pace, step_seconds
from jobs.estimate.passes import Place, places
from jobs.estimate.traffic import Traffic, exchanges, gathered, layer_bytes, summed
from models.config import SamplingConfig
from pipelines.context import Exchanges, FrameGroup
from pipelines.training.collectives import Workers
from pipelines.training.config import ClusterConfig
from pipelines.training.distill import DistillStage
from pipelines.training.loop import placed
from pipelines.training.sharding import Shards
from tests.jobs.estimate.test_flops import distill_recipe, run_config
from tests.jobs.estimate.test_memory import SIXTEEN
from tests.pipelines.training import makers


class Counting(FrameGroup):
    """A worker of a group whose others are made up: the elements that it gets of them, and the messages."""

    def exchange(self, x: Tensor, sent: list[int], got: list[int]) -> Tensor:
        others = [count for rank, count in enumerate(got) if rank != self.rank]
        seen["elements"] += sum(others) * x[:1].numel()
        seen["messages"] += sum(count > 0 for count in others)
        return x.new_zeros(sum(got), *x.shape[1:])


class Alone(Workers):
    """One that shares clips, and adds nothing up."""

    def _reduce(self, values, how=None):
        pass


seen = Counter[str]()
ONE_STEP = SamplingConfig(steps=(1.0,))


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("micro_batch", [None, 1])
def test_a_step_of_distillation_exchanges_the_frames_and_windows_told(rank, micro_batch, starts):
    """Of a group of three, whose clips of 12 latent frames and 3 windows divide."""
    settings = dataclasses.replace(makers.DISTILL, micro_batch=micro_batch)
    recipe = distill_recipe(starts, 0, 3.0, settings, anchor_weight=0.0)
    recipe = dataclasses.replace(recipe, sampling=ONE_STEP)
    stage = DistillStage(recipe, makers.CAPTIONS, Alone(context=Counting(rank, 3)))
    state = stage.init("cpu")
    seen.clear()
    makers.run(stage, state, 1)
    config = run_config(recipe, distill=settings)
    config = dataclasses.replace(config, cluster=ClusterConfig(num_workers=3, context_parallel=3))
    told = Traffic()
    for one in exchanges(config, "distill", networks(config, "distill"), Place(1, 3, rank), half=False):
        told += one.traffic if one.what in ("frames", "windows") else Traffic()
    assert told.bytes == 4 * seen["elements"]
    assert told.messages == seen["messages"]


@pytest.fixture
def eight():
    """A worker among eight, of which the others are made up."""
    distributed.init_process_group("fake", store=FakeStore(), rank=3, world_size=8)
    yield init_device_mesh("cpu", (8,), mesh_dim_names=("shards",))
    distributed.destroy_process_group()


def test_a_pass_gathers_the_weights_told(eight, starts, monkeypatch):
    """Forward through the student: what FSDP asks of its all-gathers, which fill up tables of a row."""
    stage = DistillStage(makers.recipe(makers.DISTILL, starts), makers.CAPTIONS)
    student = stage.init("cpu").modules["student"]
    total = []

    def gather(output, own, group, async_op=False):
        total.append(output.nbytes - own.nbytes)
        output.zero_()

    monkeypatch.setattr(distributed, "all_gather_single", gather)
    Shards(eight, Exchanges()).shard(student)
    long = makers.batches(0, Workers()).long.latents
    text = stage.captions.encode(["red sun"] * 4, torch.device("cpu"))
    with torch.no_grad():
        student.flow_matching(long, torch.rand(4), text)
    used = [p.numel() for n, p in student.named_parameters() if "distribution_matching" not in n]
    assert sum(total) == pytest.approx(gathered(4 * sum(used), 8).bytes, rel=0.1)


@pytest.mark.parametrize("alike", [1, 2, 4])
def test_rollouts_come_from_one_worker_of_each_group(eight, alike, starts, monkeypatch):
    config = configs.load("tiny", ["cluster.num_workers=8", f"cluster.context_parallel={alike}"])
    recipe = makers.recipe(makers.DISTILL, starts)
    workers = placed(dataclasses.replace(recipe, cluster=config.cluster), 3, 8)
    received = []

    def gather(parts, own, group=None):
        received.append(sum(part.nbytes for part in parts) - own.nbytes)

    monkeypatch.setattr(distributed, "all_gather", gather)
    sizes, batch = shapes(config), config.distill.rollout_batch
    own = torch.zeros(len(workers.share(batch)), sizes.long_frames, sizes.channels, sizes.height, sizes.width)
    workers.gather(own, batch)
    place = Place(8 // alike, alike, 3 % alike)
    (told,) = [
        one.traffic.bytes
        for one in exchanges(config, "distill", networks(config, "distill"), place, half=False)
        if one.what == "rollout"
    ]
    assert received == [told]


def test_a_gather_takes_the_time_of_a_ring():
    link = Link(latency=1e-3, bandwidth=1e6)
    assert link.seconds(gathered(8e6, 4)) == pytest.approx(3 * (1e-3 + 2e6 / 1e6))
    assert link.seconds(summed(8e6, 4)) == pytest.approx(2 * 3 * (1e-3 + 2e6 / 1e6))
    assert gathered(8e6, 1) == summed(8e6, 1) == Traffic()


def wan(*overrides: str) -> RunConfig:
    return configs.load("wan-1.3b", ["distill.micro_batch=1", *overrides])


def spent(config, on):
    return pace(config, "distill", networks(config, "distill"), on)


H100 = machine(gpu("h100"))
FREE = dataclasses.replace(H100, inside=Link(0.0, float("inf")), between=Link(0.0, float("inf")))
EIGHT = ("cluster.context_parallel=8",)
SHARDED = (*EIGHT, "cluster.shard=full")


def test_one_worker_exchanges_nothing():
    found = spent(wan("cluster.num_workers=1"), H100)
    assert all(one.exchange == 0 for one in found.values())


@pytest.mark.parametrize("overrides", [(), EIGHT, SHARDED, ("cluster.context_parallel=2",)], ids=str)
def test_over_free_links_only_uneven_shares_cost(overrides):
    """The busiest of eight computes what it has of frames, rows and windows, and waits for nobody."""
    config, built = wan(*overrides), networks(wan(), "distill")
    found = spent(config, FREE)
    assert all(one.exchange == 0 for one in found.values())
    largest = [sum(phases(config, "distill", built, place).values()) for place in places(config, "distill")]
    total = sum(phases(config, "distill", built).values())
    assert step_seconds(found) * H100.rate == pytest.approx(max(largest), rel=0.01)
    assert total / 8 <= max(largest) * (1 + 1e-9)


def test_the_parts_of_all_workers_are_the_whole():
    """All operations but those on captions, which each of a group does."""
    config = wan(*EIGHT, "distill.windows_per_video=8")
    built = networks(config, "distill")
    parts = [phases(config, "distill", built, Place(1, 8, number)) for number in range(8)]
    for phase, whole in phases(config, "distill", built).items():
        assert whole * (1 - 1e-9) <= sum(part[phase] for part in parts) <= 1.02 * whole


@pytest.mark.parametrize("overrides", [(), EIGHT, SHARDED], ids=str)
def test_a_faster_link_never_makes_a_step_slower(overrides):
    config, before = wan(*overrides), float("inf")
    for bandwidth in (1e8, 1e9, 1e10, 1e11):
        link = Link(1e-5, bandwidth)
        seconds = step_seconds(spent(config, dataclasses.replace(H100, inside=link, between=link)))
        assert seconds <= before
        before = seconds
    waiting = dataclasses.replace(H100, overlaps=False)
    assert step_seconds(spent(config, waiting)) >= step_seconds(spent(config, H100))


def test_a_windowed_layer_fetches_the_same_of_any_clip_and_a_global_one_all_of_it():
    short, long = (
        layer_bytes(wan(*EIGHT, f"data.long_frames={frames}"), "distill", Place(1, 8, 4), half=True)
        for frames in (961, 1921)
    )
    assert short["W"] == long["W"]
    assert long["G"] / short["G"] == pytest.approx(2, rel=0.02)


def test_what_lies_beyond_a_machine_goes_by_the_network():
    config = wan(*SIXTEEN)
    slow = Machine(H100.rate, inside=Link(0.0, float("inf")), between=Link(0.0, 1e9))
    assert spent(config, slow)["optimiser"].exchange > 1
    assert spent(config, dataclasses.replace(slow, workers=16))["optimiser"].exchange == 0


def test_meshes_fit_and_the_first_is_the_smallest():
    config, h100 = wan(), gpu("h100")
    found = meshes(config, "distill", h100)
    assert [mesh.workers for mesh in found] == sorted({mesh.workers for mesh in found})
    assert all(mesh.bytes <= h100.usable for mesh in found)
    smaller = list(candidates(config, "distill", 1))
    assert smaller
    assert found[0].workers == 2
    assert all(costed(one, "distill", h100).bytes > h100.usable for one in smaller)
    for mesh in found:
        assert mesh.gpu_hours == pytest.approx(1000 * mesh.seconds * mesh.workers / 3600)
        assert f"{mesh.workers} GPUs" in str(mesh)
