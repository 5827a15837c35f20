"""Lineage: what makes a stage stale, in which words, what may be gone on with, and what is recorded."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from models.config import LoraConfig, LossConfig, TextConfig
from models.errors import CheckpointError, TrainingDiverged
from pipelines.data.store.dataset import ShardDataset
from pipelines.data.store.rows import noted_ids
from pipelines.storage import Storage
from pipelines.training.batches import BatchSource
from pipelines.training.collectives import Workers
from pipelines.training.config import TrainingConfig, WarmupConfig
from pipelines.training.lineage import (
    ROWS_FILE,
    Lineage,
    begin_stage,
    deciding,
    explain_divergence,
    is_fixed,
    latest_step,
    lineage_of,
    made_alike,
    read_lineage,
    require_current,
    stale_stages,
    take_over,
)
from pipelines.training.recipes import (
    LINEAGE_FILE,
    Recipe,
    StageOutcome,
    finished_stage,
    make_recipe,
    stage_graph,
)
from pipelines.training.stage import diverged
from tests.pipelines.data.made import end, write_shards
from tests.pipelines.training import makers
from tests.pipelines.training.makers import DISTILL, SFT, TEACHER

CONFIG = TrainingConfig(teacher=TEACHER, sft=SFT, mixed=SFT, distill=DISTILL)
STAGES = list(stage_graph(CONFIG))
SEED = 7


class Run:
    """A run of one seed whose stages are trained by writing their files."""

    def __init__(self, folder: Path) -> None:
        self.root, self.dataset = f"{folder}/seed-7", f"{folder}/dataset"
        self.storage = Storage(self.root)
        self.statuses = write_shards(Path(self.dataset))
        self.listed(2)

    def listed(self, parts: int, **changed: str) -> None:
        """The dataset of that many videos a corpus."""
        own = [dataclasses.replace(status, **changed) for status in self.statuses]
        end(Path(self.dataset), own, parts=parts)

    def recipe(self, stage: str, config: TrainingConfig = CONFIG, code: str = "c0de") -> Recipe:
        return make_recipe(config, stage, SEED, self.root, self.dataset, code)

    def begin(self, stage: str, config: TrainingConfig = CONFIG, **options: bool) -> StageOutcome | Lineage:
        return begin_stage(self.recipe(stage, config), **options)

    def stop_at(self, stage: str, step: int, config: TrainingConfig = CONFIG) -> None:
        """An interrupted stage whose last checkpoint is of this step."""
        self.begin(stage, config)
        self.storage.write_json(f"{stage}/step-{step:06d}/manifest.json", {})

    def finish(self, stage: str, weights: str = "weights", config: TrainingConfig = CONFIG) -> StageOutcome:
        """A stage trained to its end: the sha256 of all that others load is that of its weights."""
        begun = self.begin(stage, config)
        if isinstance(begun, StageOutcome):
            return begun
        steps = self.recipe(stage, config).stage.steps
        checkpoint = f"{self.root}/{stage}/step-{steps:06d}"
        files = ("teacher.average.safetensors", "student.average.safetensors", "critic.safetensors")
        Storage(checkpoint).write_json("manifest.json", dict.fromkeys(files, f"{stage} {weights}"))
        outcome = StageOutcome(checkpoint, {"steps": float(steps), "cpu_seconds": 4.0}, begun.hash)
        self.storage.write_json(f"{stage}/outcome.json", dataclasses.asdict(outcome))
        return outcome

    def finish_all(self) -> None:
        for stage in STAGES:
            self.finish(stage)

    def again(self, stage: str, weights: str) -> None:
        """As `train STAGE --fresh`."""
        self.storage.delete(stage)
        self.finish(stage, weights)

    def stale(self, config: TrainingConfig = CONFIG) -> dict[str, list[str]]:
        return stale_stages(config, self.root, self.dataset)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def with_distill(**changed: Any) -> TrainingConfig:
    return dataclasses.replace(CONFIG, distill=dataclasses.replace(DISTILL, **changed))


def with_sft(**changed: Any) -> TrainingConfig:
    return dataclasses.replace(CONFIG, sft=dataclasses.replace(SFT, **changed))


def test_what_decides_a_stage_are_its_own_settings_by_their_dotted_names() -> None:
    teacher = dataclasses.replace(makers.recipe(TEACHER), name="teacher")
    names = deciding(teacher)
    assert {"seed", "model.num_layers", "teacher.steps", "teacher.learning_rate"} <= names.keys()
    assert not [
        n for n in names if n.startswith(("loss.", "sampling.")) or n.endswith(("_every", ".pretrained"))
    ]
    distill = deciding(dataclasses.replace(makers.recipe(DISTILL, {"student": "a"}), name="distill"))
    assert {"loss.reverse_kl_weight", "sampling.steps", "distill.skip_steps"} <= distill.keys()
    assert not {"distill.teacher_gate", "distill.watch_every"} & distill.keys()
    follows = dataclasses.replace(DISTILL, ramp_follows="critic")
    distill = deciding(dataclasses.replace(makers.recipe(follows, {"student": "a"}), name="distill"))
    assert "distill.watch_every" in distill, "how often the critic is measured decides what the ramp follows"
    warmup = deciding(
        dataclasses.replace(makers.recipe(DISTILL, {"student": "a"}, critic_only=True), name="warmup")
    )
    assert {"warmup.steps", "distill.critic_learning_rate", "loss.score_t_min"} <= warmup.keys()
    assert not warmup.keys() & {"distill.learning_rate", "loss.reverse_kl_weight", "distill.steps"}
    assert {"distill.scored_windows", "distill.rollout", "loss.score_time"} <= warmup.keys()
    assert not warmup.keys() & {"distill.encoder_gradient", "loss.forward_kl_weight", "distill.ramp_follows"}


def test_the_same_weights_elsewhere_and_other_code_are_the_same_stage(run: Run) -> None:
    run.finish_all()
    before = run.recipe("distill")
    run.again("sft", "weights")
    assert run.recipe("distill").inputs == before.inputs
    assert not run.stale()
    assert isinstance(begin_stage(run.recipe("distill", code="another")), StageOutcome)


def test_a_teacher_trained_again_makes_all_that_came_of_it_stale_in_order(run: Run) -> None:
    run.finish_all()
    run.again("teacher", "others")
    stale = run.stale()
    assert list(stale) == ["sft", "mixed", "distill", "sft_longer", "mixed_longer"]
    assert stale["sft"] == stale["distill"] == ["teacher was trained again since"]
    assert stale["sft_longer"] == ["sft is stale", "distill is stale"]
    with pytest.raises(CheckpointError, match=r"sft \(teacher was.*mixed.*distill.*sft_longer.*mixed_longer"):
        require_current(CONFIG, run.root, run.dataset, ["distill"])
    require_current(CONFIG, run.root, run.dataset, ["teacher"])


def test_a_stage_trained_again_with_another_rate_is_not_passed_over(run: Run) -> None:
    """`train sft --fresh` with another rate, then `train distill`: the old distillation was returned."""
    run.finish_all()
    run.again("sft", "of another rate")
    came_of_it = ["distill", "sft_longer", "mixed_longer"]
    assert list(run.stale()) == came_of_it
    with pytest.raises(
        CheckpointError, match=r"distill \(sft was trained again since\).*--allow-stale"
    ) as told:
        run.begin("distill")
    assert "--fresh" in told.value.remedy
    assert isinstance(run.begin("distill", allow_stale=True), StageOutcome)
    assert list(run.stale()) == came_of_it


def test_other_captions_in_the_same_file_are_told(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "captions.txt"
    file.write_text("a red sun\na blue moon\n")
    config = with_distill(captions=str(file))
    for stage in ("teacher", "sft"):
        run.finish(stage)
    run.finish("distill", config=config)
    file.write_text("a red sun\n\n  a blue moon\n")
    assert isinstance(run.begin("distill", config), StageOutcome)
    file.write_text("a red sun\na green moon\n")
    with pytest.raises(CheckpointError, match=r"distill\.captions holds other captions"):
        run.begin("distill", config)


def test_an_interrupted_stage_goes_on_from_new_weights_on_purpose_only_and_says_so(run: Run) -> None:
    for stage in ("teacher", "sft"):
        run.finish(stage)
    run.stop_at("distill", 4)
    run.again("sft", "others")
    with pytest.raises(CheckpointError, match="sft was trained again since"):
        run.begin("distill")
    begun = run.begin("distill", allow_stale=True)
    assert isinstance(begun, Lineage)
    key = "sft/student.average.safetensors"
    assert begun.changes == ({"step": 4, "changed": {key: ["sft weights", "sft others"]}},)
    assert run.begin("distill") == begun == read_lineage(run.root, "distill")
    assert not run.stale()


def test_a_stage_that_has_begun_again_is_told_and_one_that_was_deleted_is_not(run: Run) -> None:
    run.finish_all()
    run.storage.delete("teacher")
    assert not run.stale()
    run.begin("teacher")
    assert run.stale()["sft"] == ["teacher has begun again"]


def test_what_was_made_before_lineage_is_told_and_may_be_used_on_purpose(run: Run) -> None:
    old = {"checkpoint": f"{run.root}/teacher/last", "summary": {"steps": 3.0}, "recipe": "x"}
    run.storage.write_json("teacher/outcome.json", old)
    with pytest.raises(CheckpointError, match=r"began before stages recorded.*--fresh.*--allow-stale"):
        run.begin("teacher")
    assert run.begin("teacher", allow_stale=True) == StageOutcome(**old)  # type: ignore[arg-type]
    run.storage.delete("teacher/outcome.json")
    run.storage.write_json("teacher/recipe.json", {"recipe": "x"})
    with pytest.raises(CheckpointError, match="began before stages recorded"):
        run.begin("teacher")
    assert isinstance(run.begin("teacher", allow_stale=True), Lineage)
    assert isinstance(run.begin("teacher"), Lineage)


def test_a_finished_stage_of_a_dataset_that_grew_is_stale_where_it_reads_what_is_new(run: Run) -> None:
    run.finish_all()
    run.listed(3)
    stale = run.stale()
    assert stale["teacher"] == ["the dataset has 30 more windows"]
    assert stale["sft"] == ["the dataset has 10 more windows"]
    assert stale["distill"] == ["the dataset has 40 more windows"]
    with pytest.raises(CheckpointError, match="teacher \\(the dataset has 30 more windows\\)"):
        run.begin("teacher")


def test_an_interrupted_stage_goes_on_with_the_order_that_it_began_with(run: Run) -> None:
    def batches(only: Any = None) -> list[dict[str, list[str]]]:
        source = BatchSource(run.dataset, TEACHER, SEED, Workers(), only)
        return [source.ids(step) for step in range(40)]

    begun = run.begin("teacher")
    before = batches()
    run.listed(3)
    assert not run.stale()
    assert run.begin("teacher") == begun
    assert batches() != before
    assert batches(noted_ids(run.storage, f"teacher/{ROWS_FILE}")) == before


def test_an_interrupted_stage_that_lost_windows_goes_on_with_others_on_purpose_only(run: Run) -> None:
    run.stop_at("teacher", 2)
    run.listed(1)
    with pytest.raises(CheckpointError, match="the dataset lacks 30 windows"):
        run.begin("teacher")
    begun = run.begin("teacher", allow_stale=True)
    assert isinstance(begun, Lineage)
    assert begun.changes[0]["step"] == 2
    assert set(begun.changes[0]["changed"]) == {"data_hash"}
    left = noted_ids(run.storage, f"teacher/{ROWS_FILE}")["short"]
    assert left == frozenset(ShardDataset(run.dataset, "short").ids)
    assert run.begin("teacher") == begun


def test_other_latents_of_the_same_windows_are_told(run: Run) -> None:
    run.finish("teacher")
    run.listed(2, latents_sha256="of another autoencoder")
    assert run.stale()["teacher"] == ["60 windows of the dataset have other latents or captions"]


def test_changed_settings_are_told_offered_and_recorded_with_their_step(run: Run) -> None:
    run.finish("teacher")
    run.finish("sft")
    run.stop_at("distill", 4)
    config = dataclasses.replace(with_distill(learning_rate=1e-5), loss=LossConfig(reverse_kl_weight=0.3))
    with pytest.raises(
        CheckpointError, match=r"--resume-changed to go on with them from step 4.*--fresh"
    ) as told:
        run.begin("distill", config)
    assert "loss.reverse_kl_weight was 1.0, now 0.3" in told.value.problem
    assert "distill.learning_rate was 0.001, now 1e-05" in told.value.problem
    assert read_lineage(run.root, "distill") == run.begin("distill")
    begun = run.begin("distill", config, resume_changed=True)
    assert isinstance(begun, Lineage)
    changed = {"loss.reverse_kl_weight": [1.0, 0.3], "distill.learning_rate": [1e-3, 1e-5]}
    assert begun.changes == ({"step": 4, "changed": changed},)
    assert run.begin("distill", config) == begun
    with pytest.raises(CheckpointError, match=r"distill\.learning_rate was 1e-05, now 0\.001"):
        run.begin("distill")
    again = run.begin("distill", resume_changed=True)
    assert isinstance(again, Lineage)
    assert [entry["step"] for entry in again.changes] == [4, 4]


def test_cadence_changes_without_a_word(run: Run) -> None:
    run.stop_at("teacher", 2)
    own = dataclasses.replace(TEACHER, checkpoint_every=1, log_every=1, preview_every=1)
    assert isinstance(run.begin("teacher", dataclasses.replace(CONFIG, teacher=own)), Lineage)


@pytest.mark.parametrize(
    "config",
    [
        dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, ffn_dim=96)),
        dataclasses.replace(CONFIG, text=TextConfig(max_tokens=4)),
        dataclasses.replace(CONFIG, lora=LoraConfig(rank=2)),
        with_sft(short_batch=4),
    ],
)
def test_networks_and_data_do_not_change_on_the_way(config: TrainingConfig, run: Run) -> None:
    run.finish("teacher")
    run.stop_at("sft", 2)
    with pytest.raises(CheckpointError, match=r"other networks or data.*cannot change on the way.*--fresh"):
        run.begin("sft", config, resume_changed=True)


def test_what_changes_no_shape_and_no_data_is_free() -> None:
    names = "flow.timestep_shift loss.anchor_weight text.dropout sampling.steps distill.clip_norm sft.steps"
    assert not [name for name in names.split() if is_fixed(name, 1, 2)]
    assert not is_fixed("sft.long_batch", 4, 8)
    assert is_fixed("sft.long_batch", 4, 0)


def test_a_finished_stage_goes_on_to_more_steps(run: Run) -> None:
    run.finish("teacher")
    done = run.finish("sft")
    for fewer in ({"learning_rate": 1e-4}, {"steps": 5}):
        with pytest.raises(CheckpointError, match=r"has taken 6 steps.*more steps and --resume"):
            run.begin("sft", with_sft(**fewer), resume_changed=True)
    with pytest.raises(CheckpointError, match=r"sft\.steps was 6, now 9"):
        run.begin("sft", with_sft(steps=9))
    assert run.begin("sft") == done
    begun = run.begin("sft", with_sft(steps=9), resume_changed=True)
    assert isinstance(begun, Lineage)
    assert not run.storage.exists("sft/outcome.json")


def test_a_setting_that_was_not_there_had_its_default(run: Run) -> None:
    run.begin("teacher")
    path = f"teacher/{LINEAGE_FILE}"
    plain = run.storage.read_json(path)
    for name in ("teacher.skip_steps", "flow.timestep_shift"):
        del plain["settings"][name]
    run.storage.write_json(path, plain)
    assert isinstance(run.begin("teacher"), Lineage)
    config = dataclasses.replace(CONFIG, teacher=dataclasses.replace(TEACHER, skip_steps=(3,)))
    with pytest.raises(CheckpointError, match=r"teacher\.skip_steps was \[\], now \[3\]"):
        run.begin("teacher", config)


def test_a_warm_up_that_is_left_out_is_told(run: Run) -> None:
    warm = dataclasses.replace(CONFIG, warmup=WarmupConfig(steps=3))
    for stage in ("teacher", "sft", "warmup"):
        run.finish(stage, config=warm)
    run.stop_at("distill", 2, warm)
    with pytest.raises(CheckpointError, match="it started from warmup, which is left out now"):
        run.begin("distill")


def test_the_step_that_a_stage_goes_on_from_is_that_of_its_newest_whole_checkpoint(run: Run) -> None:
    assert latest_step(run.root, "teacher") == 0
    for step in (2, 10, 4):
        run.stop_at("teacher", step)
    run.storage.write_json("teacher/step-000012/config.json", {})
    assert latest_step(run.root, "teacher") == 10


@pytest.mark.parametrize(
    ("stage", "name", "role", "expected"),
    [
        (SFT, "sft", "student", {"sft.learning_rate": 1e-4, "sft.skip_steps": [2, 5]}),
        (DISTILL, "distill", "critic", {"distill.critic_learning_rate": 5e-5, "distill.skip_steps": [2, 5]}),
        (DISTILL, "warmup", "critic", {"distill.critic_learning_rate": 5e-5}),
        (SFT, "sft_longer", "student", {}),
    ],
)
def test_a_divergence_names_its_windows_and_ways_to_go_on(
    stage: Any, name: str, role: str, expected: dict[str, Any]
) -> None:
    own = dataclasses.replace(stage, skip_steps=(2,))
    recipe = dataclasses.replace(makers.recipe(own, {"student": "a"}, name == "warmup"), name=name)
    error = diverged("the gradient", 5, role)
    told = explain_divergence(error, recipe, 5, {"long": ["w1", "w2"], "short": [f"s{i}" for i in range(9)]})
    assert isinstance(told, TrainingDiverged)
    assert told.changes == expected
    assert "step 5 (windows: long w1, w2; short s0, s1, s2, s3;" in told.problem
    assert f"{name}/diverged.json" in told.problem


def test_a_stage_made_from_the_same_is_taken_over(run: Run, tmp_path: Path) -> None:
    shared = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, heads="shared"))
    root = f"{tmp_path}/elsewhere"

    def recipe(stage: str, config: TrainingConfig = CONFIG) -> Recipe:
        return make_recipe(config, stage, SEED, root, run.dataset)

    run.finish("teacher")
    run.finish("sft")
    assert take_over(recipe("teacher", shared), run.root)
    assert finished_stage(root, "teacher") == finished_stage(run.root, "teacher")
    assert not take_over(recipe("sft", shared), run.root), "its student has one head"
    assert take_over(recipe("sft"), run.root)
    assert begin_stage(recipe("sft")) == finished_stage(run.root, "sft")
    require_current(CONFIG, root, run.dataset, ["teacher", "sft"])
    assert not take_over(recipe("distill"), run.root), "it has not finished there"
    run.again("teacher", "others")
    assert not take_over(recipe("sft"), run.root), "it was made from another teacher there"


def test_settings_that_a_stage_does_not_read_may_differ() -> None:
    heads = {"model.heads": "shared", "a": 1}
    assert made_alike("teacher", heads, {"model.heads": "decoupled", "a": 1})
    assert not made_alike("sft", heads, {"model.heads": "decoupled", "a": 1})
    assert not made_alike("teacher", heads, {"model.heads": "shared"})


def test_a_lineage_is_plain_json(run: Run) -> None:
    run.begin("teacher")
    now = lineage_of(run.recipe("teacher"))
    assert read_lineage(run.root, "teacher") == now
    assert json.loads(json.dumps(dataclasses.asdict(now)))["windows"] == {"short": 60}
