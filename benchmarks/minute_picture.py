"""Makes docs/pictures/minute.gif from `sostenuto sample --config minute --count 4`: three videos abreast.

python benchmarks/minute_picture.py runs/minute/samples
"""

import sys
from pathlib import Path

import numpy as np

from pipelines.media.video import read_mp4, write_gif

EVERY = 3
FPS = 32 / EVERY


def main(folder: str) -> None:
    """Every third frame at 32/3 frames a second: eight times the speed of 4 frames a second."""
    videos = [read_mp4(path)[::EVERY] for path in sorted(Path(folder).glob("*.mp4"))[1:4]]
    target = Path(__file__).parents[1] / "docs/pictures/minute.gif"
    write_gif(target, iter(np.concatenate(videos, axis=2)), FPS)


if __name__ == "__main__":
    main(sys.argv[1])
