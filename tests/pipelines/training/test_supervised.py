"""Stages as pure steps: what they train, and that resuming is exact."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.ddt import Student
from models.dit import DiT
from models.errors import CheckpointError, ConfigError, TrainingDiverged
from models.rng import Key, normal
from models.text.conditioning import Conditioning
from pipelines.checkpoints import MANIFEST_FILE, load_network
from pipelines.training.collectives import Workers
from pipelines.training.distill import DistillStage
from pipelines.training.stage import Batches, Captions, rate_share
from pipelines.training.state import load_state, save_state
from pipelines.training.supervised import (
    SupervisedStage,
    frames_after_prefix,
    held_out_loss,
    supervised_squares,
)
from tests.models.builders import captions, latents
from tests.pipelines.training.makers import (
    CAPTIONS,
    DISTILL,
    SFT,
    TEACHER,
    batches,
    recipe,
    run,
    tensors_of,
    trained_starts,
)


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return trained_starts(tmp_path_factory.mktemp("starts"))


def _changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    config = dataclasses.replace(SFT, steps=100, warmup_steps=10)
    factors = [rate_share(config, step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[10] == pytest.approx(1.0)
    assert factors[55] == pytest.approx(0.5, abs=0.01)
    assert factors[99] < 0.001
    constant = dataclasses.replace(config, schedule="constant", warmup_steps=0)
    assert rate_share(constant, 99) == 1.0


def test_a_teacher_learns_the_data_it_sees() -> None:
    stage = SupervisedStage(recipe(dataclasses.replace(TEACHER, steps=150, learning_rate=1e-2)))
    state = stage.init("cpu")
    fixed = batches(0, Workers(), short=4, long=0)
    for _ in range(150):
        stage.step(state, fixed, Key(0, state.step, purpose="step"))
    assert fixed.short is not None
    model = state.modules["teacher"]
    assert isinstance(model, DiT)
    before = held_out_loss(stage.init("cpu").modules["teacher"], fixed.short, stage.recipe, stage.captions)
    assert held_out_loss(model, fixed.short, stage.recipe, stage.captions) < 0.9 * before


def test_the_held_out_loss_is_that_of_all_windows_however_many_fit_at_a_time() -> None:
    stage = SupervisedStage(recipe(TEACHER))
    model = stage.init("cpu").modules["teacher"]
    rows = batches(0, Workers(), short=7, long=0).short
    assert rows is not None
    assert isinstance(model, DiT)

    def loss(size: int) -> float:
        settings = dataclasses.replace(TEACHER, short_batch=size)
        some = dataclasses.replace(stage.recipe, stage=settings)
        return held_out_loss(model, rows, some, stage.captions)

    assert loss(1) == pytest.approx(loss(3), rel=1e-5) == pytest.approx(loss(100), rel=1e-5)


def test_frames_after_a_prefix_count_and_those_in_it_are_clean() -> None:
    """Against a loop over rows, whose loss is the mean over the frames that are made."""
    sft = recipe(SFT)
    batch = batches(0, Workers()).long
    assert batch is not None
    key, encoded = Key(0, purpose="long"), Captions(sft.text)
    seen = []

    def velocity(x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        seen.append((x_t, t))
        return torch.zeros_like(x_t)

    squares = supervised_squares(velocity, batch, sft, encoded, key, 1.0)
    supervised_squares(velocity, batch, sft, encoded, key)
    (x_t, t), (_, plain_times) = seen
    made = frames_after_prefix(key, batch.samples, 1.0, 12)
    noise = normal(batch.latents.shape[1:], key.at(purpose="noise"), batch.samples)
    assert 0 < float(made.mean()) < 1
    for row, kept in enumerate(made.bool()):
        assert torch.equal(x_t[row, ~kept], batch.latents[row, ~kept])
        assert not t[row, ~kept].any()
        assert (t[row, kept] == plain_times[row]).all()
        errors = (noise - batch.latents)[row].square()
        assert not squares[row, ~kept].any()
        torch.testing.assert_close(squares[row].mean(), errors[kept].mean())


def test_prefixes_are_any_number_of_frames_up_to_half_in_their_share_of_clips() -> None:
    known = 13 - frames_after_prefix(Key(0), range(4000), 0.5, 13).sum(dim=1)
    share = [(known == number).float().mean().item() for number in range(7)]
    assert sum(share) == pytest.approx(1.0)
    assert share[1:] == pytest.approx([0.5 / 7] * 6, abs=0.015)
    assert torch.equal(known[5:7], 13 - frames_after_prefix(Key(0), [5, 6], 0.5, 13).sum(dim=1))


def test_supervised_stages_leave_the_dm_head_alone(starts: dict[str, str]) -> None:
    stage = SupervisedStage(recipe(SFT, {"teacher": starts["teacher"]}))
    state = stage.init("cpu")
    before = tensors_of(state)
    metrics = run(stage, state, 2, short=4)
    changed = _changed(before, tensors_of(state))
    assert not [name for name in changed if "distribution_matching" in name]
    assert any("encoder" in name for name in changed)
    assert any("heads.flow_matching" in name for name in changed)
    both = metrics[0]
    assert both["loss"] == pytest.approx((both["flow_matching_short"] + both["flow_matching_long"]) / 2)


def test_distillation_trains_encoder_heads_and_critic_but_not_the_teacher(starts: dict[str, str]) -> None:
    stage = DistillStage(recipe(DISTILL, starts), CAPTIONS)
    state = stage.init("cpu")
    before, teacher = tensors_of(state), {n: t.clone() for n, t in stage.teacher.state_dict().items()}
    run(stage, state, 2)
    changed = _changed(before, tensors_of(state))
    rooms = (
        "student.encoder",
        "student.heads.flow_matching",
        "student.heads.distribution_matching",
        "critic.",
    )
    assert all(any(name.startswith(room) for name in changed) for room in rooms)
    assert all(torch.equal(t, teacher[n]) for n, t in stage.teacher.state_dict().items())


def test_the_warm_up_trains_the_critic_alone(starts: dict[str, str]) -> None:
    stage = DistillStage(recipe(DISTILL, starts, critic_only=True), CAPTIONS)
    state = stage.init("cpu")
    before = tensors_of(state)
    run(stage, state, 2)
    changed = _changed(before, tensors_of(state))
    assert changed
    assert all(name.startswith("critic.") for name in changed)
    assert list(state.optimizers) == ["critic"]
    assert stage.reference is None


def test_the_student_starts_with_both_heads_equal_and_the_critic_as_the_teacher(
    starts: dict[str, str],
) -> None:
    stage = DistillStage(recipe(DISTILL, starts), CAPTIONS)
    state = stage.init("cpu")
    student, critic = state.modules["student"], state.modules["critic"]
    assert isinstance(student, Student)
    fm, dm = (student.heads[name].state_dict() for name in ("flow_matching", "distribution_matching"))
    assert all(torch.equal(fm[name], dm[name]) for name in fm)
    assert all(torch.equal(t, critic.state_dict()[n]) for n, t in stage.teacher.state_dict().items())


def test_the_critic_equals_the_teacher_at_first_whatever_it_is_told(starts: dict[str, str]) -> None:
    stage = DistillStage(recipe(DISTILL, starts), CAPTIONS)
    critic = stage.init("cpu").modules["critic"]
    assert isinstance(critic, DiT)
    x, t, text = latents(4, 4), torch.tensor([0.1, 0.4, 0.7, 0.9]), captions(4)
    with torch.no_grad():
        told = critic.told(torch.arange(4))(x, t, text)
        assert torch.equal(told, stage.teacher(x, t, text))
        critic.encoder.exits.weight[2] += 1.0  # type: ignore[union-attr]
        changed = critic.told(torch.arange(4))(x, t, text) - told
    assert [bool(row.any()) for row in changed] == [False, False, True, False]


@pytest.mark.parametrize("anchor", [0.5, 0.0])
def test_with_an_anchor_the_first_step_is_its_alone(starts: dict[str, str], anchor: float) -> None:
    """Neither scored nor shown to the critic; without one every step is."""
    loss = dataclasses.replace(recipe(DISTILL).loss, anchor_weight=anchor)
    stage = DistillStage(dataclasses.replace(recipe(DISTILL, starts), loss=loss), CAPTIONS)
    state = stage.init("cpu")
    for _ in range(12):
        metrics, kept = run(stage, state, 1)[0], [rollout.exit for rollout in state.pool]
        alone = bool(anchor) and metrics["exit_step"] == 0
        assert ("anchor" in metrics, "reverse_kl" in metrics) == (alone, not alone)
        assert (0 in kept) <= (not anchor)
        assert alone or kept[-1] == metrics["exit_step"]


def test_rollouts_stop_as_often_as_the_shares_say(starts: dict[str, str]) -> None:
    settings = dataclasses.replace(DISTILL, exit_shares=(0.0, 1.0, 0.0, 3.0))
    stage = DistillStage(recipe(settings, starts), CAPTIONS)
    assert stage.exit_shares == [0, 0.25, 0, 0.75]
    exits = {run(stage, state, 1)[0]["exit_step"] for state in [stage.init("cpu")] for _ in range(8)}
    assert exits == {1.0, 3.0}
    warm = DistillStage(recipe(DISTILL, starts, critic_only=True), CAPTIONS)
    assert warm.exit_shares == [0, *[pytest.approx(1 / 3)] * 3]


def test_rollouts_follow_the_curriculum_of_lengths_in_the_warm_up_too(starts: dict[str, str]) -> None:
    settings = dataclasses.replace(DISTILL, lengths=((0, 4), (2, 8)), rollout_pool=4)
    stage = DistillStage(dataclasses.replace(recipe(settings, starts), critic_only=True), CAPTIONS)
    state = stage.init("cpu")
    for step in range(4):
        stage.step(state, Batches(), Key(0, step, purpose="step"))
    assert [rollout.latents.shape[1] for rollout in state.pool] == [4, 4, 8, 8]


@pytest.mark.parametrize("name", ["teacher", "sft", "distill"])
def test_resuming_is_bit_exact(name: str, starts: dict[str, str], tmp_path: Path) -> None:
    def make() -> SupervisedStage | DistillStage:
        if name == "distill":
            return DistillStage(recipe(DISTILL, starts), CAPTIONS)
        settings = TEACHER if name == "teacher" else SFT
        return SupervisedStage(recipe(settings, {} if name == "teacher" else {"teacher": starts["teacher"]}))

    short, long = (4, 0) if name == "teacher" else (0, 4)
    whole, stage = make(), make()
    unbroken = whole.init("cpu")
    expected = run(whole, unbroken, 6, short, long)
    state = stage.init("cpu")
    run(stage, state, 3, short, long)
    save_state(state, stage.spec, tmp_path)
    again = make()
    resumed = again.init("cpu")
    load_state(resumed, tmp_path)
    assert run(again, resumed, 3, short, long) == expected[3:]
    assert not _changed(tensors_of(unbroken), tensors_of(resumed))
    assert [r.captions for r in resumed.pool] == [r.captions for r in unbroken.pool]


def test_a_number_that_is_not_finite_stops_before_the_update(starts: dict[str, str]) -> None:
    stage = SupervisedStage(recipe(SFT, {"teacher": starts["teacher"]}))
    state = stage.init("cpu")
    poisoned = batches(0, Workers())
    assert poisoned.long is not None
    poisoned.long.latents[1, 2] = torch.inf
    before = tensors_of(state)
    with pytest.raises(TrainingDiverged, match="step 0"):
        stage.step(state, poisoned, Key(0, 0, purpose="step"))
    assert not _changed(before, tensors_of(state))


def test_a_critic_that_is_not_finite_stops_the_run(starts: dict[str, str]) -> None:
    stage = DistillStage(recipe(DISTILL, starts), CAPTIONS)
    state = stage.init("cpu")
    critic = state.modules["critic"]
    assert isinstance(critic, DiT)
    nn.init.constant_(critic.head.proj_out.bias, torch.nan)
    with pytest.raises(TrainingDiverged, match="reverse-KL"):
        run(stage, state, 1)


def test_damaged_checkpoints_are_refused(starts: dict[str, str], tmp_path: Path) -> None:
    stage = SupervisedStage(recipe(SFT, {"teacher": starts["teacher"]}))
    state = stage.init("cpu")
    save_state(state, stage.spec, tmp_path)
    assert load_network(tmp_path).spec == stage.spec
    weights = tmp_path / "student.average.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="damaged"):
        load_network(tmp_path)
    (tmp_path / MANIFEST_FILE).unlink()
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        load_state(state, tmp_path)


def test_withheld_words_stay_withheld_for_the_critic(starts: dict[str, str]) -> None:
    """What the student was told is what the pool remembers: about three in ten lose their word."""
    stage = DistillStage(recipe(dataclasses.replace(DISTILL, rollout_batch=200), starts), CAPTIONS)
    captions = stage.rollouts.captions_at(Key(0, 0, purpose="step/rollout"))
    reds = sum(c.startswith("red") for c in captions)
    bare = sum(c in ("sun", "moon") for c in captions)
    assert 0 < bare < reds
    assert captions[0::2] != captions[1::2]
    assert {c.split()[-1] for c in captions} == {"sun", "moon"}


def test_workers_share_a_batch_in_order() -> None:
    for size in (1, 2, 3, 5, 12):
        parts = [list(Workers(rank, size).share(12)) for rank in range(size)]
        assert [i for part in parts for i in part] == list(range(12))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    with pytest.raises(ConfigError, match="a row for every worker"):
        Workers(0, 13).share(12)
