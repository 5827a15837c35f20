"""Captions in the forms that people have, listed with their videos."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import DataError
from pipelines.data.ingest.worker import new_status
from pipelines.data.source.captions import MAX_SIDECAR_BYTES
from pipelines.data.source.manifest import list_corpus, local_copy
from pipelines.data.store.ledger import Status
from pipelines.data.tables import open_parquet, table_of, to_parquet
from tests.pipelines.data.source.archives import json_lines, put, tar_bytes
from tests.pipelines.data.source.test_metadata import as_csv, of_rows


@pytest.mark.parametrize(
    ("files", "found", "note"),
    [
        ({"a.txt": "a bay", "b.caption": "a hill"}, {"a.mp4": "a bay", "b.mp4": "a hill"}, ""),
        (
            {"a.json": '{"Prompt": "a bay", "fps": 8}', "B.TXT": "a hill"},
            {"a.mp4": "a bay", "b.mp4": "a hill"},
            "",
        ),
        (
            {"Captions.TSV": "Video\t Prompt\na.mp4\ta bay\n", "b.txt": "a hill"},
            {"a.mp4": "a bay", "b.mp4": "a hill"},
            "",
        ),
        (
            {"metadata.csv": "file_name,label\na.mp4,3\n", "v2.csv": "a,b\n", "notes.txt": "n"},
            {"a.mp4": "a", "b.mp4": "b"},
            "2 of 2 videos are captioned by their names; not used: columns label, files notes.txt, v2.csv",
        ),
        (
            {"a.json": '{"fps": 8}', "b.json": "[1]", "labels.json": '{"0": "x"}', "x.md": "x"},
            {"a.mp4": "a", "b.mp4": "b"},
            (
                "2 of 2 videos are captioned by their names; not used: columns fps, files b.json, "
                "labels.json; no videos by their names: 1 .md, such as x.md"
            ),
        ),
        (
            {"metadata.csv": "file_name,caption,text\na.mp4,a bay,bay\nb.mp4,a hill,hill\n", "n.txt": "n"},
            {"a.mp4": "a bay", "b.mp4": "a hill"},
            "0 of 2 videos are captioned by their names; not used: columns text",
        ),
        (
            {"x.tar": tar_bytes([("c.MP4", b"c"), ("C.Json", b'{"TEXT": "in it"}'), ("d.csv", b"n")])},
            {"a.mp4": "a", "b.mp4": "b", "x.tar/c.MP4": "in it"},
            "2 of 3 videos are captioned by their names; not used: files x.tar/d.csv",
        ),
    ],
)
def test_captions_as_people_have_them_or_what_was_not_used(
    files: dict[str, str | bytes], found: dict[str, str], note: str, tmp_path: Path
) -> None:
    for name, content in {"a.mp4": "a", "b.mp4": "b", **files}.items():
        put(tmp_path, name, content)
    listing = list_corpus(tmp_path)
    assert {source.path: source.caption for source in listing.sources} == found
    assert listing.note == note
    assert listing.rejects == []


def test_a_sidecar_and_a_table_that_disagree_are_both_named(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    put(tmp_path, "a.txt", "a hill")
    put(tmp_path, "captions.jsonl", json.dumps({"video": "a.mp4", "text": "a bay"}))
    with pytest.raises(DataError, match=r"captions\.jsonl 'a bay', a\.txt 'a hill'") as caught:
        list_corpus(tmp_path)
    assert "Keep one of them" in caught.value.remedy


def test_a_bad_sidecar_costs_its_video_alone(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4", "c.mp4", "d.mp4"):
        put(tmp_path, name)
    put(tmp_path, "b.txt", b"\xff")
    put(tmp_path, "c.txt", b" " * (MAX_SIDECAR_BYTES + 1))
    put(tmp_path, "secret.txt", "s")
    (tmp_path / "d.txt").symlink_to("/etc/hostname")
    listing = list_corpus(tmp_path)
    assert [source.path for source in listing.sources] == ["a.mp4"]
    reasons = [reject.reason for _, reject in listing.rejects]
    for reason, words in zip(
        reasons, ("b.txt: 'utf-8'", "c.txt has 1048577", "d.txt: it is a link"), strict=True
    ):
        assert words in reason


def test_a_manifest_in_other_spellings(tmp_path: Path) -> None:
    put(tmp_path, "vel\u0065\u0301/A.mp4")
    rows = [{"Video": f"{tmp_path}/vel\u00e9/a", "Prompt": "a bay"}]
    put(tmp_path, "list.json", json.dumps(rows))
    listing = list_corpus(tmp_path / "list.json")
    assert [(s.path, s.caption) for s in listing.sources] == [("vel\u0065\u0301/A.mp4", "a bay")]


odd = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=("Cs",))
    | st.sampled_from("'\"`#?%&;:,|\\ \n\t{}[]()<>!$*=@~^\u0301\u200d"),
    min_size=1,
    max_size=30,
) | st.sampled_from(
    ["2024-11-20", "1e5", "007", "null", "true", "nan", "~", "a::b", "%41", "file:", "=1+1", "C:"]
)
WRITTEN = {"csv": as_csv, "jsonl": lambda rows: json_lines(rows).encode(), "parquet": of_rows}


def visible(name: str) -> bool:
    return not name.startswith(".") and len(name.encode()) < 200


@settings(max_examples=200)
@given(
    root=odd.filter(visible),
    videos=st.dictionaries(odd.filter(visible), odd.filter(str.strip), min_size=1, max_size=3),
    form=st.sampled_from(sorted(WRITTEN)),
    absolute=st.booleans(),
)
def test_names_roots_and_captions_come_back_unchanged(
    root: str,
    videos: dict[str, str],
    form: str,
    absolute: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("odd") / root
    rows = []
    for number, (name, caption) in enumerate(videos.items()):
        put(folder, f"{name}.mp4", f"video {number}")
        rows.append({"file_name": f"{folder if absolute else '.'}/{name}.mp4", "caption": caption})
    put(folder, f"metadata.{form}", WRITTEN[form](rows))
    listing = list_corpus(folder)
    assert listing.root == str(folder)
    assert listing.rejects == []
    statuses = [new_status("short", source) for source in listing.sources]
    table = open_parquet(to_parquet(table_of(Status, statuses))).read()
    found = dict(zip(table["source"].to_pylist(), table["caption"].to_pylist(), strict=True))
    assert found == {f"{name}.mp4": caption.strip() for name, caption in videos.items()}
    for source in listing.sources:
        with local_copy(listing.root, source) as path:
            assert hashlib.sha256(Path(path).read_bytes()).hexdigest() == source.id
