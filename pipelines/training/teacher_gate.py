"""Is the teacher good enough to be learned from? A student is no sharper than what it is pushed towards."""

import logging

import numpy as np
import torch
from torch import Tensor

from models.errors import ConfigError
from models.flow import VelocityModel, shift_for
from models.rng import Key
from models.sampling import Draw, ode
from models.text.conditioning import Conditioning
from pipelines.distances import FactorFeatures, Moments
from pipelines.training.collectives import ALONE, Workers
from pipelines.training.config import DistillConfig
from pipelines.training.recipes import Recipe
from pipelines.training.stage import Batch, Captions

WINDOWS = 256
STEPS = 25


def teacher_ratio(
    teacher: VelocityModel,
    conditioning: Conditioning,
    real: Tensor,
    other: Tensor,
    shift: float,
    key: Key,
    batch: int,
) -> float:
    """Frechet distance of the teacher's windows to SHORT, in units of SHORT's distance to itself.

    Args:
        teacher: what is judged.
        conditioning: captions of `real`.
        real, other: disjoint windows of SHORT [n, L, C, h, w].
        shift: of the sampler's times.
        key: of the noise.
        batch: windows to sample at once.

    Returns:
        distance(samples, real) / distance(other, real), on the fixed random features of `factors-32`.
    """
    draws = [
        Draw(real.shape[1:], conditioning.select(rows), key, rows.tolist())
        for rows in torch.arange(len(real)).split(batch)
    ]
    made = torch.cat([ode(teacher, STEPS, shift, draw) for draw in draws])
    net = FactorFeatures(int(np.prod(real.shape[1:])))
    samples, reference, floor = (Moments.of(net(x.flatten(1).cpu().numpy())) for x in (made, real, other))
    return samples.distance(reference) / floor.distance(reference)


def check_teacher(
    teacher: VelocityModel, short: Batch, recipe: Recipe, captions: Captions, workers: Workers = ALONE
) -> float | None:
    """Compares the teacher's windows with one half of `short`, and the other half too; None for too few.

    Every worker does all of it, with as many windows at once as in its critic's step; the mean counts.

    Raises:
        ConfigError: the ratio is above `distill.teacher_gate_ratio` and `distill.teacher_gate` is `refuse`.
    """
    config = recipe.stage
    assert isinstance(config, DistillConfig)
    half = len(short.latents) // 2
    if half < 2:
        return None
    real, other = short.latents[:half], short.latents[half : 2 * half]
    conditioning = captions.encode(short.captions[:half], real.device)
    amount = shift_for(recipe.flow, real.shape[1])
    key, batch = Key(recipe.seed, purpose="gate"), max(1, config.critic_batch // workers.size)
    own = teacher_ratio(teacher, conditioning, real, other, amount, key, batch)
    ratio = float(workers.sum([real.new_tensor(own / workers.size)]))
    if ratio <= config.teacher_gate_ratio:
        return ratio
    problem = f"the teacher's windows are {ratio:.1f} times as far from SHORT as SHORT is from itself"
    remedy = "Train the teacher longer (teacher.steps), or set distill.teacher_gate=warn"
    if config.teacher_gate == "refuse":
        raise ConfigError(problem, remedy)
    logging.getLogger("sostenuto.training").warning("%s. %s", problem, remedy)
    return ratio
