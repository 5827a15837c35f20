"""Can the critic teach? Only if it knows the student's windows better than the teacher does."""

from collections.abc import Mapping, Sequence

import torch

from models.ddt import Student
from models.dit import DiT
from models.losses import flow_matching_errors
from models.rng import Key, normal
from models.sampling import Draw, exits
from pipelines.generation import few_step_times
from pipelines.training.distill import DistillStage
from pipelines.training.distillation.scoring import first_masked, score_times
from pipelines.training.monitors.verdicts import GAP, GAPS
from pipelines.training.stage import parts
from pipelines.training.state import TrainState


@torch.no_grad()
def critic_gap(stage: DistillStage, state: TrainState, captions: Sequence[str]) -> dict[str, float]:
    """Denoising loss of the critic minus the teacher's on windows of fixed videos, by exit.

    The score difference leads the student's windows to the teacher's only as far as the critic is the better
    model of them: a positive figure means that this critic cannot teach. The student is the one in `state`:
    put its average in place.

    Args:
        stage, state: a distillation or its warm-up.
        captions: of the videos, which the workers share.

    Returns:
        `critic_gap_exit_K` for each step K of the few-step sampler that is scored.
    """
    recipe, config, total = stage.recipe, stage.config, len(captions)
    student, critic = state.modules["student"], state.modules["critic"]
    assert isinstance(student, Student)
    assert isinstance(critic, DiT)
    device, key = next(student.parameters()).device, Key(recipe.seed, purpose="critic-gap")
    frames, *size = recipe.long_shape
    times = few_step_times(recipe.sampling, recipe.flow, frames)
    tiling, length = config.tiling(frames), config.window_frames
    count = min(config.windows_per_video or len(tiling), len(tiling))
    chosen = [tiling[i * len(tiling) // count] for i in range(count)]
    gaps = torch.zeros(len(times), device=device)
    # a worker without a video of its own makes one that does not count
    for samples in parts(stage.workers.share(stage.workers.even(total)), config.micro_batch):
        counting = sum(sample < total for sample in samples)
        rows = [sample * count + k for sample in samples for k in range(count)]
        noise = normal((length, *size), key.at(purpose="noise"), rows, device)
        t = score_times(recipe, key.at(purpose="t"), rows, state.step).to(device)
        conditioning = stage.captions.encode([captions[sample % total] for sample in samples], device)
        folded = conditioning.repeat(count)
        counted = None
        if not recipe.crop_safe:
            counted = first_masked([w.start for w in chosen] * len(samples), length).to(device)
        draw = Draw(recipe.long_shape, conditioning, key, samples)
        for number, video in enumerate(exits(student.distribution_matching, times, draw)):
            x0 = stage.rollouts.windows(video, [window.start for window in chosen])
            told = critic.told(torch.full((len(rows),), number, device=device))
            fake, real = (
                flow_matching_errors(model, x0, noise, t, folded, counted)[: counting * count].mean()
                for model in (told, stage.teacher)
            )
            if counting:
                gaps[number] += (fake - real) * (counting / total)
    first = 1 if stage.anchored else 0
    sums = stage.workers.sum(list(gaps)).tolist()
    return {f"{GAP}{number}": gap for number, gap in enumerate(sums) if number >= first}


def remember_gaps(state: TrainState, measured: Mapping[str, float]) -> None:
    """Keeps the newest gaps with the state, for a ramp that follows them."""
    for name in (name for name in measured if name.startswith(GAP)):
        state.gaps[name] = [*state.gaps.get(name, []), measured[name]][-GAPS:]
