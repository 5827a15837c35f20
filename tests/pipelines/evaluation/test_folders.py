"""Folders of videos against real ones: what is read, what is left out and told, and what is kept."""

import numpy as np
import pytest

from models.errors import DataError
from pipelines.data.config import LimitsConfig
from pipelines.evaluation import folders as module
from pipelines.evaluation.config import EvaluationConfig
from pipelines.evaluation.folders import FolderSettings, open_folder
from pipelines.evaluation.report.summary import columns, remarks
from pipelines.evaluation.run import evaluate_folders, open_folders
from pipelines.media.video import write_mp4
from pipelines.tracking import no_progress
from tests.pipelines.evaluation.clips import moving_clip

FPS = 8.0


def write(folder, seeds, change=lambda clip: clip, frames=32, fps=FPS, size=64):
    folder.mkdir()
    for seed in seeds:
        write_mp4(folder / f"{seed:03d}.mp4", change(moving_clip(seed, frames, size)), fps)
    return str(folder)


def frozen(clip):
    return np.repeat(clip[:1], len(clip), axis=0)


@pytest.fixture(autouse=True, scope="module")
def _one_decoder():
    yield
    module._decoder(LimitsConfig()).close()
    module._decoder.cache_clear()


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folders of real videos, of others like them, and of frozen ones."""
    root = tmp_path_factory.mktemp("places")
    return {
        "real": write(root / "real", range(12)),
        "good": write(root / "good", range(100, 106)),
        "frozen": write(root / "frozen", range(200, 206), frozen),
        "held": write(root / "held", range(100, 104), lambda clip: clip.repeat(2, axis=0), fps=2 * FPS),
        "brief": write(root / "brief", range(300, 304), frames=8),
    }


@pytest.fixture
def settings(tmp_path):
    return FolderSettings(evaluation=EvaluationConfig(), cache=str(tmp_path / "cache"))


class Logits:
    """In place of I3D: 400 numbers of a window's frames."""

    def __init__(self, rule):
        self.rule = rule

    def __call__(self, frames):
        mix = np.random.RandomState(0).standard_normal((6, 400))
        windows = [frames.numpy()[numbers] / 255.0 for numbers in self.rule.windows(len(frames))]
        means = [
            np.concatenate([w.mean((0, 1, 2)), 10 * np.abs(np.diff(w, axis=0)).mean((0, 1, 2))])
            for w in windows
        ]
        return (np.array(means) @ mix).astype(np.float32)


@pytest.fixture
def here(monkeypatch):
    """Work in this process; the videos that were measured, and by which keys."""
    measured = []

    def in_turn(work, items, workers):
        for index, item in enumerate(items):
            measured.append((item.clip.source.path, len(item.missing)))
            yield index, work(item)

    monkeypatch.setattr(module, "ray_map", in_turn)
    monkeypatch.setattr(module, "i3d_features", lambda plan, device: Logits(plan.rule))
    return measured


def compared(places, settings, *names, reference="real", control=None, fps=None):
    opened = open_folders({name: places[name] for name in names}, places[reference], control, fps, settings)
    return evaluate_folders(opened)


def test_real_videos_are_near_and_frozen_ones_far(places, settings, here):
    result = compared(places, settings, "good", "frozen")
    assert list(result.rows) == ["good", "frozen", "real"]
    good, still, real = result.rows.values()
    for name in ("fvd.rand3d-diff", "kvd.rand3d-diff", "fvd.st-stats"):
        assert still.metrics[name] > 2 * good.metrics[name]
        assert good.distances[name].n == good.distances[name].reference == 12
        assert real.metrics[name] == real.distances[name].floor == good.distances[name].floor
    assert still.metrics["motion"] < 0.1 * good.metrics["motion"]
    assert "fvd" not in good.metrics
    assert result.notes[-1] == "2 windows of 16 frames per video, at 8 frames per second"
    assert "NFE" not in columns(result)
    assert any(remark.startswith("fvd.rand3d-diff: rand3d-diff/1") for remark in remarks([result]))


def test_i3d_gives_its_figures_with_intervals_beside_a_real_row(places, settings, here):
    wanted = module.replace(settings, evaluation=EvaluationConfig(fvd=True, few=True))
    result = compared(places, wanted, "good", "frozen")
    good, still, real = (row.distances for row in result.rows.values())
    for name in ("fvd", "kvd", "mmd_jedi"):
        assert still[name].value > good[name].value
        assert good[name].low <= good[name].value <= good[name].high
        assert real[name].value == real[name].floor == good[name].floor
    assert len(result.rows["good"].metrics["kvd_by_position"]) == 2
    assert {"FVD": "fvd", "KVD": "kvd", "JEDi MMD": "mmd_jedi", "IS": "inception_score"}.items() <= columns(
        result
    ).items()
    told = next(remark for remark in remarks([result]) if remark.startswith("real on i3d/1"))
    assert "n 12 against 12: fvd " in told
    assert told.count("95 %") == told.count("at infinite n") == 4


