"""Every frame of a sheet is at its place, its text below it, and nothing overlaps."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipelines.media.contact_sheet import (
    Grid,
    Strip,
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


def test_a_video_strip_runs_from_the_first_to_the_last_frame() -> None:
    frames = moving(11)
    strip = video_strip(frames, "a blob", 3)
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
