"""A tar gives its videos by place and length, their captions, and a reason for everything else."""

import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.data.source import tars as module
from pipelines.data.source.captions import MAX_SIDECAR_BYTES, Caption
from pipelines.data.source.corpus import Corpus, File
from pipelines.data.source.tars import TarListing, list_tar
from pipelines.data.types import Reject
from tests.pipelines.data.source.archives import Member, put, special, tar_bytes

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
THREE: list[Member] = [
    ("a/1.mp4", b"1" * 700),
    ("a/1.txt", b"one"),
    ("a/2.mp4", b"2" * 512),
    ("a/2.txt", b"two"),
    ("b/3.mp4", b"3" * 90),
]


def listed(root: Path, content: bytes) -> TarListing:
    put(root, "x.tar").write_bytes(content)
    return list_tar(Corpus(root), "x.tar", File(len(content), "now"))


def of(root: Path, *members: Member) -> TarListing:
    return listed(root, tar_bytes(members))


def caption_in(listing: TarListing, video: str) -> Caption | Reject | None:
    """What its one sidecar says of a video; None without any."""
    (said,) = [said for name, _, said in listing.captions if name == video] or [None]
    return said


def reasons(listing: TarListing) -> dict[str, str]:
    return {name: reject.reason for name, reject in listing.rejects}


@pytest.mark.parametrize("format_name", FORMATS)
@given(contents=st.lists(st.binary(max_size=1500), min_size=1, max_size=6), deep=st.booleans())
def test_the_bytes_of_a_member_lie_where_it_says(
    format_name: str, tmp_path_factory: pytest.TempPathFactory, contents: list[bytes], deep: bool
) -> None:
    folder = f"{'d' * 90}/{'e' * 90}/" if deep and format_name != "ustar" else "\u00e9/" if deep else ""
    members = {f"{folder}{index}.mp4": content for index, content in enumerate(contents)}
    tar = tar_bytes(members.items(), FORMATS[format_name])
    listing = listed(tmp_path_factory.mktemp("tar"), tar)
    assert listing.rejects == []
    assert {
        name: tar[member.offset : member.offset + member.num_bytes]
        for name, member in listing.members.items()
    } == members


@pytest.mark.parametrize(
    ("texts", "caption"),
    [
        ({}, None),
        ({"v.txt": b" a bay \n"}, Caption("a bay", {})),
        ({"V.Caption": b"a bay"}, Caption("a bay", {})),
        ({"v.mp4.TXT": b"a bay"}, Caption("a bay", {})),
        ({"v.json": b'{"caption": "a bay", "label": 3}'}, Caption("a bay", {"label": 3})),
        ({"V.JSON": b'{" Prompt": "a bay"}'}, Caption("a bay", {})),
        ({"v.txt": b""}, Caption("", {})),
        ({"other.txt": b"a hill"}, None),
    ],
)
def test_captions_are_the_members_of_the_same_key(
    texts: dict[str, bytes], caption: Caption | None, tmp_path: Path
) -> None:
    members: list[Member] = [(f"a/{name}", text) for name, text in texts.items()]
    for order in ([*members, ("a/v.mp4", b"v")], [("a/v.mp4", b"v"), *members]):
        listing = of(tmp_path, *order)
        assert caption_in(listing, "a/v.mp4") == caption
        assert sorted(listing.wordy) == sorted(f"a/{name}" for name in texts)


def test_a_key_ends_at_the_first_dot(tmp_path: Path) -> None:
    listing = of(
        tmp_path, ("1.left.mp4", b"l"), ("1.right.mp4", b"r"), ("1.txt", b"both"), ("1.right.txt", b"own")
    )
    assert listing.captions == [
        ("1.left.mp4", "1.txt", Caption("both", {})),
        ("1.right.mp4", "1.right.txt", Caption("own", {})),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ({"v.txt": b"\xff"}, "v.txt: 'utf-8'"),
        ({"v.json": b"{"}, "v.json: Expecting"),
        ({"v.json": b'{"caption": 5}'}, "caption is int, not text"),
        ({"v.txt": b"x" * (MAX_SIDECAR_BYTES + 1)}, "v.txt has 1048577 bytes"),
    ],
)
def test_a_bad_caption_costs_its_video_only(text: dict[str, bytes], words: str, tmp_path: Path) -> None:
    listing = of(tmp_path, ("v.mp4", b"v"), *text.items(), ("w.mp4", b"w"))
    assert listing.rejects == []
    caption = caption_in(listing, "v.mp4")
    assert isinstance(caption, Reject)
    assert words in caption.reason
    assert caption_in(listing, "w.mp4") is None


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (("../a.mp4", b"x"), "leaves the corpus folder"),
        (("b/../../a.mp4", b"x"), "leaves the corpus folder"),
        (("/etc/a.mp4", b"x"), "leaves the corpus folder"),
        (special("../d", tarfile.DIRTYPE), "leaves the corpus folder"),
        (special("a.mp4", tarfile.SYMTYPE, "ok.mp4"), "a link in a tar"),
        (special("a.mp4", tarfile.SYMTYPE, "/etc/hostname"), "a link in a tar"),
        (special("a.mp4", tarfile.LNKTYPE, "ok.mp4"), "a link in a tar"),
        (special("a.mp4", tarfile.CHRTYPE), "no plain file"),
        (special("a.mp4", tarfile.BLKTYPE), "no plain file"),
        (special("a.mp4", tarfile.FIFOTYPE), "no plain file"),
        (("ok.mp4", b"again"), "two members of this name"),
        (("./ok.mp4", b"again"), "two members of this name"),
    ],
)
def test_an_unsafe_member_is_refused_alone(member: Member, words: str, tmp_path: Path) -> None:
    listing = of(tmp_path, ("ok.mp4", b"x"), member, ("z.mp4", b"z"))
    assert sorted(listing.members) == ["ok.mp4", "z.mp4"]
    ((name, reject),) = listing.rejects
    assert words in reject.reason
    assert name in (member if isinstance(member, tuple) else (member.name,)) or name == "ok.mp4"


