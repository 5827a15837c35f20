"""deploy/, checked without a Kubernetes: by the fields that KubeRay and Kubernetes publish, and our rules."""

import copy
import functools
import json
import re
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SCHEMA = json.loads((ROOT / "tests" / "jobs" / "kuberay.json").read_text())


def manifests(name):
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


EVERY = [manifest for path in sorted(DEPLOY.glob("*.yaml")) for manifest in manifests(path.name)]


def faults(manifest):
    return [error.message for error in Draft202012Validator(SCHEMA).iter_errors(manifest)]


@pytest.fixture
def cluster():
    return copy.deepcopy(manifests("raycluster.yaml")[0])


def pods(manifest):
    """The pod templates' specs of a manifest."""
    spec = manifest["spec"]
    groups = [spec, spec.get("headGroupSpec", {}), *spec.get("workerGroupSpecs", [])]
    return [group["template"]["spec"] for group in groups if "template" in group]


@pytest.mark.parametrize(
    "manifest", EVERY, ids=lambda manifest: f"{manifest['kind']} {manifest['metadata']['name']}"
)
def test_kuberay_and_kubernetes_know_every_field(manifest):
    Draft202012Validator.check_schema(SCHEMA)
    assert faults(manifest) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.authOption", {"mode": "token"}),
        ("spec.authOptions.mode", "tokens"),
        ("spec.headGroupSpec.rayStartParams.num-cpus", 0),
        ("spec.headGroupSpec.serviceType", "Private"),
        ("spec.workerGroupSpecs.0.minReplicas", "0"),
        ("spec.workerGroupSpecs.1.groupName", "train_gpu"),
        ("spec.workerGroupSpecs.2.template.spec.containers.0.resources.limits.memory", "28 GB"),
        ("spec.workerGroupSpecs.2.template.spec.volumes.0.persistentVolumeClaims", {}),
        ("apiVersion", "ray.io/v1alpha1"),
    ],
)
def test_a_fault_is_seen(path, value, cluster):
    *way, last = [int(part) if part.isdigit() else part for part in re.split(r"(?<!v1)\.", path)]
    functools.reduce(lambda place, part: place[part], way, cluster)[last] = value
    assert faults(cluster)


def test_a_group_without_its_bounds_is_seen(cluster):
    del cluster["spec"]["workerGroupSpecs"][0]["maxReplicas"]
    assert faults(cluster)


def test_the_head_runs_no_work_and_is_private(cluster):
    head = cluster["spec"]["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert head["serviceType"] == "ClusterIP"
    assert "nvidia.com/gpu" not in head["template"]["spec"]["containers"][0]["resources"]["limits"]


def test_each_kind_of_work_has_pods_that_come_and_go(cluster):
    groups = {group["groupName"]: group for group in cluster["spec"]["workerGroupSpecs"]}
    aws = yaml.safe_load((ROOT / "cluster.yaml").read_text())["available_node_types"]
    assert {name.replace("-", "_") for name in groups} == set(aws) - {"head"}
    assert cluster["spec"]["enableInTreeAutoscaling"] is True
    for name, group in groups.items():
        (container,) = group["template"]["spec"]["containers"]
        limits, like = container["resources"]["limits"], aws[name.replace("-", "_")]
        assert (group["minReplicas"], group["maxReplicas"]) == (0, like["max_workers"])
        assert limits.get("nvidia.com/gpu", 0) == like["resources"].get("GPU", 0)
        assert limits == container["resources"]["requests"], "Ray counts limits, Kubernetes requests"
        assert ("tolerations" in group["template"]["spec"]) == ("nvidia.com/gpu" in limits)


def test_the_token_is_on_and_no_secret_is_in_a_file(cluster):
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    for path in DEPLOY.iterdir():
        assert not re.search(r"auth_token:|RAY_AUTH_TOKEN|SECRET_ACCESS_KEY *[:=]", path.read_text()), (
            path.name
        )


def test_every_pod_is_an_unprivileged_user_of_one_image():
    images = {
        container["image"] for manifest in EVERY for pod in pods(manifest) for container in pod["containers"]
    }
    assert len(images) == 1
    for manifest in EVERY:
        for pod in pods(manifest):
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert f"--uid {pod['securityContext']['runAsUser']} " in (DEPLOY / "Dockerfile").read_text()


def test_what_pods_name_is_there(cluster):
    claims = {
        manifest["metadata"]["name"] for manifest in EVERY if manifest["kind"] == "PersistentVolumeClaim"
    }
    for manifest in EVERY:
        for pod in pods(manifest):
            assert {volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"]} <= claims
            volumes = {volume["name"] for volume in pod["volumes"]}
            for container in pod["containers"]:
                assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    assert all(pod["containers"][0]["volumeMounts"][0]["mountPath"] == "/mnt/runs" for pod in pods(cluster))


def test_tracking_is_at_the_services_address_under_a_name_it_allows(cluster):
    claim, volume, service, server = manifests("services.yaml")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    address = f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    for pod in pods(cluster):
        assert {"name": "MLFLOW_TRACKING_URI", "value": f"http://{address}"} in pod["containers"][0]["env"]
    (container,) = server["spec"]["template"]["spec"]["containers"]
    (allowed,) = [word for word in container["command"] if word.startswith("--allowed-hosts=")]
    assert address in allowed.partition("=")[2].split(",")
    assert service["spec"]["selector"] == server["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == server["spec"]["selector"]["matchLabels"]
    assert server["spec"]["replicas"] == 1, "sqlite has one writer"
    assert volume["spec"]["accessModes"] == ["ReadWriteOnce"]


def test_the_job_runs_on_the_cluster_and_its_command_is_ours(cluster):
    from jobs.commands.submit import COMMANDS

    (job,) = manifests("rayjob.yaml")
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    python, option, package, command, *words = job["spec"]["entrypoint"].split()
    assert (python, option, package) == ("python", "-m", "jobs")
    assert command in COMMANDS
    assert "storage.root=/mnt/runs" in words


def test_the_image_holds_the_pinned_set_and_all_packages():
    text = (DEPLOY / "Dockerfile").read_text()
    installs = [line for line in text.splitlines() if "pip install" in line]
    assert installs
    assert all("-c constraints.txt" in line for line in installs)
    for package in ROOT.glob("*/__init__.py"):
        name = package.parent.name
        assert (f"COPY {name} {name}\n" in text) == (name != "tests")
    copied = re.findall(r"^COPY (.+) \S+$", text, flags=re.MULTILINE)
    assert all((ROOT / name).exists() for line in copied for name in line.split())
    assert "\nUSER ray\n" in f"{text}\n"


def test_the_version_of_ray_is_the_pinned_one(cluster):
    assert f"\nray=={cluster['spec']['rayVersion']}\n" in (ROOT / "constraints.txt").read_text()
