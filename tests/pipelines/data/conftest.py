"""Two small corpora that lie in a known number of directions, and the dataset ingested from them once."""

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from models.config import AutoencoderConfig
from pipelines.data.config import DataConfig
from pipelines.data.ingest.pipeline import ingest
from pipelines.data.store.info import DatasetInfo
from tests.pipelines.data.corpora import DATA, write_corpora


class Ingested(NamedTuple):
    """A dataset and what it came from."""

    short: Path
    long: Path
    out: Path
    data: DataConfig
    info: DatasetInfo
    progress: list[tuple[str, int, int]]


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of SHORT and LONG."""
    return write_corpora(tmp_path_factory.mktemp("corpora"))


@pytest.fixture(scope="session")
def ingested(
    ray_local: None, corpora: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Ingested:
    """Not to be changed by a test: copy it."""
    out = tmp_path_factory.mktemp("ingested") / "dataset"
    said: list[tuple[str, int, int]] = []
    short, long = corpora
    info = ingest(
        str(short),
        str(long),
        str(out),
        DATA,
        AutoencoderConfig(fit_frames=120),
        0,
        lambda *step: said.append(step),
    )
    return Ingested(short, long, out, DATA, info, said)


@pytest.fixture
def copied(ingested: Ingested, tmp_path: Path) -> Ingested:
    """The dataset and its corpora, to be changed."""
    for name, folder in (("short", ingested.short), ("long", ingested.long), ("dataset", ingested.out)):
        shutil.copytree(folder, tmp_path / name)
    return ingested._replace(short=tmp_path / "short", long=tmp_path / "long", out=tmp_path / "dataset")
