"""The doctor finds what is wrong, says what to do, and fails when something must be done."""

import importlib.metadata
import os

import pytest

from jobs.commands import doctor
from jobs.config import load as configs
from models.errors import ClusterError


@pytest.fixture(autouse=True)
def _no_token(tmp_path, monkeypatch):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(doctor.Path, "home", lambda: tmp_path / "home")


def test_this_environment_is_fit(run_config, capsys):
    doctor.doctor(run_config)
    out = capsys.readouterr().out
    assert all(name in out for name in doctor.CHECKS)
    assert "fail" not in out


def test_whatever_is_wrong_has_a_remedy(run_config):
    assert all(bool(found.remedy) == (found.verdict != "ok") for found in doctor.examine(run_config).values())


def test_a_failed_check_fails_the_command(run_config, monkeypatch, capsys):
    monkeypatch.setattr(doctor.sys, "version_info", (3, 10, 0))
    with pytest.raises(ClusterError, match=r"1 check\(s\) failed: python"):
        doctor.doctor(run_config)
    assert "make PYTHON=" in capsys.readouterr().out


def test_a_distribution_named_kernels_is_found(run_config, monkeypatch):
    real = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "0.18.2" if name == "kernels" else real(name)
    )
    found = doctor.check_kernels_name(run_config)
    assert found.verdict == "fail"
    assert "pip uninstall kernels" in found.remedy


def test_another_package_named_kernels_in_the_way_is_found(run_config, monkeypatch):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    assert doctor.check_kernels_name(run_config).verdict == "fail"


def test_a_missing_library_is_named(run_config, monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "av" else "1")
    found = doctor.check_libraries(run_config)
    assert found.verdict == "fail"
    assert "Install av" in found.remedy


def test_ray_without_its_dashboard_is_found(run_config, monkeypatch):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    assert "ray[default]" in doctor.check_libraries(run_config).remedy


TOKENS = [
    ({}, None, "ok", "makes its own"),
    ({"RAY_AUTH_MODE": "disabled"}, None, "warn", "disabled"),
    ({"RAY_ADDRESS": "1.2.3.4:6379"}, None, "fail", "no token"),
    ({}, 0o600, "warn", "401"),
    ({"RAY_AUTH_MODE": "token"}, 0o644, "warn", "read by others"),
    ({"RAY_AUTH_MODE": "token"}, 0o600, "ok", "token present"),
    ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "x"}, None, "ok", "token present"),
]


@pytest.mark.parametrize(("environment", "mode", "verdict", "told"), TOKENS)
def test_tokens(run_config, tmp_path, monkeypatch, environment, mode, verdict, told):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if mode is not None:
        path = tmp_path / "home" / ".ray" / "auth_token"
        path.parent.mkdir(parents=True)
        path.write_text("token")
        path.chmod(mode)
    found = doctor.check_token(run_config)
    assert found.verdict == verdict
    assert told in found.found


def test_an_unwritable_root_is_found(run_config, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    bad = configs.with_values(run_config, {"storage.root": str(tmp_path / "file" / "runs")})
    found = doctor.examine(bad)
    assert found["storage"].verdict == "fail"
    assert found["mlflow"].verdict == "fail"


def test_a_remote_root_is_asked(run_config):
    remote = configs.with_values(run_config, {"storage.root": "memory://runs", "tracking.enabled": False})
    assert doctor.check_storage(remote).verdict == "ok"
    unknown = configs.with_values(run_config, {"storage.root": "nosuch://runs", "tracking.enabled": False})
    assert doctor.check_storage(unknown).verdict == "fail"
    assert doctor.check_tracking(unknown).found == "tracking.enabled=false"


def test_a_wanted_gpu_that_is_not_there_is_found(run_config, monkeypatch):
    import torch

    wants = configs.with_values(run_config, {"cluster.use_gpu": True})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert doctor.check_gpu(wants).verdict == "fail"
    assert doctor.check_gpu(run_config).verdict == "ok"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert doctor.check_gpu(wants).verdict == "ok", "the cluster's nodes have them"


def test_little_memory_and_little_disk_are_told(run_config, monkeypatch):
    monkeypatch.setattr(doctor, "MEMORY_BYTES", 1 << 60)
    assert doctor.check_memory(run_config).verdict == "warn"
    monkeypatch.setattr(doctor, "MEMORY_BYTES", 0)
    monkeypatch.setattr(doctor, "SHARED_BYTES", 1 << 60)
    assert "/dev/shm" in doctor.check_memory(run_config).remedy
    monkeypatch.setattr(doctor, "DISK_BYTES", 1 << 60)
    assert doctor.check_storage(run_config).verdict == "warn"


def test_a_codec_that_does_not_work_is_found(run_config, monkeypatch):
    import av

    def refuse(*_words, **_named):
        raise OSError("no encoder")

    monkeypatch.setattr(av, "open", refuse)
    found = doctor.check_codecs(run_config)
    assert found.verdict == "fail"
    assert "no encoder" in found.found


def test_the_environment_is_left_as_it_was(run_config):
    before = dict(os.environ)
    doctor.check_token(run_config)
    doctor.check_codecs(run_config)
    assert dict(os.environ) == before
