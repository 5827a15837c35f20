"""A preview says what ingest keeps, and leaves nothing behind."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.data.config import CurationConfig
from pipelines.data.ingest.pipeline import ingest
from pipelines.data.ingest.preview import preview
from pipelines.data.report.summary import read_tables, summarise
from tests.pipelines.data.conftest import Ingested
from tests.pipelines.data.ingest.test_curated_ingest import DATA, FIT, Corpora, write_corpora


@pytest.fixture(scope="module")
def curated(tmp_path_factory: pytest.TempPathFactory) -> Corpora:
    return write_corpora(tmp_path_factory.mktemp("previewed"))


@pytest.mark.parametrize(
    "curation",
    [CurationConfig(), CurationConfig(min_motion=0.01, duplicate_distance=8, duplicates_across=True)],
)
def test_a_preview_counts_what_ingest_then_keeps(
    curation: CurationConfig, ray_local: None, curated: Corpora, tmp_path: Path
) -> None:
    data = replace(DATA, curation=curation)
    said: list[tuple[str, int, int]] = []
    short, long = str(curated.short), str(curated.long)
    seen = preview(short, long, str(tmp_path / "d"), data, lambda *step: said.append(step))
    assert list(tmp_path.iterdir()) == []
    info = ingest(short, long, str(tmp_path / "d"), data, FIT, 0)
    for corpus in ("short", "long"):
        described = info.corpus(corpus)
        assert seen[corpus].windows == described.windows
        assert seen[corpus].videos == described.videos
        assert seen[corpus].hours == pytest.approx(described.hours)
        looked = summarise(read_tables(str(tmp_path / "d"))).corpus(corpus)
        assert (seen[corpus].rejects, seen[corpus].drops) == (looked.rejects, looked.drops)
        assert sum(found.count for found in seen[corpus].drops) == described.dropped_windows
    if curation.duplicates_across:
        kinds = {found.kind for corpus in seen.values() for found in corpus.drops}
        assert kinds == {"min_motion", "near duplicate"}
    assert {corpus for corpus, _, _ in said} == {"short", "long"}


def test_a_finished_dataset_is_not_touched(ingested: Ingested) -> None:
    before = {path: path.stat().st_mtime_ns for path in ingested.out.rglob("*")}
    seen = preview(
        str(ingested.short), str(ingested.long), str(ingested.out), ingested.data, lambda *step: None
    )
    assert {path: path.stat().st_mtime_ns for path in ingested.out.rglob("*")} == before
    assert seen["short"].windows == ingested.info.short.windows