def test_fvd_of_few_windows_is_told_why_it_is_not_there(places, settings, here):
    wanted = module.replace(settings, evaluation=EvaluationConfig(fvd=True))
    result = compared(places, wanted, "good")
    assert "fvd" not in result.rows["good"].metrics
    assert "kvd" in result.rows["good"].metrics
    assert any("under 1600 a side" in note for note in result.notes)


def test_what_was_measured_is_kept_and_i3d_adds_only_its_own(places, settings, here):
    first = compared(places, settings, "good")
    assert len(here) == 18
    here.clear()
    again = compared(places, settings, "good")
    assert here == []
    assert again.rows == first.rows
    wanted = module.replace(settings, evaluation=EvaluationConfig(fvd=True, fvd_videos=4))
    opened = open_folders({"good": places["good"]}, places["real"], None, None, wanted)
    assert opened.unseen_windows == (4 + 8) * 2
    evaluate_folders(opened)
    assert {missing for _, missing in here} == {1}
    assert len(here) == 4 + 8
    assert opened.unseen_windows == 0


def test_all_are_at_the_references_rate_and_others_are_resampled(places, settings, here):
    result = compared(places, settings, "held", "good")
    assert "held has 16 frames per second, resampled to 8" in result.notes
    held, good = result.rows["held"].metrics, result.rows["good"].metrics
    assert held["motion"] == pytest.approx(good["motion"], rel=0.3)
    faster = compared(places, settings, "good", fps=16.0)
    assert "3 windows of 16 frames per video, at 16 frames per second" not in faster.notes
    assert "4 windows of 16 frames per video, at 16 frames per second" in faster.notes


def test_windows_of_brief_videos_are_held_and_say_so(places, settings, here):
    wanted = module.replace(settings, evaluation=EvaluationConfig(fvd=True, few=True))
    result = compared(places, wanted, "brief")
    assert {"fvd.held8", "kvd.held8", "inception_score.held8"} <= set(result.rows["brief"].distances)
    assert "fvd" not in result.rows["brief"].distances
    assert "1 windows of 8 frames per video, at 8 frames per second" in result.notes


def test_files_that_cannot_be_used_are_told(places, settings, here, tmp_path):
    folder = tmp_path / "mixed"
    write(folder, range(400, 404))
    (folder / "broken.mp4").write_bytes((folder / "400.mp4").read_bytes()[:900])
    (folder / "playlist.mp4").write_text("#EXTM3U\nfile:///etc/passwd\n")
    write_mp4(folder / "short.mp4", moving_clip(1, 5), FPS)
    (folder / "outside.mp4").symlink_to("/etc/passwd")
    result = compared(places | {"mixed": str(folder)}, settings, "mixed")
    note = next(note for note in result.notes if note.startswith("mixed:"))
    assert "4 of 8 files left out" in note
    assert result.rows["mixed"].distances["fvd.rand3d-diff"].n == 8


def test_a_video_whose_worker_dies_is_told(places, settings, here, monkeypatch):
    in_turn = module.ray_map
    monkeypatch.setattr(module, "ray_map", lambda *given: list(in_turn(*given))[1:])
    opened = open_folder("good", places["good"], settings, no_progress)
    left, measured = module.measure_folder(opened, module.plan_for([opened], FPS), no_progress)
    assert left.clips == opened.clips[1:]
    assert len(measured.captions) == 5
    assert left.refused == ((opened.clips[0].source.path, "its worker died each time; more memory may help"),)


def test_videos_of_two_frames_are_too_brief(places, settings, here):
    opened = open_folder("brief", places["brief"], settings, no_progress)
    with pytest.raises(DataError, match="brief have 2 frames at 2 a second"):
        module.plan_for([opened], 2.0)


def test_another_folder_may_be_the_control(places, settings, here):
    result = compared(places, settings, "good", control=places["good"])
    good = result.rows["good"].distances["fvd.rand3d-diff"]
    assert (good.n, good.reference) == (12, 24)
    assert good.value == good.floor == result.rows["real"].metrics["fvd.rand3d-diff"]
    few = compared(places, settings, "good", control=places["held"])
    assert any("4 of its 6 videos count" in note for note in few.notes)


def test_a_folder_without_videos_is_refused(settings, tmp_path):
    with pytest.raises(DataError, match="no video"):
        open_folder("empty", str(tmp_path), settings, no_progress)
    (tmp_path / "a.mp4").write_text("no video at all")
    with pytest.raises(DataError, match=r"a\.mp4: the first bytes"):
        open_folder("text", str(tmp_path), settings, no_progress)
    with pytest.raises(DataError):
        open_folder("missing", str(tmp_path / "nowhere"), settings, no_progress)


def test_workers_measure_as_this_process_does(places, settings, ray_local, monkeypatch, tmp_path):
    result = compared(places, settings, "good", "frozen")
    again = module.replace(settings, cache=str(tmp_path / "other"))
    monkeypatch.setattr(
        module, "ray_map", lambda work, items, workers: ((i, work(item)) for i, item in enumerate(items))
    )
    assert compared(places, again, "good", "frozen").rows == result.rows
