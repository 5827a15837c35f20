"""cluster.yaml, checked by Ray's own schema without a cloud, and by rules that the schema does not know."""

import copy
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster():
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def validate(cluster):
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(cluster))
    validate_config(prepared)
    return prepared


def test_ray_accepts_it(cluster):
    assert set(validate(cluster)["available_node_types"]) == set(cluster["available_node_types"])


@pytest.mark.parametrize("key", ["head_nodes", "idle_timeout_minuts"])
def test_ray_refuses_a_key_that_is_not_one(cluster, key):
    with pytest.raises(Exception, match=key):
        validate(cluster | {key: 1})


def test_the_head_runs_no_work(cluster):
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert any("--head" in line and "--num-cpus=0" in line for line in cluster["head_start_ray_commands"])


def test_each_kind_of_work_has_machines_that_come_and_go(cluster):
    types = {name: kind for name, kind in cluster["available_node_types"].items() if name != "head"}
    assert {kind["labels"]["role"] for kind in types.values()} == {"data", "train", "evaluate"}
    for kind in types.values():
        assert 0 == kind["min_workers"] <= kind["max_workers"]
    assert sum(kind["max_workers"] for kind in types.values()) <= cluster["max_workers"]
    assert types["train_gpu"]["resources"]["GPU"] >= 1
    assert types["eval_gpu"]["resources"]["GPU"] >= 1
    assert "GPU" not in types["data_cpu"]["resources"]


def test_tokens_are_on_everywhere_and_no_secret_is_in_the_file(cluster):
    commands = "\n".join(cluster["setup_commands"])
    assert "RAY_AUTH_MODE=token" in commands
    assert "chmod 600 ~/.ray/auth_token" in commands
    for line in cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"]:
        assert line.startswith(". ~/sostenuto/env && "), "every start has the token's mode"
    assert "RAY_AUTH_TOKEN=" not in (ROOT / "cluster.yaml").read_text()


def test_the_dashboard_is_private(cluster):
    heads = [line for line in cluster["head_start_ray_commands"] if "ray start" in line]
    assert all("--dashboard-host=127.0.0.1" in line for line in heads)


def test_every_node_installs_the_pinned_set(cluster):
    installs = [line for line in cluster["setup_commands"] if "pip install" in line]
    assert installs
    assert all("-c constraints.txt" in line for line in installs)
    assert "./constraints.txt" in cluster["file_mounts"].values()


def test_no_command_ends_other_peoples_ray(cluster):
    assert "ray stop" not in (ROOT / "cluster.yaml").read_text()
