"""A tiny run to serve, for the tests of this room."""

from pathlib import Path

import pytest

from jobs.config.schema import RunConfig
from tests.jobs.serve.tiny_run import make_run


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    """A run that nothing has been asked of."""
    return make_run(tmp_path)
