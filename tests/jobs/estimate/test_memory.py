"""The dry run's bytes are those of a real state and of what autograd really keeps."""

import dataclasses
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, distributed
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from jobs.config import load as configs
from jobs.config.schema import RunConfig
from jobs.estimate.flops import Tokens, networks
from jobs.estimate.memory import activations, footprint
from jobs.estimate.report import stage_cost
from models.blocks import checkpoint_blocks
from models.config import LoraConfig, ModelConfig
from models.context import share_frames
from models.ddt import Student
from models.dit import DiT
from models.rng import Key
from models.text.conditioning import Conditioning
from pipelines.context import Exchanges
from pipelines.data.store.batch_plan import share
from pipelines.training.config import ClusterConfig, WarmupConfig
from pipelines.training.distill import DistillStage
from pipelines.training.sharding import Shards
from pipelines.training.supervised import SupervisedStage
from tests.jobs.estimate.test_flops import run_config
from tests.pipelines.training import makers


def size(tensors):
    """Bytes of tensors, each storage once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def gradients_at_updates(state):
    """Bytes of the gradients of each role when its optimiser steps."""
    seen = {}
    for role, optimizer in state.optimizers.items():
        module = state.modules[role]

        def look(*_given, role=role, module=module):
            seen[role] = size([p.grad for p in module.parameters() if p.grad is not None])

        optimizer.register_step_pre_hook(look)
    return seen


def moments(optimizer):
    return size([t for values in optimizer.state.values() for t in values.values() if t.numel() > 1])


def own_average(state, role):
    shared = {p.data_ptr() for p in state.modules[role].parameters()}
    return size([t for t in state.averages[role].tensors.values() if t.data_ptr() not in shared])


@pytest.mark.parametrize("rank", [0, 2])
def test_the_state_of_a_supervised_stage_has_the_bytes_told(rank, starts):
    recipe = dataclasses.replace(
        makers.recipe(makers.SFT, {"teacher": starts["teacher"]}), lora=LoraConfig(rank=rank)
    )
    stage = SupervisedStage(recipe)
    state = stage.init("cpu")
    seen = gradients_at_updates(state)
    makers.run(stage, state, 1)
    config = run_config(recipe, sft=makers.SFT)
    told = footprint(config, "sft", networks(config, "sft"), half=False)
    assert told["weights"] == pytest.approx(size(state.modules["student"].parameters()), rel=0.01)
    assert told["gradients"] == pytest.approx(seen["student"], rel=0.01)
    assert told["moments"] == pytest.approx(moments(state.optimizers["student"]), rel=0.01)
    assert told["average"] == pytest.approx(own_average(state, "student"), rel=0.01)


def anchor(stage):
    """Bytes of the frozen network behind the anchor."""
    if stage.reference is None:
        return 0
    frozen = stage.reference.__closure__
    students = [cell.cell_contents for cell in frozen if isinstance(cell.cell_contents, Student)]
    return size(students[0].parameters())


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("rank", [0, 2])
def test_the_state_of_distillation_has_the_bytes_told(rank, warm, starts):
    settings = dataclasses.replace(makers.DISTILL, exit_shares=(0.0, 1.0, 1.0, 1.0))
    recipe = dataclasses.replace(
        makers.recipe(settings, starts, critic_only=warm), lora=LoraConfig(rank=rank)
    )
    stage = DistillStage(recipe, makers.CAPTIONS)
    state = stage.init("cpu")
    seen = gradients_at_updates(state)
    makers.run(stage, state, 1)
    config = run_config(recipe, distill=makers.DISTILL, warmup=WarmupConfig(steps=1))
    name = "warmup" if warm else "distill"
    told = footprint(config, name, networks(config, name), half=False)
    student, critic = state.modules["student"], state.modules["critic"]
    assert told["weights"] == pytest.approx(size(student.parameters()), rel=0.01)
    assert told["critic"] == pytest.approx(size(critic.parameters()), rel=0.01)
    assert told["teacher"] == pytest.approx(size(stage.teacher.parameters()), rel=0.01)
    assert told["gradients"] == pytest.approx(max(seen.values()), rel=0.01)
    own = 0 if warm else moments(state.optimizers["student"])
    assert told["moments"] == pytest.approx(own, rel=0.01)
    assert told["anchor"] == pytest.approx(anchor(stage), rel=0.01)
    assert told["critic_moments"] == pytest.approx(moments(state.optimizers["critic"]), rel=0.01)
    assert told["average"] == pytest.approx(own_average(state, "student"), rel=0.01)


def kept(network, call):
    """Bytes of the storages that autograd keeps during `call`, the network's own weights aside."""
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    held = []

    def pack(tensor):
        held.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        out = call()
    del out
    return size([t for t in held if t.untyped_storage().data_ptr() not in own])


