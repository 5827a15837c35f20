"""The teacher gate on teachers whose distance is known."""

import dataclasses
import logging

import pytest

from models.errors import ConfigError
from models.rng import Key, normal
from pipelines.training.stage import Batch, Captions
from pipelines.training.teacher_gate import check_teacher, teacher_ratio
from tests.models.builders import GaussianVelocity, captions
from tests.pipelines.training.makers import DISTILL, SHORT, recipe


def _short(count: int) -> Batch:
    x = 0.5 + 0.7 * normal(SHORT, Key(0, purpose="gate-test"), range(count))
    return Batch(x, ["red sun"] * count, range(count), count)


def _ratio(teacher: GaussianVelocity, batch: int = 300) -> float:
    x = _short(600).latents
    return teacher_ratio(teacher, captions(300), x[:300], x[300:], 1.0, Key(1), batch)


def test_the_exact_teacher_is_as_near_as_the_corpus_itself() -> None:
    assert 0.7 < _ratio(GaussianVelocity(0.5, 0.7)) < 1.5


def test_the_ratio_grows_with_the_teachers_fault() -> None:
    ratios = [_ratio(GaussianVelocity(0.5 + fault, 0.7)) for fault in (0.0, 0.2, 0.4, 0.8)]
    assert ratios == sorted(ratios)
    assert ratios[-1] > 5


def test_the_ratio_does_not_depend_on_how_many_are_sampled_together() -> None:
    teacher = GaussianVelocity(0.9, 0.7)
    assert _ratio(teacher, 7) == pytest.approx(_ratio(teacher), rel=1e-4)


def test_a_bad_teacher_is_refused_or_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = GaussianVelocity(2.0, 0.7)
    refuse = recipe(dataclasses.replace(DISTILL, teacher_gate="refuse"))
    with pytest.raises(ConfigError, match="Train the teacher longer"):
        check_teacher(bad, _short(200), refuse, Captions(refuse.text))
    # libraries that ran before in this process may have changed what the root logger shows
    monkeypatch.setattr(logging.getLogger("sostenuto.training"), "disabled", False)
    with caplog.at_level(logging.WARNING, logger="sostenuto.training"):
        ratio = check_teacher(bad, _short(200), recipe(DISTILL), Captions(refuse.text))
    assert ratio is not None
    assert ratio > 3
    assert "times as far" in caplog.text


def test_too_few_windows_say_nothing() -> None:
    told = recipe(DISTILL)
    assert check_teacher(GaussianVelocity(2.0, 0.7), _short(3), told, Captions(told.text)) is None
