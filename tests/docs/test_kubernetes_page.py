"""The documentation's commands for Kubernetes name files, resources and images that deploy/ describes."""

import itertools
import json
import re

import pytest

from tests.command import REPOSITORY
from tests.docs.shown import of_kind
from tests.jobs.test_deploy import EVERY, faults, manifests, pods

MADE_BY_KUBERAY = {"secret": ("sostenuto",), "service": ("sostenuto-head-svc",), "job": ("sostenuto-train",)}
"""What KubeRay makes for the cluster and the job of those names."""
KINDS = "raycluster rayjob service secret job".split()


def resources():
    """Names by kind: what deploy/ describes, what KubeRay makes of it, and secrets that pods read."""
    found = {kind: set(MADE_BY_KUBERAY.get(kind, ())) for kind in KINDS}
    for manifest in EVERY:
        found.setdefault(manifest["kind"].lower(), set()).add(manifest["metadata"]["name"])
        for pod in pods(manifest):
            for container in pod["containers"]:
                found["secret"] |= {source["secretRef"]["name"] for source in container.get("envFrom", ())}
    return found


def named(words):
    """(kind, name) of what a command names: `kind/name`, `kind name`, `secret generic name`."""
    text = " ".join(word for word in words if not word.startswith("-"))
    return re.findall(rf"\b({'|'.join(KINDS)})(?:/| generic | )([a-z][-a-z]+)", text)


@of_kind("kubernetes")
def test_its_files_and_resources_are_there(shown):
    words = shown.words
    for option, word in itertools.pairwise(words):
        if option == "-f":
            assert (REPOSITORY / word).is_file()
    for kind, name in named(words):
        assert name in resources()[kind]


@of_kind("kubernetes")
def test_its_image_is_the_manifests(shown):
    images = {
        container["image"] for manifest in EVERY for pod in pods(manifest) for container in pod["containers"]
    }
    assert {word for word in shown.words if word.startswith("registry.")} <= images


@of_kind("kubernetes")
def test_its_patch_is_one_that_kuberay_knows(shown):
    for patch in (word.partition("=")[2] for word in shown.words if word.startswith("--patch=")):
        (cluster,) = manifests("raycluster.yaml")
        cluster["spec"] |= json.loads(patch)["spec"]
        assert faults(cluster) == []


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("kubectl logs --follow job/sostenuto-train", [("job", "sostenuto-train")]),
        ("kubectl get secret sostenuto --output=x", [("secret", "sostenuto")]),
        ("kubectl create secret generic mine --from-env-file=a", [("secret", "mine")]),
        ("kubectl get pods --watch", []),
    ],
)
def test_a_resource_is_found_in_a_command(words, found):
    assert named(words.split()) == found
