"""What of a folder travels with a job: code does, videos, weights and archives do not, and it has to fit."""

import os
import zipfile

import pytest

from jobs import working_dir
from jobs.working_dir import EXCLUDES, WorkingDir, any_capitals
from models.errors import ClusterError


def fill(folder, *names, num_bytes=1):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(os.urandom(num_bytes))


def travels(folder):
    return sorted(path.relative_to(folder).as_posix() for path in WorkingDir(str(folder)).sizes)


@pytest.mark.parametrize(
    "name",
    [
        "a.mp4", "strip.gif", "clips/deep/A.MOV", "b.WebM", "c.mkv", "shards/000.tar", "x.tar.gz", "X.ZIP",
        "w.safetensors", "last.CKPT", "model.pth", "pytorch_model.bin", "unet.Onnx",
        "runs/notes.txt", "sub/__pycache__/a.py",
    ],
)  # fmt: skip
def test_videos_weights_archives_and_runs_stay(name, tmp_path):
    fill(tmp_path, "jobs/cli.py", "docs/strip.png", "data.csv", name)
    assert travels(tmp_path) == ["data.csv", "docs/strip.png", "jobs/cli.py"]


def test_ignore_files_count_wherever_they_lie(tmp_path):
    fill(tmp_path, "keep.py", "big/a.csv", "sub/keep.txt", "sub/not.txt")
    (tmp_path / ".rayignore").write_text("big\n")
    (tmp_path / "sub" / ".gitignore").write_text("not.txt\n")
    found = WorkingDir(str(tmp_path))
    assert travels(tmp_path) == [".rayignore", "keep.py", "sub/.gitignore", "sub/keep.txt"]
    assert found.left_out == ["big/", "sub/not.txt"]


def test_it_is_what_ray_packs(tmp_path):
    from ray._private.runtime_env.packaging import create_package

    folder, package = tmp_path / "folder", tmp_path / "package"
    fill(folder, "a.py", "clip.Mp4", "sub/b.py", "sub/c.txt", "runs/x", "venv/lib/y.py", "z.7z")
    (folder / ".gitignore").write_text("sub/c.txt\n")
    (folder / "gone").symlink_to("nowhere")
    create_package(str(folder), package, include_gitignore=True, excludes=list(EXCLUDES))
    packed = {name for name in zipfile.ZipFile(package).namelist() if not name.endswith("/")}
    assert set(travels(folder)) == packed - {"gone"} == {".gitignore", "a.py", "sub/b.py"}


def test_a_suffix_is_matched_in_any_capitals():
    assert any_capitals(".mp4") == "*.[mM][pP]4"


def test_folders_of_one_name_are_one_line(tmp_path):
    fill(tmp_path, "a.py", "runs/x", "a/__pycache__/b.pyc", "a/c/__pycache__/d.pyc")
    assert WorkingDir(str(tmp_path)).left_out == ["__pycache__/ (2)", "runs/"]


def test_the_largest_folders_are_named_before_anything_is_sent(tmp_path, monkeypatch):
    monkeypatch.setattr(working_dir, "MAX_BYTES", 300_000)
    fill(tmp_path, "footage/raw/a.yuv", "footage/raw/b.yuv", num_bytes=150_000)
    fill(tmp_path, "notes.txt", num_bytes=60_000)
    fill(tmp_path, "sub/table.csv", num_bytes=20_000)
    with pytest.raises(
        ClusterError, match=r"0\.4 MB.*: footage/ 0\.3 MB, \./ 0\.1 MB, sub/ 0\.0 MB"
    ) as caught:
        WorkingDir(str(tmp_path)).check()
    assert ".rayignore" in caught.value.remedy


def test_what_packs_small_may_travel(tmp_path, monkeypatch):
    monkeypatch.setattr(working_dir, "MAX_BYTES", 300_000)
    (tmp_path / "table.csv").write_bytes(b"0,1,2\n" * 200_000)
    found = WorkingDir(str(tmp_path))
    found.check()
    assert found.num_bytes == 1_200_000
