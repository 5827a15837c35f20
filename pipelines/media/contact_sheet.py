"""The one grid of labelled frames: sheets of previews, samples and datasets, and side-by-side videos."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.font_manager import findSystemFonts
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from pipelines.media.color import Frames

PAPER, INK, FAINT = (17, 18, 24), (232, 232, 240), (140, 142, 156)
SMALL, LARGE = 128, 192
"""Frames smaller than the one are enlarged, those larger than the other reduced, by whole numbers."""
SHEET_WIDTH = 1320
"""Pixels; strips stand side by side up to this width."""
CAPTION_LINES = 2
TEXT, LITTLE, LINE = 13, 11, 17
"""Pixels: letters of captions, letters of notes, and from one line to the next."""
LONGEST = 400
"""Letters of a text, at most."""
LABEL = 14
"""Pixels of the label above a frame of a side-by-side video."""
ABREAST = 5
"""Videos side by side in one row."""

MISSING = "?"
"""Stands for a letter that the font lacks; the title of the sheet says so."""

_FONT = str(Path(mpl.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))
"""Matplotlib's own font, which has more of the world's letters than Pillow's."""


class Strip(NamedTuple):
    """Frames of one video, and what is written below them."""

    frames: Frames
    """[n, H, W, 3]"""
    caption: str
    notes: Sequence[str] = ()
    """Lines below the caption."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A sheet of equal cells, each a strip of frames with text; lengths in pixels."""

    cells: int
    frames: int
    """Per strip."""
    height: int
    """Of a frame as drawn."""
    width: int
    """Of a frame as drawn."""
    columns: int
    """Cells side by side."""
    above: int = 0
    """Room for text above a strip."""
    below: int = 0
    """Room for text below it."""
    gap: int = 0
    """Between the frames of a strip."""
    margin: int = 0
    """Around cells."""
    heading: int = 0

    @property
    def cell(self) -> tuple[int, int]:
        """Height and width of a strip with its text."""
        return self.above + self.height + self.below, self.frames * (self.width + self.gap) - self.gap

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the sheet."""
        height, width = self.cell
        height, width = height + self.margin, width + self.margin
        return self.heading + -(-self.cells // self.columns) * height, self.margin + self.columns * width

    def corner(self, cell: int) -> tuple[int, int]:
        """Left and top of a cell."""
        height, width = self.cell
        row, column = divmod(cell, self.columns)
        return self.margin + column * (width + self.margin), self.heading + row * (height + self.margin)

    def box(self, cell: int, frame: int) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of a frame."""
        left, top = self.corner(cell)
        left, top = left + frame * (self.width + self.gap), top + self.above
        return left, top, left + self.width, top + self.height


