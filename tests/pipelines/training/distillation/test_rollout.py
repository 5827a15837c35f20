"""What the DM head is given: its own sampler's states, or noised LONG clips."""

import dataclasses
import itertools

import torch

from models.config import FlowConfig, SamplingConfig
from models.ddt import Student
from models.flow import interpolate, ode_times
from models.rng import Key, normal
from pipelines.generation import few_step_times, path_times
from pipelines.training.collectives import ALONE
from tests.pipelines.training.makers import LONG, batches, distill_stage, run

KEY = Key(0, purpose="rollout")


def test_noised_clips_are_on_the_straight_path_to_the_rollouts_noise(starts: dict[str, str]) -> None:
    stage = distill_stage(starts, rollout="noised_real")
    student, real = stage.init("cpu").modules["student"], batches(0, ALONE).long
    assert isinstance(student, Student)
    assert real is not None
    captions = stage.rollouts.captions_at(KEY, real)
    times = few_step_times(stage.recipe.sampling, stage.recipe.flow, LONG[0])
    noise = normal(LONG, KEY.at(purpose="noise-0"), range(4))
    for stop, time in enumerate(times):
        made = stage.rollouts.make(student, LONG, KEY, range(1, 3), captions, stop, real)
        expected = interpolate(real.latents[1:3], noise[1:3], torch.full((2,), time))
        torch.testing.assert_close(made.x_t, expected, rtol=0, atol=0)
        assert torch.equal(made.t, torch.full((2,), time))


def test_at_the_first_step_both_kinds_of_rollout_are_the_same(starts: dict[str, str]) -> None:
    """At t = 1 nothing of a clip is left."""
    kinds = {}
    for kind in ("noised_real", "backward_simulation"):
        stage = distill_stage(starts, rollout=kind)
        student = stage.init("cpu").modules["student"]
        assert isinstance(student, Student)
        real = batches(0, ALONE).long
        kinds[kind] = [
            stage.rollouts.make(student, LONG, KEY, range(4), ["red sun"] * 4, stop, real).video
            for stop in (0, 2)
        ]
    assert torch.equal(kinds["noised_real"][0], kinds["backward_simulation"][0])
    assert not torch.equal(kinds["noised_real"][1], kinds["backward_simulation"][1])


def test_rollouts_that_follow_clips_have_their_captions(starts: dict[str, str]) -> None:
    stage = distill_stage(starts, rollout="noised_real", exit_shares=(0.0, 1.0, 1.0, 1.0))
    stage.recipe = stage.rollouts.recipe = dataclasses.replace(
        stage.recipe, text=dataclasses.replace(stage.recipe.text, withhold_probability=0.0)
    )
    state = stage.init("cpu")
    run(stage, state, 2)
    real = batches(0, ALONE).long
    assert real is not None
    assert [rollout.captions for rollout in state.pool] == [tuple(real.captions)] * 2


def test_the_path_of_many_steps_leads_from_the_first_to_the_second_of_the_samplers_times() -> None:
    sampling, flow = SamplingConfig(ode_steps=50), FlowConfig(timestep_shift=3.0)
    times, few = path_times(sampling, flow, 12), few_step_times(sampling, flow, 12)
    assert (times[0], times[-1]) == (few[0], few[1]) == (1.0, few[1])
    assert all(later < earlier for earlier, later in itertools.pairwise(times))
    own = ode_times(50, 3.0).tolist()
    assert times[1:-1] == [time for time in own if few[1] < time < 1]
    whole = path_times(SamplingConfig(steps=(1.0,), ode_steps=50), flow, 12)
    assert whole == own, "with one step it is all of the ODE sampler's"
