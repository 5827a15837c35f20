"""What a worker gets from others in a step: frames, windows, weights, gradients and rollouts, in bytes.

Gathers and sums are counted as rings of n workers do them: n - 1 messages, each of an n-th of the whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from jobs.config.schema import RunConfig
from jobs.config.shapes import shapes
from jobs.estimate.flops import SHARING, Networks, head_of, parameters, tokens, trained
from jobs.estimate.memory import FLOAT, HALF, shared_by
from jobs.estimate.passes import Pass, Place, passes
from models.blocks import Block
from pipelines.context import frames_of, overlap, seen_by
from pipelines.training.collectives import MESSAGE


@dataclass(frozen=True)
class Traffic:
    """What one worker gets."""

    bytes: float = 0.0
    messages: float = 0.0

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(self.bytes + other.bytes, self.messages + other.messages)

    def __mul__(self, times: float) -> "Traffic":
        return Traffic(self.bytes * times, self.messages * times)


@dataclass(frozen=True)
class Exchange:
    """What the workers of a group exchange in a phase."""

    phase: str
    what: Literal["frames", "windows", "weights", "gradients", "rollout"]
    span: int
    """Neighbours among whom the group lies."""
    traffic: Traffic
    beside: bool = False
    """Whether networks compute meanwhile, where a machine can do both."""


def gathered(size: float, workers: int) -> Traffic:
    """By each of them, of what all have together; and of a sum, by each its part."""
    return Traffic(size * (workers - 1) / workers, workers - 1)


def summed(size: float, workers: int) -> Traffic:
    """The sum of `size` bytes of each of them, by all: its parts, which are then gathered."""
    return gathered(size, workers) * 2


def exchanges(
    config: RunConfig, stage: str, built: Networks, place: Place, *, half: bool
) -> Iterator[Exchange]:
    """All that a worker at a place gets in a step but single numbers.

    Args:
        config: the run's settings.
        stage: the stage of training.
        built: its networks.
        place: the worker's.
        half: whether keys, values and velocities are bfloat16.
    """
    for one in passes(config, stage, place):
        if one.role in SHARING:
            yield Exchange(one.phase, "frames", place.alike, _frames(config, built, one, place, half=half))
        elif one.phase.startswith("score"):
            size = one.clips * place.alike * one.frames * _latent(config)
            messages = one.calls * (place.alike - 1)
            traffic = Traffic(gathered(size, place.alike).bytes, messages)
            yield Exchange(one.phase, "windows", place.alike, traffic)
        yield from _weights(config, built, one)
    yield from _gradients(config, stage, built)
    if stage in ("warmup", "distill"):
        own = place.rows(config.distill.rollout_batch) * shapes(config).long_frames * _latent(config)
        traffic = gathered(place.groups * own, place.groups)
        yield Exchange("rollout", "rollout", place.groups * place.alike, traffic)


def layer_bytes(config: RunConfig, stage: str, place: Place, *, half: bool) -> dict[str, float]:
    """Bytes of keys, values and their gradients that a worker gets in a step in a layer of each kind."""
    reaches = {"W": config.model.window, "G": None}
    return {
        letter: sum(
            _layer(config, one, place, reaches[letter], half=half).bytes
            for one in passes(config, stage, place)
            if one.role in SHARING
        )
        for letter in sorted(set(config.model.attention_pattern), reverse=True)
    }


def _latent(config: RunConfig) -> int:
    """Bytes of a latent frame, float32."""
    sizes = shapes(config)
    return FLOAT * sizes.channels * sizes.height * sizes.width


def _layer(config: RunConfig, one: Pass, place: Place, window: int | None, *, half: bool) -> Traffic:
    """Keys and values of a layer's attention that a pass fetches; backward, gradients of those that others
    have fetched, after fetching again what is computed again."""
    read = tokens(config, one.frames)
    reach = read.frames if window is None else window
    owned, seen = frames_of(read.frames, place.alike), seen_by(read.frames, place.alike, reach)
    others = [number for number in range(place.alike) if number != place.number]
    fetched = [len(overlap(owned[other], seen[place.number])) for other in others]
    returned = [len(overlap(owned[place.number], seen[other])) for other in others]
    again = one.backward and config.cluster.activation_checkpointing != "none"
    counts = (returned if one.backward else fetched) + (fetched if again else [])
    width = config.model.num_heads * config.model.head_dim
    frame = 2 * read.per_frame * width * (HALF if half else FLOAT)
    return Traffic(one.clips * sum(counts) * frame, one.calls * sum(count > 0 for count in counts))


def _frames(config: RunConfig, built: Networks, one: Pass, place: Place, *, half: bool) -> Traffic:
    """Of all layers, and of the velocity, which is joined."""
    network = getattr(built, one.role)
    head, total = head_of(network, one), Traffic()
    for block in (*(() if one.backward and one.detached else network.encoder.blocks), *head.blocks):
        assert isinstance(block, Block)
        total += _layer(config, one, place, block.attn1.window, half=half)
    if one.backward:
        return total
    velocity = tokens(config, one.frames).clip * head.proj_out.out_features * (HALF if half else FLOAT)
    joined = gathered(velocity, place.alike)
    return total + Traffic(one.clips * joined.bytes, one.calls * joined.messages)


def _weights(config: RunConfig, built: Networks, one: Pass) -> Iterator[Exchange]:
    """Weights that are gathered for a pass, and gradients that its end adds up, of sharded networks."""
    group, workers = shared_by(config), config.cluster.most_workers
    if group == 1:
        return
    network = getattr(built, one.role)
    stacks = network.encoder, head_of(network, one)
    rings = sum(1 + len(stack.blocks) for stack in stacks)
    whole = gathered(FLOAT * sum(map(parameters, stacks)), group)
    if one.backward:
        moving = FLOAT * sum(map(trained, stacks))
        whole += gathered(moving, group)
        if group < workers:
            crossing = summed(moving / group, workers // group) * one.calls
            yield Exchange(one.phase, "gradients", workers, crossing, beside=True)
    traffic = Traffic(whole.bytes * one.calls, whole.messages * rings * one.calls)
    yield Exchange(one.phase, "weights", group, traffic, beside=True)


def _gradients(config: RunConfig, stage: str, built: Networks) -> Iterator[Exchange]:
    """Of whole networks, once an update."""
    if shared_by(config) > 1:
        return
    own = built.teacher if stage == "teacher" else built.student
    updates = [(own, 0 if stage == "warmup" else 1)]
    if stage in ("warmup", "distill"):
        updates.append((built.critic, config.distill.critic_updates))
    for network, times in updates:
        count = trained(network)
        ring = summed(FLOAT * count, config.cluster.least_workers)
        traffic = Traffic(ring.bytes * times, ring.messages * -(-count // MESSAGE) * times)
        yield Exchange("optimiser", "gradients", config.cluster.least_workers, traffic)