def zoom(height: int, width: int) -> tuple[int, int]:
    """Factors by which the frames of a sheet are enlarged and reduced; one of them is 1."""
    longer = max(height, width)
    return max(1, SMALL // longer), -(-longer // LARGE)


def sheet_grid(strips: int, frames: int, height: int, width: int, lines: int) -> Grid:
    """The grid of a contact sheet.

    Args:
        strips: how many.
        frames: per strip.
        height, width: of the frames before they are enlarged or reduced.
        lines: of text below each strip.
    """
    up, down = zoom(height, width)
    height, width = -(-height * up // down), -(-width * up // down)
    gap, margin = 2, 20
    room = (SHEET_WIDTH - margin) // (frames * (width + gap) - gap + margin)
    return Grid(
        cells=strips,
        frames=frames,
        height=height,
        width=width,
        columns=max(1, min(strips, room)),
        below=8 + lines * LINE,
        gap=gap,
        margin=margin,
        heading=44,
    )


def contact_sheet(title: str, strips: Sequence[Strip]) -> Image.Image:
    """Strips in a grid, each over its caption and notes.

    Small frames are enlarged by repeating pixels, large ones reduced by averaging. Every frame has the room
    of the largest height and width.
    """
    heights, widths = zip(*(strip.frames.shape[1:3] for strip in strips), strict=True)
    up, down = zoom(max(heights), max(widths))
    longest, notes = max(len(strip.frames) for strip in strips), max(len(strip.notes) for strip in strips)
    grid = sheet_grid(len(strips), longest, max(heights), max(widths), notes)
    room = grid.cell[1]
    captions = [_lettering(strip.caption, TEXT) for strip in strips]
    lines = [_wrapped(caption, room) for caption in captions]
    grid = replace(grid, below=grid.below + max(map(len, lines)) * LINE)
    sheet = Image.new("RGB", grid.size[::-1], PAPER)
    draw = ImageDraw.Draw(sheet)
    if not all(caption.whole for caption in captions):
        title += f"  ({MISSING}: a letter that no font of this machine has)"
    head = _lettering(title, TEXT + 2)
    heading = _fit(head, sheet.width - 2 * grid.margin)
    draw.text((grid.margin, grid.heading // 2), heading, INK, head.font, anchor="lm")
    for cell, strip in enumerate(strips):
        for number, frame in enumerate(strip.frames):
            picture = Image.fromarray(frame)
            size = picture.width * up, picture.height * up
            picture = picture.resize(size, Image.Resampling.NEAREST) if up > 1 else picture.reduce(down)
            sheet.paste(picture, grid.box(cell, number)[:2])
        left, _, _, bottom = grid.box(cell, 0)
        y = bottom + 6
        for line in lines[cell]:
            draw.text((left, y), line, INK, captions[cell].font)
            y += LINE
        for note in strip.notes:
            little = _lettering(note, LITTLE)
            draw.text((left, y), _fit(little, room), FAINT, little.font)
            y += LINE
    return sheet


def evenly(count: int, picks: int) -> list[int]:
    """`picks` indices below `count`, evenly from the first to the last."""
    return [int(index) for index in np.linspace(0, count - 1, picks).round()]


def video_strip(frames: Mapping[int, Frames], caption: str) -> Strip:
    """A strip of frames [H, W, 3], by their places in a video."""
    return Strip(np.stack(list(frames.values())), caption, (f"frames {', '.join(map(str, frames))}",))


def side_by_side(frames: Mapping[str, Frames]) -> Frames:
    """Frames [H, W, 3] of one size in a grid, each under its label; the sides are cropped to even ones."""
    height, width = next(iter(frames.values())).shape[:2]
    columns = min(ABREAST, len(frames))
    grid = Grid(cells=len(frames), frames=1, height=height, width=width, columns=columns, above=LABEL)
    canvas = Image.new("RGB", grid.size[::-1], (24, 24, 28))
    draw = ImageDraw.Draw(canvas)
    for cell, (label, frame) in enumerate(frames.items()):
        left, top = grid.corner(cell)
        draw.text((left + 3, top + 1), label, fill=(235, 235, 235))
        canvas.paste(Image.fromarray(frame), grid.box(cell, 0)[:2])
    return np.asarray(canvas.crop((0, 0, canvas.width // 2 * 2, canvas.height // 2 * 2)))


class _Lettering(NamedTuple):
    text: str
    font: ImageFont.FreeTypeFont
    whole: bool
    """Whether the font has every letter of it."""

    def fitting(self, room: int) -> int:
        """How many letters fit into a line."""
        counts = range(1, len(self.text) + 1)
        return bisect_right(counts, float(room), key=lambda count: self.font.getlength(self.text[:count]))


def _lettering(text: str, size: int) -> _Lettering:
    """A text on one line in a font with its letters: Matplotlib's, or this machine's with most of them."""
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    wanted, path = {ord(letter) for letter in text}, _FONT
    if wanted - _letters(path):
        path = max((path, *_system_fonts()), key=lambda path: len(wanted & _letters(path)))
    lacking = wanted - _letters(path)
    text = text.translate(dict.fromkeys(lacking, MISSING))
    return _Lettering(text, ImageFont.truetype(path, size), not lacking)


@cache
def _letters(path: str) -> frozenset[int]:
    """Code points that a font draws at any size."""
    try:
        font = FT2Font(path)
    except (OSError, RuntimeError):
        return frozenset()
    return frozenset(font.get_charmap()) if font.scalable else frozenset()


@cache
def _system_fonts() -> tuple[str, ...]:
    """Paths of this machine's fonts, without the one that draws a box for everything."""
    return tuple(sorted(path for path in findSystemFonts() if "LastResort" not in path))


def _wrapped(caption: _Lettering, room: int) -> list[str]:
    """CAPTION_LINES lines at most, broken at spaces where a line has one; what does not fit ends in dots."""
    lines: list[str] = []
    while len(lines) < CAPTION_LINES - 1 and (end := caption.fitting(room)) < len(caption.text):
        space = caption.text.rfind(" ", 0, end + 1)
        end = space if space > 0 else max(1, end)
        lines.append(caption.text[:end])
        caption = caption._replace(text=caption.text[end:].lstrip())
    return [*lines, _fit(caption, room)]


def _fit(line: _Lettering, room: int) -> str:
    """As much of a line as there is room for."""
    if line.fitting(room) == len(line.text):
        return line.text
    dots = int(line.font.getlength("..."))
    return f"{line.text[: line.fitting(room - dots)].rstrip()}..."