class Storages(TorchDispatchMode):
    """Every storage that is made, for as long as something holds it."""

    def __init__(self):
        super().__init__()
        self._made = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._made[tensor.untyped_storage()] = tensor.untyped_storage().nbytes()
        return out

    def bytes(self):
        return sum(self._made.values())


SHAPES = {
    "windowed": ModelConfig(num_layers=3, head_layers=1, attention_pattern="WWW", window=2),
    "global": ModelConfig(num_layers=2, head_layers=1, attention_pattern="GG", ffn_dim=96),
    "wide": ModelConfig(num_layers=3, head_layers=1, attention_pattern="WGW", window=3, ffn_dim=700),
}


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_autograd_keeps_the_bytes_told(name, half, checkpointing):
    model = dataclasses.replace(SHAPES[name], precondition=False, clip_position=False)
    network = DiT(model, 4, 64)
    checkpoint_blocks(network, checkpointing)
    clip, text = torch.randn(1, 12, 4, 10, 10), Conditioning(torch.randn(1, 32, 64))
    with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
        seen = kept(network, lambda: network(clip, torch.rand(1), text))
    config = RunConfig(model=model, cluster=ClusterConfig(activation_checkpointing=checkpointing))
    told = activations(config, Tokens(12, 100, 32), half=half)
    if checkpointing == "full":
        told -= one_block(model, half=half)
    weights = sum(p.numel() for p in network.parameters()) * 2 if half and checkpointing == "none" else 0
    assert told + weights == pytest.approx(seen, rel=0.1)


ALL_OPERATORS = {
    "windowed": dataclasses.replace(SHAPES["windowed"], num_layers=6, attention_pattern="WWWWWW"),
    "mixed": dataclasses.replace(SHAPES["wide"], num_layers=6, attention_pattern="WGWWGW", ffn_dim=96),
}


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ALL_OPERATORS)
def test_outputs_of_attention_that_are_kept_have_the_bytes_told(name, half):
    """All that is held after a pass: of blocks that are computed again, and of what they keep beyond that."""
    model = dataclasses.replace(ALL_OPERATORS[name], precondition=False, clip_position=False)
    clip, text = torch.randn(1, 12, 4, 10, 10), Conditioning(torch.randn(1, 90, 64))
    held, told = {}, {}
    for checkpointing in ("full", "selective"):
        network = DiT(model, 4, 64)
        checkpoint_blocks(network, checkpointing)
        with Storages() as made, torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
            out = network(clip, torch.rand(1), text)
        held[checkpointing] = made.bytes()
        config = RunConfig(model=model, cluster=ClusterConfig(activation_checkpointing=checkpointing))
        told[checkpointing] = activations(config, Tokens(12, 100, 90), half=half)
        del out
    # told is the peak, when the last block has everything
    layers = model.num_layers
    more, said = held["selective"] - held["full"], told["selective"] - told["full"]
    assert said * layers / (layers - 1) == pytest.approx(more, rel=0.05)


class Middle:
    """The second of three workers that share clips; what the others have is made up."""

    def own(self, frames):
        return share(frames, 1, 3)

    def fetch(self, x, frames, reach):
        own = self.own(frames)
        seen = min(frames, own.stop + reach) - max(0, own.start - reach)
        return torch.cat([x, x.new_zeros(seen - len(own), *x.shape[1:])])

    def join(self, x, frames):
        return torch.cat([x, x.new_zeros(frames - len(x), *x.shape[1:])])


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", SHAPES)
def test_a_worker_that_shares_clips_keeps_its_frames_and_what_it_fetches(name, half):
    model = dataclasses.replace(SHAPES[name], precondition=False, clip_position=False)
    network = DiT(model, 4, 64)
    share_frames(network, Middle())
    clip, text = torch.randn(1, 12, 4, 10, 10), Conditioning(torch.randn(1, 32, 64))
    with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
        seen = kept(network, lambda: network(clip, torch.rand(1), text))
    told = activations(RunConfig(model=model), Tokens(12, 100, 32), half=half, alike=3)
    weights = sum(p.numel() for p in network.parameters()) * 2 if half else 0
    assert told + weights == pytest.approx(seen, rel=0.1)


def test_workers_that_share_clips_hold_less_of_them():
    parts = ("cluster.num_workers=8", "distill.critic_batch=8", "distill.micro_batch=1")
    alone, shared = cost(*parts), cost(*parts, "cluster.context_parallel=8")
    assert shared.parts["activations"] < 0.3 * alone.parts["activations"]
    assert shared.parts["weights"] == alone.parts["weights"]
    assert shared.phases == alone.phases


def one_block(model, *, half):
    """What a deeper stack keeps beyond a stack of one block less."""
    deeper = dataclasses.replace(model, num_layers=model.num_layers + 1)
    first, second = (activations(RunConfig(model=m), Tokens(12, 100, 32), half=half) for m in (model, deeper))
    return second - first


