"""What ingest is measured against makes the same windows, so that a ratio compares the same work."""

import sys
from pathlib import Path
from types import ModuleType

import pyarrow.parquet as pq
import pytest
import torch

from tests.command import REPOSITORY
from tests.pipelines.data.conftest import Ingested
from tests.pipelines.data.corpora import SIZE


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(REPOSITORY / "benchmarks"), *sys.path])
    import ingest_peers

    return ingest_peers


def stored(files: list[Path]) -> list[torch.Tensor]:
    """Latents of all rows, in an order of their own."""
    tables = [pq.read_table(file)["latents"].combine_chunks().to_numpy_ndarray() for file in files]
    rows = [torch.from_numpy(row.copy()) for table in tables for row in table]
    return sorted(rows, key=lambda row: row.flatten()[:4].tolist())


def test_the_plain_loop_makes_the_windows_of_ingest(
    peers: ModuleType, ingested: Ingested, tmp_path: Path
) -> None:
    cut = peers.Cut(str(ingested.out / "autoencoder"), SIZE, SIZE, 24, 12)
    clips = sorted(ingested.long.rglob("*.mp4"))
    made = [peers.convert(str(clip), str(tmp_path / f"{i}.parquet"), cut) for i, clip in enumerate(clips)]
    assert sum(made) == ingested.info.long.windows
    ours = stored(sorted((ingested.out / "long").glob("*.parquet")))
    theirs = stored(sorted(tmp_path.glob("*.parquet")))
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(ours, theirs, strict=True))
