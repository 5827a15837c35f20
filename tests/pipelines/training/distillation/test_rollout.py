"""What the DM head is given: its own sampler's states, or noised LONG clips."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from models.config import FlowConfig, SamplingConfig
from models.ddt import Student
from models.flow import interpolate, ode_times
from models.rng import Key, normal
from models.sampling import Draw, few_step, ring_turns
from pipelines.generation import few_step_times, path_times
from pipelines.training.collectives import ALONE
from pipelines.training.distillation.rollout import Course
from pipelines.training.state import Rollout
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
        made = stage.rollouts.make(student, LONG, KEY, range(1, 3), captions, stop, Course(real))
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
            stage.rollouts.make(student, LONG, KEY, range(4), ["red sun"] * 4, stop, Course(real)).video
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


@pytest.mark.parametrize("stop", [0, 1, 3])
def test_given_frames_stay_and_teach_nothing(stop: int, starts: dict[str, str]) -> None:
    stage = distill_stage(starts)
    student, real = stage.init("cpu").modules["student"], batches(0, ALONE).long
    assert isinstance(student, Student)
    assert real is not None
    captions = stage.rollouts.captions_at(KEY, real)
    made = stage.rollouts.make(student, LONG, KEY, range(4), captions, stop, Course(real, prefix=5))
    assert torch.equal(made.video[:, :5], real.latents[:, :5])
    assert made.t.tolist() == [[0.0] * 5 + [float(made.t[0, -1])] * 7] * 4
    some = stage.rollouts.make(student, LONG, KEY, range(1, 3), captions, stop, Course(real, prefix=5))
    torch.testing.assert_close(some.video, made.video[1:3], rtol=1e-5, atol=1e-5)
    made.video[:, :5].sum().backward()
    assert all(not p.grad.any() for p in student.parameters() if p.grad is not None)


def test_a_ring_is_the_samplers_cut_open_somewhere(starts: dict[str, str]) -> None:
    stage = distill_stage(starts)
    student = stage.init("cpu").modules["student"]
    assert isinstance(student, Student)
    texts = ["red sun"] * 3
    times = few_step_times(stage.recipe.sampling, stage.recipe.flow, LONG[0])
    made = stage.rollouts.make(student, LONG, KEY, range(3), texts, 3, Course(ring=True)).video.detach()
    conditioning = stage.captions.encode(texts, torch.device("cpu"))
    turns = ring_turns(LONG[0], len(times))
    ring = few_step(
        student.distribution_matching, times, Draw(LONG, conditioning, KEY, range(3), turns=turns)
    )
    equal = [place for place in range(LONG[0]) if torch.allclose(made, ring.roll(place, 1), atol=1e-5)]
    assert len(equal) == 1


def test_courses_come_in_the_settings_shares_from_both_corpora(starts: dict[str, str]) -> None:
    stage = distill_stage(starts, prefix_share=0.5, ring_share=0.2, short_batch=4)
    given = batches(0, ALONE, short=4)
    drawn = [stage.rollouts.course(Key(0, step), 12, given) for step in range(600)]
    assert sum(course.ring for course in drawn) / 600 == pytest.approx(0.2, abs=0.05)
    following = [course for course in drawn if course.real is not None]
    assert len(following) / 600 == pytest.approx(0.5, abs=0.06)
    by_corpus = {
        name: {course.prefix for course in following if course.real is batch}
        for name, batch in (("short", given.short), ("long", given.long))
    }
    assert by_corpus == {"short": set(range(5)), "long": set(range(7))}
    plain = distill_stage(starts)
    assert {plain.rollouts.course(Key(0, step), 12, given) for step in range(50)} == {Course()}


def test_windows_of_given_frames_alone_are_neither_scored_nor_learned(starts: dict[str, str]) -> None:
    """The seam is: windows that hold both count."""
    stage = distill_stage(starts)
    for phase in range(stage.config.window_stride):
        every = stage.config.tiling(12, phase)
        assert stage.config.tiling(12, phase, 6) == [window for window in every if window.stop > 6]
    pool = [Rollout(torch.zeros(2, 12, 4, 1, 1), ("red sun", "blue moon"), 1, prefix=6)]
    drawn = {stage.lessons.window(pool, Key(0), sample).start for sample in range(200)}
    assert drawn == set(range(3, 9)), "windows are 4 frames long"


def test_training_goes_on_from_clips_and_closes_rings(starts: dict[str, str]) -> None:
    stage = distill_stage(
        starts, prefix_share=0.6, ring_share=0.4, exit_shares=(0.0, 1.0, 1.0, 1.0), rollout_pool=6
    )
    state = stage.init("cpu")
    metrics = run(stage, state, 6)
    assert all(np.isfinite(list(row.values())).all() for row in metrics)
    assert any(rollout.prefix for rollout in state.pool)
