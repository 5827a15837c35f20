"""Systems as MLflow runs: one a system and seed, under the same names of metrics, found by the same tags."""

import json
from pathlib import Path

import pytest

from jobs import registry, system_runs, tracking, used_dataset
from jobs.config import load as configs
from pipelines.checkpoints import check_seal, seal
from pipelines.evaluation.report.page import Report
from pipelines.evaluation.run import Evaluation
from pipelines.evaluation.scores import Scores
from pipelines.evaluation.settings import System

USED = used_dataset.UsedDataset("built-in world", "0123456789abcdef", "/data", '{"long": 12}', "evaluation")


@pytest.fixture
def checkpoint(tmp_path):
    """A folder that holds what a student's checkpoint does."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in ("network.json", "student.average.safetensors", "critic.safetensors"):
        (folder / name).write_text(name)
    seal(folder)
    return folder


@pytest.fixture
def world(run_config, monkeypatch):
    """A config whose dataset need not be there."""

    class Info:
        data_hash = USED.digest

    monkeypatch.setattr(system_runs, "used_dataset", lambda config, folder, context: USED)
    monkeypatch.setattr(system_runs, "read_info", lambda folder: Info)
    return run_config


def result_of(seed, tmp_path):
    clip = tmp_path / "000.mp4"
    clip.write_bytes(b"video")
    rows = {
        "mmm_4": Scores({"rule": 1.0, "unseen_rule": None, "texture_error_by_eighth": [0.1, 0.2]}),
        "ideal": Scores({"rule": 0.5, "unseen_rule": 0.25}),
    }
    return Evaluation(seed, rows, {"mmm_4": (str(clip),), "ideal": ()}, ("a bay",), (), 1.0)


def children(parent):
    client = tracking.client_of(parent.uri)
    experiment = client.get_run(parent.run_id).info.experiment_id
    runs = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{parent.run_id}'")
    return {run.info.run_name: run for run in runs}


def test_systems_of_two_seeds_share_the_names_of_their_metrics(world, root):
    parent = tracking.open_run(world, "evaluation")
    systems = [System("mmm_4", "/seed/sft", "fm", "ode", 4, 2)]
    for seed in (0, 1, 0):  # the same seed again is the same run
        system_runs.file_systems(world, result_of(seed, root), systems, parent, ["mmm_4", "ideal"])
    found = children(parent)
    assert set(found) == {f"ci/seed-{seed}/{name}" for seed in (0, 1) for name in ("mmm_4", "ideal")}
    mmm, ideal = found["ci/seed-1/mmm_4"], found["ci/seed-1/ideal"]
    assert mmm.info.status == "FINISHED"
    assert mmm.data.metrics == {"eval/rule": 1.0, "eval/texture_error_by_eighth": 0.2}
    assert ideal.data.metrics == {"eval/rule": 0.5, "eval/unseen_rule": 0.25}
    curve = tracking.client_of(parent.uri).get_metric_history(mmm.info.run_id, "eval/texture_error_by_eighth")
    assert [(point.step, point.value) for point in curve] == [(1, 0.1), (2, 0.2)]
    tags = mmm.data.tags
    assert (tags["sostenuto.system"], tags["sostenuto.seed"]) == ("mmm_4", "1")
    assert (tags["sostenuto.corpus"], tags["sostenuto.data_hash"]) == ("built-in world", USED.digest)
    assert mmm.data.params["system.nfe"] == "4"
    assert mmm.data.params["seed"] == "1"
    assert "system.nfe" not in ideal.data.params
    assert json.loads(mmm.data.params["loss.reverse_kl_weight"]) == world.loss.reverse_kl_weight
    (used,) = mmm.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == (USED.name, USED.digest)
    assert {tag.key: tag.value for tag in used.tags} == {"mlflow.data.context": "evaluation"}
    assert [path.read_bytes() for path in root.rglob("mlartifacts/**/clips/000.mp4")] == [b"video"] * 2


def versions_of(parent):
    client = tracking.client_of(parent.uri)
    return {int(one.version): one for one in client.search_model_versions()}, client


def test_the_best_student_is_the_champion_and_can_be_sampled(world, root, checkpoint):
    parent = tracking.open_run(world, "evaluation")
    student = System("mmm_4", str(checkpoint), "dm", "few_step", 4)

    def filed(seed, distance):
        row = Scores({"window_frechet": distance})
        result = Evaluation(seed, {"mmm_4": row}, {}, (), (), 1.0)
        system_runs.file_systems(world, result, [student], parent, ["mmm_4"])

    filed(0, 20.0)
    filed(1, 18.0)
    filed(1, 18.5)
    versions, client = versions_of(parent)
    assert set(versions) == {1, 2}, "the same weights of the same run are one version"
    assert versions[2].tags["sostenuto.value"] == "18.5"
    assert versions[2].tags["sostenuto.system"] == "mmm_4"
    assert client.get_model_version_by_alias("ci", "champion").version == versions[2].version
    folder = Path(versions[2].source.removeprefix("file://"))
    assert {path.name for path in folder.iterdir()} == {
        "network.json",
        "student.average.safetensors",
        "manifest.json",
    }
    check_seal(folder, ("network.json", "student.average.safetensors"))
    filed(0, 25.0)
    filed(1, 30.0)
    assert client.get_model_version_by_alias("ci", "champion").version == versions[1].version


def test_other_weights_of_a_run_are_another_version(world, root, checkpoint):
    parent = tracking.open_run(world, "evaluation")
    for content in ("one", "two"):
        (checkpoint / "student.average.safetensors").write_text(content)
        seal(checkpoint)
        system_runs.file_systems(
            world,
            Evaluation(0, {"a": Scores({"pixel_window_frechet": 1.0})}, {}, (), (), 1.0),
            [System("a", str(checkpoint), "dm", "few_step", 4)],
            parent,
            ["a"],
        )
    versions, _ = versions_of(parent)
    texts = {
        number: Path(one.source.removeprefix("file://"), "student.average.safetensors").read_text()
        for number, one in versions.items()
    }
    assert texts == {1: "one", 2: "two"}
    assert versions[1].tags["sostenuto.metric"] == "pixel_window_frechet", "the sweep's was not measured"


def test_a_registry_that_refuses_is_told_and_stops_nothing(world, root, checkpoint, monkeypatch, caplog):
    parent = tracking.open_run(world, "evaluation")

    def away(uri):
        raise OSError("connection refused")

    monkeypatch.setattr(registry, "client_of", away)
    result = Evaluation(0, {"a": Scores({"window_frechet": 1.0})}, {}, (), (), 1.0)
    student = System("a", str(checkpoint), "dm", "few_step", 4)
    system_runs.file_systems(world, result, [student], parent, ["a"])
    assert "a is not in MLflow's registry: connection refused" in caplog.text
    (run,) = children(parent).values()
    assert run.data.metrics == {"eval/window_frechet": 1.0}


def test_a_description_says_what_a_system_stands_for(world, root):
    parent = tracking.open_run(world, "compare")
    system_runs.file_systems(world, result_of(0, root), [], parent, ["mmm_4"], stands_for="both losses")
    (run,) = children(parent).values()
    assert run.data.tags["mlflow.note.content"] == "both losses"


def test_nothing_is_asked_of_mlflow_where_tracking_is_off(world, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(system_runs, "open_run", lambda *given, **named: asked.append(given))
    system_runs.file_systems(world, result_of(0, tmp_path), [], None, ["ideal"])
    assert not asked


def test_the_table_is_one_that_mlflow_shows(world, root):
    page = root / "report.html"
    page.write_text("<html>")
    with tracking.command_run(world, "evaluation") as (reference, tracker):
        results = [result_of(0, root), result_of(1, root)]
        system_runs.file_report(tracker, results, Report(str(page), (), ()))
    run = tracking.client_of(reference.uri).get_run(reference.run_id)
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [{"path": "systems.json", "type": "table"}]
    (file,) = root.rglob("mlartifacts/**/systems.json")
    table = json.loads(file.read_text())
    assert table["columns"] == ["system", "seed", "rule", "unseen_rule", "texture_error_by_eighth"]
    assert table["data"][0] == ["mmm_4", 0, 1.0, None, [0.1, 0.2]]
    assert [row[:2] for row in table["data"]] == [["mmm_4", 0], ["ideal", 0], ["mmm_4", 1], ["ideal", 1]]


def test_a_commands_run_ends_as_the_command_does(run_config):
    def status(error):
        with pytest.raises(error), tracking.command_run(run_config, "x") as (reference, _):
            raise error
        return tracking.client_of(reference.uri).get_run(reference.run_id).info.status

    assert status(ValueError) == "FAILED"
    assert status(KeyboardInterrupt) == "KILLED"
    with tracking.command_run(run_config, "x") as (reference, _):
        pass
    assert tracking.client_of(reference.uri).get_run(reference.run_id).info.status == "FINISHED"


def test_corpora_are_called_by_their_folders(run_config):
    assert used_dataset.corpora_name(run_config) == "built-in world"
    own = configs.load("clips", values={"data.short": "/a/fine clips", "data.long": "/b/walks/"})
    assert used_dataset.corpora_name(own) == "fine clips + walks"


def test_lists_are_curves_and_what_is_missing_is_left_out():
    values = {"rule": 1, "none": None, "curve": [3.0, 4.0]}
    assert list(system_runs.points(values)) == [
        (0, {"eval/rule": 1.0}),
        (1, {"eval/curve": 3.0}),
        (2, {"eval/curve": 4.0}),
    ]


def test_a_clip_in_an_object_store_is_fetched(root):
    import fsspec

    with fsspec.open("memory://clips/one.mp4", "wb") as file:
        file.write(b"video")
    seen = []

    class Tracker:
        def artifact(self, path, folder):
            seen.append((Path(path).name, Path(path).read_bytes(), folder))

    system_runs.file_artifact(Tracker(), "memory://clips/one.mp4", "clips")
    assert seen == [("one.mp4", b"video", "clips")]
