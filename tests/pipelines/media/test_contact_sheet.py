"""Every frame of a sheet is at its place, its text below it, and nothing overlaps."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipelines.media import contact_sheet as module
from pipelines.media.contact_sheet import (
    CAPTION_LINES,
    LINE,
    PAPER,
    TEXT,
    Grid,
    Strip,
    _lettering,
    _wrapped,
    contact_sheet,
    evenly,
    sheet_grid,
    side_by_side,
    video_strip,
    zoom,
)
from tests.pipelines.media.test_video import moving

NOTES = ("1.0 - 2.0 s of 5.0 s", "short-00000008")


def tile(sheet: Image.Image, grid: Grid, cell: int, frame: int) -> np.ndarray:
    return np.asarray(sheet.crop(grid.box(cell, frame)))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (16, 40), (130, 100), (192, 108)])
def test_tiles_are_the_frames_at_their_places(height: int, width: int) -> None:
    rng = np.random.default_rng(0)
    strips = [Strip(rng.integers(0, 256, (3, height, width, 3), np.uint8), "a", NOTES) for _ in range(5)]
    grid, sheet = sheet_grid(5, 3, height, width, lines=3), contact_sheet("SHORT", strips)
    up, down = zoom(height, width)
    assert down == 1
    for cell, strip in enumerate(strips):
        for number, frame in enumerate(strip.frames):
            np.testing.assert_array_equal(tile(sheet, grid, cell, number), frame.repeat(up, 0).repeat(up, 1))


def test_large_frames_are_averaged() -> None:
    frame = np.zeros((480, 832, 3), np.uint8)
    frame[::2] = 200
    grid, sheet = (
        sheet_grid(1, 3, 480, 832, lines=1),
        contact_sheet("LONG", [Strip(np.stack([frame] * 3), "")]),
    )
    assert grid.width <= 192
    middle = tile(sheet, grid, 0, 1)[10:-10]
    assert abs(int(middle.min()) - 100) <= 21
    assert abs(float(middle.mean()) - 100) < 10


def test_each_frame_keeps_its_aspect() -> None:
    shapes = [(32, 48), (48, 32)]
    strips = [Strip(np.full((3, *shape, 3), 7, np.uint8), "") for shape in shapes]
    sheet, grid, (up, _) = contact_sheet("", strips), sheet_grid(2, 3, 48, 48, lines=1), zoom(48, 48)
    assert sheet.size == grid.size[::-1]
    for cell, (height, width) in enumerate(shapes):
        own = (tile(sheet, grid, cell, 0) == 7).all(axis=-1)
        assert own[: height * up, : width * up].all()
        assert own.sum() == height * width * up * up


@given(cells=st.integers(1, 40), height=st.integers(8, 900), width=st.integers(8, 900))
def test_nothing_on_a_sheet_overlaps_or_leaves_it(cells: int, height: int, width: int) -> None:
    grid = sheet_grid(cells, 3, height, width, lines=4)
    covered = np.zeros(grid.size, np.int8)
    cell_height, cell_width = grid.cell
    for cell in range(cells):
        left, top = grid.corner(cell)
        assert top + cell_height <= grid.size[0]
        assert left + cell_width <= grid.size[1]
        covered[top : top + cell_height, left : left + cell_width] += 1
        first, last = grid.box(cell, 0), grid.box(cell, 2)
        assert first[:2] == (left, top)
        assert last[2] == left + cell_width
        assert last[3] < top + cell_height
    assert covered.max() == 1


def test_text_stays_below_its_own_strip() -> None:
    frames = np.zeros((3, 64, 64, 3), np.uint8)
    strips = [Strip(frames, "very " * 500 + "long\x1b[31m", NOTES), Strip(frames, "", NOTES)]
    grid, sheet = sheet_grid(2, 3, 64, 64, lines=4), np.asarray(contact_sheet("", strips))
    left, top = grid.corner(0)
    gap = sheet[top : top + grid.cell[0], left + grid.cell[1] : grid.corner(1)[0]]
    assert len(np.unique(gap.reshape(-1, 3), axis=0)) == 1
    under = sheet[top + grid.height + 4 : top + grid.cell[0], left : left + grid.cell[1]]
    assert under.max() > 200


@pytest.mark.parametrize(
    "caption",
    [
        "a golden retriever runs along a beach " * 20,
        "x" * 5000,
        "\u732b\u304c\u8d70\u308b\u3002" * 80,
        "https://example.org/" + "path/" * 200,
    ],
)
@pytest.mark.parametrize("strips", [1, 4])
def test_a_long_caption_makes_no_margin(caption: str, strips: int) -> None:
    frames = np.full((9, 32, 32, 3), 200, np.uint8)
    sheet = np.asarray(contact_sheet("samples", [Strip(frames, caption, NOTES[:1])] * strips))
    short = np.asarray(contact_sheet("samples", [Strip(frames, "short", NOTES[:1])] * strips))
    assert sheet.shape[1] == short.shape[1]
    assert sheet.shape[0] <= short.shape[0] + strips * LINE
    assert (sheet == PAPER).all(-1).mean() < 0.5


@pytest.mark.parametrize(
    ("caption", "lines"),
    [
        ("", [""]),
        ("two  words\nof one line", ["two words of one line"]),
        ("a word " * 9, ["a word a word a word a word", "a word a word a word a wor..."]),
        ("x" * 99, ["x" * 26, "x" * 24 + "..."]),
        ("\u00e9" * 40, ["\u00e9" * 25, "\u00e9" * 15]),
    ],
)
def test_a_caption_is_broken_at_spaces_where_it_has_them(caption: str, lines: list[str]) -> None:
    assert _wrapped(_lettering(caption, TEXT), room=200) == lines


@given(caption=st.text(max_size=300), room=st.integers(60, 700))
def test_no_line_leaves_its_room_and_no_letter_is_lost_before_the_dots(caption: str, room: int) -> None:
    lettering = _lettering(caption, TEXT)
    lines = _wrapped(lettering, room)
    assert len(lines) <= CAPTION_LINES
    assert all(lettering.font.getlength(line) <= room for line in lines)
    shown = "".join(lines).replace(" ", "")
    assert lettering.text.replace(" ", "").startswith(shown.removesuffix("..."))


def test_letters_are_drawn_by_a_font_of_the_machine_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    other = str(Path(mpl.get_data_path(), "fonts", "ttf", "STIXGeneral.ttf"))
    monkeypatch.setattr(module, "_system_fonts", lambda: (other, "/no/such/font.ttf"))
    lettering = _lettering("turned \u1d81", TEXT)
    assert (lettering.text, lettering.font.path, lettering.whole) == ("turned \u1d81", other, True)
    assert _lettering("\u00e9t\u00e9", TEXT).font.path == module._FONT


def test_letters_that_no_font_has_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_system_fonts", tuple)
    lettering = _lettering("cat \u732b, \u0928\u092e", TEXT)
    assert (lettering.text, lettering.whole) == ("cat ?, ??", False)
    frames, titles = np.zeros((1, 200, 900, 3), np.uint8), list[str]()
    monkeypatch.setattr(module, "_fit", lambda line, _room: titles.append(line.text) or line.text)
    contact_sheet("SHORT", [Strip(frames, "\u732b")])
    contact_sheet("SHORT", [Strip(frames, "what?")])
    assert [text for text in titles if "SHORT" in text] == [
        "SHORT (?: a letter that no font of this machine has)",
        "SHORT",
    ]


def test_a_video_strip_runs_from_the_first_to_the_last_frame() -> None:
    frames = moving(11)
    strip = video_strip({place: frames[place] for place in evenly(11, 3)}, "a blob")
    np.testing.assert_array_equal(strip.frames, frames[[0, 5, 10]])
    assert strip.notes == ("frames 0, 5, 10",)
    assert evenly(0, 0) == []


@pytest.mark.parametrize(("count", "shape"), [(1, (62, 64, 3)), (6, (124, 320, 3))])
def test_videos_side_by_side_have_labels_above(count: int, shape: tuple[int, ...]) -> None:
    frames = {f"s{i}": np.full((48, 64, 3), 30 * i, np.uint8) for i in range(count)}
    made = side_by_side(frames)
    assert made.shape == shape
    assert made[:14, :64].max() > 150
    for i in range(count):
        left, top = i % 5 * 64, i // 5 * 62
        assert (made[top + 14 : top + 62, left : left + 64] == 30 * i).all()


def test_odd_sides_are_cropped() -> None:
    assert side_by_side({"a": np.zeros((33, 31, 3), np.uint8)}).shape == (46, 30, 3)
