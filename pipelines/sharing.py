"""One clip by several processes: the first samples it, and the others compute their frames of what it asks.

Samplers, known frames, rings and captions that change are the first one's alone, so that it makes what it
would make by itself. What a network is asked, latents and captions, is small beside what attention fetches.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed

from models.context import share_frames
from models.device import half_precision
from models.text.conditioning import Conditioning
from pipelines.checkpoints import Network
from pipelines.context import FrameGroup
from pipelines.generation import Head, velocity

Asked = tuple[Tensor, Tensor, Conditioning]
"""x_t [B, T, C, h, w], its time [B] or [B, T], and captions."""


@contextmanager
def leading(network: Network, group: FrameGroup) -> Iterator[None]:
    """In the first process, where the others are `following`: all compute what its network is asked.

    When the `with` block ends, so do they; after an error they wait for whoever has started them to end them.
    """
    share_frames(network.model, group)
    with network.model.encoder.register_forward_pre_hook(lambda _, asked: _tell(asked[:3], group)):
        yield
    _tell(None, group)


def following(network: Network, head: Head, group: FrameGroup) -> None:
    """In every other process: computes its frames of what the first one asks of the head, until that ends."""
    share_frames(network.model, group)
    model, device = velocity(network, head), next(network.model.parameters()).device
    with torch.no_grad(), half_precision(device, enabled=device.type == "cuda"):
        while (asked := _hear(group, device)) is not None:
            model(*asked)


def _tell(asked: Asked | None, group: FrameGroup) -> None:
    """What is asked next, or that nothing is, to the other processes."""
    if asked is None:
        distributed.broadcast_object_list([None], group=group.group, group_src=0)
        return
    x_t, t, captions = asked
    tensors = [x_t, t, captions.text, captions.mask, captions.negative]
    forms = [None if tensor is None else (tensor.shape, tensor.dtype) for tensor in tensors]
    distributed.broadcast_object_list([forms], group=group.group, group_src=0)
    for tensor in tensors:
        if tensor is not None:
            distributed.broadcast(tensor.contiguous(), group=group.group, group_src=0)


def _hear(group: FrameGroup, device: torch.device) -> Asked | None:
    """What the first process tells."""
    told = [None]
    distributed.broadcast_object_list(told, group=group.group, group_src=0)
    if told[0] is None:
        return None
    tensors = [
        None if form is None else torch.empty(form[0], dtype=form[1], device=device) for form in told[0]
    ]
    for tensor in tensors:
        if tensor is not None:
            distributed.broadcast(tensor, group=group.group, group_src=0)
    x_t, t, *captions = tensors
    return x_t, t, Conditioning(*captions)
