"""The README's pictures, from finished runs; written to docs/pictures/.

python benchmarks/readme_pictures.py strip runs/quickstart     strip.gif: teacher | long-SFT | MMM
python benchmarks/readme_pictures.py minute runs/minute        minute.gif: three minutes, 8 times as fast
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipelines.media.video import read_mp4, write_gif

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
PANELS = (
    ("teacher_rollout", "teacher, window by window"),
    ("sft_50", "long-SFT, 50 steps"),
    ("mmm_4", "MMM, 4 steps"),
)
SIZE, GAP, FOOT = 256, 16, 68
EVERY = 3


def strip(run: Path) -> None:
    """The same caption by three systems, each with its window FD below."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    clips = [read_mp4(run / f"seed-0/evaluation/clips/{name}/000.mp4") for name, _ in PANELS]
    large, small = (ImageFont.load_default(points) for points in (22, 18))
    frames = []
    for pictures in zip(*clips, strict=True):
        sheet = Image.new("RGB", (3 * SIZE + 2 * GAP, SIZE + FOOT), "white")
        draw = ImageDraw.Draw(sheet)
        for place, (picture, (name, label)) in enumerate(zip(pictures, PANELS, strict=True)):
            left, middle = place * (SIZE + GAP), place * (SIZE + GAP) + SIZE // 2
            sheet.paste(Image.fromarray(picture).resize((SIZE, SIZE), Image.Resampling.BICUBIC), (left, 0))
            draw.text((middle, SIZE + 8), label, fill="#222222", font=small, anchor="ma")
            distance = np.mean(summary[name]["window_frechet"])
            draw.text(
                (middle, SIZE + 34), f"distance {distance:.0f}", fill="#222222", font=large, anchor="ma"
            )
        frames.append(np.asarray(sheet))
    write_gif(PICTURES / "strip.gif", iter(frames), 8.0)


def minute(run: Path) -> None:
    """Every third frame at 32/3 frames per second: eight times the speed of 4 frames per second."""
    videos = [read_mp4(path)[::EVERY] for path in sorted((run / "samples").glob("*.mp4"))[1:4]]
    write_gif(PICTURES / "minute.gif", iter(np.concatenate(videos, axis=2)), 32 / EVERY)


if __name__ == "__main__":
    {"strip": strip, "minute": minute}[sys.argv[1]](Path(sys.argv[2]))
