"""What the tests that disturb a distillation compare with."""

from pathlib import Path

import pytest

from tests.command import MADE_BY_DISTILLATION, copy_runs
from tests.reliability.distillation import distilled


@pytest.fixture(scope="session")
def prepared(finished_quickstart: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose dataset, teacher and long-SFT student are finished."""
    return copy_runs(finished_quickstart, tmp_path_factory.mktemp("prepared"), *MADE_BY_DISTILLATION)


@pytest.fixture(scope="session")
def undisturbed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last checkpoint of a distillation that nothing happened to."""
    return distilled(prepared, tmp_path_factory.mktemp("undisturbed"))
