"""Low-rank adapters by peft: W x + (alpha / rank) B A x with W frozen, and B zero at the start."""

import math

import torch
from torch import nn

from models.config import LoraConfig
from models.ddt import Student
from models.dit import DiT
from models.errors import ConfigError
from models.rng import Key


def add_adapters(model: DiT | Student, config: LoraConfig) -> None:
    """Put adapters on the encoder, and on the heads unless those are trained in full; the rest is frozen.

    The layer of clip positions, which has no pretrained values, is trained in full. Adapters are left unset:
    see `start_adapters`.

    Args:
        model: changed in place; on the meta device its adapters are there, too.
        config: rank above 0.

    Raises:
        ConfigError: peft is not installed.
    """
    try:
        from peft import LoraConfig as PeftConfig
        from peft import inject_adapter_in_model
    except ImportError as error:
        raise ConfigError(
            "lora.rank above 0 needs peft", "Install the project with its extra `wan`"
        ) from error
    adapter = PeftConfig(
        r=config.rank, lora_alpha=config.alpha, target_modules=list(config.targets), init_lora_weights=False
    )
    on_meta = next(model.parameters()).is_meta
    adapted = model.encoder if config.heads == "full" else model
    inject_adapter_in_model(adapter, adapted, low_cpu_mem_usage=on_meta)
    for small in (model.encoder.clip_position, model.encoder.exits):
        if small is not None:
            small.requires_grad_(True)


@torch.no_grad()
def start_adapters(model: nn.Module, key: Key) -> None:
    """A uniform in +-1/sqrt(fan-in), keyed by its name, and B zero: the model computes what it did before."""
    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            draw = torch.rand(parameter.shape, generator=key.at(purpose=name).torch())
            parameter.copy_((2 * draw - 1) / math.sqrt(parameter.shape[1]))
        elif ".lora_B." in name:
            parameter.zero_()


def merge_adapters(model: nn.Module) -> None:
    """Add the adapters' products to the weights and remove the adapters."""
    from peft.tuners.lora import LoraLayer

    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, layer.get_base_layer())