def test_folders_hidden_names_and_other_files_are_passed_over(tmp_path: Path) -> None:
    names = ("./a/1.mp4", "a/._1.mp4", ".git/2.mp4", "a/readme.md", "a/list.m3u8")
    listing = of(tmp_path, special("./a", tarfile.DIRTYPE), *((name, b"x") for name in names))
    assert list(listing.members) == ["a/1.mp4"]
    assert listing.rejects == []


def test_a_sparse_member_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.mp4")
    info.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": "1"}
    tar = tar_bytes([info, ("b.mp4", b"b")], tarfile.PAX_FORMAT)
    listing = listed(tmp_path, tar)
    assert reasons(listing) == {"a.mp4": "it is no plain file"}
    assert list(listing.members) == ["b.mp4"]


def test_a_cut_tar_keeps_what_stands_before_the_cut(tmp_path: Path) -> None:
    """Every place of a cut: the members whose bytes are all there, and one reject unless the end is there."""
    tar = tar_bytes(THREE)
    whole = listed(tmp_path, tar).members
    end = max(member.offset + 512 for member in whole.values())
    for length in range(0, len(tar), 64):
        listing = listed(tmp_path, tar[:length])
        there = {name for name, member in whole.items() if member.offset + member.num_bytes <= length}
        assert set(listing.members) == there, length
        assert [name for name, _ in listing.rejects] == ([] if length >= end + 512 else [""]), length
        assert all("damaged" in reason for reason in reasons(listing).values())


def test_a_damaged_header_in_the_middle_is_no_end(tmp_path: Path) -> None:
    tar = bytearray(tar_bytes(THREE))
    tar[tar.index(b"a/2.mp4")] ^= 1
    listing = listed(tmp_path, bytes(tar))
    assert list(listing.members) == ["a/1.mp4"]
    assert "damaged" in reasons(listing)[""]


@pytest.mark.parametrize("content", [b"", b"no tar", b"x" * 2000, b"\x1f\x8b" + b"\0" * 600])
def test_what_is_no_tar_is_refused(content: bytes, tmp_path: Path) -> None:
    listing = listed(tmp_path, content)
    assert listing.members == {}
    assert "damaged" in reasons(listing)[""]


def test_an_empty_tar_holds_nothing(tmp_path: Path) -> None:
    assert listed(tmp_path, tar_bytes([])) == TarListing()


def test_a_size_below_zero_does_not_turn_it_in_circles(tmp_path: Path) -> None:
    tar = bytearray(tar_bytes([("a.mp4", b""), ("b.mp4", b"b")]))
    tar[124:136] = b"\xff" + (2**88 - 1024).to_bytes(11, "big")
    tar[148:156] = b"%06o\0 " % (sum(tar[:148]) + 8 * 32 + sum(tar[156:512]))
    listing = listed(tmp_path, bytes(tar))
    assert "leads backwards" in reasons(listing)[""]


def test_a_header_may_not_claim_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tar = tar_bytes([("a.mp4", b"a"), (f"{'n' * 4000}.mp4", b"b"), ("c.mp4", b"c")], tarfile.GNU_FORMAT)
    assert len(listed(tmp_path, tar).members) == 3
    monkeypatch.setattr(module, "MAX_HEADER_BYTES", 2048)
    listing = listed(tmp_path, tar)
    assert list(listing.members) == ["a.mp4"]
    assert "a header of" in reasons(listing)[""]


@pytest.mark.parametrize("format_name", FORMATS)
@given(changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=12))
def test_damage_anywhere_ends_in_a_listing(
    format_name: str, tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[float, int]]
) -> None:
    tar = bytearray(tar_bytes([*THREE, ("n" * 99 + "/\u00e9.mp4", b"n")], FORMATS[format_name]))
    for place, value in changes:
        tar[int(place * len(tar))] = value
    for header in range(0, len(tar), 512):  # sums that agree let the damage further in
        if any(header <= int(place * len(tar)) < header + 512 for place, _ in changes):
            block = tar[header : header + 512]
            tar[header + 148 : header + 156] = b"%06o\0 " % (sum(block) - sum(block[148:156]) + 8 * 32)
    listing = listed(tmp_path_factory.mktemp("tar"), bytes(tar))
    for member in listing.members.values():
        assert 0 <= member.offset <= member.offset + member.num_bytes <= len(tar)


def test_a_tar_that_cannot_be_read(tmp_path: Path) -> None:
    listing = list_tar(Corpus(tmp_path), "gone.tar", File(10, ""))
    assert reasons(listing) == {"": "it cannot be read: No such file or directory"}
