"""The one pickle that is read: only the known file, only arrays, in a process that can open nothing."""

import hashlib
import io
import os
import pickle
import pickletools
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from safetensors.numpy import save

from models.errors import CheckpointError
from pipelines.evaluation.features import i3d_file
from pipelines.evaluation.features.i3d import I3D
from pipelines.evaluation.features.i3d_file import _ArraysOnly, converted, flat, load_weights, unpickled
from tests.command import REPOSITORY
from tests.pipelines.evaluation.features.i3d_checkpoint import CLASSES, FEW, STEM, tree


class Runs:
    """Pickled, it calls a function of the caller's choice when it is read."""

    def __init__(self, function, *arguments):
        self.made = function, arguments

    def __reduce__(self):
        return self.made


def pickle_of(value):
    """With the names of numpy 1, as the published file has them."""
    return pickle.dumps(value, 3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def test_arrays_are_read():
    value = tree()
    found = unpickled(pickle_of(value))
    expected = flat(value)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize(
    "evil",
    [
        Runs(os.system, "touch evil"),
        Runs(eval, "open('evil', 'w')"),
        Runs(np.fromfile, "/etc/passwd"),
        Runs(getattr, np.zeros(1), "tofile"),
        {"params": np.random.RandomState(0)},
        {"params": {1, 2}.__class__},
    ],
    ids=["os.system", "eval", "numpy.fromfile", "getattr", "RandomState", "a type"],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_whatever_is_no_array_is_refused_before_it_runs(evil, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps(evil, protocol)
    assert any(op.name in ("GLOBAL", "STACK_GLOBAL") for op, _, _ in pickletools.genops(data))
    with pytest.raises(pickle.UnpicklingError, match="it asks for"):
        _ArraysOnly(io.BytesIO(data)).load()
    assert list(tmp_path.iterdir()) == []


def test_the_child_says_what_it_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"it asks for posix\.system"):
        unpickled(pickle.dumps(Runs(os.system, "touch evil")))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"params": [np.zeros(2, np.float32)]}, "params is a list"),
        ({"params": np.zeros(2)}, "params is a ndarray, not a float32"),
        ({"params": np.array([None])}, "not a float32"),
        ({1: np.zeros(2, np.float32)}, "the checkpoint is a dict"),
        (None, "NoneType"),
    ],
)
def test_trees_of_anything_else_are_refused(value, reason):
    with pytest.raises(ValueError, match=reason):
        flat(_ArraysOnly(io.BytesIO(pickle_of(value))).load())


@pytest.mark.parametrize("data", [b"", b"no pickle", pickle_of(tree())[:-1000]], ids=["empty", "text", "cut"])
def test_a_damaged_checkpoint_is_refused(data):
    with pytest.raises(CheckpointError, match="the checkpoint is refused"):
        unpickled(data)


def test_an_array_larger_than_memory_is_refused():
    small = pickle_of({"a": np.zeros(7, np.float32)})
    huge = small.replace(b"K\x07\x85", b"\x8a\x06" + (1 << 46).to_bytes(6, "little") + b"\x85")
    assert huge != small
    with pytest.raises(CheckpointError, match="the checkpoint is refused"):
        unpickled(huge)


def test_the_child_can_open_nothing():
    code = """
import os, socket
from pipelines.evaluation.features.i3d_file import fence
fence()
for act in (socket.socket, lambda: open("/etc/hostname"), os.pipe, lambda: open("evil", "w")):
    try:
        act()
    except OSError as error:
        print(error.errno)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    assert done.stdout.split() == ["24"] * 4, "EMFILE"


@pytest.fixture
def known(monkeypatch, tmp_path):
    """A made-up checkpoint, its archive and its safetensors, which count as the published ones."""
    data = pickle_of(tree())
    weights = converted(flat(tree()))
    archive = tmp_path / "i3d.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        member = tarfile.TarInfo(i3d_file.MEMBER)
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    (tmp_path / "i3d.ckpt").write_bytes(data)
    (tmp_path / "i3d.safetensors").write_bytes(save(weights))
    monkeypatch.setattr(i3d_file, "CHECKPOINT_SHA256", hashlib.sha256(data).hexdigest())
    monkeypatch.setattr(i3d_file, "SOURCE_SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(i3d_file, "WEIGHTS_SHA256", i3d_file.content_hash(weights))
    return tmp_path


@pytest.mark.parametrize("name", ["i3d.ckpt", "i3d.tar.gz", "i3d.safetensors"])
def test_weights_are_those_of_the_network(known, name):
    weights = load_weights(str(known / name))
    own = I3D(STEM, FEW, CLASSES).state_dict()
    assert {key: value.shape for key, value in weights.items()} == {k: tuple(v.shape) for k, v in own.items()}


@pytest.mark.parametrize("name", ["i3d.ckpt", "i3d.tar.gz", "i3d.safetensors"])
@pytest.mark.parametrize("damage", [lambda d: d[:-1], lambda d: d[:100], lambda d: d[:-9] + b"?" + d[-8:]])
def test_a_file_that_is_not_the_known_one_is_never_unpickled(known, name, damage, monkeypatch):
    monkeypatch.setattr(i3d_file, "unpickled", lambda _: pytest.fail("it was read"))
    path = known / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match="fetch i3d"):
        load_weights(str(path))


def test_safetensors_of_other_weights_are_refused(known):
    (known / "other.safetensors").write_bytes(save(converted(flat(tree(1)))))
    with pytest.raises(CheckpointError, match="holds other weights"):
        load_weights(str(known / "other.safetensors"))


def test_a_checkpoint_without_its_norms_is_refused(known):
    arrays = flat(tree())
    del arrays["batch_stats|Mixed_4c|Branch_1/Conv3d_0b_3x3|BatchNorm_0|var"]
    with pytest.raises(CheckpointError, match=r"lacks .*Mixed_4c"):
        converted(arrays)


def test_without_a_file_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(CheckpointError, match="sostenuto fetch i3d") as caught:
        load_weights()
    assert str(tmp_path / "sostenuto" / i3d_file.FILE) in str(caught.value)