def test_a_whole_step_keeps_the_bytes_told():
    """Teacher, two SHORT windows: all that autograd holds, and the state beside it."""
    settings = dataclasses.replace(makers.TEACHER, short_batch=2)
    base = makers.recipe(settings)
    model = dataclasses.replace(base.model, num_heads=4, head_dim=24, ffn_dim=288)
    recipe = dataclasses.replace(base, model=model, short_shape=(300, 4, 1, 1), long_shape=(300, 4, 1, 1))
    stage = SupervisedStage(recipe)
    state = stage.init("cpu")
    latents = torch.randn(2, 300, 4, 1, 1)
    batch = dataclasses.replace(makers.batches(0, stage.workers, short=2, long=0).short, latents=latents)
    batches = dataclasses.replace(makers.batches(0, stage.workers, short=2, long=0), short=batch)
    seen = kept(state.modules["teacher"], lambda: stage.step(state, batches, Key(0)))
    config = run_config(recipe, teacher=settings)
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, short_frames=300, long_frames=300)
    )
    told = footprint(config, "teacher", networks(config, "teacher"), half=False)
    assert told["activations"] == pytest.approx(seen, rel=0.1)


def test_a_micro_batch_keeps_what_goes_through_at_once():
    whole, parts = cost("distill.long_batch=64"), cost("distill.long_batch=64", "distill.micro_batch=1")
    one = cost("distill.long_batch=8", "distill.critic_batch=8")
    for part in ("activations", "temporaries"):
        assert parts.parts[part] == one.parts[part] < whole.parts[part]
    assert parts.phases == whole.phases


def cost(*overrides, preset="wan-1.3b", stage="distill"):
    return stage_cost(configs.load(preset, list(overrides)), stage, use_gpu=True)


@pytest.mark.parametrize(
    "setting",
    ["distill.long_batch=16", "data.long_frames=961", "model.ffn_dim=17920", "distill.rollout_batch=16"],
)
def test_more_takes_more(setting):
    assert cost(setting).bytes > cost().bytes
    assert sum(cost(setting).phases.values()) > sum(cost().phases.values())


def test_adapters_take_less_memory_and_fewer_operations():
    full, adapted = cost(), cost("lora.rank=16")
    assert adapted.trained < full.trained
    assert adapted.bytes < full.bytes
    assert sum(adapted.phases.values()) < sum(full.phases.values())


@pytest.fixture
def eight():
    """A worker among eight, of which the others are made up."""
    distributed.init_process_group("fake", store=FakeStore(), rank=3, world_size=8)
    yield init_device_mesh("cpu", (8,), mesh_dim_names=("shards",))
    distributed.destroy_process_group()


def test_a_worker_has_the_part_of_the_weights_told(eight):
    """Of every network of distillation, at full size, on torch's meta device."""
    config = configs.load("wan-1.3b", ["cluster.shard=full", "loss.anchor_weight=0.1"])
    told = cost("cluster.shard=full", "loss.anchor_weight=0.1").parts
    shape = config.model, 16, config.text.dim
    with torch.device("meta"):
        built = {"weights": Student(*shape), "teacher": DiT(*shape), "critic": DiT(*shape, exits=4)}
        built["anchor"] = Student(*shape)
    del built["anchor"].heads["distribution_matching"]
    for part, network in built.items():
        Shards(eight, Exchanges()).shard(network)
        assert told[part] == pytest.approx(sum(p.to_local().nbytes for p in network.parameters()), rel=0.01)


def test_parts_of_the_weights_are_those_of_the_workers_that_share_them():
    whole, parts = cost(*SIXTEEN), cost(*SIXTEEN, "cluster.shard=full")
    groups = cost(*SIXTEEN, "cluster.shard=hybrid", "cluster.shard_group=4")
    for part in ("weights", "gradients", "moments", "average", "teacher", "critic", "critic_moments"):
        assert whole.parts[part] == pytest.approx(16 * parts.parts[part], rel=1e-6)
        assert whole.parts[part] == pytest.approx(4 * groups.parts[part], rel=1e-6)
    assert parts.bytes < groups.bytes < whole.bytes
    assert parts.checkpoint == whole.checkpoint


SIXTEEN = [
    "cluster.num_workers=16",
    *(f"{batch}=16" for batch in ("teacher.short_batch", "sft.long_batch", "mixed.long_batch")),
    *(f"distill.{batch}=16" for batch in ("long_batch", "rollout_batch", "critic_batch")),
]


def test_workers_share_samples_and_not_weights():
    eight, four = cost(), cost("cluster.num_workers=4")
    assert four.parts["activations"] == 2 * eight.parts["activations"]
    for part in ("weights", "moments", "average", "teacher", "critic"):
        assert four.parts[part] == eight.parts[part]
    assert four.phases == eight.phases
