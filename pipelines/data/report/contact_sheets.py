"""Contact sheets: first, middle and last frame of windows, decoded from latents, with what they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from models.autoencoders.kinds import Autoencoder
from pipelines.data.report.inspection import Tables, kept, of_corpus
from pipelines.data.store.dataset import ShardDataset
from pipelines.data.tables import sort
from pipelines.data.types import CorpusName
from pipelines.media.video import FAINT, INK, PAPER
from pipelines.storage import Storage

Frames = NDArray[np.uint8]
Box = tuple[int, int, int, int]

SHOWN = 12
"""Windows of a sheet."""
FRAMES = 3
"""Of each window: first, middle, last."""
CONTEXT = 2
"""Latents before a frame that a causal autoencoder decodes it with."""
SMALL, LARGE = 128, 192
"""Frames smaller than the one are enlarged, those larger than the other reduced, by whole numbers."""
SHEET_WIDTH = 1320
"""Pixels that a sheet is filled up to with windows side by side."""
CAPTION_LINES = 2
TEXT, LITTLE, LINE = 13, 11, 17
"""Pixels: of captions, of what is beside them, and from one line to the next."""
LONGEST = 400
"""Letters of a text that are looked at."""
GAP, MARGIN, HEAD = 2, 20, 44
"""Pixels: between frames, around windows, and of the heading."""

_FONT = Path(mpl.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")


class Shown(NamedTuple):
    """A window on a sheet."""

    window_id: str
    caption: str
    source: str
    begin: float
    """Seconds into its video."""
    end: float
    video_seconds: float
    frames: Frames
    """[FRAMES, H, W, 3]"""

    @property
    def span(self) -> str:
        """Its place in its video."""
        return f"{self.begin:.1f} - {self.end:.1f} s of {self.video_seconds:.1f} s"


@dataclass(frozen=True)
class Layout:
    """Where everything of a sheet lies.

    Args:
        windows: how many.
        height: of a frame, pixels.
        width: of a frame, pixels.
    """

    windows: int
    height: int
    width: int

    @property
    def enlarged(self) -> int:
        """Times that a frame is enlarged; 1 where it is not."""
        return max(1, SMALL // max(self.height, self.width))

    @property
    def reduced(self) -> int:
        """Times that a frame is reduced; 1 where it is not."""
        return -(-max(self.height, self.width) // LARGE)

    @cached_property
    def tile(self) -> tuple[int, int]:
        """Height and width of a frame on the sheet."""
        up, down = self.enlarged, self.reduced
        return -(-self.height * up // down), -(-self.width * up // down)

    @property
    def cell(self) -> tuple[int, int]:
        """Height and width of a window with its text."""
        height, width = self.tile
        return height + 8 + (CAPTION_LINES + 2) * LINE, FRAMES * width + (FRAMES - 1) * GAP

    @property
    def columns(self) -> int:
        """Windows side by side."""
        room = (SHEET_WIDTH - MARGIN) // (self.cell[1] + MARGIN)
        return max(1, min(self.windows, room))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the sheet."""
        height, width = self.cell
        rows = -(-self.windows // self.columns)
        return HEAD + rows * (height + MARGIN), MARGIN + self.columns * (width + MARGIN)

    def corner(self, window: int) -> tuple[int, int]:
        """Top and left of a window."""
        height, width = self.cell
        row, column = divmod(window, self.columns)
        return HEAD + row * (height + MARGIN), MARGIN + column * (width + MARGIN)

    def box(self, window: int, frame: int) -> Box:
        """Left, top, right and bottom of a frame."""
        top, left = self.corner(window)
        height, width = self.tile
        left += frame * (width + GAP)
        return left, top, left + width, top + height


def shown_windows(
    dataset: str | Storage, tables: Tables, corpus: CorpusName, autoencoder: Autoencoder
) -> list[Shown]:
    """A spread of a corpus' windows, decoded.

    Raises:
        DataError: a shard is missing or damaged.
    """
    manifest, index = of_corpus(tables, corpus)
    windows = kept(index)
    split = "train" if pc.any(pc.equal(windows["split"], "train")).as_py() else "holdout"
    rows = spread(windows.filter(pc.equal(windows["split"], split)), SHOWN)
    if not rows:
        return []
    shards = ShardDataset(dataset, corpus, "train" if split == "train" else "holdout")
    places = {window_id: place for place, window_id in enumerate(shards.ids)}
    lengths = _lengths(manifest)
    found = []
    for row in rows:
        latents = shards.read([places[row["window_id"]]]).latents
        found.append(_shown(row, *lengths[row["source_id"]], thirds(latents, autoencoder)))
    return found


def spread(windows: pa.Table, count: int) -> list[dict[str, Any]]:
    """Up to `count` rows of an index: of as many videos as can be, evenly along each of them."""
    order = sort(windows, "source", "start_frame")
    sources = np.asarray(order["source"].to_pylist(), dtype=object)
    names = list(dict.fromkeys(sources.tolist()))
    chosen = [names[i] for i in _evenly(len(names), min(count, len(names)))]
    shares = [count // len(chosen) + (place < count % len(chosen)) for place in range(len(chosen))]
    rows = [
        place
        for name, share in zip(chosen, shares, strict=True)
        for place in _of_video(np.flatnonzero(sources == name), share)
    ]
    picked: list[dict[str, Any]] = order.take(pa.array(rows, pa.int64())).to_pylist()
    return picked


def _of_video(places: NDArray[np.intp], count: int) -> list[int]:
    """The middles of equal parts of a video's windows."""
    parts = min(count, len(places))
    return [int(places[(2 * part + 1) * len(places) // (2 * parts)]) for part in range(parts)]


def _evenly(size: int, count: int) -> list[int]:
    """`count` numbers below `size`, both ends among them."""
    return [int(i) for i in np.linspace(0, size - 1, count).round()]


def _lengths(manifest: pa.Table) -> dict[str, tuple[float, int]]:
    """Seconds and frames of each video by its id."""
    columns = (manifest[name].to_pylist() for name in ("source_id", "seconds", "num_frames"))
    return {source: (seconds, frames) for source, seconds, frames in zip(*columns, strict=True)}


def thirds(latents: Tensor, autoencoder: Autoencoder) -> Frames:
    """First, middle and last frame [3, H, W, 3] of a window's latents [1, T, C, h, w].

    No more is decoded than they need: of a causal autoencoder CONTEXT latents before each, not all of them.
    """
    last = (latents.shape[1] - 1) * autoencoder.temporal_factor
    return np.stack([_frame(latents, place, autoencoder) for place in (0, last // 2, last)])


def _frame(latents: Tensor, place: int, autoencoder: Autoencoder) -> Frames:
    factor = autoencoder.temporal_factor
    at = -(-place // factor)
    start = at if factor == 1 else max(0, at - CONTEXT)
    frame: Frames = autoencoder.decode(latents[:, start : at + 1])[0, place - start * factor].numpy()
    return frame


def _shown(row: dict[str, Any], seconds: float, num_frames: int, frames: Frames) -> Shown:
    second = seconds / num_frames
    return Shown(
        window_id=row["window_id"],
        caption=row["caption"],
        source=row["source"],
        begin=row["start_frame"] * second,
        end=(row["start_frame"] + row["num_frames"]) * second,
        video_seconds=seconds,
        frames=frames,
    )


def contact_sheet(title: str, windows: Sequence[Shown]) -> Image.Image:
    """The windows in a grid, each over its caption, time span and id; Layout says where.

    Args:
        title: heading.
        windows: at least one; of frames of several sizes, each has the room of the largest height and width.
    """
    heights, widths = zip(*(window.frames.shape[1:3] for window in windows), strict=True)
    layout = Layout(len(windows), max(heights), max(widths))
    height, width = layout.size
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    heading = _fit(title, _font(TEXT + 2), width - 2 * MARGIN)
    draw.text((MARGIN, HEAD // 2), heading, INK, _font(TEXT + 2), anchor="lm")
    for place, window in enumerate(windows):
        for number, frame in enumerate(window.frames):
            sheet.paste(_scaled(frame, layout), layout.box(place, number)[:2])
        _write(draw, layout, place, window)
    return sheet


def _scaled(frame: Frames, layout: Layout) -> Image.Image:
    """Enlarged by repeating pixels, or reduced by averaging them."""
    picture = Image.fromarray(frame)
    if layout.enlarged > 1:
        up = layout.enlarged
        return picture.resize((picture.width * up, picture.height * up), Image.Resampling.NEAREST)
    return picture.reduce(layout.reduced)


def _write(draw: ImageDraw.ImageDraw, layout: Layout, place: int, window: Shown) -> None:
    top, left = layout.corner(place)
    y, room = top + layout.tile[0] + 6, layout.cell[1]
    for line in _wrapped(window.caption, _font(TEXT), room):
        draw.text((left, y), line, INK, _font(TEXT))
        y += LINE
    for line in (window.span, window.window_id):
        draw.text((left, y), _fit(line, _font(LITTLE), room), FAINT, _font(LITTLE))
        y += LINE


def _font(size: int) -> ImageFont.FreeTypeFont:
    """Matplotlib's own font, which has more of the world's letters than Pillow's."""
    return ImageFont.truetype(str(_FONT), size)


def _wrapped(text: str, font: ImageFont.FreeTypeFont, room: int) -> list[str]:
    """CAPTION_LINES lines at most; what does not fit ends in dots."""
    words, lines = text[:LONGEST].split(), [""]
    for number, word in enumerate(words):
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= room or not lines[-1]:
            lines[-1] = longer
        elif len(lines) < CAPTION_LINES:
            lines.append(word)
        else:
            lines[-1] = " ".join([lines[-1], *words[number:]])
            break
    return [_fit(line, font, room) for line in lines]


def _fit(text: str, font: ImageFont.FreeTypeFont, room: int) -> str:
    """As much of a line as there is room for, without what no font shows."""
    text = "".join(letter if letter.isprintable() else " " for letter in text[:LONGEST])
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(f"{text}...") > room:
        text = text[:-1]
    return f"{text.rstrip()}..."
