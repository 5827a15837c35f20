"""Checkpoints of a tiny teacher and a long-SFT student."""

import pytest

from tests.pipelines.training.makers import trained_starts


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return trained_starts(tmp_path_factory.mktemp("starts"))
